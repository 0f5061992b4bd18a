//! What the workers are told once, before they start.

use std::time::Duration;

use super::offload::Offloads;

/// The settings of all workers of a node: made by the daemon, the same for each of them, and fixed from then on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerSettings {
    /// Largest inner packet in bytes: the MTU of the TUN interface.
    pub mtu: u16,
    /// Random, and decides which flow takes which lane.
    pub hash_seed: u64,
    /// The offloads that may be used, the sentinel's included if this kernel needs it.
    pub offloads: Offloads,
    /// The CPUs the process may use that workers are pinned to: worker i to `cores[i % len]`. When empty, none is pinned.
    pub cores: Vec<u16>,
    /// How long an idle worker looks again before it sleeps: 0 to
    /// [`BUSY_POLL_US_MAX`](crate::limits::BUSY_POLL_US_MAX).
    pub busy_poll: Duration,
}
