//! All of a site's traffic, or a part that covers the way to its peer, through another site; the node's own never.
//!
//! Router C is no node here but what stands between A, B and the internet, which is host C. A and B are on no common
//! wire: their way to each other is their default route.

use rustix::process::Signal;
use toml::Value as Toml;

use crate::lab::{Lab, Namespace, Site, succeed};
use crate::node::{Setup, mesh, up_and_direct};
use crate::routes::{route, set_routes};

const SITES: [(Site, u8); 2] = [(Site::A, 1), (Site::B, 1)];

pub(crate) fn internet(lab: &Lab) {
    for (site, number) in [(Site::A, 1), (Site::B, 2)] {
        let router = lab.router(site);
        for (family, bits, address, gateway) in [
            ("", 24, format!("10.201.0.{number}"), "10.201.0.3"),
            ("-6 ", 64, format!("fd01:201::{number}"), "fd01:201::3"),
        ] {
            router.run(&format!("ip {family}address del {address}/{bits} dev underlay"));
            let host = if bits == 24 { 32 } else { 128 };
            let nodad = if bits == 24 { "" } else { "nodad" };
            router.run(&format!("ip {family}address add {address}/{host} dev underlay {nodad}"));
            router.run(&format!("ip {family}route add {gateway} dev underlay"));
            router.run(&format!("ip {family}route add default via {gateway}"));
        }
        router.run("sysctl -q -w net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.underlay.accept_redirects=0");
        router.run("sysctl -q -w net.ipv6.conf.underlay.accept_redirects=0");
    }
    // The strictest filter, as distributions have it.
    lab.router(Site::A).run("sysctl -q -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.underlay.rp_filter=1");
    let c = lab.router(Site::C);
    c.run("sysctl -q -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.underlay.send_redirects=0");
    nft(&lab.router(Site::B), "add table inet nat");
    nft(&lab.router(Site::B), "add chain inet nat post { type nat hook postrouting priority srcnat; }");
    nft(&lab.router(Site::B), "add rule inet nat post oifname underlay ip saddr != 10.201.0.0/24 masquerade");
    nft(&lab.router(Site::B), "add rule inet nat post oifname underlay ip6 saddr != fd01:201::/64 masquerade");
    nft(&c, "add table inet seen");
    nft(&c, "add chain inet seen forward { type filter hook forward priority 0; }");
    for name in ["from_b4", "from_b6", "from_others"] {
        nft(&c, &format!("add counter inet seen {name}"));
    }
    nft(&c, "add rule inet seen forward ip saddr 10.201.0.2 ip daddr 10.30.0.2 counter name from_b4 accept");
    nft(&c, "add rule inet seen forward ip6 saddr fd01:201::2 ip6 daddr fd00:30::2 counter name from_b6 accept");
    nft(&c, "add rule inet seen forward ip daddr 10.30.0.2 counter name from_others");
    nft(&c, "add rule inet seen forward ip6 daddr fd00:30::2 counter name from_others");
}

fn nft(namespace: &Namespace, rule: &str) {
    succeed(namespace.command("nft").arg(rule));
}

fn count(namespace: &Namespace, table: &str, counter: &str) -> u64 {
    let shown = namespace.run(&format!("nft list counter inet {table} {counter}"));
    let packets = shown.split("packets ").nth(1).and_then(|rest| rest.split_whitespace().next());
    packets.and_then(|packets| packets.parse().ok()).unwrap_or_else(|| panic!("no counter: {shown}"))
}

/// Counts what a node of A sends into its own tunnel towards B's underlay addresses, and keeps of what ports it was.
///
/// What A's kernel answers to a datagram for the lane of a node that is no more is of no socket, so that no mark and no
/// port tells whose it is.
pub(crate) fn watch_recursion(setup: &Setup) {
    let router = &setup.router;
    nft(router, "add table inet own");
    nft(router, "add counter inet own recursion");
    nft(router, "add set inet own ports { type inet_proto . inet_service . inet_service; flags dynamic; size 64; }");
    nft(router, "add chain inet own out { type filter hook output priority 0; }");
    for error in ["icmp type destination-unreachable", "icmpv6 type destination-unreachable"] {
        nft(router, &format!("add rule inet own out {error} accept"));
    }
    for to in ["ip daddr 10.201.0.0/24", "ip6 daddr fd01:201::/64"] {
        let interface = &setup.interface;
        let seen = "counter name recursion add @ports { meta l4proto . th sport . th dport }";
        nft(router, &format!("add rule inet own out oifname \"{interface}\" {to} {seen}"));
    }
}

pub(crate) fn assert_no_recursion(router: &Namespace) {
    let ports = || router.run("nft list set inet own ports");
    assert_eq!(count(router, "own", "recursion"), 0, "the tunnel's own traffic went into the tunnel: {}", ports());
}

