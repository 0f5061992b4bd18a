//! Every bound in the system, in one place, with the arithmetic that ties them together.

/// Workers of one node. One per core; 64 fits a bit mask and every router we know of.
pub const WORKERS_MAX: usize = 64;

/// Greatest number of a CPU that a worker can be pinned to: that of the kernel's `cpu_set_t` of 1024.
pub const CORE_MAX: u16 = 1023;

/// Lanes of one link: the worker count of the side that has more of them, so never more than that bound.
pub const LANES_PER_LINK_MAX: usize = 64;

/// Configured peers. Each costs a few hundred bytes per worker; the bound keeps a mistyped generator from asking for
/// gigabytes.
pub const PEERS_MAX: usize = 1024;

/// Routes of one peer, and of all peers together.
pub const ROUTES_PER_PEER_MAX: usize = 1024;
/// Routes of all peers together, built-in addresses not counted.
pub const ROUTES_MAX: usize = 65_536;
/// Routes that cover the way to a peer, 0.0.0.0/0 among them: each is two rules that the kernel looks at for every packet.
pub const DETOURS_MAX: usize = 32;
/// Addresses of peers that were found inside a route and are still to be kept out of it.
pub const COVERED_ADDRESSES_MAX: usize = 64;
/// Addresses, IPv6 ones by /64, whose connections are counted by the gate.
pub const GATE_ADDRESSES_MAX: usize = 4096;
/// Connections over one transport that one address may begin at once: a mesh behind one NAT that starts as one. What
/// this and the rate allow during a handshake's time limit, over both transports, leaves room among
/// [`PENDING_INBOUND_CONNECTIONS_MAX`] for others.
pub const CONNECTIONS_PER_ADDRESS_BURST: u32 = 128;
/// And per second after that.
pub const CONNECTIONS_PER_ADDRESS_PER_SECOND: u32 = 12;
/// Connections that one configured peer may set up at once, and per second after that.
pub const CONNECTIONS_PER_PEER_BURST: u32 = 32;
/// See [`CONNECTIONS_PER_PEER_BURST`].
pub const CONNECTIONS_PER_PEER_PER_SECOND: u32 = 2;
/// Offers that one peer may send at once: each lane that ends and each address that changes is one.
pub const OFFERS_PER_PEER_BURST: u32 = 64;
/// And per second after that.
pub const OFFERS_PER_PEER_PER_SECOND: u32 = 4;
/// Inbound streams that one peer may open at once, of all protocols together: each connection to a service is one, and
/// the first releases of Hyprspace open one for each packet.
pub const STREAMS_PER_PEER_BURST: u32 = 4096;
/// And per second after that.
pub const STREAMS_PER_PEER_PER_SECOND: u32 = 1024;

/// Static addresses of one peer in the configuration.
pub const ADDRESSES_PER_PEER_MAX: usize = 32;

/// Entries of a bootstrap list: every configured peer may have as many as it may have addresses, within reason.
pub const BOOTSTRAP_PEERS_MAX: usize = 4 * PEERS_MAX;
/// Of those, entries that belong to no configured peer: three times the public list.
pub const BOOTSTRAP_CONTACTS_MAX: usize = 64;
/// Bootstrap contacts that are dialled at once, and that are enough.
pub const BOOTSTRAP_CONTACTS_ENOUGH: usize = 2;

/// Delegated routers that can be configured.
pub const DELEGATED_ROUTERS_MAX: usize = 8;
/// Bytes of a delegated router's answer that are read; Hyprspace's bound.
pub const ROUTING_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes of `control.proxy`.
pub const PROXY_URL_BYTES_MAX: usize = 1024;
/// Bytes of the user name in it, and of the password.
pub const PROXY_CREDENTIAL_BYTES_MAX: usize = 255;
/// Bytes of an HTTP proxy's answer, up to the empty line that ends it; what most servers take.
pub const PROXY_ANSWER_BYTES_MAX: usize = 8192;
/// Bytes of one WebSocket message that is read: more than any libp2p implementation writes at once, as none writes more
/// than a few frames of 64 KiB together.
pub const WEBSOCKET_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one WebSocket message that is written.
pub const WEBSOCKET_WRITE_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(WEBSOCKET_WRITE_BYTES_MAX <= WEBSOCKET_MESSAGE_BYTES_MAX);
/// Networks of this host that `control.scope = "lan"` allows: as many as a router may have interfaces, twice over.
pub const LAN_NETWORKS_MAX: usize = 256;
/// Addresses that are taken from one answer of a router.
pub const ROUTING_ADDRESSES_MAX: usize = 64;
/// Requests to routers that are under way at once.
pub const ROUTING_REQUESTS_MAX: usize = 64;

/// Peers that are looked for in the DHT and with routers at once. Each search asks up to 3 nodes at a time.
pub const SEARCHES_MAX: usize = 8;
/// Connections to DHT nodes that are no peers, those being dialled included: eight searches' worth, and some that idle.
pub const DHT_CONTACTS_MAX: usize = 64;
/// Text records that one `/dnsaddr` may lead to; the public one has six, each with six behind it.
pub const DNSADDR_LOOKUPS_MAX: usize = 16;

/// Bytes of a configuration file we are willing to read.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// Problems of one configuration that are reported one by one; the rest is counted.
pub const CONFIG_PROBLEMS_MAX: usize = 64;

/// Bytes of a peer's name in the configuration.
pub const PEER_NAME_BYTES_MAX: usize = 255;

/// Bytes of a peer id: that of an Ed25519 key has 38 and is the longest in use, as of larger keys it is a hash.
pub const PEER_ID_BYTES_MAX: usize = 64;

/// Bytes of a peer id or multiaddress as text: base 58 is decoded in quadratic time, so its input must be short.
pub const ADDRESS_TEXT_BYTES_MAX: usize = 1024;

/// Bytes of an interface name: the kernel's `IFNAMSIZ` less its terminating zero.
pub const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Bytes of a key file we are willing to read: an Ed25519 key takes 136 in base16, the longest usual encoding.
pub const KEY_FILE_BYTES_MAX: usize = 4096;

/// Addresses the peer cache keeps of one peer; the one not seen for the longest time goes first.
pub const PEER_CACHE_ADDRESSES_MAX: usize = 16;

/// Bytes of a peer cache file we are willing to read: every entry at 256 bytes, twice what an address needs.
pub const PEER_CACHE_BYTES_MAX: usize = PEERS_MAX * PEER_CACHE_ADDRESSES_MAX * 256;

/// Greatest value of a 24-bit lane id.
pub const LANE_ID_MAX: u32 = (1 << 24) - 1;

/// First byte, lane id and counter of a record; all of it is authenticated, none of it is sealed.
pub const RECORD_HEADER_BYTES: usize = 12;
/// The AEAD tag that ends a record; the same for all suites.
pub const RECORD_TAG_BYTES: usize = 16;
/// Header and tag.
pub const RECORD_OVERHEAD_BYTES: usize = RECORD_HEADER_BYTES + RECORD_TAG_BYTES;

