//! What each fuzz target does with its input. `shared/tests/corpus.rs` does the same with the committed corpus on
//! stable, so that nothing found once comes back.
//!
//! Each function returns whether the input was accepted.

pub mod config;
pub mod wire;
