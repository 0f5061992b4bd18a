//! Nodes behind NATs of every kind.
//!
//! | Module | What it is |
//! |---|---|
//! | [`kinds`] | the kinds of places a node can be in, as data |
//! | [`rules`] | a gateway's nftables |
//! | [`lab`] | an internet, two public nodes and two sites in such places; and what can happen to them |
//! | [`behaviour`] | that the kernel does as `kinds` says |
//! | [`nodes`] | four nodes in a lab, and which way packets take between A and B |
//! | [`matrix`] | which way is found for which pair, how soon, and what is expected |
//! | [`punch`] | that lanes come soon where both have a NAT |
//! | [`udp_relay`] | lanes that R or S relays, where no direct path is |
//! | [`relay_load`] | that who has little to do is asked |
//! | [`bad_relay`] | what a relay can do to what it forwards |
//! | [`say`] | what `ringlane netcheck`, `ping` and `status` say of all that |
//! | [`upheaval`] | what happens to paths while a transfer runs, and the gaps it leaves |
//! | [`table`] | the tables of `docs/nat.md` |

mod bad_relay;
mod behaviour;
mod kinds;
mod lab;
mod matrix;
mod nodes;
mod punch;
mod relay_load;
mod rules;
mod say;
mod table;
mod udp_relay;
mod upheaval;