/// Header of the only or last packet or segment frame of a record: kind and flags.
pub const FRAME_HEADER_BYTES_MIN: usize = 1;
/// Header of one that others follow: as above and a 16-bit length.
pub const FRAME_HEADER_BYTES_MAX: usize = FRAME_HEADER_BYTES_MIN + 2;
/// What a record has room for besides a whole inner packet: the longest header that any frame which ends a record may
/// have, so that a later version can say more of a packet without lowering anybody's MTU.
pub const FRAME_HEADER_ROOM_BYTES: usize = 4;

/// What a DATAGRAM frame costs of a UDP payload: a short header with an 8-byte connection id and a 4-byte packet number, the
/// AEAD tag, and 9 bytes kept for the frame's type and length.
pub const QUIC_OVERHEAD_BYTES: usize = 1 + 8 + 4 + RECORD_TAG_BYTES + 9;

/// Counters a lane may be behind the newest and still be accepted once.
pub const REPLAY_WINDOW: u64 = 8192;

/// Largest record in bytes that wears its key by 1: 2^7 AES blocks.
pub const LIGHT_RECORD_BYTES_MAX: usize = 2 << 10;
/// By how much a larger one wears it: enough for 2^11 AES blocks.
pub const HEAVY_RECORD_WEAR: u64 = 16;
/// How much one key may be worn before the lane must stop: 2^27 records of up to 2 KiB, or 2^23 larger ones.
///
/// Either makes at most 2^34 AES blocks, so that by the analysis in RFC 9001, appendix B.1 (2 (q l)^2 / 2^128 for q records
/// of l blocks) nobody tells records from noise with an advantage above 2^-59. The appendix allows 2^28 and 2^23 packets
/// for 2^-57. ChaCha20-Poly1305 would bear more; the limit is the same for all.
pub const RECORDS_PER_EPOCH_MAX: u64 = 1 << 27;
// A record of the largest MTU is no more than what a heavy one counts for.
const _: () = assert!(record_bytes_max(INNER_MTU_MAX) <= HEAVY_RECORD_WEAR as usize * LIGHT_RECORD_BYTES_MAX);

/// Epochs whose records can be opened at one time: the newest, the one before it that may still be sealed with, and two
/// of which only late records are on their way. Far fewer than there are tags.
pub const EPOCHS_LIVE_MAX: usize = 4;
const _: () = assert!(EPOCHS_LIVE_MAX <= 16 / 2);

/// Shortest life of a lane's keys that can be configured.
pub const REKEY_SECONDS_MIN: u16 = 1;
/// Longest life of a lane's keys that can be configured.
pub const REKEY_SECONDS_MAX: u16 = 3600;
/// How long a lane's keys live unless configured otherwise: as long as WireGuard's.
pub const REKEY_SECONDS_DEFAULT: u16 = 120;
/// Fewest records per epoch that can be configured: tests roll thousands of epochs with it.
pub const REKEY_RECORDS_MIN: u64 = 256;
/// Most records per epoch, and the default: half of those that a key may seal, so that the new keys have all the time
/// they need. Larger records count as [`HEAVY_RECORD_WEAR`].
pub const REKEY_RECORDS_MAX: u64 = RECORDS_PER_EPOCH_MAX / 2;

/// Rekeyings that a peer may begin at once on one lane, each a few Diffie-Hellman operations of ours: thousands of short
/// epochs are for tests.
pub const REKEYS_BURST_MAX: u32 = 2000;
/// And per second after that: 64 lanes of a peer that does nothing else keep a core busy for a third of its time.
pub const REKEYS_PER_SECOND_MAX: u32 = 50;
/// Rekeyings that we begin at once on one lane: a tenth less, as clocks differ and the network gathers messages.
pub const REKEYS_BEGUN_BURST: u32 = REKEYS_BURST_MAX / 10 * 9;
/// And per second after that.
pub const REKEYS_BEGUN_PER_SECOND: u32 = REKEYS_PER_SECOND_MAX / 10 * 9;

/// Shortest keep-alive interval that can be configured.
pub const KEEP_ALIVE_SECONDS_MIN: u16 = 1;
/// Longest keep-alive interval that can be configured.
pub const KEEP_ALIVE_SECONDS_MAX: u16 = 300;
/// Default keep-alive interval: translators forget UDP after 30 s at the earliest in practice (RFC 4787, section 4.3,
/// asks for 2 minutes), and a radio that sleeps is woken as rarely as that allows.
pub const KEEP_ALIVE_SECONDS_DEFAULT: u16 = 25;

/// Lowest rate that can be configured, in Mbit/s.
pub const RATE_MBIT_MIN: u32 = 1;
/// Highest rate that can be configured, in Mbit/s.
pub const RATE_MBIT_MAX: u32 = 400_000;

/// Smallest inner MTU: IPv6 needs 1280 (RFC 8200, section 5).
pub const INNER_MTU_MIN: u16 = 1280;
/// Largest inner MTU, and largest inner packet that is taken from a peer, whatever our own MTU is: a jumbo underlay of
/// 9000 less nothing; what does not fit a record travels in fragments.
pub const INNER_MTU_MAX: u16 = 9000;
/// Default inner MTU: with all headers it fills a 1500-byte IPv6 path exactly.
pub const INNER_MTU_DEFAULT: u16 = 1420;

/// IPv6 and UDP headers of the underlay.
pub const OUTER_HEADER_BYTES_MAX: usize = 40 + 8;

const _: () = assert!(
    INNER_MTU_DEFAULT as usize + FRAME_HEADER_ROOM_BYTES + RECORD_OVERHEAD_BYTES + OUTER_HEADER_BYTES_MAX == 1500
);

/// Largest record a lane sends for a given inner MTU: one whole inner packet with room for the longest
/// header of a last frame.
///
/// Records that several packets share are no longer than that, so whatever path carries one full packet carries all.
pub const fn record_bytes_max(inner_mtu: u16) -> usize {
    inner_mtu as usize + FRAME_HEADER_ROOM_BYTES + RECORD_OVERHEAD_BYTES
}

/// UDP payload of a jumbo frame of 9000 bytes over IPv4.
pub const JUMBO_DATAGRAM_BYTES: usize = 9000 - 20 - 8;

/// Largest UDP payload a lane sends or receives for a given inner MTU: one whole inner packet in a record, and never
/// less than a jumbo path carries, for several packets may share a record. What the two ends of a lane have in common,
/// they find out by asking.
pub const fn datagram_bytes_max(inner_mtu: u16) -> usize {
    let record = record_bytes_max(inner_mtu);
    if record > JUMBO_DATAGRAM_BYTES { record } else { JUMBO_DATAGRAM_BYTES }
}

/// Largest UDP payload that a lane's QUIC connection looks for on its path: more is of no use to it, as it fills no datagram
/// with several packets.
pub const fn quic_bytes_max(inner_mtu: u16) -> usize {
    let record = record_bytes_max(inner_mtu);
    if record > 1472 { record } else { 1472 }
}

/// Smallest size in bytes that the largest record of a path has: what QUIC asks of every path (RFC 9000, section 14).
pub const RECORD_BYTES_MIN: usize = 1200;

