//! What `status` says of lanes that are relayed at the speed of UDP, here for others.

use serde::{Deserialize, Serialize};

use super::relay::RelayNode;

/// Lanes of others that this node relays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ForwardingStatus {
    /// Whose lanes.
    pub allotments: Vec<AllotmentStatus>,
    /// Allotments made so far.
    pub allotments_given: u64,
    /// Requests for one that were refused because there were too many.
    pub allotments_refused: u64,
    /// Lanes that began to be forwarded.
    pub lanes_begun: u64,
    /// Ends of such lanes that were found at another address.
    pub ends_moved: u64,
    /// Datagrams forwarded.
    pub datagrams: u64,
    /// Their UDP payloads.
    pub bytes: u64,
    /// Datagrams that were not, as there is a rate.
    pub datagrams_over_rate: u64,
}

/// Lanes between two peers that may go by this node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AllotmentStatus {
    /// Who has asked for it.
    pub source: RelayNode,
    /// The other end.
    pub target: RelayNode,
    /// Lanes that it is for.
    pub lanes: usize,
    /// Those of them that both ends can use.
    pub open: usize,
}
