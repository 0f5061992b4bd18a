//! A node behind a firewall for IPv6 that PCP opens: a real miniupnpd, in the lab of [`crate::portmap`].
//!
//! All that listens is IPv6. The gateway lets nothing in but answers and what miniupnpd opens, and A knows no address of B's:
//! it is reached through pinholes or not at all.

use crate::lab::{Lab, Site, wait_for};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, Setup, name_of};
use crate::portmap::{Miniupnpd, Speaks, gateway_of, lab};

const GATEWAY: &str = "2001:db8:77::1";
const INSIDE: &str = "2001:db8:77::2";
const OUTSIDE: &str = "2001:db8:99::2";

fn number(lab: &Lab) {
    let (a, b, gateway) = (lab.router(Site::A), lab.router(Site::B), lab.underlay());
    gateway.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    for (namespace, device, address) in [
        (&gateway, "lan", GATEWAY),
        (&a, "uplink", INSIDE),
        (&gateway, "wan", "2001:db8:99::1"),
        (&b, "outside", OUTSIDE),
    ] {
        namespace.run(&format!("ip address add {address}/64 dev {device} nodad"));
    }
    a.run(&format!("ip -6 route add default via {GATEWAY}"));
    b.run("ip -6 route add default via 2001:db8:99::1");
}

fn setups(lab: &Lab) -> [Setup; 2] {
    let mut setups = [Site::A, Site::B].map(|site| Setup::init(lab, site).workers(2));
    let [a, b] = &mut setups;
    let listen = [format!("/ip6/::/udp/{CONTROL_PORT}/quic-v1"), format!("/ip6/::/tcp/{CONTROL_PORT}")];
    for setup in [&mut *a, &mut *b] {
        setup.set("control", "listen", listen.to_vec());
    }
    a.add_peer(&name_of(Site::B), &b.id, &[], &Site::B.networks());
    let inside = [format!("/ip6/{INSIDE}/udp/{CONTROL_PORT}/quic-v1"), format!("/ip6/{INSIDE}/tcp/{CONTROL_PORT}")];
    b.add_peer(&name_of(Site::A), &a.id, &inside, &Site::A.networks());
    b.set("nat", "port_mapping", false);
    setups.iter().for_each(Setup::write);
    setups
}

/// The ports of A's that the gateway's kernel lets in.
fn opened(lab: &Lab) -> Vec<u16> {
    let rules = lab.underlay().run("nft list chain inet filter miniupnpd");
    let port = |rule: &str| rule.split_once("dport ")?.1.split(' ').next()?.parse().ok();
    let mut ports: Vec<u16> = rules.lines().filter(|rule| rule.contains("accept")).filter_map(port).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn pcp_opens_the_firewall_for_ipv6_until_the_node_ends() {
    let Some(lab) = lab(Speaks::Pcp) else { return };
    number(&lab);
    let _miniupnpd = Miniupnpd::start(&lab, Speaks::Pcp, 7200);
    let setups = setups(&lab);
    let mut a = Node::up(&setups[0]);
    let gateway = wait_for("all pinholes", || {
        let gateway = gateway_of(&a)?;
        let mappings = gateway["mappings"].as_array()?;
        let is_open = |mapping: &serde_json::Value| {
            mapping["external"] == format!("[{INSIDE}]:{}", mapping["port"]).as_str() && mapping["method"] == "pcp"
        };
        (mappings.len() == 4 && mappings.iter().all(is_open)).then_some(gateway)
    });
    assert_eq!((&gateway["local"], &gateway["private"]), (&INSIDE.into(), &false.into()));
    // Peers know the address itself.
    assert!(gateway["mappings"].as_array().is_some_and(|all| all.iter().all(|mapping| mapping["offered"] == false)));
    // Of control TCP and QUIC, and each worker's.
    assert_eq!(opened(&lab), [CONTROL_PORT, CONTROL_PORT, LANE_PORT, LANE_PORT + 1], "the gateway's kernel agrees");

    let mut b = Node::up(&setups[1]);
    b.wait_direct(&[Site::A], 2);
    lab.host(Site::B).ping(Site::A.host_v6().into());

    a.terminate();
    assert_eq!(opened(&lab), [0_u16; 0], "what was opened is closed before the process ends");
}
