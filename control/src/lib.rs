//! Ringlane's control thread: finds, authenticates and connects peers, sets up lanes, owns the kernel's configuration.

pub mod store;