/// What a fragment frame says of its place, behind the frame header: packet (32) and offset (16).
pub const FRAGMENT_PLACE_BYTES: usize = 6;
/// Bytes of a packet that a sender begins a fragment with at least, unless it is the packet's last: less is not worth its
/// header, and receivers keep so many fragments of a packet apart and no more.
pub const FRAGMENT_BYTES_MIN: usize = 32;
/// Fragments of one packet.
pub const FRAGMENTS_PER_PACKET_MAX: usize = 16;
// The first one fills a record that others have begun, the others one each.
const _: () = assert!(
    FRAGMENT_BYTES_MIN
        + (FRAGMENTS_PER_PACKET_MAX - 1)
            * (RECORD_BYTES_MIN - RECORD_OVERHEAD_BYTES - FRAME_HEADER_BYTES_MIN - FRAGMENT_PLACE_BYTES)
        >= INNER_MTU_MAX as usize
);
/// Packets of one worker whose fragments have not all arrived; the oldest makes room for one more.
pub const ASSEMBLIES_MAX: usize = 64;
/// Buffers in which packets are put together: those of [`ASSEMBLIES_MAX`], and as many on their way to the TUN.
pub const ASSEMBLY_BUFFERS: u16 = 2 * ASSEMBLIES_MAX as u16;
/// Bytes of one of them: any inner packet, and whole cache lines.
pub const ASSEMBLY_BUFFER_BYTES: usize = (INNER_MTU_MAX as usize).next_multiple_of(64);
/// Milliseconds that a packet waits for the rest of its fragments, which were sent right behind each other: longer than
/// any path reorders for, and short beside the 30 s of IP, for nothing here is sent again.
pub const ASSEMBLY_MS_MAX: u64 = 1000;

/// Packets that one worker answers with "too big" at once; what hosts ask in a burst.
pub const TOO_BIG_BURST: u32 = 32;
/// And per second after that: every sender needs one answer per path and ten minutes.
pub const TOO_BIG_PER_SECOND: u32 = 100;
/// Echo requests of one lane that are answered per second, and at once: far more than a peer has reason to send, and at
/// 86 bytes each way too few to be of use against anybody.
pub const ECHO_REPLIES_PER_SECOND: u32 = 256;
/// Echoes that one turn takes in, of all lanes together; whoever sent the others asks again.
pub const ECHOES_PER_TURN: usize = 1024;

/// Requests of one lane that may wait for their answers; beyond it the oldest is forgotten. All that a doubtful path
/// causes in one round trip.
pub const ECHOES_ASKED_MAX: usize = 64;

/// Bytes of an offer message, length prefix not counted.
pub const OFFER_BYTES_MAX: usize = 4096;
/// Candidate addresses in one offer.
pub const CANDIDATES_MAX: usize = 32;
/// Candidates of single lanes in one offer: two for each of 64 workers.
pub const LANE_CANDIDATES_MAX: usize = 128;

/// The token that names a lane to the peer's listener: the client's first destination connection id, and the largest
/// QUIC allows (RFC 9000, section 17.2).
pub const TOKEN_BYTES: usize = 20;

/// Control addresses (from the configuration or the interfaces) a node listens on; each costs one UDP listener per
/// worker.
pub const LISTEN_ADDRESSES_MAX: usize = 32;

/// Messages that may wait between control and one worker, each way.
pub const PLANE_QUEUE_MESSAGES: usize = 1024;
/// Batches of packets that wait in one queue between control and a worker: a millisecond at 30 Gbit/s.
pub const BATCH_QUEUE_MESSAGES: usize = 64;
/// Bytes of a batch of packets, beyond which a further one is begun.
pub const BATCH_BYTES_MAX: usize = 66_000;
/// Batches of packets that one worker fills at a time, each for another end; one end more sends the oldest. Streams are for
/// the few peers that lanes do not reach.
pub const BATCHES_OPEN_MAX: usize = 8;
/// Batches' memory that one worker keeps for others: a turn's.
pub const BATCHES_SPARE_MAX: usize = 16;
/// Milliseconds that packets wait for before they leave by a peer's first lane, if others have just left by its stream:
/// as long as most streams take to deliver what they have. A sender's clock hardly notices; its window would notice if
/// packets came out of order.
pub const STREAM_SETTLE_MS: u64 = 50;
/// Largest packet for a stream that takes whole packets only: Hyprspace's receivers crash of longer ones.
pub const STREAM_PACKET_BYTES_MAX: usize = 1420;
/// Largest frame of a stream between Ringlane nodes, its header not counted: an IPv6 packet of the largest size that its
/// header can state, and a segment size.
pub const STREAM_FRAME_BYTES_MAX: usize = 40 + 65_535 + 2;
// Whatever comes by stream fits a batch, with the batch's own header.
const _: () = assert!(STREAM_FRAME_BYTES_MAX + 16 <= BATCH_BYTES_MAX);
/// Bytes that may wait for one peer's stream, frame headers included: 80 ms at 100 Mbit/s, and 16 super-segments.
pub const STREAM_QUEUE_BYTES: usize = 1 << 20;
/// Packets and super-segments that may wait for one peer's stream.
pub const STREAM_QUEUE_PACKETS: usize = 4096;
/// Bytes of whole frames written at once to a Hyprspace node: what go-yamux reads at once, and yamux sends as one frame.
pub const STREAM_WRITE_BYTES: usize = 16 << 10;
/// Bytes of whole frames written at once to a Ringlane node; a longer super-segment is written alone.
pub const STREAM_WRITE_BYTES_RINGLANE: usize = 64 << 10;
/// Bytes read from a stream at once.
pub const STREAM_READ_BYTES: usize = 64 << 10;
/// Reads from the streams of one peer, and writes to them, before other peers have their turn.
pub const STREAM_BUDGET: usize = 8;
/// Peers that have their turn before the rest of control has its own.
pub const STREAM_PEERS_BUDGET: usize = 8;
/// Inbound streams of one peer that are open at once, for each of Hyprspace's protocols. Hyprspace 0.15.0 opens one for
/// each packet that finds none, and its own bound is 64 or more.
pub const HYPRSPACE_STREAMS_PER_PEER_MAX: usize = 256;
/// Inbound packet streams of one Ringlane peer that are open at once: one for each of its connections, twice.
pub const PACKET_STREAMS_PER_PEER_MAX: usize = 16;
/// Packet streams with one peer beyond which those that have been silent are closed.
pub const QUIET_STREAMS_KEPT: usize = 8;
const _: () = assert!(PLANE_QUEUE_MESSAGES >= 2 * LANES_PER_LINK_MAX);

/// Datagrams that may reach a lane's handshake before its socket is connected and are kept for its worker.
pub const EARLY_DATAGRAMS_MAX: usize = 64;

/// IPv6 extension headers of an inner packet we walk over to find its ports. Real packets have at most two or three;
/// one with more still travels, hashed without ports.
pub const IPV6_EXTENSION_HEADERS_MAX: usize = 8;

/// Largest super-segment, and largest train of datagrams given by one receive: what an IPv4 header can state.
pub const SUPER_SEGMENT_BYTES_MAX: usize = 65_535;

