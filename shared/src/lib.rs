//! Ringlane's protocol, pure: what both planes and both ends of a link must agree on.
//!
//! Nothing here opens a socket, reads a clock, spawns a task or draws a random number by itself: time, randomness
//! and bytes are arguments, so every piece is tested in microseconds and a simulation can replay it.
//!
//! | Module | What it is |
//! |---|---|
//! | [`id`] | the newtypes everything is keyed by |
//! | [`identity`] | Ed25519 keys, peer ids and the addresses derived from them |
//! | [`config`] | a configuration file, parsed once into typed [`config::Settings`] |
//! | [`dns`] | the names of a network and the answers to questions about them |
//! | [`limits`] | every bound in the system, with the arithmetic that ties them together |
//! | [`wire`] | outer messages: records, frames, offers, probes; parse and emit, nothing else |
//! | [`packet`] | inner packets: IP headers, checksums, flows |
//! | [`lane`] | a lane's cryptography and its QUIC connection |
//! | [`stun`] | what others see of our ports: a client, a server, and what NATs do |
//! | [`route`] | longest-prefix match from a destination to a peer |
//! | [`path`] | candidates and the probes of them; what a lane's path carries, who answers on it, and when it is left |
//! | [`bucket`] | how often something may happen, and how many bytes may pass |
//! | [`plane`] | all that control and workers ever say to each other |
#![forbid(unsafe_code)]

pub mod bucket;
pub mod config;
pub mod dns;
pub mod drop_reason;
mod host;
pub mod id;
pub mod identity;
pub mod lane;
pub mod limits;
pub mod packet;
pub mod path;
pub mod plane;
pub mod route;
pub mod stun;
pub mod wire;
