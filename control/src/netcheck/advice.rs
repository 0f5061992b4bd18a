//! What could be better between this node and everybody else, and who can make it so. Pure.

use crate::admin::mappings::GatewayStatus;
use crate::admin::netcheck::{AdviceStatus, FamilyStatus, NetcheckStatus};

/// UDP payloads that every path of lanes should carry: of an inner packet of 1280 bytes, which IPv6 needs, in one record.
const PATH_BYTES_WANTED: u16 = 1330;

/// What an operator can do, the most useful first; nothing if all is as it should be.
pub(crate) fn advice(found: &NetcheckStatus) -> Vec<AdviceStatus> {
    let mut advice = Vec::new();
    let mut say = |code: &str, text: String| advice.push(AdviceStatus { code: code.to_owned(), text });
    let ports = ports(&found.lane_ports);
    let families = [("IPv4", &found.ipv4), ("IPv6", &found.ipv6)];
    let there: Vec<_> = families.into_iter().filter(|(_, family)| family.kind != "absent").collect();
    if there.is_empty() {
        say("no_way_out", "this host has no route out of its own networks: give it a default route".to_owned());
    }
    let is_blocked = !there.is_empty() && there.iter().all(|(_, family)| family.kind == "udp_blocked");
    if is_blocked {
        say(
            "udp_blocked",
            format!(
                "no UDP leaves this network: have its firewall let UDP out from ports {ports}; until then packets go by TCP, \
                 and a peer with a public address should listen on TCP port 443"
            ),
        );
    } else {
        for (name, _) in there.iter().filter(|(_, family)| family.kind == "udp_blocked") {
            say("udp_blocked_partly", format!("no UDP leaves this network over {name}"));
        }
    }
    let unknown: Vec<&str> =
        found.stun_servers.iter().filter(|of| of.problem.is_some()).map(|of| &*of.server).collect();
    if !unknown.is_empty() {
        say(
            "stun_names",
            format!(
                "the names of STUN servers in nat.stun_servers cannot be looked up: {}; are they right, and does this host \
                 have a resolver?",
                unknown.join(", ")
            ),
        );
    }
    if !there.is_empty() && there.iter().all(|(_, family)| family.kind == "unknown") {
        let usable = found.stun_servers.iter().filter(|of| !of.addresses.is_empty()).count();
        if found.stun_servers.is_empty() {
            say(
                "nobody_asked",
                "nobody outside has told how this node is seen: name STUN servers in nat.stun_servers, or have a peer with a \
                 public address connected"
                    .to_owned(),
            );
        } else if usable > 0 {
            say(
                "nobody_answered",
                "no STUN server in nat.stun_servers has told yet how this node is seen: if that stays so, name others, beyond \
                 this host's networks"
                    .to_owned(),
            );
        }
    }
    let is_mapped = found.mappings.gateways.iter().any(|gateway| {
        gateway
            .mappings
            .iter()
            .any(|mapping| mapping.external.is_some() && mapping.offered && !mapping.workers.is_empty())
    });
    let is_symmetric = |family: &FamilyStatus| family.kind == "symmetric";
    if there.iter().any(|(_, family)| is_symmetric(family)) && !is_mapped {
        say(
            "symmetric",
            format!(
                "the NAT chooses another port for each destination, so peers behind NATs have to guess it: have the router forward \
                 UDP ports {ports} to this host, or let it map ports ({})",
                if found.mappings.enabled {
                    "PCP, NAT-PMP or UPnP, which none here answers to"
                } else {
                    "nat.port_mapping"
                }
            ),
        );
    }
    let is_translated = there.iter().any(|(_, family)| family.is_translated == Some(true));
    if is_translated && !found.mappings.enabled {
        say("port_mapping_off", "routers are not asked for port mappings: nat.port_mapping is off".to_owned());
    }
    let is_double = |gateway: &&GatewayStatus| gateway.private;
    if let Some(gateway) = found.mappings.gateways.iter().find(is_double) {
        say(
            "double_nat",
            format!("router {} is behind another NAT: what it maps is not reached from outside", gateway.gateway),
        );
    }
    if found.ipv6.kind == "firewall" {
        say("ipv6_firewall", format!("IPv6 is let in only in answers: open UDP ports {ports} to this host"));
    }
    if found.is_running && found.is_reachable == Some(false) && found.relays.iter().all(|relay| !relay.reserved) {
        say(
            "no_relay",
            "peers outside cannot dial this node, and it is reachable through no relay: have one peer with a public address \
             serve as one"
                .to_owned(),
        );
    }
    if let Some(smallest) = found.path_mtu_bytes.iter().min().filter(|bytes| **bytes < PATH_BYTES_WANTED) {
        say(
            "small_path",
            format!(
                "a path carries datagrams of {smallest} bytes only: packets are cut; look for a tunnel or a wrong MTU on the way"
            ),
        );
    }
    if found.underlay.scope == "lan" {
        say("lan_only", "control.scope is \"lan\": nobody beyond this host's networks is reached".to_owned());
    }
    if !found.contacts.is_empty() && found.contacts.iter().all(|contact| contact.took_us.is_none()) {
        say(
            "no_contact",
            "none of the peers' addresses answers over TCP: are they up, and are the addresses right?".to_owned(),
        );
    }
    advice
}