/// Provided buffers for reads of one TUN queue, each for a whole super-segment. The kernel fills them in turn, so all of
/// them together should stay in L2; when they run out the kernel keeps the packets in the TUN's queue until some come
/// back. A power of two, as the kernel's buffer rings are.
pub const TUN_READS_IN_FLIGHT: u16 = 16;
/// Provided buffers for datagrams of all lanes of one worker, each for a whole train; the sockets' own buffers hold what
/// does not fit.
pub const UDP_RECEIVES_IN_FLIGHT: u16 = 32;
/// Bytes of one send buffer: the largest train and the sentinel behind it.
pub const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Provided buffers for datagrams of all lanes that one worker relays for others, each for a whole train. They are apart from
/// [`UDP_RECEIVES_IN_FLIGHT`], so that however much there is to relay, the node's own lanes find theirs.
pub const FORWARD_RECEIVES_IN_FLIGHT: u16 = 16;
/// Bytes that a worker forwards in one turn, after its own [`TURN_BYTES`]: with both to do, a fifth of what it moves.
pub const FORWARD_TURN_BYTES: usize = TURN_BYTES / 4;
/// Lanes that one worker relays for others. Each is two sockets and 2 KiB.
pub const FORWARDS_PER_WORKER_MAX: usize = 1024;
/// Bytes per second that one worker forwards, outer headers included, unless control says otherwise: 1 Gbit/s.
pub const FORWARDS_BYTES_PER_SECOND: u64 = 125_000_000;
/// And at once: 8 ms of it.
pub const FORWARDS_BURST_BYTES: u64 = 1_000_000;
/// Bytes of one message of `/ringlane/relay/1`, without its length.
pub const RELAY_MESSAGE_BYTES_MAX: usize = 4096;
/// Addresses of a relay in one of them, each of one of its workers.
pub const RELAY_ADDRESSES_MAX: usize = 64;
/// Binds that control is given at once of the two ends of one forward: each end's, and those sent again.
pub const BINDS_PER_FORWARD_BURST: u32 = 32;
/// And per second after that.
pub const BINDS_PER_FORWARD_PER_SECOND: u32 = 4;
/// The same of all forwards of a worker.
pub const BINDS_BURST: u32 = 64;
/// And per second after that.
pub const BINDS_PER_SECOND: u32 = 640;
/// Largest datagram that is forwarded: the largest that any lane sends.
pub const FORWARD_DATAGRAM_BYTES_MAX: usize = datagram_bytes_max(INNER_MTU_MAX);
/// Send buffers of one worker. The last one that came back is the next to be filled, so few of them are ever touched
/// unless the kernel keeps them.
pub const SEND_BUFFERS: u16 = 32;
/// Records of one train: the kernel's 64 datagrams per send (128 since Linux 6.9), less the sentinel.
pub const TRAIN_RECORDS_MAX: u16 = 63;
/// Bytes of one train: what a UDP datagram over IPv4 can hold, less the sentinel.
pub const TRAIN_BYTES_MAX: usize = 65_506;
const _: () = assert!(TRAIN_BYTES_MAX < SEND_BUFFER_BYTES);
/// Sends one worker can have queued; more than that submits early.
pub const SENDS_IN_FLIGHT: u16 = 256;
/// TUN writes one worker can have queued; more than that submits early.
pub const TUN_WRITES_IN_FLIGHT: u16 = 256;
/// Entries of the packet ring's submission queue; more than that submits early.
pub const RING_ENTRIES: u32 = 1024;
/// Sends that one system call of the epoll engine takes.
pub const SENDS_PER_CALL: usize = 32;
/// Datagrams or trains of one lane that one system call of the epoll engine brings; the next lane then has its turn.
pub const RECEIVES_PER_CALL: usize = 8;
/// Events that the epoll engine takes in at once; the next enter has the others.
pub const EPOLL_EVENTS: usize = 64;
/// Bytes a worker takes from the TUN and the network together in one turn before it hands on what it has made of them.
pub const TURN_BYTES: usize = 512 << 10;
/// Records of one turn there is room for from the start: all receives full of full-size ones. Small ones may be more; the
/// room then grows once.
pub const TURN_RECORDS: usize = UDP_RECEIVES_IN_FLIGHT as usize * 64;

/// Bytes of DATAGRAM frames (RFC 9221) that wait in a lane's QUIC connection to be sent; the oldest goes first. The worker
/// has it send what it has whenever a train is full, so that more than a train only ever waits while nothing is
/// acknowledged; the other half is 1 ms at 0.5 Gbit/s.
pub const QUIC_QUEUE_BYTES: usize = 2 * SEND_BUFFER_BYTES;
/// Bytes of DATAGRAM frames received that wait in a lane's QUIC connection, the oldest going first: those that come before
/// the lane has its worker, which takes each out at once. No single one may be larger.
pub const QUIC_RECEIVE_BYTES: usize = 64 << 10;
/// Packets of a lane's QUIC connection that are neither acknowledged nor lost, each a hundred-odd bytes of memory; 150 ms
/// of full-size ones at 2.5 Gbit/s.
pub const QUIC_PACKETS_IN_FLIGHT_MAX: u64 = 1 << 15;
/// Bytes of memory for packets that one worker queues because a rate is configured or a socket pushes back; made when
/// first needed, and touched only as far as used. At 1 Gbit/s it is 67 ms, of which CoDel leaves 5.
pub const EGRESS_POOL_BYTES: usize = 8 << 20;
/// The least of it that a low rate leaves: ten super-segments, so that a burst of a few flows fits.
pub const EGRESS_BYTES_MIN: usize = 640 << 10;
/// Longest time in milliseconds that the queue would take to leave at the configured rate.
pub const EGRESS_MS_MAX: u64 = 250;
/// Queues of one worker that flows are hashed to (RFC 8290, section 5.2.1).
pub const EGRESS_FLOWS: usize = 1024;
/// Packets dropped in one go when the pool is full: at most so many, and half of what the fattest flow has (RFC 8290,
/// section 5.1, and Linux). Looking for that flow again for each would take longer than the packets.
pub const EGRESS_DROP_BATCH: u32 = 64;
const _: () = assert!(EGRESS_FLOWS.is_power_of_two() && EGRESS_BYTES_MIN <= EGRESS_POOL_BYTES);

/// Bytes that the kernel may hold of one lane's datagrams before the worker takes its device for the bottleneck: 0.4 ms at
/// 10 Gbit/s, 40 ms at 100 Mbit/s.
pub const UNSENT_BYTES_NOTICED: u32 = 512 << 10;
/// Bytes that the kernel may hold again and again before the same: half a train.
pub const UNSENT_BYTES_STANDING: u32 = 32 << 10;
/// Bytes that the kernel may hold of a lane whose device is the bottleneck, at first.
pub const UNSENT_BYTES_FIRST: u32 = 128 << 10;
/// The least of it: a few datagrams, as the kernel counts them.
pub const UNSENT_BYTES_MIN: u32 = 16 << 10;
/// The most of it.
pub const UNSENT_BYTES_MAX: u32 = 2 << 20;

