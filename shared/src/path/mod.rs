//! Candidate addresses and the state machine that probes them; and what becomes of a path that was chosen.
//!
//! Both ends of a link probe every pair of an own address and a candidate of the peer's, for each lane, because a
//! firewall or address translator on the way opens for a datagram only after one went the other way. [`candidate`]
//! says which pairs are worth a datagram, [`prober`] when to send it and which pair to take. [`birthday`] is for those
//! whose ports nobody can name.
//!
//! Once a lane stands, its worker finds out by echoes what its path carries ([`mtu`]), whether anybody is there
//! ([`liveness`], [`lull`]), how long an answer takes ([`rtt`]), how many are lost ([`loss`]), and whether records pass at
//! all or packets must go by QUIC ([`carrier`]). [`trial`] says when it moves to another path, and [`choice`] which of several
//! is the best. [`relay`] says which relays to use where there is none.

pub mod birthday;
pub mod candidate;
pub mod carrier;
pub mod choice;
pub mod liveness;
pub mod loss;
pub mod lull;
pub mod mtu;
pub mod prober;
pub mod relay;
pub mod rtt;
pub mod trial;
