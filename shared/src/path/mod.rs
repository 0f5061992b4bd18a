//! Candidate addresses and the state machine that probes them.
//!
//! Both ends of a link probe every pair of an own address and a candidate of the peer's, for each lane, because a
//! firewall or address translator on the way opens for a datagram only after one went the other way. [`candidate`]
//! says which pairs are worth a datagram, [`prober`] when to send it and which pair to take.

pub mod candidate;
pub mod prober;