/// Default length of each TUN queue in packets, a super-segment counting as one: a burst of a few milliseconds, not a
/// standing queue.
pub const TUN_QUEUE_PACKETS_DEFAULT: u16 = 500;
/// Shortest TUN queue: less than one turn of a worker reads would drop packets of any burst.
pub const TUN_QUEUE_PACKETS_MIN: u16 = 16;
/// Longest TUN queue: with super-segments of 64 KiB it holds 640 MB for each worker, which nobody wants to wait for.
pub const TUN_QUEUE_PACKETS_MAX: u16 = 10_000;
const _: () =
    assert!(TUN_QUEUE_PACKETS_MIN <= TUN_QUEUE_PACKETS_DEFAULT && TUN_QUEUE_PACKETS_DEFAULT <= TUN_QUEUE_PACKETS_MAX);

/// Longest time in microseconds an idle worker may look again before it sleeps. What a sleep and its end cost is far
/// below it; beyond it a core is burnt for nothing.
pub const BUSY_POLL_US_MAX: u16 = 1000;

/// Packets a worker takes from other workers in one turn.
pub const HAND_OVER_BUDGET: usize = 256;
/// Packets that may wait from one worker to another.
pub const HAND_OVER_QUEUE_PACKETS: usize = 512;
// A turn's super-segments, split into packets, find room.
const _: () = assert!(HAND_OVER_QUEUE_PACKETS >= TURN_BYTES / INNER_MTU_MIN as usize);
/// Commands a worker takes from control in one turn.
pub const COMMAND_BUDGET: usize = 16;

const _: () = assert!(TUN_READS_IN_FLIGHT.is_power_of_two() && UDP_RECEIVES_IN_FLIGHT.is_power_of_two());
const _: () = assert!(FORWARD_RECEIVES_IN_FLIGHT.is_power_of_two());
// Sockets are numbered with 16 bits.
const _: () =
    assert!(LANES_PER_WORKER_MAX * (1 + LANE_OTHER_PATHS_MAX) + 2 * FORWARDS_PER_WORKER_MAX <= u16::MAX as usize);
// What one turn can queue fits the submission queue.
const _: () = assert!(RING_ENTRIES as usize > SENDS_IN_FLIGHT as usize + TUN_WRITES_IN_FLIGHT as usize);

/// Lanes one worker can own: one of each peer's, or all of a few peers'.
pub const LANES_PER_WORKER_MAX: usize = 4096;

/// Pairs of an own and a peer's address that one lane probes; each costs at most eight datagrams.
pub const PROBE_PAIRS_MAX: usize = 64;

/// Pairs among them that lead to ports of one address of the peer's.
pub const PROBE_PORTS_PER_ADDRESS_MAX: usize = 8;
/// Ports that are guessed of a translator that counts.
pub const GUESSED_PORTS_MAX: u8 = PROBE_PORTS_PER_ADDRESS_MAX as u8;
/// Requests to one address in a second, of all lanes together: what a peer names may be a third party.
pub const PROBES_PER_ADDRESS_MAX: u32 = 512;
/// Requests in a second because of one peer, of all its lanes and offers together: as many as 64 lanes with eight pairs each
/// send in their first second, and at most 250 kB.
pub const PROBES_PER_PEER_MAX: u32 = 2048;
/// Sockets that an end behind a translator with a port for each destination opens, for one lane at a time.
pub const FAN_SOCKETS_MAX: usize = 256;
/// Addresses that each of them sends to.
pub const FAN_TARGETS_MAX: usize = 2;
/// How often. Together at most 1024 datagrams of 52 bytes, 500 in a second.
pub const FAN_ROUNDS: usize = 2;
/// Ports of such an end that the other one tries. With 256 of 64,512 open, all miss with a probability of 0.2 %. 1536 datagrams of
/// 52 bytes, all to one address that the peer has named, and only while both ends want it.
pub const GUESSES_MAX: u32 = 1536;
/// How many in a second. With all else that leaves, still below [`PROBES_PER_ADDRESS_MAX`].
pub const GUESSES_PER_SECOND: u32 = 256;
const _: () = assert!(GUESSES_PER_SECOND < PROBES_PER_ADDRESS_MAX);
/// Those among them that come first where the translator counts.
pub const COUNTED_GUESSES_MAX: u32 = 256;
const _: () = assert!(COUNTED_GUESSES_MAX < GUESSES_MAX);
/// Lanes of all links that try ports at one time, or have a fan.
pub const BIRTHDAYS_MAX: usize = 4;
/// Pairs that a lane that stands measures to find something better.
pub const SCOUT_PAIRS_MAX: usize = 16;
/// Lanes that measure other paths at one time.
pub const SCOUTS_MAX: usize = 512;
/// Lanes of a link that find out at one time what other paths lose; with four pairs each and 25 questions a second on a pair 400
/// in a second, which may all be to one address. The others take what these have found.
pub const SAMPLING_LANES_MAX: usize = 4;
/// Paths that are remembered of each lane that stands.
pub const PATHS_KNOWN_MAX: usize = 16;

/// Lanes that may be in the making at one time, of all links together.
pub const LANE_SETUPS_MAX: usize = 1024;
const _: () = assert!(LANE_SETUPS_MAX >= LANES_PER_LINK_MAX);

/// QUIC handshakes under way at one time; each takes about 25 KiB and a socket. Lanes beyond it wait.
pub const LANE_HANDSHAKES_MAX: usize = 256;

/// Receive buffer asked for each listener: 256 clients that dial at once send 4 datagrams each, and one datagram counts
/// for several KiB in the kernel.
pub const LISTENER_BUFFER_BYTES: usize = 4 << 20;

/// Send and receive buffer asked for each lane's socket: 20 ms at 1.6 Gbit/s.
pub const LANE_BUFFER_BYTES: usize = 4 << 20;

/// 4-tuples of handed-over lanes that control remembers, to tell their late datagrams from strangers'.
pub const HANDED_OVER_MAX: usize = 1024;

/// Paths of one lane besides its own: asked whether the peer is there, or received on for a moment longer. Each is a
/// socket.
pub const LANE_OTHER_PATHS_MAX: usize = 4;
/// Records that control passes on to a lane's worker in 100 ms because they came from an address that is not the lane's,
/// if their epoch is that of the newest record opened and their counter could be the next. One would do if none were lost.
/// A stranger who does not see the lane has to guess the counter, and the lane's id, which begins at random in every
/// process.
pub const PASSED_ON_PER_LANE_MAX: u32 = 8;
/// As above, whatever their counter and epoch: also those that could be the first of the next epoch, which anybody who
/// knows the lane's id can send.
pub const PASSED_ON_ANYHOW_PER_LANE_MAX: u32 = 2;
/// As [`PASSED_ON_PER_LANE_MAX`], of all lanes together; also, how many orders of the lane engine to workers may wait for the
/// control loop before no further record is passed on.
pub const PASSED_ON_MAX: u32 = 128;
/// As [`PASSED_ON_ANYHOW_PER_LANE_MAX`], of all lanes together.
pub const PASSED_ON_ANYHOW_MAX: u32 = 32;
const _: () = assert!((PASSED_ON_MAX + PASSED_ON_ANYHOW_MAX) as usize * 4 <= PLANE_QUEUE_MESSAGES);
/// Other paths that control makes a socket for in a second, for one lane.
pub const PATHS_TRIED_PER_LANE_MAX: u32 = 8;
const _: () = assert!(PATHS_TRIED_PER_LANE_MAX as usize >= 2 * LANE_OTHER_PATHS_MAX);

