//! `ringlane netcheck`, answered by a running node: from what it knows anyway.

use super::Control;
use crate::admin::netcheck::{NetcheckStatus, RelayCheck};
use crate::admin::underlay::UnderlayStatus;
use crate::netcheck::advice::advice;
use crate::netcheck::{family, ways_out};
use crate::portmap::PortMapper;

impl Control {
    pub(super) fn netcheck(&self) -> NetcheckStatus {
        let nat = self.nat_status();
        let [v4, v6] = ways_out(self.engine.local_ips());
        let relay = self.reporter().relay();
        let relays = relay.relays.into_iter().map(|relay| {
            let mut connections = self.node.all_connections().filter(|known| !known.relayed);
            let direct = connections.find(|known| known.peer.to_string() == relay.node.id);
            RelayCheck {
                rtt_us: direct.and_then(|known| known.rtt).map(|rtt| rtt.as_micros() as u64),
                transport: direct.and_then(|known| known.transport).map(|transport| transport.name().to_owned()),
                node: relay.node,
                reserved: relay.reserved,
                load: relay.load,
            }
        });
        let workers = self.workers.commands.len() as u16;
        let port = self.settings.dataplane.port;
        let mut found = NetcheckStatus {
            is_running: true,
            ipv4: family(true, v4, &nat.hosts),
            ipv6: family(false, v6, &nat.hosts),
            hosts: nat.hosts,
            candidates: nat.candidates,
            control: nat.control,
            stun_servers: self.nat.servers().collect(),
            lane_ports: (0..workers).map(|worker| port.saturating_add(worker)).collect(),
            listen: self.node.listen_addresses().map(ToString::to_string).collect(),
            is_reachable: self.node.reachability(),
            reachable_at: self.node.reachable_at().map(ToString::to_string).collect(),
            mappings: self.portmap.as_ref().map(PortMapper::status).unwrap_or_default(),
            relays: relays.collect(),
            path_mtu_bytes: self.path_mtus(),
            underlay: UnderlayStatus::new(&self.settings.control.web, self.node.lan()),
            contacts: Vec::new(),
            advice: Vec::new(),
        };
        found.advice = advice(&found);
        found
    }

    /// The smallest and the largest payload that lanes' paths are known to carry.
    fn path_mtus(&self) -> Vec<u16> {
        let peers = 0..self.settings.peers.len() as u16;
        let links = peers.filter_map(|index| self.coordinator.link(ringlane_shared::id::PeerIndex(index)));
        let known = links.flat_map(|link| link.lanes()).map(|(_, lane)| lane.gauges.mtu_bytes());
        let known: Vec<u16> = known.filter(|bytes| *bytes > 0).collect();
        known.iter().min().into_iter().chain(known.iter().max()).copied().collect()
    }
}
