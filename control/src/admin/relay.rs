//! What `status` says of relays: whether we are one, which ones we use, and who is reached by way of one.

use ringlane_shared::config::PeerSettings;
use ringlane_shared::id::PeerId;
use ringlane_shared::path::relay::RelayLoad;
use serde::{Deserialize, Serialize};

use super::udp_relay::ForwardingStatus;

/// Relays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Whether peers may use this node as a relay now.
    pub serves: bool,
    /// Whether the node is known to be reachable from everywhere.
    pub public: bool,
    /// How much this node has to do as one; `null` if it is none.
    #[serde(default)]
    pub load: Option<LoadStatus>,
    /// Connected peers that offer to be relays.
    pub relays: Vec<RelayPeer>,
    /// Why none of them can be used for something new, if so.
    #[serde(default)]
    pub problem: Option<String>,
    /// Peers whose best connection a relay passes on.
    pub relayed: Vec<RelayedPeer>,
    /// Peers that may be reached through this node.
    pub reservations: Vec<RelayNode>,
    /// Circuits that this node carries.
    pub circuits: Vec<CircuitStatus>,
    /// Reservations this node has given, renewals among them.
    pub reservations_given: u64,
    /// Circuits that it carried and that have ended.
    pub circuits_ended: u64,
    /// Bytes that those carried, both ways together.
    pub circuit_bytes: u64,
    /// Requests to it that were not granted.
    pub requests_refused: u64,
    /// Lanes of others that it forwards, datagram by datagram.
    #[serde(default)]
    pub forwarding: ForwardingStatus,
}

/// A node, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RelayNode {
    /// Its configured name; may be empty.
    pub name: String,
    /// Its peer id.
    pub id: String,
}

impl RelayNode {
    /// A node that may be one of these.
    pub(crate) fn of(peers: &[PeerSettings], id: &PeerId) -> Self {
        let name = peers.iter().find(|peer| peer.id == *id).map(|peer| peer.name.clone());
        Self { name: name.unwrap_or_default(), id: id.to_string() }
    }
}

/// A relay that could be used.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RelayPeer {
    /// Who.
    #[serde(flatten)]
    pub node: RelayNode,
    /// Whether this node can be reached through it.
    pub reserved: bool,
    /// How much it says that it has to do; `null` if it has not lately.
    #[serde(default)]
    pub load: Option<LoadStatus>,
}

/// How much of a relay is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LoadStatus {
    /// By relayed lanes, of 100.
    pub lanes_percent: u8,
    /// By circuits, of 100.
    pub circuits_percent: u8,
}

impl From<RelayLoad> for LoadStatus {
    fn from(RelayLoad { lanes, circuits }: RelayLoad) -> Self {
        Self { lanes_percent: lanes.percent(), circuits_percent: circuits.percent() }
    }
}

/// A peer that is reached by way of a relay.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RelayedPeer {
    /// Who.
    #[serde(flatten)]
    pub node: RelayNode,
    /// The relay; `null` if its address does not tell.
    pub relay: Option<RelayNode>,
}

/// A circuit.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CircuitStatus {
    /// Who asked for it.
    pub source: RelayNode,
    /// Whom it leads to.
    pub target: RelayNode,
    /// Bytes from the source.
    pub bytes_from_source: u64,
    /// Bytes from the target.
    pub bytes_from_target: u64,
    /// Since it was made.
    pub age_s: u64,
}