/// Datagrams for the listener that one worker gives back to control at once, because they came to the socket of a lane:
/// the first ones of all lanes of a peer that has come back. A stranger who knows where a lane ends could send more.
pub const STRAYS_BURST: u32 = 64;
/// And per second after that.
pub const STRAYS_PER_SECOND: u32 = 640;

/// Events of one worker that wait for room in control's queue, besides the ends of its lanes.
pub const UNTOLD_MAX: usize = LANES_PER_WORKER_MAX;

/// Length prefix of a message on the link stream: big-endian.
pub const LINK_EXCHANGE_LENGTH_BYTES: usize = 2;
const _: () = assert!(OFFER_BYTES_MAX <= u16::MAX as usize);

/// Addresses remembered per peer, whatever their source: every configured one, and as many found ones.
pub const KNOWN_ADDRESSES_PER_PEER_MAX: usize = 2 * ADDRESSES_PER_PEER_MAX;
/// Addresses tried at once in one dial; the next dial tries those that waited longest.
pub const DIALED_ADDRESSES_MAX: usize = 16;
/// Addresses of one dial that a peer has asked for; more than Hyprspace's nodes name.
pub const ADDRESSES_PER_DIAL_MAX: usize = 2 * DIALED_ADDRESSES_MAX;
/// Names of peers' addresses looked up at once, each on a thread of its own, because the system's resolver blocks.
pub const NAME_LOOKUPS_MAX: usize = 16;
/// Dials to one peer that may be under way together, so that a dial into a black hole does not delay the next: so many at its
/// own addresses, and so many through relays.
pub const DIALS_PER_PEER_MAX: u8 = 2;

/// libp2p connections kept with one peer; the oldest beyond it is closed at once, by either side. More than what
/// the dials of both sides make at once, as of those through relays there is mostly one: when there are more, the oldest is a
/// dead one.
pub const KEPT_CONNECTIONS_PER_PEER_MAX: usize = 3 * DIALS_PER_PEER_MAX as usize;
/// Of a peer's connections that are closed as too many, those that may take their time to end what is under way on them; the
/// oldest beyond it is closed at once.
pub const RETIRING_CONNECTIONS_PER_PEER_MAX: usize = DIALS_PER_PEER_MAX as usize;
/// Seconds that such a connection may take for it.
pub const RETIRING_SECONDS_MAX: u64 = 10;
/// Milliseconds without a packet stream after which nothing is under way on it any more.
pub const RETIRING_SETTLE_MS: u64 = 500;
/// libp2p connections one peer may have with us at any moment: there is always room for the new ones of a peer that
/// restarted while its old ones are dying.
pub const CONNECTIONS_PER_PEER_MAX: usize = 2 * KEPT_CONNECTIONS_PER_PEER_MAX;

/// Inbound libp2p handshakes under way at once; each costs a few kilobytes and ends within ten seconds.
pub const PENDING_INBOUND_CONNECTIONS_MAX: usize = 512;

/// Inbound streams of one peer on the link protocol that are open at once.
pub const LINK_STREAMS_PER_PEER_MAX: usize = 8;
/// Link exchanges we have under way with one peer at once.
pub const EXCHANGES_PER_PEER_MAX: usize = 8;
/// Inbound streams waiting in the swarm for the control loop, all peers and protocols together.
pub const STREAM_EVENTS_MAX: usize = 4096;

/// Strangers whose refusal we remember having logged.
pub const REFUSALS_REMEMBERED_MAX: usize = 256;

/// Netlink notifications taken as one change before the control loop gets another turn.
pub const NETLINK_CHANGES_PER_WAKE_MAX: usize = 256;

/// Admin clients served at once; more wait in the socket's backlog.
pub const ADMIN_CLIENTS_MAX: usize = 16;
/// Bytes of one admin request line.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Bytes of one admin response line.
pub const ADMIN_RESPONSE_BYTES_MAX: usize = 32 << 20;
/// A status names every lane, a route list every route; 200 bytes are a generous line for one of either.
const _: () = assert!(ADMIN_RESPONSE_BYTES_MAX >= 200 * PEERS_MAX * LANES_PER_LINK_MAX);
const _: () = assert!(ADMIN_RESPONSE_BYTES_MAX >= 200 * (ROUTES_MAX + 2 * PEERS_MAX));

/// Super-segments that one worker rebuilds at a time, one per flow; a packet of one flow more ends the oldest.
pub const COALESCE_RUNS_MAX: usize = 16;
/// Pieces of a rebuilt super-segment. At MTU 1420 the largest packet IP has room for is 48 of them; a flow with a
/// smaller MSS makes several.
pub const COALESCE_PIECES_MAX: usize = 64;
/// Bytes of a rebuilt super-segment, from its IP header on: what an IPv4 header can state.
pub const COALESCE_PACKET_BYTES_MAX: usize = 65_535;
/// Bytes of headers, IP and transport, of a rebuilt super-segment: twice the longest that IPv4 and TCP have. IPv6
/// packets with more extension headers than fit come out one by one.
pub const COALESCE_HEADER_BYTES_MAX: usize = 256;
// Runs and pieces are counted in bytes.
const _: () = assert!(COALESCE_RUNS_MAX < 256);
const _: () = assert!(COALESCE_PIECES_MAX < 256);

/// Services a node offers.
pub const SERVICES_MAX: usize = 256;
/// Bytes of a service's name: a DNS label's.
pub const SERVICE_NAME_BYTES_MAX: usize = 63;
/// TCP connections of local clients to services, whether of peers or our own, that are open at once.
pub const SERVICE_CONNECTIONS_MAX: usize = 4096;
/// Those to our own services.
pub const SERVICE_CONNECTIONS_TO_US_MAX: usize = SERVICE_CONNECTIONS_MAX / 2;
/// Those to the services of one peer: as many streams as a Ringlane node takes.
pub const SERVICE_CONNECTIONS_PER_PEER_MAX: usize = SERVICE_STREAMS_PER_PEER_MAX;
/// Those that are being opened: the peer or the target has not answered yet.
pub const SERVICE_ASKS_MAX: usize = 1024;
/// Those that are being opened to our own services, or to those of one peer.
pub const SERVICE_ASKS_PER_NODE_MAX: usize = SERVICE_ASKS_MAX / 2;
/// Connections with buffers of [`SERVICE_BUFFER_BYTES`]; all others have [`SERVICE_SMALL_BUFFER_BYTES`].
pub const SERVICE_LARGE_BUFFERS_MAX: usize = 256;
/// Bytes a connection may hold in each direction.
pub const SERVICE_BUFFER_BYTES: usize = 64 << 10;
/// Bytes a connection may hold in each direction when many are open.
pub const SERVICE_SMALL_BUFFER_BYTES: usize = 8 << 10;
/// What the buffers of all clients' connections take together: 92 MiB.
pub const SERVICE_BUFFERS_BYTES_MAX: usize = 2
    * (SERVICE_LARGE_BUFFERS_MAX * SERVICE_BUFFER_BYTES
        + (SERVICE_CONNECTIONS_MAX - SERVICE_LARGE_BUFFERS_MAX) * SERVICE_SMALL_BUFFER_BYTES);
