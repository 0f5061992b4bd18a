//! The figures of what lies between this node and others: NATs, STUN, port mappings, relays.

use ringlane_shared::stun::nat::{Filtering, Mapping};

use super::families::{NONE, PEER, counter, gauge, seconds};
use super::{Family, Samples, Scrape};
use crate::admin::nat::{HostStatus, StunStatus};
use crate::admin::relay::{LoadStatus, RelayStatus};

const ADDRESS: &[&str] = &["address"];

/// In the order served.
pub(super) const FAMILIES: &[Family] = &[
    gauge(
        "ringlane_nat_info",
        &["address", "mapping", "filtering"],
        "1; what the NAT before an address of ours does",
        |scrape, out| {
            for host in asked(scrape) {
                let (mapping, filtering): (Mapping, Filtering) = (host.view.mapping, host.view.filtering);
                out.add(&[&host.view.local.to_string(), mapping.name(), filtering.name()], 1_u64);
            }
        },
    ),
    gauge("ringlane_nat_translated", ADDRESS, "1 if others see an address of ours as another", |scrape, out| {
        hosts(scrape, out, |host| host.view.is_translated);
    }),
    gauge("ringlane_udp_blocked", ADDRESS, "1 if UDP from an address of ours is answered by nobody", |scrape, out| {
        hosts(scrape, out, |host| host.is_udp_blocked);
    }),
    gauge("ringlane_nat_rtt_seconds", ADDRESS, "Shortest round-trip time to a STUN server", |scrape, out| {
        for host in asked(scrape) {
            if let Some(rtt_us) = host.view.rtt_us {
                out.add(&[&host.view.local.to_string()], seconds(rtt_us.into()));
            }
        }
    }),
    counter("ringlane_stun_sent_requests", NONE, "STUN requests sent, repetitions included", |scrape, out| {
        stun(scrape, out, |stun| stun.requests_sent);
    }),
    counter("ringlane_stun_received_answers", NONE, "Answers received, refusals included", |scrape, out| {
        stun(scrape, out, |stun| stun.answers_received);
    }),
    counter("ringlane_stun_received_refusals", NONE, "Refusals among them", |scrape, out| {
        stun(scrape, out, |stun| stun.refusals_received);
    }),
    counter("ringlane_stun_unasked_messages", NONE, "STUN messages that answer nothing asked", |scrape, out| {
        stun(scrape, out, |stun| stun.unasked_received);
    }),
    counter(
        "ringlane_nat_changed_mappings",
        NONE,
        "Mappings that turned out to be others than before",
        |scrape, out| {
            stun(scrape, out, |stun| stun.mappings_changed);
        },
    ),
    counter("ringlane_stun_answered_requests", NONE, "STUN requests of peers answered", |scrape, out| {
        stun(scrape, out, |stun| stun.requests_answered);
    }),
    counter("ringlane_stun_ignored_requests", &["reason"], "STUN requests not answered", |scrape, out| {
        let stun = &scrape.status.nat.stun;
        out.add(&["stranger"], stun.requests_of_strangers);
        out.add(&["too_often"], stun.requests_too_often);
        out.add(&["malformed"], stun.requests_malformed);
    }),
    gauge("ringlane_gateways", &["method"], "Routers asked for port mappings, by what they answer", |scrape, out| {
        for method in ["pcp", "nat-pmp", "upnp", "none"] {
            let gateways = scrape.status.mappings.gateways.iter();
            let count = gateways.filter(|gateway| gateway.method.as_deref().unwrap_or("none") == method).count();
            out.add(&[method], count as u64);
        }
    }),
    gauge("ringlane_port_mapping_problems", NONE, "Ports that a router has refused to map", |scrape, out| {
        let mappings = scrape.status.mappings.gateways.iter().flat_map(|gateway| &gateway.mappings);
        out.add(&[], mappings.filter(|mapping| mapping.problem.is_some()).count() as u64);
    }),
    counter("ringlane_gateway_restarts", NONE, "Times that routers have lost their mappings", |scrape, out| {
        out.add(&[], scrape.status.mappings.gateways.iter().map(|gateway| gateway.restarts).sum::<u64>());
    }),
    gauge("ringlane_relay_serving", NONE, "1 if peers may use this node as a relay", |scrape, out| {
        relay(scrape, out, |relay| u64::from(relay.serves));
    }),
    gauge("ringlane_public", NONE, "1 if the node is known to be reachable from everywhere", |scrape, out| {
        relay(scrape, out, |relay| u64::from(relay.public));
    }),
    gauge("ringlane_relays", NONE, "Relays that this node can be reached through", |scrape, out| {
        relay(scrape, out, |relay| relay.relays.iter().filter(|relay| relay.reserved).count() as u64);
    }),
    gauge("ringlane_relayed_peers", NONE, "Peers whose best connection of libp2p a relay passes on", |scrape, out| {
        relay(scrape, out, |relay| relay.relayed.len() as u64);
    }),
    gauge("ringlane_relay_reservations", NONE, "Peers that can be reached through this node", |scrape, out| {
        relay(scrape, out, |relay| relay.reservations.len() as u64);
    }),
    gauge("ringlane_relay_circuits", NONE, "Circuits that this node carries", |scrape, out| {
        relay(scrape, out, |relay| relay.circuits.len() as u64);
    }),
    counter("ringlane_relay_given_reservations", NONE, "Reservations given, renewals among them", |scrape, out| {
        relay(scrape, out, |relay| relay.reservations_given);
    }),
    counter("ringlane_relay_ended_circuits", NONE, "Circuits carried that have ended", |scrape, out| {
        relay(scrape, out, |relay| relay.circuits_ended);
    }),
    counter("ringlane_relay_carried_bytes", NONE, "Bytes of all circuits, both ways together", |scrape, out| {
        relay(scrape, out, |relay| relay.circuit_bytes + carried(relay));
    }),
    gauge(
        "ringlane_relay_allotments",
        NONE,
        "Links of other nodes with lanes that this one may forward",
        |scrape, out| {
            relay(scrape, out, |relay| relay.forwarding.allotments.len() as u64);
        },
    ),
    gauge("ringlane_relay_forwards", NONE, "Lanes of other nodes that this one forwards", |scrape, out| {
        relay(scrape, out, |relay| relay.forwarding.allotments.iter().map(|allotment| allotment.open as u64).sum());
    }),
    counter(
        "ringlane_relay_given_allotments",
        NONE,
        "Links whose lanes this node has agreed to forward",
        |scrape, out| {
            relay(scrape, out, |relay| relay.forwarding.allotments_given);
        },
    ),
    counter(
        "ringlane_relay_refused_allotments",
        NONE,
        "Those that it has not, as there were too many",
        |scrape, out| {
            relay(scrape, out, |relay| relay.forwarding.allotments_refused);
        },
    ),
    counter("ringlane_relay_begun_forwards", NONE, "Lanes of other nodes that began to be forwarded", |scrape, out| {
        relay(scrape, out, |relay| relay.forwarding.lanes_begun);
    }),
    counter(
        "ringlane_relay_moved_ends",
        NONE,
        "Ends of such lanes that were found at another address",
        |scrape, out| {
            relay(scrape, out, |relay| relay.forwarding.ends_moved);
        },
    ),
    counter(
        "ringlane_relay_forwarded_datagrams",
        NONE,
        "Datagrams of such lanes, both ways together",
        |scrape, out| {
            relay(scrape, out, |relay| relay.forwarding.datagrams);
        },
    ),
    counter("ringlane_relay_forwarded_bytes", NONE, "Bytes of their UDP payloads", |scrape, out| {
        relay(scrape, out, |relay| relay.forwarding.bytes);
    }),
    counter("ringlane_relay_dropped_datagrams", NONE, "Those dropped because there is a rate", |scrape, out| {
        relay(scrape, out, |relay| relay.forwarding.datagrams_over_rate);
    }),
    gauge("ringlane_relayed_lanes", NONE, "Lanes of this node that another one forwards", |scrape, out| {
        let lanes = scrape.status.peers.iter().flat_map(|peer| &peer.lanes);
        out.add(&[], lanes.filter(|lane| lane.relay.is_some()).count() as u64);
    }),
    counter("ringlane_relay_refused_requests", NONE, "Requests to this relay that were not granted", |scrape, out| {
        relay(scrape, out, |relay| relay.requests_refused);
    }),
    gauge("ringlane_relay_rtt_seconds", PEER, "Round-trip time to a peer that offers to be a relay", |scrape, out| {
        for relay in &scrape.status.relay.relays {
            let of_it =
                scrape.connections.iter().filter(|known| known.id == relay.node.id && known.transport != "relay");
            if let Some(rtt_us) = of_it.filter_map(|known| known.rtt_us).min() {
                out.add(&[&relay.node.id, &relay.node.name], seconds(rtt_us));
            }
        }
    }),
    gauge("ringlane_relay_load_ratio", &["by"], "How much of this relay is taken, from 0 to 1", |scrape, out| {
        for (by, share) in scrape.status.relay.load.into_iter().flat_map(shares) {
            out.add(&[by], share);
        }
    }),
    gauge(
        "ringlane_relay_peer_load_ratio",
        &["peer", "name", "by"],
        "How much a peer that offers to be a relay says is taken of it, from 0 to 1",
        |scrape, out| {
            for relay in &scrape.status.relay.relays {
                for (by, share) in relay.load.into_iter().flat_map(shares) {
                    out.add(&[&relay.node.id, &relay.node.name, by], share);
                }
            }
        },
    ),
    gauge(
        "ringlane_peer_obstacle",
        &["peer", "name", "code"],
        "1; what keeps a peer from being reached by lanes from node to node",
        |scrape, out| {
            for peer in &scrape.status.peers {
                if let Some(obstacle) = &peer.obstacle {
                    out.add(&[&peer.id, &peer.name, &obstacle.code], 1_u64);
                }
            }
        },
    ),
];

/// Our addresses from which somebody was asked.
fn asked(scrape: &Scrape) -> impl Iterator<Item = &HostStatus> {
    scrape.status.nat.hosts.iter().filter(|host| host.view.servers_asked > 0)
}

fn hosts(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&HostStatus) -> Option<bool>) {
    for host in asked(scrape) {
        if let Some(figure) = figure(host) {
            out.add(&[&host.view.local.to_string()], u64::from(figure));
        }
    }
}

fn stun(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&StunStatus) -> u64) {
    out.add(&[], figure(&scrape.status.nat.stun));
}

fn relay(scrape: &Scrape, out: &mut Samples, figure: impl Fn(&RelayStatus) -> u64) {
    out.add(&[], figure(&scrape.status.relay));
}

fn shares(load: LoadStatus) -> [(&'static str, f64); 2] {
    [("lanes", load.lanes_percent), ("circuits", load.circuits_percent)]
        .map(|(by, of_100)| (by, f64::from(of_100) / 100.0))
}

/// Bytes of the circuits that stand.
fn carried(relay: &RelayStatus) -> u64 {
    relay.circuits.iter().map(|circuit| circuit.bytes_from_source + circuit.bytes_from_target).sum()
}
