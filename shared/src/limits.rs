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
