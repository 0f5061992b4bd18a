//! The figures of what lies between this node and others: NATs, STUN, port mappings, relays.

use ringlane_shared::stun::nat::{Filtering, Mapping};

use super::families::{NONE, PEER, counter, gauge, seconds};
use super::{Family, Samples, Scrape};
use crate::admin::nat::{HostStatus, StunStatus};

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
    gauge("ringlane_relay_rtt_seconds", PEER, "Round-trip time to a peer that offers to be a relay", |scrape, out| {
        for relay in &scrape.status.relay.relays {
            let of_it =
                scrape.connections.iter().filter(|known| known.id == relay.node.id && known.transport != "relay");
            if let Some(rtt_us) = of_it.filter_map(|known| known.rtt_us).min() {
                out.add(&[&relay.node.id, &relay.node.name], seconds(rtt_us));
            }
        }
    }),
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
