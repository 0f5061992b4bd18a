//! `ringlane netcheck`: what lies between this node and everybody else, and what could be better.

use std::fmt::Write;
use std::process::ExitCode;

use ringlane_control::admin::netcheck::{FamilyStatus, NetcheckStatus};
use ringlane_control::admin::{AdminCommand, ClientError, request};
use ringlane_control::netcheck::alone;

use super::{load, mappings, nat, text};
use crate::cli::NetcheckArgs;

/// UDP does not leave the network, or nothing does.
const BLOCKED: u8 = 3;

pub(crate) fn run(args: &NetcheckArgs) -> anyhow::Result<ExitCode> {
    let found = find_out(args)?;
    text::print(args.output, &found, || for_people(&found))?;
    Ok(if is_blocked(&found) { ExitCode::from(BLOCKED) } else { ExitCode::SUCCESS })
}

fn find_out(args: &NetcheckArgs) -> anyhow::Result<NetcheckStatus> {
    if let Some(interface) = &args.interface {
        return Ok(request(&text::socket_of(interface)?, AdminCommand::Netcheck)?);
    }
    let Some(file) = &args.config else { anyhow::bail!("either --interface or --config is needed") };
    let settings = load::load(file)?.settings;
    match request(&text::socket_of(&settings.interface)?, AdminCommand::Netcheck) {
        Err(ClientError::NoNode(_)) => Ok(alone::check(&settings, load::workers(&settings))??),
        answered => Ok(answered?),
    }
}

fn is_blocked(found: &NetcheckStatus) -> bool {
    [&found.ipv4, &found.ipv6].iter().all(|family| matches!(family.kind.as_str(), "udp_blocked" | "absent"))
}

fn for_people(found: &NetcheckStatus) -> String {
    let mut out = String::new();
    if !found.is_running {
        out.push_str("no node runs: this is what its configuration finds\n");
    }
    line(&mut out, "IPv4", &family(&found.ipv4));
    line(&mut out, "IPv6", &family(&found.ipv6));
    let hosts = ringlane_control::admin::nat::NatStatus { hosts: found.hosts.clone(), ..Default::default() };
    list(&mut out, "nat", &nat::lines(&hosts));
    let servers = found.stun_servers.iter().map(|server| match &server.problem {
        Some(problem) => format!("{}: {problem}", server.server),
        None if server.addresses.is_empty() => format!("{}: being looked up", server.server),
        None => format!("{}: {}", server.server, text::list(&server.addresses)),
    });
    list(&mut out, "stun", &Vec::from_iter(servers));
    line(&mut out, "lane ports", &text::list(&found.lane_ports));
    list(&mut out, "listens on", &found.listen);
    let seen = found.control.iter().map(|seen| match seen.peers {
        1 => seen.address.clone(),
        peers => format!("{}, by {peers} peers", seen.address),
    });
    list(&mut out, "seen at", &Vec::from_iter(seen));
    let reachable = match found.is_reachable {
        Some(true) => "yes, peers have dialled it back",
        Some(false) => "no, peers could not dial it back",
        None if found.is_running => "not known: no peer has tried yet",
        None => "",
    };
    line(&mut out, "reachable", reachable);
    list(&mut out, "at", &found.reachable_at);
    list(&mut out, "mappings", &mappings::lines(&found.mappings));
    let relays = found.relays.iter().map(|relay| {
        let mut line = text::name_or_id(&relay.node.name, &relay.node.id);
        if relay.rtt_us.is_some() {
            let _ = write!(line, ", {}", text::rtt(relay.rtt_us));
        }
        if let Some(transport) = &relay.transport {
            let _ = write!(line, " over {transport}");
        }
        if let Some(load) = relay.load {
            let _ = write!(line, ", {}", text::relay_load(load));
        }
        if relay.reserved {
            line.push_str(", reserved");
        }
        line
    });
    list(&mut out, "relays", &Vec::from_iter(relays));
    if let [smallest, largest] = found.path_mtu_bytes[..] {
        let payload = if smallest == largest { smallest.to_string() } else { format!("{smallest} to {largest}") };
        line(&mut out, "paths", &format!("datagrams of {payload} bytes"));
    }
    if found.underlay.scope == "lan" {
        line(&mut out, "only in", &text::list(&found.underlay.networks));
    }
    line(&mut out, "proxy", found.underlay.proxy.as_deref().unwrap_or_default());
    let contacts = found.contacts.iter().map(|contact| {
        let answer = match &contact.problem {
            None => format!("answers in {}", text::rtt(contact.took_us)),
            Some(problem) => problem.clone(),
        };
        let node = &contact.node;
        let name =
            if node.id.is_empty() && node.name.is_empty() { "-" } else { &text::name_or_id(&node.name, &node.id) };
        format!("{name} {}: {answer}", contact.address)
    });
    list(&mut out, "tcp", &Vec::from_iter(contacts));
    let advice: Vec<_> = found.advice.iter().map(|advice| advice.text.as_str()).collect();
    list(&mut out, "advice", &advice);
    if advice.is_empty() {
        line(&mut out, "advice", "none");
    }
    out
}

fn line(out: &mut String, what: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(out, "{what:<10}  {}", text::printable(text));
    }
}

fn list(out: &mut String, what: &str, lines: &[impl AsRef<str>]) {
    for (position, text) in lines.iter().enumerate() {
        line(out, if position == 0 { what } else { "" }, text.as_ref());
    }
}

