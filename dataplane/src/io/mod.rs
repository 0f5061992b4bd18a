//! Thin shells around what the kernel offers; no decision is made here.

pub mod bare_tun;
pub mod engine;
pub(crate) mod offload;
pub mod tun;
