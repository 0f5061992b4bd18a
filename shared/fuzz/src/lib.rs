//! What each fuzz target does with its input. `shared/tests/corpus.rs`, and for `kernel` the dataplane's tests, do the same
//! with the committed corpus on stable, so that nothing found once comes back.
//!
//! Each function returns whether the input was accepted. To run a target for ten minutes, in `shared`:
//! `cargo +nightly fuzz run record -- -max_total_time=600`. What it finds goes to `fuzz/artifacts`; committed to
//! `fuzz/corpus/record`, it is replayed for ever.

pub mod circuit;
pub mod config;
pub mod connect;
pub mod discovery;
pub mod dns;
pub mod fragment;
pub mod kernel;
pub mod offload;
pub mod packets;
pub mod portmap;
pub mod rekey;
pub mod relay;
pub mod routing;
pub mod service;
pub mod stun;
pub mod twin;
pub mod watched;
pub mod wire;
