//! What `ringlane status` says of NATs, for people.

use ringlane_control::admin::nat::{HostStatus, NatStatus};
use ringlane_shared::stun::nat::{Filtering, Mapping, Scope};

/// One line for each address that somebody was asked about.
pub(crate) fn lines(status: &NatStatus) -> Vec<String> {
    status.hosts.iter().filter(|host| host.view.servers_asked > 0).map(line).collect()
}

fn line(host: &HostStatus) -> String {
    let view = &host.view;
    let local = view.local;
    match (host.is_udp_blocked, view.is_translated, view.scope) {
        (Some(true), None, _) => return format!("{local}: UDP is blocked, no server answers"),
        (_, None, _) => return format!("{local}: no answer yet"),
        (_, Some(false), Some(Scope::Neighbours)) => return format!("{local}: only neighbours were asked"),
        _ => {}
    }
    let mut parts = Vec::new();
    if view.is_translated == Some(false) {
        parts.push("no NAT".to_owned());
    } else {
        let mapped: Vec<_> =
            view.ports.iter().filter_map(|port| port.mapped).map(|mapped| mapped.to_string()).collect();
        parts.push(format!("seen as {}", mapped.join(", ")));
        parts.push(match view.mapping {
            Mapping::Unknown | Mapping::None => "NAT".to_owned(),
            Mapping::EndpointIndependent => "the same for everybody".to_owned(),
            Mapping::AddressDependent => "another for each address".to_owned(),
            Mapping::AddressAndPortDependent => "another for each address and port (symmetric)".to_owned(),
        });
        if view.keeps_ports == Some(true) {
            parts.push("ports kept".to_owned());
        }
        if let Some(step) = view.port_step {
            parts.push(format!("ports in steps of {step}"));
        }
    }
    match view.hairpins {
        Some(true) => parts.push("hairpins".to_owned()),
        Some(false) => parts.push("does not hairpin".to_owned()),
        None => {}
    }
    match view.filtering {
        Filtering::Unknown => {}
        Filtering::EndpointIndependent => parts.push("lets everybody in".to_owned()),
        Filtering::AddressDependentOrLess | Filtering::AddressDependent => {
            parts.push("lets in whom we have sent to, from every port".to_owned());
        }
        Filtering::AddressAndPortDependent => parts.push("lets in only the port we have sent to".to_owned()),
    }
    if host.is_udp_blocked == Some(true) {
        parts.push("now silent".to_owned());
    }
    format!("{local}: {}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use ringlane_shared::stun::nat::{HostView, PortView};

    use super::*;

    fn host() -> HostStatus {
        let port = PortView { worker: 0, local_port: 8100, mapped: Some("203.0.113.5:20000".parse().unwrap()) };
        let view = HostView {
            local: "192.168.1.7".parse().unwrap(),
            scope: Some(Scope::Internet),
            servers_asked: 2,
            servers_answered: 2,
            is_silent: false,
            is_translated: Some(true),
            mapping: Mapping::AddressAndPortDependent,
            is_mapping_certain: true,
            filtering: Filtering::AddressAndPortDependent,
            keeps_ports: Some(false),
            port_step: Some(2),
            hairpins: None,
            rtt_us: Some(1000),
            ports: vec![port],
        };
        HostStatus { view, is_udp_blocked: Some(false) }
    }

    #[test]
    fn a_line_says_what_a_nat_does_in_words() {
        assert_eq!(
            line(&host()),
            "192.168.1.7: seen as 203.0.113.5:20000; another for each address and port (symmetric); ports in steps of 2; \
             lets in only the port we have sent to"
        );
        for (hairpins, told) in [(true, "; hairpins; "), (false, "; does not hairpin; ")] {
            let mut tried = host();
            tried.view.hairpins = Some(hairpins);
            assert!(line(&tried).contains(told));
        }
        let mut open = host();
        open.view.is_translated = Some(false);
        open.view.mapping = Mapping::None;
        open.view.filtering = Filtering::AddressDependentOrLess;
        assert_eq!(line(&open), "192.168.1.7: no NAT; lets in whom we have sent to, from every port");
        let mut blocked = host();
        blocked.view.is_translated = None;
        blocked.is_udp_blocked = Some(true);
        assert_eq!(line(&blocked), "192.168.1.7: UDP is blocked, no server answers");
        let mut unasked = host();
        unasked.view.servers_asked = 0;
        assert!(lines(&NatStatus { hosts: vec![unasked], ..NatStatus::default() }).is_empty());
    }
}
