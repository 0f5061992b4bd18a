//! What a worker tells control.

use std::net::SocketAddr;
use std::sync::Arc;

use super::snapshot::Snapshot;
use crate::id::{Generation, LaneIndex, LaneSerial, PeerIndex, WorkerId};

/// One report from a worker to control.
#[derive(Debug)]
pub enum PlaneEvent {
    /// The worker uses this generation; the tables it used before come back so that control frees them.
    Adopted {
        /// Who.
        worker: WorkerId,
        /// Which.
        generation: Generation,
        /// What it used before.
        retired: Arc<Snapshot>,
    },
    /// A lane has ended and its socket is closed.
    LaneEnded {
        /// Which lane of all.
        serial: LaneSerial,
        /// Whose.
        peer: PeerIndex,
        /// Which lane of the link.
        index: LaneIndex,
        /// Why.
        end: LaneEnd,
    },
    /// A datagram that a lane's socket received and that is not the lane's: a probe, a handshake, or a stranger's
    /// packet from before the socket was connected. Bounded by the queue; dropped when that is full.
    Stray(Stray),
    /// The worker cannot go on. The process must end.
    Failed {
        /// Who.
        worker: WorkerId,
        /// Why, for the operator.
        message: String,
    },
    /// The worker has closed its lanes and ended as ordered.
    Stopped {
        /// Who.
        worker: WorkerId,
    },
}

/// Why a lane ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LaneEnd {
    /// Control retired it.
    Retired,
    /// Its keys have sealed as many records as they may; a new lane has new keys.
    Worn,
    /// Nothing authentic was heard from the peer for the idle timeout.
    TimedOut,
    /// The peer closed it.
    ClosedByPeer,
    /// The QUIC connection or the socket failed.
    Failed(String),
}

/// A datagram handed back to control.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stray {
    /// Our address of the socket it arrived on.
    pub local: SocketAddr,
    /// Who sent it, as far as a UDP source address says.
    pub from: SocketAddr,
    /// The whole datagram.
    pub datagram: Box<[u8]>,
}
