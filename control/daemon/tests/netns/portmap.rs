//! Nodes behind a router that maps ports: a real miniupnpd.
//!
//! ```text
//! router-a (node A) --- uplink 192.168.77.2 .. .1 lan [gateway: masquerade, miniupnpd] wan 11.99.0.1 .. .2 outside --- router-b (node B)
//! ```
//! Node A only listens: it knows no address of B's. The gateway forwards from outside what it maps, and nothing else.
//! miniupnpd maps nothing to an outside address that is reserved, hence 11/8; the lab is not connected to anything.

use std::env;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lab::{Lab, Namespace, Site, succeed, wait_for};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, Setup, name_of};

const MINIUPNPD: &str = "/usr/sbin/miniupnpd";
const GATEWAY: &str = "192.168.77.1";
const OUTSIDE: &str = "11.99.0.1";
/// The age from which a restart shows in the gateway's clock.
const AGE: Duration = Duration::from_secs(8);

/// What the gateway speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speaks {
    Pcp,
    /// miniupnpd has no switch for one of the two, so PCP's requests are swallowed.
    NatPmp,
    Upnp,
    Nothing,
}

impl Speaks {
    fn method(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
            Self::Nothing => "",
        }
    }
}

/// The gateway's daemon. Dropping it ends it.
pub(crate) struct Miniupnpd {
    child: Child,
    started: Instant,
    configuration: PathBuf,
    gateway: Namespace,
}

impl Miniupnpd {
    pub(crate) fn start(lab: &Lab, speaks: Speaks, lifetime_max: u32) -> Self {
        let (natpmp, upnp) = (speaks != Speaks::Upnp, speaks == Speaks::Upnp);
        let word = |switch| if switch { "yes" } else { "no" };
        let configuration = lab.directory().join("miniupnpd.conf");
        let text = format!(
            "ext_ifname=wan\nlistening_ip=lan\nport=0\nenable_natpmp={}\nenable_upnp={}\nmin_lifetime=4\n\
             max_lifetime={lifetime_max}\nuuid=6a4f6b3c-0000-4000-8000-000000000001\nupnp_forward_chain=miniupnpd\n\
             allow 1024-65535 192.168.77.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            word(natpmp),
            word(upnp),
        );
        fs::write(&configuration, text).expect("the configuration can be written");
        let gateway = lab.underlay();
        let child = Self::spawn(&gateway, &configuration);
        Self { child, started: Instant::now(), configuration, gateway }
    }

    fn spawn(gateway: &Namespace, configuration: &Path) -> Child {
        let log = File::options().create(true).append(true).open(configuration.with_extension("log"));
        let log = log.expect("a log can be opened");
        let mut command = gateway.command(MINIUPNPD);
        command.args(["-d", "-f"]).arg(configuration).arg("-P").arg(configuration.with_extension("pid"));
        let (out, err) = (log.try_clone().expect("a file can be cloned"), log);
        command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().expect("miniupnpd can be started")
    }

    fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        let _ = kill_process(pid, Signal::TERM);
        wait_for("miniupnpd to end", || self.child.try_wait().expect("a child can be waited for"));
    }

    /// As a router does that loses its power: nothing of what it mapped is left.
    fn restart(&mut self) {
        self.stop();
        self.gateway.run("nft flush chain inet filter prerouting_miniupnpd");
        self.gateway.run("nft flush chain inet filter postrouting_miniupnpd");
        self.gateway.run("nft flush chain inet filter miniupnpd");
        self.child = Self::spawn(&self.gateway, &self.configuration);
    }
}

impl Drop for Miniupnpd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.configuration.with_extension("log")).unwrap_or_default();
            let skipped = log.lines().count().saturating_sub(60);
            eprintln!("---- log of miniupnpd, first {skipped} lines left out");
            log.lines().skip(skipped).for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The lab above, without miniupnpd. `None`, with the reason on stderr, where that is impossible and not required.
