//! What control tells a worker.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::counters::LaneGauges;
use super::forward::{Forward, ForwardId};
use super::settings::CarrierChoice;
use super::snapshot::Snapshot;
use crate::bucket::ByteRate;
use crate::id::{LaneId, LaneIndex, LaneSerial, PeerIndex};
use crate::lane::connection::LaneConnection;
use crate::lane::epoch::EpochSecrets;
use crate::lane::seal::{Opener, Sealer};

/// One order from control to a worker.
#[derive(Debug)]
pub enum PlaneCommand {
    /// Use these tables from now on and give the old ones back ([`super::PlaneEvent::Adopted`]).
    Publish(Arc<Snapshot>),
    /// Own this lane from now on.
    AddLane(Box<LaneHandOver>),
    /// Close this lane, telling the peer, and forget it. Unknown serials are ignored: the lane may have ended by
    /// itself meanwhile. Answered with [`super::PlaneEvent::LaneEnded`].
    RetireLane(LaneSerial),
    /// A datagram that names this lane came to the listener, from an address that is not the lane's: the peer may have
    /// moved. Bounded per lane and time by control.
    PassOn(Box<PassedOn>),
    /// Find out whether this lane's peer answers on another path, and move there if it does.
    TryPath(Box<TrialPath>),
    /// Ask this lane's peer at once whether it is there. Answered with [`super::PlaneEvent::LaneAnswered`], or not at all: for
    /// an unknown serial, and when question or answer is lost.
    AskLane {
        /// Which lane.
        serial: LaneSerial,
        /// Comes back with the answer.
        ask: u64,
    },
    /// Another lane of this one's link is late, and both may have gone the same way: have it known soon whether this one has,
    /// though nothing leaves by it. Unknown serials are ignored.
    DoubtLane(LaneSerial),
    /// Relay this lane of two others from now on. Answered with [`super::PlaneEvent::ForwardEnded`] when it ends, at once if
    /// it cannot begin.
    AddForward(Box<Forward>),
    /// Relay this lane no more. Unknown ids are ignored: it may have ended by itself meanwhile.
    RemoveForward(ForwardId),
    /// What all forwards of this worker together may carry, both directions together; until it is said, at
    /// [`FORWARDS_BYTES_PER_SECOND`](crate::limits::FORWARDS_BYTES_PER_SECOND).
    LimitForwards(ByteRate),
    /// Close all lanes, telling their peers, and end. Answered with [`super::PlaneEvent::Stopped`].
    Stop,
}

/// A datagram for a lane that came on another path than the lane's. Nobody has looked at more than its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassedOn {
    /// Which lane it names.
    pub serial: LaneSerial,
    /// Our address it came to.
    pub local: SocketAddr,
    /// Where it came from, as far as a UDP source address says.
    pub from: SocketAddr,
    /// The whole datagram.
    pub datagram: Box<[u8]>,
}

/// Another path that a lane could take.
#[derive(Debug)]
pub struct TrialPath {
    /// Which lane.
    pub serial: LaneSerial,
    /// A UDP socket bound to `local`, connected to `remote`, non-blocking.
    pub socket: OwnedFd,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// Whether it was found to be better: the lane moves there if it answers, though its own path is well.
    pub is_better: bool,
}

/// An established lane on its way from control to the worker that will own it.
pub struct LaneHandOver {
    /// Names this lane for ever.
    pub serial: LaneSerial,
    /// Whose lane it is.
    pub peer: PeerIndex,
    /// Which lane of the link.
    pub index: LaneIndex,
    /// Our name for it: what the peer writes into the records we receive.
    pub inbound_id: LaneId,
    /// The UDP socket, bound to the worker's port, connected to `remote`, non-blocking.
    pub socket: OwnedFd,
    /// Our address of the 4-tuple.
    pub local: SocketAddr,
    /// The peer's address of the 4-tuple.
    pub remote: SocketAddr,
    /// The confirmed QUIC connection.
    pub connection: LaneConnection,
    /// Seals what leaves.
    pub sealer: Sealer,
    /// Opens what arrives.
    pub opener: Opener,
    /// What the keys of its later epochs will be made from.
    pub secrets: EpochSecrets,
    /// Datagrams for this lane that reached control before the hand-over, oldest first.
    pub early: Vec<Vec<u8>>,
    /// How packets shall leave by it.
    pub carrier: CarrierChoice,
    /// What the worker reports of the lane while it lives.
    pub gauges: Arc<LaneGauges>,
}

impl std::fmt::Debug for LaneHandOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneHandOver")
            .field("serial", &self.serial)
            .field("peer", &self.peer)
            .field("index", &self.index)
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}
