//! What leaves when, while something is slower than the worker: a socket whose device pushes back, or a configured rate.
//!
//! ```text
//! TUN, other workers -> [Fq: a queue per flow, flows take turns, CoDel] -> records -> sealed -> socket
//!                                          ^                                              |
//!                         when: Pacer (rate), PushBack (what the kernel still holds) <----+
//! ```
//! Packets wait before they are sealed, so that dropping one costs neither a counter nor a gap in the peer's window, and
//! one that comes last may leave first. Pure: time is an argument. The worker's part is `worker/egress.rs`.

pub(crate) mod codel;
pub(crate) mod fq;
pub(crate) mod pace;
pub(crate) mod push_back;
