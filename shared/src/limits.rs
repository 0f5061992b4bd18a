//! Every bound in the system, in one place, with the arithmetic that ties them together.

/// Workers of one node. One per core; 64 fits a bit mask and every router we know of.
pub const WORKERS_MAX: usize = 64;

/// Lanes of one link: the worker count of the side that has more of them, so never more than that bound.
pub const LANES_PER_LINK_MAX: usize = 64;

/// Configured peers. Each costs a few hundred bytes per worker; the bound keeps a mistyped generator from asking for
/// gigabytes.
pub const PEERS_MAX: usize = 1024;

/// Routes of one peer, and of all peers together.
pub const ROUTES_PER_PEER_MAX: usize = 1024;
/// Routes of all peers together, built-in addresses not counted.
pub const ROUTES_MAX: usize = 65_536;

/// Static addresses of one peer in the configuration.
pub const ADDRESSES_PER_PEER_MAX: usize = 32;

/// Bytes of a configuration file we are willing to read.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// Greatest value of a 24-bit lane id.
pub const LANE_ID_MAX: u32 = (1 << 24) - 1;

/// First byte, lane id and counter of a record; all of it is authenticated, none of it is sealed.
pub const RECORD_HEADER_BYTES: usize = 12;
/// The AEAD tag that ends a record; the same for all suites.
pub const RECORD_TAG_BYTES: usize = 16;
/// Header and tag.
pub const RECORD_OVERHEAD_BYTES: usize = RECORD_HEADER_BYTES + RECORD_TAG_BYTES;

/// Header of the only or last packet frame of a record: kind and flags, checksum start (16 bits), checksum offset.
pub const FRAME_HEADER_BYTES_MAX_LAST: usize = 4;
/// Header of a packet frame that others follow: as above and a 16-bit length.
pub const FRAME_HEADER_BYTES_MAX: usize = FRAME_HEADER_BYTES_MAX_LAST + 2;

/// Counters a lane may be behind the newest and still be accepted once.
pub const REPLAY_WINDOW: u64 = 8192;

/// Records sealed with one key before the lane must stop: 2^27, far below what AES-128-GCM and a 64-bit counter
/// allow, and the number at which a rekey is due.
pub const RECORDS_PER_EPOCH_MAX: u64 = 1 << 27;

/// Smallest inner MTU: IPv6 needs 1280 (RFC 8200, section 5).
pub const INNER_MTU_MIN: u16 = 1280;
/// Largest inner MTU: a jumbo underlay of 9000 less nothing; the lane's own overhead is checked against the path.
pub const INNER_MTU_MAX: u16 = 9000;
/// Default inner MTU: with all headers it fills a 1500-byte IPv6 path exactly.
pub const INNER_MTU_DEFAULT: u16 = 1420;

/// IPv6 and UDP headers of the underlay.
pub const OUTER_HEADER_BYTES_MAX: usize = 40 + 8;

const _: () = assert!(
    INNER_MTU_DEFAULT as usize + FRAME_HEADER_BYTES_MAX_LAST + RECORD_OVERHEAD_BYTES + OUTER_HEADER_BYTES_MAX == 1500
);

/// Largest UDP payload a lane sends or receives for a given inner MTU: one whole inner packet in a record, and never
/// less than a QUIC handshake or an MTU probe on a 1500-byte path needs.
pub const fn datagram_bytes_max(inner_mtu: u16) -> usize {
    let record = inner_mtu as usize + FRAME_HEADER_BYTES_MAX_LAST + RECORD_OVERHEAD_BYTES;
    if record > 1472 { record } else { 1472 }
}

/// Bytes of an offer message, length prefix not counted.
pub const OFFER_BYTES_MAX: usize = 4096;
/// Candidate addresses in one offer.
pub const CANDIDATES_MAX: usize = 32;

/// The token that names a lane to the peer's listener: the client's first destination connection id, and the largest
/// QUIC allows (RFC 9000, section 17.2).
pub const TOKEN_BYTES: usize = 20;

/// Control addresses (from the configuration or the interfaces) a node listens on; each costs one UDP listener per
/// worker.
pub const LISTEN_ADDRESSES_MAX: usize = 32;

/// Messages that may wait between control and one worker, each way.
pub const PLANE_QUEUE_MESSAGES: usize = 1024;
const _: () = assert!(PLANE_QUEUE_MESSAGES >= 2 * LANES_PER_LINK_MAX);

/// Datagrams that may reach a lane's handshake before its socket is connected and are kept for its worker.
pub const EARLY_DATAGRAMS_MAX: usize = 64;

/// Length prefix of a message on the link stream: big-endian.
pub const LINK_EXCHANGE_LENGTH_BYTES: usize = 2;
const _: () = assert!(OFFER_BYTES_MAX <= u16::MAX as usize);

/// Addresses remembered per peer, whatever their source: every configured one, and as many found ones.
pub const KNOWN_ADDRESSES_PER_PEER_MAX: usize = 2 * ADDRESSES_PER_PEER_MAX;
/// Addresses tried at once in one dial; the next dial tries those that waited longest.
pub const DIALED_ADDRESSES_MAX: usize = 16;
/// Dials to one peer that may be under way together, so that a dial into a black hole does not delay the next.
pub const DIALS_PER_PEER_MAX: u8 = 2;

/// libp2p connections kept with one peer; the oldest beyond it is closed at once, by either side. As many as the dials
/// of both sides can make at once: when there are more, the oldest is a dead one.
pub const KEPT_CONNECTIONS_PER_PEER_MAX: usize = 2 * DIALS_PER_PEER_MAX as usize;
/// libp2p connections one peer may have with us at any moment: there is always room for the new ones of a peer that
/// restarted while its old ones are dying.
pub const CONNECTIONS_PER_PEER_MAX: usize = 2 * KEPT_CONNECTIONS_PER_PEER_MAX;

/// Inbound libp2p handshakes under way at once; each costs a few kilobytes and ends within ten seconds.
pub const PENDING_INBOUND_CONNECTIONS_MAX: usize = 256;

/// Inbound streams of one peer on the link protocol that are open at once.
pub const LINK_STREAMS_PER_PEER_MAX: usize = 8;
/// Link exchanges we have under way with one peer at once.
pub const EXCHANGES_PER_PEER_MAX: usize = 8;
/// Inbound streams waiting in the swarm for the control loop, all peers and protocols together.
pub const STREAM_EVENTS_MAX: usize = 4096;

/// Strangers whose refusal we remember having logged.
pub const REFUSALS_REMEMBERED_MAX: usize = 256;
