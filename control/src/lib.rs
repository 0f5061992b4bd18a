//! Ringlane's control thread: finds, authenticates and connects peers.

pub mod swarm;
