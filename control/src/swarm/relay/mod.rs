//! Connections by way of a third node, and knowing whether we need them: libp2p's circuit relay v2, AutoNAT and DCUtR.
//!
//! | Module | What it is |
//! |---|---|
//! | `book` | who may be reached through us, and which circuits there are: pure |
//! | `circuit` | bytes from one end of a circuit to the other |
//! | `hop` | the relay's side of the protocol |
//! | `transport` | the client's side: circuits as connections |
//! | `auto` | which relays to be reachable through: pure |
//! | `peers_only` | keeps the library's behaviours from everybody but configured peers |
//!
//! [`Relaying`] is what the node keeps of it; `node/relaying.rs` carries out what they want.

pub(super) mod auto;
mod book;
mod circuit;
pub(super) mod hop;
pub(super) mod peers_only;
pub(super) mod transport;

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use libp2p::PeerId;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::ConnectionId;
use ringlane_shared::config::{RelayServe, RelaySettings};
use ringlane_shared::limits::HOP_STREAMS_PER_PEER_MAX;

pub use hop::{CarriedCircuit, HopCounters};

use self::auto::Auto;
use self::hop::Hop;
use super::connections::ConnectionHold;
use super::streams::Accepted;

/// The relay's protocol, as [`super::streams`] accepts it.
pub(super) fn accepted() -> Accepted {
    Accepted { name: hop::HOP, inbound_per_peer_max: HOP_STREAMS_PER_PEER_MAX }
}

/// What a node knows of relays: itself as one, and others.
pub(super) struct Relaying {
    pub(super) serve: RelayServe,
    pub(super) hop: Hop,
    pub(super) auto: Auto,
    /// Our listeners behind relays.
    pub(super) listeners: HashMap<ListenerId, PeerId>,
    /// Connected peers that offer to be relays.
    pub(super) offering: BTreeSet<PeerId>,
    /// Keep the connections open that reservations and circuits of ours run on.
    pub(super) reservation_holds: HashMap<PeerId, ConnectionHold>,
    pub(super) circuit_holds: HashMap<ConnectionId, ConnectionHold>,
    /// Whether peers could reach us from outside when they last tried.
    pub(super) is_reachable: Option<bool>,
    /// Peers that want to know whether they can be reached, and are being dialled for it.
    pub(super) probing: BTreeSet<PeerId>,
}

impl Relaying {
    pub(super) fn new(settings: &RelaySettings, now: Instant) -> Self {
        Self {
            serve: settings.serve,
            hop: Hop::default(),
            auto: Auto::new(settings.max, &settings.preferred, now),
            listeners: HashMap::new(),
            offering: BTreeSet::new(),
            reservation_holds: HashMap::new(),
            circuit_holds: HashMap::new(),
            is_reachable: None,
            probing: BTreeSet::new(),
        }
    }
}
