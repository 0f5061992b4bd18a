//! Host settings that would keep a router from routing: looked at, never changed.

use std::path::Path;

/// Hints for the operator about settings of this host that keep the sites' traffic from passing through it.
///
/// Empty on a host that is set up as a router. `interface` is the TUN interface's name.
pub fn forwarding_warnings(interface: &str) -> Vec<String> {
    warnings(Path::new("/proc/sys/net"), interface)
}

fn warnings(sysctl: &Path, interface: &str) -> Vec<String> {
    let value =
        |setting: &str| -> Option<u8> { std::fs::read_to_string(sysctl.join(setting)).ok()?.trim().parse().ok() };
    let mut warnings = Vec::new();
    for (family, setting, name) in [
        ("IPv4", "ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("IPv6", "ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ] {
        if value(setting) == Some(0) {
            warnings.push(format!(
                "{name} is 0: {family} packets between the tunnel and hosts behind this node are not forwarded; unless \
                 only this host uses the tunnel, run sysctl -w {name}=1"
            ));
        }
    }
    // The kernel uses the larger of the two: 1 is strict, 2 is loose.
    let of_all = value("ipv4/conf/all/rp_filter").unwrap_or(0);
    let of_interface = value(&format!("ipv4/conf/{interface}/rp_filter")).unwrap_or(0);
    if of_all.max(of_interface) == 1 {
        let name = format!("net.ipv4.conf.{interface}.rp_filter");
        warnings.push(format!(
            "reverse path filtering is strict on {interface}: packets from a peer's network are dropped when the host \
             prefers another way back to it; if that happens, run sysctl -w {name}=2"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings_with(settings: &[(&str, &str)]) -> Vec<String> {
        let sysctl = tempfile::tempdir().unwrap();
        for (setting, value) in settings {
            let file = sysctl.path().join(setting);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, value).unwrap();
        }
        warnings(sysctl.path(), "ring0")
    }

    #[test]
    fn a_router_gets_no_warning_and_neither_does_a_host_without_the_settings() {
        let router = [
            ("ipv4/ip_forward", "1\n"),
            ("ipv6/conf/all/forwarding", "1\n"),
            ("ipv4/conf/all/rp_filter", "1\n"),
            ("ipv4/conf/ring0/rp_filter", "2\n"),
        ];
        assert_eq!(warnings_with(&router), [""; 0]);
        assert_eq!(warnings_with(&[]), [""; 0]);
    }

    #[test]
    fn each_setting_that_stops_packets_is_named_with_its_remedy() {
        let found = warnings_with(&[
            ("ipv4/ip_forward", "0\n"),
            ("ipv6/conf/all/forwarding", "0\n"),
            ("ipv4/conf/ring0/rp_filter", "1\n"),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].ends_with("sysctl -w net.ipv4.ip_forward=1"), "{}", found[0]);
        assert!(found[1].ends_with("sysctl -w net.ipv6.conf.all.forwarding=1"), "{}", found[1]);
        assert!(found[2].ends_with("sysctl -w net.ipv4.conf.ring0.rp_filter=2"), "{}", found[2]);
    }
}