fn family(family: &FamilyStatus) -> String {
    let what = match family.kind.as_str() {
        "absent" => return "none: no route leads out of this host's networks".to_owned(),
        "udp_blocked" => "UDP is blocked",
        "unknown" => "nobody outside has told how it is seen",
        "open" => "no NAT, everybody is let in",
        "no_nat" => "no NAT",
        "firewall" => "no NAT; a firewall lets in only answers",
        "full_cone" => "full-cone NAT: one port for everybody, and everybody is let in",
        "address_restricted" => "address-restricted NAT: one port for everybody; lets in the hosts that were sent to",
        "address_restricted_or_less" => {
            "NAT with one port for everybody; lets in the hosts that were sent to, perhaps everybody"
        }
        "port_restricted" => "port-restricted NAT: one port for everybody; lets in only the ports that were sent to",
        "cone" => "NAT with one port for everybody",
        "symmetric" => "symmetric NAT: another port for each destination",
        other => other,
    };
    let mut text = what.to_owned();
    if let Some(source) = family.source {
        let _ = write!(text, "; from {source}");
    }
    if family.is_translated == Some(true) && !family.outside.is_empty() {
        let _ = write!(text, ", seen as {}", text::list(&family.outside));
    }
    if let Some(mtu) = family.mtu_bytes {
        let _ = write!(text, ", MTU {mtu}");
    }
    text
}

#[cfg(test)]
mod tests {
    use ringlane_control::admin::nat::ObservedStatus;
    use ringlane_control::admin::netcheck::{AdviceStatus, ContactCheck, RelayCheck, StunServerStatus};
    use ringlane_control::admin::relay::{LoadStatus, RelayNode};

    use super::*;

    fn found() -> NetcheckStatus {
        let node = |name: &str| RelayNode { name: name.to_owned(), id: "12D3KooWRelay".to_owned() };
        NetcheckStatus {
            is_running: true,
            ipv4: FamilyStatus {
                kind: "symmetric".to_owned(),
                source: Some("192.168.1.2".parse().unwrap()),
                mtu_bytes: Some(1500),
                is_udp_blocked: Some(false),
                is_translated: Some(true),
                hairpins: None,
                outside: vec!["5.30.0.2:20000".parse().unwrap()],
            },
            ipv6: FamilyStatus { kind: "absent".to_owned(), ..FamilyStatus::default() },
            stun_servers: vec![
                StunServerStatus {
                    server: "stun.example:3478".to_owned(),
                    addresses: vec!["5.20.0.2:3478".parse().unwrap()],
                    problem: None,
                },
                StunServerStatus {
                    server: "none.example:3478".to_owned(),
                    addresses: Vec::new(),
                    problem: Some("nobody knows it".to_owned()),
                },
            ],
            lane_ports: vec![8100, 8101],
            listen: vec!["/ip4/192.168.1.2/tcp/8001".to_owned()],
            control: vec![ObservedStatus { address: "/ip4/5.30.0.2/udp/24385/quic-v1".to_owned(), peers: 2 }],
            is_reachable: Some(false),
            relays: vec![RelayCheck {
                node: node("site\x1b-r"),
                reserved: true,
                load: Some(LoadStatus { lanes_percent: 40, circuits_percent: 3 }),
                rtt_us: Some(12_000),
                transport: Some("quic".to_owned()),
            }],
            path_mtu_bytes: vec![1400, 1472],
            contacts: vec![ContactCheck {
                node: node(""),
                address: "/ip4/5.10.0.2/tcp/8001".to_owned(),
                took_us: None,
                problem: Some("timed out\x07".to_owned()),
            }],
            advice: vec![AdviceStatus { code: "symmetric".to_owned(), text: "forward UDP ports".to_owned() }],
            ..NetcheckStatus::default()
        }
    }

    #[test]
    fn an_operator_reads_what_there_is_and_what_to_do() {
        assert_eq!(
            for_people(&found()),
            "\
IPv4        symmetric NAT: another port for each destination; from 192.168.1.2, seen as 5.30.0.2:20000, MTU 1500
IPv6        none: no route leads out of this host's networks
stun        stun.example:3478: 5.20.0.2:3478
            none.example:3478: nobody knows it
lane ports  8100, 8101
listens on  /ip4/192.168.1.2/tcp/8001
seen at     /ip4/5.30.0.2/udp/24385/quic-v1, by 2 peers
reachable   no, peers could not dial it back
relays      site\u{fffd}-r, 12.0 ms over quic, taken: 40 % by lanes, 3 % by circuits, reserved
paths       datagrams of 1400 to 1472 bytes
tcp         12D3KooWRelay /ip4/5.10.0.2/tcp/8001: timed out\u{fffd}
advice      forward UDP ports
"
        );
        let reachable_at = vec!["/ip4/5.30.0.2/tcp/8001".to_owned()];
        let reached = NetcheckStatus { is_reachable: Some(true), reachable_at, ..found() };
        let told = "\nreachable   yes, peers have dialled it back\nat          /ip4/5.30.0.2/tcp/8001\n";
        assert!(for_people(&reached).contains(told));
        let alone = NetcheckStatus { is_running: false, advice: Vec::new(), ..found() };
        let text = for_people(&alone);
        assert!(text.starts_with("no node runs: ") && text.ends_with("\nadvice      none\n"), "{text}");
    }

    #[test]
    fn only_a_network_that_udp_does_not_leave_is_blocked() {
        let of = |v4: &str, v6: &str| {
            let family = |kind: &str| FamilyStatus { kind: kind.to_owned(), ..FamilyStatus::default() };
            is_blocked(&NetcheckStatus { ipv4: family(v4), ipv6: family(v6), ..NetcheckStatus::default() })
        };
        assert!(of("udp_blocked", "absent") && of("absent", "absent") && of("udp_blocked", "udp_blocked"));
        assert!(!of("udp_blocked", "no_nat") && !of("unknown", "absent") && !of("symmetric", "absent"));
    }
}
