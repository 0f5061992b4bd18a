//! What each stage of Ringlane's packet path costs: `cargo bench -p ringlane-benches`.
//!
//! There is nothing in here; the benches are in `benches/`.
