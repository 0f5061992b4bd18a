//! A lane: one UDP 4-tuple of a link, owned by one worker.
//!
//! [`connection`] is its QUIC connection without a socket; control drives it through the handshake, then its worker
//! does; [`congestion`] keeps it out of the way of what it carries. The first [`keys`] come from that connection's TLS
//! exporter, those of each later [`epoch`] from a handshake on its stream, whose course is [`rekey`]'s and whose
//! cryptography is `noise` over aws-lc; [`seal`] and [`replay`] turn keys into records.

pub mod congestion;
pub mod connection;
pub mod epoch;
pub mod keys;
mod noise;
pub mod rekey;
pub mod replay;
pub mod seal;
