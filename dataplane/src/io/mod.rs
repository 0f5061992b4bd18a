//! Thin shells around what the kernel offers; no decision is made here.

pub mod tun;
