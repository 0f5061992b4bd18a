//! What `status` says of the NATs before the node.

use std::net::SocketAddr;

use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::stun::client::ClientCounters;
use ringlane_shared::stun::nat::HostView;
use ringlane_shared::stun::server::ServerCounters;
use serde::{Deserialize, Serialize};

/// What is known of the NATs before the node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NatStatus {
    /// One entry for each address that lanes listen at, within bounds.
    pub hosts: Vec<HostStatus>,
    /// Where others see the lane ports, if that is elsewhere.
    pub candidates: Vec<CandidateStatus>,
    /// Where connected peers see us on their libp2p connections: the control port, where a connection came from it.
    pub control: Vec<ObservedStatus>,
    /// What STUN did.
    pub stun: StunStatus,
}

/// What the NAT before one of our addresses does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// What the answers say.
    #[serde(flatten)]
    pub view: HostView,
    /// Whether UDP is blocked: servers beyond this network were asked, none answered, and no lane of this family stands.
    /// `null` while nobody was asked.
    pub is_udp_blocked: Option<bool>,
}

/// An address of one worker's lane port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CandidateStatus {
    /// Whose port.
    pub worker: u8,
    /// `server_reflexive` or `mapped`.
    pub kind: String,
    /// What others send to.
    pub address: SocketAddr,
}

/// An address at which peers see our libp2p connections.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObservedStatus {
    /// The multiaddr.
    pub address: String,
    /// How many peers say so.
    pub peers: u32,
}

/// What STUN did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StunStatus {
    /// Requests sent, repetitions included.
    pub requests_sent: u64,
    /// Answers received, refusals included.
    pub answers_received: u64,
    /// Refusals among them.
    pub refusals_received: u64,
    /// Messages received that answer nothing we have asked.
    pub unasked_received: u64,
    /// Mappings that turned out to be others than they were.
    pub mappings_changed: u64,
    /// Requests of peers that we answered.
    pub requests_answered: u64,
    /// Requests from addresses that are no peer's: not answered.
    pub requests_of_strangers: u64,
    /// Requests that came too often: not answered.
    pub requests_too_often: u64,
    /// Requests that make no sense or leave no room for an answer: not answered.
    pub requests_malformed: u64,
}

impl StunStatus {
    /// From what both ends count.
    pub(crate) fn new((client, server): (ClientCounters, ServerCounters)) -> Self {
        let ClientCounters { requests, answers, refusals, unasked, mappings_changed } = client;
        let ServerCounters { answered, strangers, too_often, malformed } = server;
        Self {
            requests_sent: requests,
            answers_received: answers,
            refusals_received: refusals,
            unasked_received: unasked,
            mappings_changed,
            requests_answered: answered,
            requests_of_strangers: strangers,
            requests_too_often: too_often,
            requests_malformed: malformed,
        }
    }
}

impl CandidateStatus {
    pub(crate) fn new(candidate: &OwnCandidate, kind: &str) -> Self {
        Self { worker: candidate.worker, kind: kind.to_owned(), address: candidate.address }
    }
}
