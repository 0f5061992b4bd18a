//! Port mappings, in `ringlane status`.

use ringlane_control::admin::mappings::{GatewayStatus, MappingsStatus};

/// A line for each gateway that answers; one in all if none does, and none where nobody is asked.
pub(super) fn lines(status: &MappingsStatus) -> Vec<String> {
    let answering = status.gateways.iter().filter(|gateway| gateway.method.is_some() || mapped(gateway) > 0);
    let lines: Vec<String> = answering.map(line).collect();
    if lines.is_empty() && !status.gateways.is_empty() {
        return vec!["no router answers PCP, NAT-PMP or UPnP".to_owned()];
    }
    lines
}

fn line(gateway: &GatewayStatus) -> String {
    let wanted = gateway.mappings.len();
    let mut line = format!("{} on {}, ", gateway.gateway, gateway.interface);
    line += &match (&gateway.method, gateway.external) {
        (Some(method), Some(external)) => format!("{method}: {external}, {} of {wanted} ports", mapped(gateway)),
        (Some(method), None) => format!("{method}: {} of {wanted} ports, no address outside", mapped(gateway)),
        (None, _) => format!("silent: {} of {wanted} ports until they expire", mapped(gateway)),
    };
    if gateway.private {
        line += ", which is private: there is another translator behind it";
    }
    if let Some(problem) = gateway.mappings.iter().find_map(|mapping| mapping.problem.as_deref()) {
        line += &format!("; {problem}");
    }
    line
}

fn mapped(gateway: &GatewayStatus) -> usize {
    gateway.mappings.iter().filter(|mapping| mapping.external.is_some()).count()
}

#[cfg(test)]
mod tests {
    use ringlane_control::admin::mappings::MappingStatus;

    use super::*;

    fn gateway(method: Option<&str>, external: &str) -> GatewayStatus {
        let reached = method.map(|_| format!("{external}:8100").parse().unwrap());
        let mapping = MappingStatus { external: reached, ..MappingStatus::default() };
        let [router, ours] = ["192.168.1.1", "192.168.1.2"].map(|ip| ip.parse().unwrap());
        GatewayStatus {
            method: method.map(str::to_owned),
            external: method.map(|_| external.parse().unwrap()),
            private: external.starts_with("10."),
            mappings: vec![mapping],
            ..GatewayStatus::new(router, "eth0", ours)
        }
    }

    #[test]
    fn a_router_says_what_it_maps_and_silence_is_said_once() {
        let status = |gateways: Vec<GatewayStatus>| MappingsStatus { enabled: true, gateways };
        assert_eq!(lines(&MappingsStatus::default()), Vec::<String>::new());
        let silent = gateway(None, "203.0.113.1");
        assert_eq!(lines(&status(vec![silent.clone(); 2])), ["no router answers PCP, NAT-PMP or UPnP"]);
        let answering = gateway(Some("pcp"), "203.0.113.1");
        let expected = ["192.168.1.1 on eth0, pcp: 203.0.113.1, 1 of 1 ports"];
        assert_eq!(lines(&status(vec![silent, answering])), expected);
        let double = &lines(&status(vec![gateway(Some("upnp"), "10.0.0.1")]))[0];
        assert!(double.ends_with("which is private: there is another translator behind it"), "{double}");
    }
}
