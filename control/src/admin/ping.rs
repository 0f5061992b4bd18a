//! What `ping` answers: one question to a peer, and what became of it on each path that packets take.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::obstacle::ObstacleStatus;
use super::relay::RelayNode;
use super::status::Carrier;

/// One question to a peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PingStatus {
    /// Who was asked.
    #[serde(flatten)]
    pub peer: RelayNode,
    /// Whether it has answered on any path.
    pub answered: bool,
    /// Whether it has answered on a lane from one node to the other.
    pub direct: bool,
    /// The shortest time that an answer took.
    pub rtt_us: Option<u64>,
    /// Every path it was asked on: all lanes that carry packets to it, or the one connection that their stream takes.
    pub paths: Vec<PingPath>,
    /// What keeps it from being reached by lanes from one node to the other; `null` while it is.
    pub obstacle: Option<ObstacleStatus>,
}

/// One path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PingPath {
    /// How packets travel on it.
    pub carrier: Carrier,
    /// What it is like: `lan`, `direct_v6`, `direct_v4`, `mapped` (a router at the peer's end maps the port), `translated`
    /// (there is a NAT on the way), `udp_relay`, `stream` or `relayed_stream`.
    pub kind: String,
    /// Which lane.
    pub lane: Option<u8>,
    /// The lane's worker.
    pub worker: Option<u8>,
    /// Our end of the lane.
    pub local: Option<SocketAddr>,
    /// The peer's end of the lane; a relay's, if one forwards it.
    pub remote: Option<SocketAddr>,
    /// The connection's remote address, a multiaddr.
    pub connection: Option<String>,
    /// Below the stream: `quic`, `tcp`, `ws` or `wss`.
    pub transport: Option<String>,
    /// Who passes it on, if somebody does and it is known who.
    pub relay: Option<RelayNode>,
    /// From the question to the answer; `null` if there was none in time.
    pub rtt_us: Option<u64>,
    /// What the lane's path loses, as in `status`.
    #[serde(default)]
    pub loss_percent: Option<u8>,
}