const _: () = assert!(SERVICE_BUFFERS_BYTES_MAX == 92 << 20);
/// Streams of all peers to our services that are open at once.
pub const SERVICE_STREAMS_MAX: usize = 2048;
/// Those of one peer.
pub const SERVICE_STREAMS_PER_PEER_MAX: usize = 512;
/// Streams of all kinds on one libp2p connection, of both sides together: twice what services may need. One more ends a
/// yamux connection.
pub const STREAMS_PER_CONNECTION_MAX: usize = 4 * SERVICE_STREAMS_PER_PEER_MAX;
/// Bytes such a stream may hold in each direction: 64 MiB for all.
pub const SERVICE_COPY_BYTES: usize = 16 << 10;
/// Segments one connection may send before the others have their turn.
pub const SERVICE_SEGMENTS_PER_VISIT: usize = 64;
/// Connections looked at before the control loop gets another turn.
pub const SERVICE_VISITS_PER_TURN: usize = 64;
/// ICMPv6 messages sent at once to those who talk to what is no service, and per second after that.
pub const SERVICE_ICMP_BURST: u32 = 64;
/// See [`SERVICE_ICMP_BURST`].
pub const SERVICE_ICMP_PER_SECOND: u32 = 256;
/// Bytes of an mDNS packet that is read: RFC 6762's own bound.
pub const MDNS_PACKET_BYTES_MAX: usize = 9000;
/// Bytes of an mDNS packet that is sent: it fits the smallest Ethernet path whole, headers included.
pub const MDNS_SENT_BYTES_MAX: usize = 1400;
/// mDNS packets that are looked at, of each interface: so many at once, and per second after that.
pub const MDNS_PACKETS_BURST: u32 = 256;
/// See [`MDNS_PACKETS_BURST`].
pub const MDNS_PACKETS_PER_SECOND: u32 = 128;
/// Addresses not heard before that are taken up, of all interfaces: so many at once, and per second after that. Each may be
/// dialled soon, and a neighbour can make them up.
pub const MDNS_NEWS_BURST: u32 = 512;
/// See [`MDNS_NEWS_BURST`].
pub const MDNS_NEWS_PER_SECOND: u32 = 4;
/// Interfaces on which neighbours are looked for.
pub const MDNS_INTERFACES_MAX: usize = 32;
/// Addresses of one mDNS packet that are looked at: some of them cannot be dialled.
pub const MDNS_TOLD_MAX: usize = 64;
/// Addresses that we tell by mDNS, and that are kept of one peer.
pub const MDNS_ADDRESSES_MAX: usize = 16;
const _: () = assert!(MDNS_ADDRESSES_MAX < KNOWN_ADDRESSES_PER_PEER_MAX);

/// Bytes of an answer of Hyprspace's peer exchange that are read, and that are written.
pub const PEX_ANSWER_BYTES_MAX: usize = 512 << 10;
/// Lines of it that are read, and that are written.
pub const PEX_LINES_MAX: usize = 4 * PEERS_MAX;
/// Addresses of one peer in it that are used, and that are told.
pub const PEX_ADDRESSES_PER_PEER_MAX: usize = 16;
/// Addresses of one peer that are kept of what one other peer told by it: a liar has no more room than this.
pub const PEX_ADDRESSES_PER_TELLER_MAX: usize = 8;
/// Tellers of whom addresses of one peer are kept.
pub const PEX_TELLERS_PER_PEER_MAX: usize = 4;
const _: () = assert!(PEX_ADDRESSES_PER_TELLER_MAX * PEX_TELLERS_PER_PEER_MAX < KNOWN_ADDRESSES_PER_PEER_MAX);
/// Requests of one peer that are answered: so many at once, and one per second after that.
pub const PEX_ANSWERS_BURST: u32 = 8;
/// Streams of peer exchange, of either kind, that one peer may have open.
pub const PEX_STREAMS_PER_PEER_MAX: usize = 4;

/// Addresses in a node's signed record.
pub const RECORD_ADDRESSES_MAX: usize = 16;
/// Bytes of one of them.
pub const RECORD_ADDRESS_BYTES_MAX: usize = 160;
/// Bytes of a signed record: its addresses, the key, the signature, and what holds them together.
pub const SIGNED_RECORD_BYTES_MAX: usize = 3072;
const _: () = assert!(RECORD_ADDRESSES_MAX * (2 + RECORD_ADDRESS_BYTES_MAX) + 256 <= SIGNED_RECORD_BYTES_MAX);
/// Bytes of one message of `/ringlane/peers/1`, without its length.
pub const PEERS_MESSAGE_BYTES_MAX: usize = 32 << 10;
const _: () = assert!(2 + 16 * (PEERS_MAX + 1) <= PEERS_MESSAGE_BYTES_MAX && PEERS_MESSAGE_BYTES_MAX <= 0xffff);
/// Such messages of one peer that are read: so many at once, and per second after that.
pub const PEERS_MESSAGES_BURST: u32 = 64;
/// See [`PEERS_MESSAGES_BURST`].
pub const PEERS_MESSAGES_PER_SECOND: u32 = 16;
/// Bytes of the domain that a network's names end in: with the interface's name before it, and a service and a peer's CID
/// before that, a name still fits the 255 bytes that DNS allows.
pub const DNS_DOMAIN_BYTES_MAX: usize = 100;
const _: () = assert!(2 * 64 + INTERFACE_NAME_BYTES_MAX + 1 + DNS_DOMAIN_BYTES_MAX + 2 <= 255);
/// Bytes of a question we are willing to read. One has 300; with cookies and padding, half a kilobyte.
pub const DNS_QUERY_BYTES_MAX: usize = 4096;
/// Bytes of an answer over UDP, whatever the asker would take: no path of today's fragments that (DNS flag day 2020).
pub const DNS_UDP_ANSWER_BYTES_MAX: u16 = 1232;
/// Askers over TCP served at once; more wait in the socket's backlog.
pub const DNS_CLIENTS_MAX: usize = 32;
/// Starts and stops of systemd-resolved that may wait to be looked at.
pub const DNS_BUS_SIGNALS_MAX: usize = 8;

/// Scrapers of the metrics served at once; more wait in the socket's backlog.
pub const METRICS_CLIENTS_MAX: usize = 8;
/// Bytes of one scrape's request line and headers.
pub const METRICS_REQUEST_BYTES_MAX: usize = 16 << 10;
/// Lanes whose figures are served one by one; a dozen lines of 250 bytes each.
pub const METRICS_LANES_MAX: usize = 4096;
const _: () = assert!(ADMIN_RESPONSE_BYTES_MAX > 250 * (12 * METRICS_LANES_MAX + 24 * PEERS_MAX));

