//! Lanes in the making: from two exchanged offers to connected, handshaken, confirmed lanes for the workers.
//!
//! ```text
//!  start(offers) --> probing --------------------> handshaking --------> Established { worker, lane }
//!                    prober asks each pair          own connected socket,      (everything moves out)
//!                    client: dials the winner       quinn-proto
//!                    server: waits for an Initial
//!                    that carries the lane's token
//!                        |                               |
//!                        +------------> Failed { reason } <
//! ```
//!
//! All of it runs on the control thread, in [`LaneEngine::next`]. For each of our addresses and each worker there is one
//! unconnected UDP *listener*; it sees everything that no connected socket wants: probes, first Initials, and whatever
//! strangers send, which gets no answer. An established lane's socket is bound to the same address and port and
//! connected, so the kernel gives it its own datagrams. When its peer moves they come to the listener again, and
//! `movement` helps the lane after it. A lane that another node relays has a port of its own for that (`relayed`); `relaying`
//! has the sockets of those that we relay. [`tls`] says who may be on the other side.

mod birthday;
mod dispatch;
mod drops;
mod engine;
mod handshake;
mod listener;
mod movement;
mod quic;
mod relayed;
mod relaying;
mod scouting;
mod setup;
mod socket;
mod stun;
pub mod tls;

pub use drops::{ListenerDrop, ListenerDrops};
pub use engine::{LaneEngine, LaneEngineConfig, LaneEngineError, LaneOutcome, LinkStart};
pub use listener::ListenError;
pub use movement::MovementCounters;
pub use setup::LaneFailure;

#[cfg(test)]
mod tests;
