//! Outer messages: parse and emit, nothing else. `docs/protocol.md` states the same bytes for other implementers.

pub mod bind;
mod candidate;
pub mod circuit;
pub mod connect;
pub mod echo;
pub mod extensions;
pub mod fragment;
pub mod frame;
mod lane_set;
pub mod mdns;
pub mod offer;
pub mod packets;
pub mod pcp;
pub mod peers;
pub mod pex;
pub mod probe;
mod reader;
pub mod record;
pub mod rekey;
pub mod relay;
pub mod routing;
pub mod secrets;
pub mod service;
pub mod upnp;
