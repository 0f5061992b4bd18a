//! Inner packets: IP headers, checksums, flows, super-segments. Everything here runs per packet and allocates nothing.

pub mod checksum;
pub mod coalesce;
pub mod flow;
mod headers;
pub mod ip;
pub mod marks;
pub mod reassembly;
mod run;
pub mod segment;
pub mod service;

pub use coalesce::{Coalescer, Joined, Span};
pub use flow::flow_hash;
pub use ip::{PacketError, PacketHeader};
pub use segment::{Split, SplitError, Transport};