pub(crate) fn list(nets: &[&str]) -> Vec<Toml> {
    nets.iter().map(|net| Toml::String((*net).into())).collect()
}

fn rules(namespace: &Namespace) -> String {
    namespace.run("ip rule") + &namespace.run("ip -6 rule")
}

/// Both families reach the internet from the host behind A and from A itself, by B alone.
pub(crate) fn reaches_the_internet_by_b(lab: &Lab) {
    let c = lab.router(Site::C);
    let before = ["from_b4", "from_b6", "from_others"].map(|name| count(&c, "seen", name));
    for from in [lab.host(Site::A), lab.router(Site::A)] {
        for address in Site::C.host() {
            from.ping(address);
        }
    }
    let after = ["from_b4", "from_b6", "from_others"].map(|name| count(&c, "seen", name));
    assert!(after[0] >= before[0] + 6 && after[1] >= before[1] + 6, "{before:?} {after:?}");
    assert_eq!(after[2], before[2], "something went past the tunnel");
}

#[test]
fn a_full_tunnel_carries_all_but_what_carries_it_and_leaves_nothing_behind() {
    let Some(lab) = Lab::up(3) else { return };
    internet(&lab);
    let mut setups = mesh(&lab, SITES);
    set_routes(&mut setups[0], [list(&["0.0.0.0/0", "::/0"])]);
    let a = lab.router(Site::A);
    let before = a.kernel_state();
    let mut nodes = up_and_direct(&setups, [1, 1]);
    watch_recursion(&setups[0]);
    reaches_the_internet_by_b(&lab);

    assert!(nodes[1].terminate().success());
    nodes[1].up_again(&setups[1]);
    nodes[1].wait_direct(&[Site::A], 1);
    nodes[0].wait_direct(&[Site::B], 1);
    reaches_the_internet_by_b(&lab);

    let with_tunnel = rules(&a);
    nodes[0].signal(Signal::KILL);
    nodes[0].up_again(&setups[0]);
    nodes[0].wait_direct(&[Site::B], 1);
    nodes[1].wait_direct(&[Site::A], 1);
    assert_eq!(rules(&a), with_tunnel, "a killed node's rules are taken over");
    reaches_the_internet_by_b(&lab);
    assert_no_recursion(&a);

    succeed(&mut route(&setups[0], &["del", "0.0.0.0/0"]));
    succeed(&mut route(&setups[0], &["del", "::/0"]));
    for address in Site::C.host() {
        assert!(a.run(&format!("ip route get {address}")).contains("dev underlay"));
    }
    assert!(!rules(&a).contains("goto"), "rules are left:\n{}", rules(&a));
    succeed(&mut route(&setups[0], &["add", "0.0.0.0/0", &setups[1].id]));
    assert!(nodes[0].terminate().success());
    assert_eq!(a.kernel_state(), before);
}

#[test]
fn a_split_tunnel_that_covers_the_way_to_its_peer_carries_the_rest_of_it() {
    let Some(lab) = Lab::up(3) else { return };
    internet(&lab);
    let mut setups = mesh(&lab, SITES);
    set_routes(&mut setups[0], [list(&["10.0.0.0/8", "fd00::/8"])]);
    let a = lab.router(Site::A);
    let mut nodes = up_and_direct(&setups, [1, 1]);
    watch_recursion(&setups[0]);
    reaches_the_internet_by_b(&lab);
    for outside in ["203.0.113.1", "2001:db8::1"] {
        assert!(a.run(&format!("ip route get {outside}")).contains("dev underlay"), "{outside} goes into the tunnel");
    }
    for site in [Site::A, Site::B] {
        lab.host(site).ping(Site::A.host_v4().into());
    }
    assert!(nodes[1].terminate().success());
    nodes[1].up_again(&setups[1]);
    nodes[0].wait_direct(&[Site::B], 1);
    nodes[1].wait_direct(&[Site::A], 1);
    reaches_the_internet_by_b(&lab);
    assert_no_recursion(&a);
}

#[test]
fn a_node_that_listens_nowhere_takes_a_full_tunnel_too() {
    let Some(lab) = Lab::up(3) else { return };
    internet(&lab);
    let mut setups = mesh(&lab, SITES);
    setups[0].set("control", "listen", Vec::<Toml>::new());
    set_routes(&mut setups[0], [list(&["0.0.0.0/0", "::/0"])]);
    // What B would send to a port that nobody has would be answered by A's kernel, not by its node.
    setups[1].settings["peers"][0].as_table_mut().expect("a peer is a table").remove("addresses");
    setups[1].write();
    // Its connections leave from ports that no rule knows, so that their way back must not be filtered by one.
    lab.router(Site::A).run("sysctl -q -w net.ipv4.conf.all.rp_filter=2");
    let _nodes = up_and_direct(&setups, [1, 1]);
    watch_recursion(&setups[0]);
    reaches_the_internet_by_b(&lab);
    assert_no_recursion(&lab.router(Site::A));
}
