//! What the service network tells of itself.

use std::collections::BTreeMap;

use ringlane_shared::id::PeerId;
use ringlane_shared::identity::service_address;
use ringlane_shared::wire::service::ServiceReply;

use super::far::AskError;
use super::{ClientState, Owner, ServiceNetwork};
use crate::admin::status::{ServiceStatus, ServicesStatus};

/// What became of local clients, and of packets.
#[derive(Default)]
pub(super) struct Counters {
    /// Connections to peers' services.
    pub(super) accepted: u64,
    /// No node, or not ours, has such a service.
    pub(super) unknown: u64,
    pub(super) too_many: u64,
    pub(super) too_many_at_once: u64,
    pub(super) streams_refused: u64,
    /// Packets that nobody answers.
    pub(super) ignored: u64,
    unknown_at_peer: u64,
    not_allowed: u64,
    not_reached: u64,
    timed_out: u64,
    failed: u64,
}

impl Counters {
    /// Counts a connection that could not be made. What fails at a target of ours is counted with its service.
    pub(super) fn count(&mut self, is_ours: bool, error: &AskError) {
        let counter = match error {
            _ if is_ours => return,
            AskError::Refused(ServiceReply::NotAllowed) => &mut self.not_allowed,
            AskError::Refused(_) => &mut self.unknown_at_peer,
            AskError::NotReached => &mut self.not_reached,
            AskError::TimedOut => &mut self.timed_out,
            AskError::Answer(_) | AskError::Io(_) => &mut self.failed,
        };
        *counter += 1;
    }
}

/// Those that occurred.
fn occurred<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
}

impl ServiceNetwork {
    /// What the status says of services; `us` is our own id.
    pub fn status(&self, us: &PeerId) -> ServicesStatus {
        let offered = self.offers.offers.iter().map(|offer| ServiceStatus {
            name: offer.settings.name.clone(),
            id: format!("{:02x}{:02x}", offer.settings.id[0], offer.settings.id[1]),
            address: service_address(us, &offer.settings.name),
            target: offer.settings.target.to_string(),
            connections: offer.open.get(),
            accepted: offer.accepted.get(),
            refused: occurred([("not_allowed", offer.not_allowed.get()), ("target_failed", offer.target_failed.get())]),
        });
        let to_peers =
            |client: &&super::Client| client.owner != Owner::Us && matches!(client.state, ClientState::Open { .. });
        let counters = &self.counters;
        ServicesStatus {
            offered: offered.collect(),
            connections_to_peers: self.clients.values().filter(to_peers).count() as u64,
            accepted_by_peers: counters.accepted,
            asking: self.asking.len() as u64,
            streams_of_peers: self.served.len() as u64,
            refused: occurred([
                ("failed", counters.failed),
                ("not_allowed", counters.not_allowed),
                ("not_reached", counters.not_reached),
                ("timed_out", counters.timed_out),
                ("too_many", counters.too_many),
                ("too_many_at_once", counters.too_many_at_once),
                ("unknown_here", counters.unknown),
                ("unknown_at_peer", counters.unknown_at_peer),
            ]),
            refused_to_peers: occurred([
                ("silent", self.offers.unasked.get()),
                ("too_many", counters.streams_refused),
                ("unknown", self.offers.unknown.get()),
            ]),
            packets_dropped: occurred([("ignored", counters.ignored), ("no_room", self.stack.dropped())]),
        }
    }
}
