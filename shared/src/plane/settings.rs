//! What the workers are told once, before they start.

use std::time::Duration;

use super::offload::Offloads;
use crate::limits::{KEEP_ALIVE_SECONDS_DEFAULT, REKEY_RECORDS_MAX, REKEY_SECONDS_DEFAULT};

/// What moves packets between a worker and the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// io_uring where the kernel has what it takes, else epoll.
    #[default]
    Auto,
    /// io_uring, or no start at all.
    IoUring,
    /// epoll with readv, recvmmsg and sendmmsg, on any kernel.
    Epoll,
}

impl Engine {
    /// Its stable name, as the configuration and the status have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// How packets shall reach a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CarrierChoice {
    /// Records; DATAGRAM frames of the lane's QUIC connection while QUIC passes and records do not.
    #[default]
    Auto,
    /// Records only.
    Lane,
    /// DATAGRAM frames only (RFC 9221).
    Quic,
    /// A libp2p stream only: no lanes are asked for, and none are agreed to.
    Stream,
}

/// When the keys of a lane are to be replaced: at whichever comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RekeyLimits {
    /// How long one epoch seals: [`REKEY_SECONDS_MIN`](crate::limits::REKEY_SECONDS_MIN) to
    /// [`REKEY_SECONDS_MAX`](crate::limits::REKEY_SECONDS_MAX).
    pub after: Duration,
    /// Records one epoch seals: [`REKEY_RECORDS_MIN`](crate::limits::REKEY_RECORDS_MIN) to [`REKEY_RECORDS_MAX`].
    pub records: u64,
}

impl Default for RekeyLimits {
    fn default() -> Self {
        Self { after: Duration::from_secs(REKEY_SECONDS_DEFAULT.into()), records: REKEY_RECORDS_MAX }
    }
}

/// What an outer header says of the packets inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OuterMarks {
    /// Whether records carry the DSCP of their packets; else 0 (RFC 2983).
    pub copies_dscp: bool,
    /// Whether records carry the ECN field of their packets, and what the path marks comes back into them (RFC 6040);
    /// else records are not ECN-capable.
    pub copies_ecn: bool,
}

impl Default for OuterMarks {
    fn default() -> Self {
        Self { copies_dscp: false, copies_ecn: true }
    }
}

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
    /// What moves packets between workers and the kernel.
    pub engine: Engine,
    /// When lanes get new keys.
    pub rekey: RekeyLimits,
    /// Bits per second that all workers together send at most, outer headers included; `None` for as fast as it goes.
    pub rate_bits_per_s: Option<u64>,
    /// Whether packets that are larger than a record of their path travel in fragments; else their sender is told.
    pub fragments: bool,
    /// What outer headers say of the packets inside.
    pub outer_marks: OuterMarks,
    /// Longest silence of a lane that is not used, so that what is on the way remembers it:
    /// [`KEEP_ALIVE_SECONDS_MIN`](crate::limits::KEEP_ALIVE_SECONDS_MIN) to
    /// [`KEEP_ALIVE_SECONDS_MAX`](crate::limits::KEEP_ALIVE_SECONDS_MAX).
    pub keep_alive: Duration,
}

impl WorkerSettings {
    /// The defaults, on no particular cores.
    pub fn new(mtu: u16, hash_seed: u64) -> Self {
        Self {
            mtu,
            hash_seed,
            offloads: Offloads::default(),
            cores: Vec::new(),
            busy_poll: Duration::ZERO,
            engine: Engine::default(),
            rekey: RekeyLimits::default(),
            rate_bits_per_s: None,
            fragments: true,
            outer_marks: OuterMarks::default(),
            keep_alive: Duration::from_secs(KEEP_ALIVE_SECONDS_DEFAULT.into()),
        }
    }
}
