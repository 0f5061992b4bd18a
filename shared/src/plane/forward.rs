//! What control and workers say of **forwards**: lanes of two other nodes that this node relays.
//!
//! Each end of such a lane sends to a port of ours; what comes from one leaves to the other as it is. So a forward is two
//! connected sockets, its *halves*, and nothing in it is opened: records stay sealed from end to end.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::counters::{Counter, DropCounters};
use crate::bucket::ByteRate;

/// Names one forward among all this process ever had; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ForwardId(pub u64);

/// A relayed lane on its way from control to the worker that will forward it.
#[derive(Debug)]
pub struct Forward {
    /// Names it for ever.
    pub id: ForwardId,
    /// Where its two ends are. What arrives by one half leaves by the other.
    pub halves: [ForwardHalf; 2],
    /// What both directions together may carry. What is more is dropped, as [`DropReason::ForwardRate`].
    ///
    /// [`DropReason::ForwardRate`]: crate::drop_reason::DropReason::ForwardRate
    pub rate: ByteRate,
    /// It ends when nothing has come by either half for so long.
    pub idle: Duration,
    /// What the worker reports of it while it lives.
    pub counters: Arc<ForwardCounters>,
}

/// One end of a forward.
#[derive(Debug)]
pub struct ForwardHalf {
    /// A UDP socket bound to `local`, which is the worker's port, connected to `remote`, non-blocking. Its send buffer is
    /// all that waits for a slow device; what finds no room there is dropped.
    pub socket: OwnedFd,
    /// Our address.
    pub local: SocketAddr,
    /// The end's address, as it was seen.
    pub remote: SocketAddr,
}

/// Why a forward has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ForwardEnd {
    /// Control removed it.
    Removed,
    /// Both ends were silent for its idle time.
    Idle,
    /// It could not begin, or one of its sockets is unusable.
    Failed(String),
}

/// What one worker forwarded of one relayed lane.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ForwardCounters {
    /// What came by each half and was given to the other.
    pub halves: [ForwardedCounters; 2],
    /// What was dropped of it, of both directions.
    pub drops: DropCounters,
}

/// What was forwarded.
#[derive(Debug, Default)]
pub struct ForwardedCounters {
    /// Datagrams.
    pub datagrams: Counter,
    /// Their UDP payloads' bytes.
    pub bytes: Counter,
}
