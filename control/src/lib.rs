//! Ringlane's control thread.

pub mod lanes;
