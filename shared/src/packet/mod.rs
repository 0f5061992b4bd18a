//! Inner packets: IP headers, checksums, flows. Everything here runs per packet and allocates nothing.

pub mod checksum;
pub mod flow;
pub mod ip;

pub use flow::flow_hash;
pub use ip::{PacketError, PacketHeader};
