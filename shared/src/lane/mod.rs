//! A lane: one UDP 4-tuple of a link, owned by one worker.
//!
//! [`connection`] is its QUIC connection without a socket; control drives it through the handshake, then its worker
//! does. [`keys`] come from that connection's TLS exporter; [`seal`] and [`replay`] turn them into records.

pub mod connection;
pub mod keys;
pub mod replay;
pub mod seal;
