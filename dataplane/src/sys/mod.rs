//! All of the workspace's `unsafe`: memory shared with the kernel, the packet ring and its engines, TUN ioctls. Exports safe
//! functions only.
//!
//! The rule that makes it sound: memory the kernel may touch lives in a [`slab::Slab`] that outlives the ring, and a
//! piece of it is either the kernel's or ours, never both. Which one is tracked by tokens that cannot be copied or
//! made up: a completion yields one, and queueing an operation or recycling takes it back.
#![allow(unsafe_code)]

pub(crate) mod datagram;
pub(crate) mod ring;
pub(crate) mod slab;
pub(crate) mod socket;
pub(crate) mod steering;
pub(crate) mod tun;
pub(crate) mod vnet_header;