/// `8100` or `8100-8103`.
fn ports(ports: &[u16]) -> String {
    match (ports.iter().min(), ports.iter().max()) {
        (Some(first), Some(last)) if first != last => format!("{first}-{last}"),
        (Some(only), _) => only.to_string(),
        _ => "of lanes".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use crate::admin::mappings::{MappingStatus, MappingsStatus};
    use crate::admin::netcheck::{ContactCheck, RelayCheck, StunServerStatus};
    use crate::admin::underlay::UnderlayStatus;

    use super::*;

    fn of(v4: &str, v6: &str) -> NetcheckStatus {
        let family = |kind: &str| FamilyStatus {
            kind: kind.to_owned(),
            is_translated: Some(["symmetric", "full_cone", "port_restricted"].contains(&kind)),
            ..FamilyStatus::default()
        };
        NetcheckStatus {
            is_running: true,
            ipv4: family(v4),
            ipv6: family(v6),
            lane_ports: vec![8100, 8101],
            mappings: MappingsStatus { enabled: true, gateways: Vec::new() },
            ..NetcheckStatus::default()
        }
    }

    fn gateway(private: bool, offered: bool) -> GatewayStatus {
        let external = offered.then(|| "5.30.0.2:8100".parse().unwrap());
        let mapping = MappingStatus { workers: vec![0], external, offered, ..MappingStatus::default() };
        let [router, ours] = ["192.168.1.1", "192.168.1.2"].map(|ip| ip.parse().unwrap());
        GatewayStatus { private, mappings: vec![mapping], ..GatewayStatus::new(router, "eth0", ours) }
    }

    #[test]
    fn what_could_be_better_is_said_and_nothing_else() {
        let with = |mut found: NetcheckStatus, gateway: GatewayStatus| {
            found.mappings.gateways.push(gateway);
            found
        };
        let contact = |took_us| ContactCheck { took_us, ..ContactCheck::default() };
        let relay = |reserved| RelayCheck { reserved, ..RelayCheck::default() };
        let servers = |found: NetcheckStatus, known: &[bool]| {
            let server = |known: &bool| StunServerStatus {
                server: "stun.example:3478".to_owned(),
                addresses: known.then(|| "5.20.0.2:3478".parse().unwrap()).into_iter().collect(),
                problem: (!known).then(|| "nobody knows it".to_owned()),
            };
            NetcheckStatus { stun_servers: known.iter().map(server).collect(), ..found }
        };
        let cases: [(NetcheckStatus, &[&str]); 22] = [
            (of("open", "open"), &[]),
            (of("port_restricted", "absent"), &[]),
            (of("absent", "no_nat"), &[]),
            (of("absent", "absent"), &["no_way_out"]),
            (of("udp_blocked", "absent"), &["udp_blocked"]),
            (of("udp_blocked", "no_nat"), &["udp_blocked_partly"]),
            (of("unknown", "absent"), &["nobody_asked"]),
            (of("unknown", "no_nat"), &[]),
            (servers(of("unknown", "absent"), &[false]), &["stun_names"]),
            (servers(of("unknown", "absent"), &[true]), &["nobody_answered"]),
            (servers(of("unknown", "absent"), &[true, false]), &["stun_names", "nobody_answered"]),
            (servers(of("port_restricted", "absent"), &[true, false]), &["stun_names"]),
            (of("symmetric", "absent"), &["symmetric"]),
            (with(of("symmetric", "absent"), gateway(false, true)), &[]),
            (with(of("symmetric", "absent"), gateway(true, false)), &["symmetric", "double_nat"]),
            (
                NetcheckStatus { mappings: MappingsStatus::default(), ..of("full_cone", "firewall") },
                &["port_mapping_off", "ipv6_firewall"],
            ),
            (NetcheckStatus { is_reachable: Some(false), ..of("port_restricted", "absent") }, &["no_relay"]),
            (
                NetcheckStatus {
                    is_reachable: Some(false),
                    relays: vec![relay(false), relay(true)],
                    ..of("port_restricted", "absent")
                },
                &[],
            ),
            (NetcheckStatus { path_mtu_bytes: vec![1232, 1472], ..of("open", "open") }, &["small_path"]),
            (
                NetcheckStatus {
                    underlay: UnderlayStatus { scope: "lan".to_owned(), ..UnderlayStatus::default() },
                    ..of("open", "open")
                },
                &["lan_only"],
            ),
            (NetcheckStatus { contacts: vec![contact(None); 2], ..of("open", "open") }, &["no_contact"]),
            (NetcheckStatus { contacts: vec![contact(None), contact(Some(7))], ..of("open", "open") }, &[]),
        ];
        for (found, codes) in cases {
            let advice = advice(&found);
            let told: Vec<_> = advice.iter().map(|advice| advice.code.as_str()).collect();
            assert_eq!(told, codes, "{:?} {:?}", found.ipv4.kind, found.ipv6.kind);
        }
        assert!(advice(&of("udp_blocked", "absent"))[0].text.contains("from ports 8100-8101;"));
    }
}