pub(crate) fn lab(speaks: Speaks) -> Option<Lab> {
    if !Path::new(MINIUPNPD).exists() {
        let missing = "miniupnpd is missing: run scripts/setup";
        assert!(env::var_os("RINGLANE_REQUIRE_NETNS").is_none_or(|value| value != "1"), "{missing}");
        eprintln!("SKIPPED: {missing}");
        return None;
    }
    let lab = Lab::up(2)?;
    let (a, b, gateway) = (lab.router(Site::A), lab.router(Site::B), lab.underlay());
    // Of this name the lab has none of its own with two sites, and removes it all the same.
    succeed(std::process::Command::new("ip").args(["netns", "add", gateway.name()]));
    a.run("ip link delete underlay");
    gateway.run(&format!("ip link add lan type veth peer name uplink netns {}", a.name()));
    gateway.run(&format!("ip link add wan type veth peer name outside netns {}", b.name()));
    for (namespace, device, address) in [
        (&gateway, "lan", "192.168.77.1/24"),
        (&a, "uplink", "192.168.77.2/24"),
        (&gateway, "wan", "11.99.0.1/24"),
        (&b, "outside", "11.99.0.2/24"),
    ] {
        namespace.run(&format!("ip address add {address} dev {device}"));
        namespace.run(&format!("ip link set {device} up"));
    }
    gateway.run("ip link set lo up");
    gateway.run("sysctl -qw net.ipv4.ip_forward=1");
    let swallow = match speaks {
        Speaks::NatPmp => "udp dport 5351 @th,64,8 2 drop",
        _ => "",
    };
    let rules = format!(
        "table inet filter {{
             chain input {{ type filter hook input priority 0; {swallow}
             }}
             chain forward {{ type filter hook forward priority 0; policy drop;
                 iifname \"lan\" accept
                 ct state established,related accept
                 jump miniupnpd
             }}
             chain miniupnpd {{ }}
             chain prerouting {{ type nat hook prerouting priority -100; jump prerouting_miniupnpd; }}
             chain postrouting {{ type nat hook postrouting priority 100;
                 jump postrouting_miniupnpd
                 oifname \"wan\" masquerade
             }}
             chain prerouting_miniupnpd {{ }}
             chain postrouting_miniupnpd {{ }}
         }}"
    );
    let file = lab.directory().join("gateway.nft");
    fs::write(&file, rules).expect("the rules can be written");
    gateway.run(&format!("nft -f {}", file.display()));
    a.run(&format!("ip route add default via {GATEWAY}"));
    Some(lab)
}

/// A behind the gateway, which knows nobody's address, and B outside, which knows what the gateway maps to A.
fn setups(lab: &Lab) -> [Setup; 2] {
    let mut setups = [Site::A, Site::B].map(|site| Setup::init(lab, site).workers(2));
    let [a, b] = &mut setups;
    let listen = ["/ip4/0.0.0.0/tcp/8001", "/ip4/0.0.0.0/udp/8001/quic-v1"];
    for setup in [&mut *a, &mut *b] {
        setup.set("control", "listen", listen.map(str::to_owned).to_vec());
    }
    a.add_peer(&name_of(Site::B), &b.id, &[], &Site::B.networks());
    let outside = [format!("/ip4/{OUTSIDE}/udp/{CONTROL_PORT}/quic-v1"), format!("/ip4/{OUTSIDE}/tcp/{CONTROL_PORT}")];
    b.add_peer(&name_of(Site::A), &a.id, &outside, &Site::A.networks());
    b.set("nat", "port_mapping", false);
    setups.iter().for_each(Setup::write);
    setups
}

