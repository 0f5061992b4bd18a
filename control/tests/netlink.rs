//! Netlink against a real kernel. Each test runs again as its own process in a fresh network namespace, which the
//! kernel removes with that process, whatever becomes of it.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::FutureExt;
use ipnet::IpNet;
use ringlane_control::netlink::{
    HostAddress, InterfaceConfig, Netlink, NetlinkError, ROUTE_PROTOCOL, TransmitQueue, refuse_connected,
};
use tokio::time::timeout;

const INSIDE: &str = "RINGLANE_TEST_INSIDE_NAMESPACE";
const PATIENCE: Duration = Duration::from_secs(10);

/// Defines a test whose body runs on a current-thread runtime in a network namespace of its own.
macro_rules! namespace_tests {
    ($(async fn $name:ident() $body:block)+) => {$(
        #[test]
        fn $name() {
            if std::env::var_os(INSIDE).is_none() {
                return run_in_namespace(stringify!($name));
            }
            ip("link set lo up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { $body });
        }
    )+};
}

fn run_in_namespace(test: &str) {
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(arguments);
        command
    };
    let may = |arguments: &[&str]| {
        unshare(arguments).arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let Some(namespace) = [&["--net"][..], &["--map-root-user", "--net"]].into_iter().find(|arguments| may(arguments))
    else {
        eprintln!("{test}: skipped, making a network namespace needs root");
        return;
    };
    let output = unshare(namespace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn net(prefix: &str) -> IpNet {
    prefix.parse().unwrap()
}

fn addr(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn connect() -> Netlink {
    Netlink::connect().unwrap().0
}

/// A veth whose other end is up: as soon as it is up itself it has a carrier, without anyone reading from it.
fn add_link(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-far"));
    ip(&format!("link set {name}-far up"));
}

/// A stand-in for the TUN, to which the kernel does whatever it does to an interface in use.
async fn add_interface(netlink: &Netlink, name: &str) -> u32 {
    add_link(name);
    netlink.interface_index(name).await.unwrap().unwrap()
}

fn tunnel() -> InterfaceConfig {
    InterfaceConfig {
        addresses: vec![net("100.64.1.2/32"), net("fd00:6879::1/128")],
        mtu: 1420,
        tx_queue_length: Some(777),
    }
}

namespace_tests! {
    async fn an_interface_is_found_by_name_or_not_at_all() {
        let netlink = connect();
        let index = add_interface(&netlink, "rla0").await;
        assert!(ip("link show rla0").starts_with(&format!("{index}: ")));
        assert_eq!(netlink.interface_index("rla1").await.unwrap(), None);
    }

    async fn configuring_sets_mtu_queue_and_addresses_and_no_link_local_appears() {
        let netlink = connect();
        let index = add_interface(&netlink, "rla0").await;
        netlink.configure(index, &tunnel()).await.unwrap();

        let link = ip("link show rla0");
        assert!(link.contains("mtu 1420") && link.contains("qlen 777") && link.contains(",UP"), "{link}");
        assert_eq!(netlink.transmit_queue("rla0").await.unwrap(), TransmitQueue { packets: 777, dropped: 0 });
        assert!(netlink.transmit_queue("rla1").await.unwrap_err().to_string().contains("read the queue of rla1"));
        let v4 = ip("-4 address show rla0");
        assert!(v4.contains("inet 100.64.1.2/32 scope global rla0"), "{v4}");
        let v6 = ip("-6 address show rla0");
        assert!(v6.contains("fd00:6879::1/128") && v6.contains("nodad") && !v6.contains("tentative"), "{v6}");
        assert!(!v6.contains("fe80"), "{v6}");
        assert!(!ip("route show table local").contains("broadcast 100.64.1.2"));

        netlink.set_down(index).await.unwrap();
        assert!(!ip("link show rla0").contains(",UP"));
    }

    async fn a_tun_device_is_configured_like_any_other() {
        if Command::new("ip").args(["tuntap", "add", "rlt0", "mode", "tun"]).status().is_ok_and(|done| done.success()) {
            let netlink = connect();
            let index = netlink.interface_index("rlt0").await.unwrap().unwrap();
            netlink.configure(index, &tunnel()).await.unwrap();
            assert!(netlink.add_route(index, net("10.20.0.0/16"), Some(addr("100.64.1.2"))).await.unwrap());
            assert!(ip("address show rlt0").contains("fd00:6879::1/128"));
            assert!(ip("route show dev rlt0").contains("10.20.0.0/16"));
        } else {
            eprintln!("skipped: no TUN devices here");
        }
    }

    async fn routes_carry_our_protocol_and_source_and_are_taken_back() {
        let netlink = connect();
        let index = add_interface(&netlink, "rla0").await;
        netlink.configure(index, &tunnel()).await.unwrap();
        let routes = [
            ("10.20.0.0/16", Some("100.64.1.2")),
            ("100.64.7.7/32", Some("100.64.1.2")),
            ("10.30.0.0/16", None),
            ("fd00:20::/64", Some("fd00:6879::1")),
            ("fd00:6879::7/128", None),
        ];
        for (prefix, source) in routes {
            assert!(netlink.add_route(index, net(prefix), source.map(addr)).await.unwrap(), "{prefix}");
        }

        let ours = || format!(
            "{}{}",
            ip(&format!("-4 route show proto {ROUTE_PROTOCOL}")),
            ip(&format!("-6 route show proto {ROUTE_PROTOCOL}"))
        );
        let shown = ours();
        assert!(shown.contains("10.20.0.0/16 dev rla0 scope link src 100.64.1.2"), "{shown}");
        assert!(shown.contains("100.64.7.7 dev rla0 scope link src 100.64.1.2"), "{shown}");
        assert!(shown.contains("fd00:20::/64 dev rla0 src fd00:6879::1"), "{shown}");
        assert_eq!(shown.lines().count(), routes.len(), "{shown}");

        for (prefix, _) in routes {
            netlink.remove_route(index, net(prefix)).await.unwrap();
            netlink.remove_route(index, net(prefix)).await.unwrap();
        }
        assert_eq!(ours(), "");
    }

    async fn a_route_of_somebody_else_stays_and_the_error_describes_it() {
        let netlink = connect();
        let index = add_interface(&netlink, "rla0").await;
        netlink.configure(index, &tunnel()).await.unwrap();
        add_link("rlb0");
        ip("address add 192.0.2.1/24 dev rlb0");
        ip("link set rlb0 up");
        ip("route add 10.20.0.0/16 via 192.0.2.9 proto static");
        ip("-6 route add fd00:20::/64 dev rlb0 proto static");

        let refused = netlink.add_route(index, net("10.20.0.0/16"), None).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cannot route 10.20.0.0/16 into the tunnel: the host already has a route to it (via 192.0.2.9 dev rlb0 \
             proto static); remove that route, or the prefix from the peer's routes"
        );
        let refused = netlink.add_route(index, net("fd00:20::/64"), None).await.unwrap_err();
        assert!(
            matches!(&refused, NetlinkError::RouteExists { existing, .. } if existing.contains("dev rlb0")),
            "{refused}"
        );
        assert!(ip("route show 10.20.0.0/16").contains("via 192.0.2.9"));
        // A route that is not ours is not ours to remove.
        netlink.remove_route(index, net("10.20.0.0/16")).await.unwrap();
        assert!(ip("route show 10.20.0.0/16").contains("via 192.0.2.9"));
    }

    async fn without_ipv6_the_rest_is_still_set_up() {
        let netlink = connect();
        let index = add_interface(&netlink, "rla0").await;
        std::fs::write("/proc/sys/net/ipv6/conf/rla0/disable_ipv6", "1").unwrap();
        netlink.configure(index, &tunnel()).await.unwrap();
        assert!(ip("address show rla0").contains("100.64.1.2/32"));
        assert_eq!(ip("-6 address show dev rla0"), "");
        assert!(!netlink.add_route(index, net("fd00:20::/64"), Some(addr("fd00:6879::1"))).await.unwrap());
        assert!(netlink.add_route(index, net("10.20.0.0/16"), None).await.unwrap());
    }

    async fn host_addresses_tell_what_a_packet_can_be_sent_from() {
        let (netlink, mut changes) = Netlink::connect().unwrap();
        ip("link add rla0 type veth peer name rla1");
        ip("address add 192.0.2.1/24 dev rla0");
        ip("address add 198.51.100.1 peer 198.51.100.2/32 dev rla0");
        ip("-6 address add 2001:db8::1/64 dev rla0 nodad");
        ip("-6 address add 2001:db8::2/64 dev rla0 nodad preferred_lft 0");
        // Tentative for as long as the link has no carrier.
        ip("-6 address add 2001:db8::3/64 dev rla0");
        ip("link set rla0 up");

        let found = netlink.host_addresses().await.unwrap();
        let find = |address: &str| found.iter().find(|found| found.prefix.addr() == addr(address));
        let interface_index = netlink.interface_index("rla0").await.unwrap().unwrap();
        let expected = HostAddress {
            interface_index,
            interface: "rla0".to_owned(),
            prefix: net("192.0.2.1/24"),
            loopback: false,
            up: false,
            deprecated: false,
        };
        assert_eq!(find("192.0.2.1"), Some(&expected));
        assert!(find("127.0.0.1").unwrap().loopback);
        assert!(find("::1").unwrap().loopback);
        assert!(find("198.51.100.1").is_some() && find("198.51.100.2").is_none());
        assert!(!find("2001:db8::1").unwrap().deprecated);
        assert!(find("2001:db8::2").unwrap().deprecated);
        assert_eq!(find("2001:db8::3"), None);

        ip("link set rla1 up");
        // The kernel tells of a carrier a little after the fact, and then as a change.
        let up = async || {
            netlink.host_addresses().await.unwrap().iter().any(|found| found.prefix == net("192.0.2.1/24") && found.up)
        };
        while !up().await {
            timeout(PATIENCE, changes.next()).await.expect("the carrier is a change");
        }
    }

    async fn connected_networks_are_those_without_a_gateway_on_interfaces_that_are_up() {
        let netlink = connect();
        assert_eq!(netlink.connected_prefixes(None).await.unwrap(), [(net("127.0.0.0/8"), "lo".to_owned())]);

        for (name, address) in [("rla0", "10.1.0.7/24"), ("rla1", "10.2.0.7/24"), ("rla2", "10.3.0.7/24")] {
            add_link(name);
            ip(&format!("address add {address} dev {name}"));
        }
        ip("link set rla0 up");
        ip("link set rla1 up");
        ip("address add 10.9.9.9/32 dev rla0");
        ip("-6 address add 2001:db8:1::7/64 dev rla0 nodad");
        ip("route add 10.50.0.0/16 dev rla0");
        ip("route add 10.60.0.0/16 via 10.1.0.1");
        ip("route add 10.70.0.0/16 nexthop dev rla0 nexthop via 10.1.0.1 dev rla0");
        ip("route add default dev rla0");
        ip("-6 route add fd00:50::/48 dev rla0");
        ip("-6 route add fd00:60::/48 via 2001:db8:1::1");
        ip("route add 10.80.0.0/16 dev rla0 proto bgp");

        let except = netlink.interface_index("rla1").await.unwrap();
        let found = netlink.connected_prefixes(except).await.unwrap();
        let of_rla0: BTreeSet<_> =
            found.iter().filter(|(_, interface)| interface == "rla0").map(|(prefix, _)| *prefix).collect();
        let expected = ["10.1.0.0/24", "10.50.0.0/16", "10.70.0.0/16", "2001:db8:1::/64", "fd00:50::/48", "fe80::/64"];
        let expected = BTreeSet::from(expected.map(net));
        assert_eq!(of_rla0, expected);
        let others = |interface: &str| ["rla1", "rla2"].contains(&interface);
        assert!(!found.iter().any(|(_, interface)| others(interface)), "{found:?}");

        let conflict = refuse_connected([(net("10.1.0.0/25"), "site-b")], &found).unwrap_err();
        assert_eq!((conflict.connected, conflict.interface.as_str()), (net("10.1.0.0/24"), "rla0"));
        refuse_connected([(net("10.0.0.0/8"), "site-b"), (net("10.60.0.0/16"), "site-c")], &found).unwrap();
    }

    async fn changes_of_addresses_and_links_are_noticed_and_come_as_one() {
        let (netlink, mut changes) = Netlink::connect().unwrap();
        add_interface(&netlink, "rla0").await;
        timeout(PATIENCE, changes.next()).await.expect("a new link is a change");
        while changes.next().now_or_never().is_some() {}

        for change in ["link set rla0 up", "address add 192.0.2.1/24 dev rla0", "address del 192.0.2.1/24 dev rla0"] {
            ip(change);
            timeout(PATIENCE, changes.next()).await.expect(change);
            while changes.next().now_or_never().is_some() {}
        }

        // Each of these sends a message or more; together they are fewer than one wake takes.
        for host in 1..=50 {
            ip(&format!("address add 192.0.2.{host}/32 dev rla0"));
        }
        timeout(PATIENCE, changes.next()).await.unwrap();
        // What has been sent by now was taken with it. Reading goes by readiness events, so let the runtime see them.
        tokio::task::yield_now().await;
        assert!(changes.next().now_or_never().is_none());
    }

    async fn a_flood_of_changes_that_overflows_the_socket_is_still_a_change() {
        let (_netlink, mut changes) = Netlink::connect().unwrap();
        add_link("rla0");
        let mut batch = String::new();
        for host in 0..4000 {
            batch += &format!("address add 10.{}.{}.1/32 dev rla0\n", host / 250, host % 250);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch).unwrap();
        ip(&format!("-batch {}", file.path().display()));

        let mut wakes = 0;
        timeout(PATIENCE, changes.next()).await.unwrap();
        while changes.next().now_or_never().is_some() {
            wakes += 1;
            assert!(wakes < 4000, "it never ends");
        }
        ip("address add 192.0.2.1/32 dev rla0");
        timeout(PATIENCE, changes.next()).await.expect("the subscription outlives the overflow");
    }
}