/// Bytes of a STUN message that are read. Ours have at most [`STUN_REQUEST_BYTES_V6`]; a public server's may say more.
pub const STUN_BYTES_MAX: usize = 548;
/// Bytes of a STUN request to a peer over IPv4: as many as its answer, so that nobody gains by asking in another's name.
pub const STUN_REQUEST_BYTES_V4: usize = 64;
/// The same over IPv6.
pub const STUN_REQUEST_BYTES_V6: usize = 100;
/// Addresses of peers whose STUN requests are answered: connections, lanes and what their offers name.
pub const STUN_SOURCES_MAX: usize = 8192;
/// STUN requests that are answered to one address at once: a node's round from all of its ports, and one more.
pub const STUN_PER_SOURCE_BURST: u32 = 256;
/// And per second after that.
pub const STUN_PER_SOURCE_PER_SECOND: u32 = 32;
/// STUN requests that are answered to all addresses together at once.
pub const STUN_ANSWERS_BURST: u32 = 1024;
/// And per second after that: 25 kB.
pub const STUN_ANSWERS_PER_SECOND: u32 = 256;
/// STUN servers that can be configured.
pub const STUN_SERVERS_MAX: usize = 8;
/// Addresses of one of them that are used.
pub const STUN_ADDRESSES_PER_SERVER_MAX: usize = 4;
/// Addresses of ours that ask STUN servers; the others share their networks.
pub const STUN_HOSTS_MAX: usize = 8;
/// Servers that one address of ours knows: peers and configured ones.
pub const STUN_TARGETS_MAX: usize = 32;
/// Lane ports of one address that ask: the first of them, where there are more workers.
pub const STUN_PORTS_MAX: usize = 16;
/// Bytes read of a STUN message by `netcheck`; the rest is cut off.
pub const STUN_BYTES_READ_MAX: usize = 1500;
/// Addresses of peers that `netcheck` tries over TCP without a running node.
pub const NETCHECK_CONTACTS_MAX: usize = 64;
/// STUN requests that leave at once, those sent again included.
pub const STUN_REQUESTS_BURST: u32 = 32;
/// And per second after that.
pub const STUN_REQUESTS_PER_SECOND: u32 = 128;
/// Gateways, each from one of our addresses, that are asked for port mappings at a time.
pub const PORT_MAPPING_GATEWAYS_MAX: usize = 8;
/// Ports that one gateway is asked for: those of all workers' lanes, and of the control port's listeners.
pub const PORT_MAPPINGS_PER_GATEWAY_MAX: usize = WORKERS_MAX + 2 * LISTEN_ADDRESSES_MAX;
/// Bytes of one datagram of PCP (RFC 6887, section 7).
pub const PCP_BYTES_MAX: usize = 1100;
/// Bytes of an answer to an SSDP search; the rest is cut off.
pub const SSDP_BYTES_MAX: usize = 2048;
/// Datagrams looked at in one SSDP search, from whomever.
pub const SSDP_ANSWERS_MAX: usize = 64;
/// Bytes of a UPnP device's description: some routers describe a media server and a disk in the same file.
pub const UPNP_DESCRIPTION_BYTES_MAX: usize = 128 * 1024;
/// Bytes of a UPnP action's answer.
pub const UPNP_ANSWER_BYTES_MAX: usize = 16 * 1024;
/// WAN services of one device that are tried: WANIPConnection and WANPPPConnection, in two versions.
pub const UPNP_SERVICES_MAX: usize = 4;
/// Bytes of a path at a UPnP device.
pub const UPNP_PATH_BYTES_MAX: usize = 512;
/// Bytes of a message of libp2p's circuit relay.
pub const CIRCUIT_MESSAGE_BYTES_MAX: usize = 4096;
/// Addresses of ours that a reservation tells.
pub const CIRCUIT_ADDRESSES_MAX: usize = 16;
/// Addresses of ours behind one relay that we tell, of those that the relay says: a hundred bytes each of identify's message,
/// which has 4096 and is lost whole when it is longer.
pub const ADDRESSES_PER_RELAY_MAX: usize = 4;
/// Relays that a node can be told to use.
pub const RELAY_ADDRESSES_CONFIGURED_MAX: usize = 64;
/// Relays that a node has reservations with at once, at most.
pub const RELAY_RESERVATIONS_MAX: u8 = 8;
const _: () = assert!(RELAY_RESERVATIONS_MAX as usize * ADDRESSES_PER_RELAY_MAX * 100 < 4096 * 4 / 5);
/// Circuits that we carry at once, all peers together.
pub const CIRCUITS_MAX: usize = 512;
/// Circuits that we carry at once of what one peer has asked for, and of those that lead to one peer.
pub const CIRCUITS_PER_PEER_MAX: usize = 64;
/// Streams of the relay protocol that one peer may have open: its circuits, and a few that are only being answered.
pub const HOP_STREAMS_PER_PEER_MAX: usize = CIRCUITS_PER_PEER_MAX + 8;
/// Bytes that a circuit holds in each direction while one end does not take them.
pub const CIRCUIT_BUFFER_BYTES: usize = 32 << 10;
const _: () = assert!(2 * CIRCUITS_MAX * CIRCUIT_BUFFER_BYTES <= 32 << 20);
/// Bytes that one circuit carries per second, both directions together.
pub const CIRCUIT_BYTES_PER_SECOND: u64 = 64 << 20;
/// Addresses of a peer that are dialled, one after the other, when it asks whether it can be reached: all have its own IP.
pub const AUTONAT_ADDRESSES_MAX: usize = 8;
/// How often a peer may ask that within half a minute.
pub const AUTONAT_DIALS_PER_PEER_MAX: usize = 3;
/// And all of them together.
pub const AUTONAT_DIALS_MAX: usize = 30;
/// Addresses through relays that one dial tries.
pub const CIRCUITS_DIALED_MAX: usize = 4;
/// Allotments that a node which relays others' lanes has made at once; each is of one link of two peers.
pub const ALLOTMENTS_MAX: usize = 1024;
/// Allotments that one peer is an end of.
pub const ALLOTMENTS_PER_PEER_MAX: usize = 64;
/// Lanes in those.
pub const ALLOTTED_LANES_PER_PEER_MAX: usize = 256;
/// How long an allotment lasts unless it is renewed.
pub const ALLOTMENT_SECONDS: u32 = 60;
/// Binds of one end of one relayed lane that are looked at, at once and per second after that.
pub const BINDS_PER_END: (u32, u32) = (16, 8);
/// Times that one end of a relayed lane may move, at once and per second after that.
pub const BIND_MOVES_PER_END: (u32, u32) = (4, 1);
/// Ways to a relay that are tried for one lane.
pub const PASSAGE_ROUTES_MAX: usize = 4;
/// Passages that one node has at once: relayed lanes, or lanes that could be.
pub const PASSAGES_MAX: usize = 512;
/// Relays that one link holds allotments of at once: the one it uses, and the one that replaces it.
pub const RELAYS_PER_LINK_MAX: usize = 2;
/// Relays whose load a node asks for: those that it would use first.
pub const RELAYS_ASKED_MAX: usize = 8;
/// Streams of `/ringlane/relay/1` that one peer may have open.
pub const RELAY_STREAMS_PER_PEER_MAX: usize = 16;
/// Bytes that wait in each direction of each socket of a relayed lane: what a gigabit brings in 4 ms. More would wait where
/// its ends cannot see it.
pub const FORWARD_SOCKET_BYTES: usize = 512 << 10;
/// Highest value of `relay.rate_mbit`; the lowest is 1.
pub const RELAY_RATE_MBIT_MAX: u32 = RATE_MBIT_MAX;