/// The ports that A wants: TCP and QUIC of control, and one for each of two workers.
fn ports() -> [(&'static str, u16); 4] {
    [("0x6", CONTROL_PORT), ("0x11", CONTROL_PORT), ("0x11", LANE_PORT), ("0x11", LANE_PORT + 1)]
}

/// How many ports of A's the gateway's kernel translates.
fn translated(lab: &Lab) -> usize {
    let rules = lab.underlay().run("nft list chain inet filter prerouting_miniupnpd");
    let leads_to_a = |(protocol, port): &(&str, u16)| {
        let target = format!("dnat ip to 192.168.77.2:{port}");
        rules.lines().any(|rule| rule.contains(protocol) && rule.trim_end().ends_with(&target))
    };
    let wanted = ports().iter().filter(|port| leads_to_a(port)).count();
    assert!(rules.matches("dnat").count() <= ports().len(), "nothing else is mapped:\n{rules}");
    wanted
}

pub(crate) fn gateway_of(node: &Node) -> Option<Value> {
    let status = node.try_status()?;
    status.gateways().first().cloned()
}

fn wait_mapped(lab: &Lab, node: &Node, speaks: Speaks) {
    wait_for(&format!("all ports to be mapped by {}", speaks.method()), || {
        let gateway = gateway_of(node)?;
        let mappings = gateway["mappings"].as_array()?;
        let is_mapped = |mapping: &Value| {
            let external = format!("{OUTSIDE}:{}", mapping["port"]);
            mapping["external"] == external.as_str()
                && mapping["method"] == speaks.method()
                && mapping["offered"] == true
        };
        (gateway["method"] == speaks.method() && mappings.len() == 4 && mappings.iter().all(is_mapped)).then_some(())
    });
    assert_eq!(translated(lab), 4, "the gateway's kernel agrees");
}

fn is_mapped_and_reached_and_given_back(speaks: Speaks) {
    let Some(lab) = lab(speaks) else { return };
    let mut miniupnpd = Miniupnpd::start(&lab, speaks, 7200);
    let setups = setups(&lab);
    let mut a = Node::up(&setups[0]);
    wait_mapped(&lab, &a, speaks);

    // B knows nothing of A but what the gateway maps, and A knows nothing of B.
    let mut b = Node::up(&setups[1]);
    b.wait_direct(&[Site::A], 2);
    lab.host(Site::B).ping(Site::A.host_v4().into());

    // Of two restarts within seconds no clock of whole seconds tells.
    wait_for("miniupnpd to have an age", || (miniupnpd.started.elapsed() > AGE).then_some(()));
    miniupnpd.restart();
    wait_for("the mappings to come back", || (translated(&lab) == 4).then_some(()));

    // What a killed node leaves behind is its successor's.
    a.signal(Signal::KILL);
    a.up_again(&setups[0]);
    wait_mapped(&lab, &a, speaks);

    a.terminate();
    assert_eq!(translated(&lab), 0, "what was mapped is given back before the process ends");
}

#[test]
fn pcp_maps_all_ports_until_the_node_ends() {
    is_mapped_and_reached_and_given_back(Speaks::Pcp);
}

#[test]
fn nat_pmp_maps_all_ports_until_the_node_ends() {
    is_mapped_and_reached_and_given_back(Speaks::NatPmp);
}

#[test]
fn upnp_maps_all_ports_until_the_node_ends() {
    is_mapped_and_reached_and_given_back(Speaks::Upnp);
}

#[test]
fn mappings_of_a_short_lifetime_are_renewed_before_they_end() {
    let Some(lab) = lab(Speaks::Pcp) else { return };
    let _miniupnpd = Miniupnpd::start(&lab, Speaks::Pcp, 10);
    let setups = setups(&lab);
    let a = Node::up(&setups[0]);
    wait_mapped(&lab, &a, Speaks::Pcp);
    wait_for("two renewals of each", || {
        let gateway = gateway_of(&a)?;
        let mappings = gateway["mappings"].as_array()?;
        let is_renewed = |mapping: &Value| mapping["renewals"].as_u64() >= Some(2) && mapping["lifetime_seconds"] == 10;
        mappings.iter().all(is_renewed).then_some(())
    });
    // miniupnpd takes a rule away for a moment while it renews it.
    wait_for("the gateway's kernel to agree", || (translated(&lab) == 4).then_some(()));
    assert!(!a.log().contains("a port mapping is gone"), "none has lapsed");
}

#[test]
fn a_node_that_is_told_not_to_sends_its_gateway_not_one_packet() {
    let Some(lab) = lab(Speaks::Nothing) else { return };
    let gateway = lab.underlay();
    let mut setups = setups(&lab);
    let [pcp, ssdp] = gateway.enter(|| {
        [5351, 1900].map(|port| {
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a port is free in a new namespace");
            socket.set_nonblocking(true).expect("a socket can be set so");
            socket
        })
    });
    let group = [239, 255, 255, 250].into();
    gateway.enter(|| ssdp.join_multicast_v4(&group, &[192, 168, 77, 1].into())).expect("a group can be joined");
    let heard = || {
        let mut bytes = [0; 2048];
        [&pcp, &ssdp].map(|socket| socket.recv_from(&mut bytes).is_ok())
    };

    // That this would be heard is shown by a node that does ask.
    let mut asking = Node::up(&setups[0]);
    let mut both = [false; 2];
    wait_for("both kinds of questions", || {
        let now = heard();
        both = [both[0] | now[0], both[1] | now[1]];
        (both == [true; 2]).then_some(())
    });
    asking.terminate();
    while heard() != [false; 2] {}

    setups[0].set("nat", "port_mapping", false);
    setups[0].write();
    asking.up_again(&setups[0]);
    let status = asking.wait_until("it to be up", |_| true);
    assert!(status.gateways().is_empty());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(heard(), [false; 2]);
}
