//! STUN (RFC 8489) and what of RFC 5780 it takes to know a NAT: pure, no socket, no clock.
//!
//! | Module | What it is |
//! |---|---|
//! | [`message`] | binding requests and their answers, over the crate `stun-types` |
//! | [`server`] | who is answered, how often, and with what |
//! | [`client`] | which address of ours asks whom, and when |
//! | [`nat`] | what the answers say of the NAT before us |

pub mod client;
mod hairpin;
mod host;
pub mod message;
pub mod nat;
mod round;
pub mod server;
