//! What the command line says of a node's place, of paths, and of why they are not direct.

use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringlane_shared::stun::message::{Message, Success};
use serde_json::Value as Json;
use toml::Value as Toml;

use super::kinds::{Kind, Pair};
use super::lab::{Family, NatLab, public};
use super::nodes::Setups;
use crate::lab::{Site, wait_for};
use crate::node::{CONTROL_PORT, Node, RINGLANE, Setup, Status, name_of};

/// A lab, the nodes R and S, and those of A and B.
struct Started {
    nat: NatLab,
    setups: Setups,
    nodes: [Node; 2],
    _third: [Node; 2],
}

impl Started {
    /// R and S have two workers each, so that they can answer STUN from another port than they are asked at.
    fn up(pair: Pair, prepare: impl FnOnce(&mut NatLab)) -> Option<Self> {
        let mut nat = NatLab::up(pair)?;
        let setups = Setups::init(&nat, pair).with_two_workers_outside();
        let mut third = [Site::R, Site::S].map(|site| Node::up(setups.of(site)));
        third[0].wait_direct(&[Site::S], 2);
        third[1].wait_direct(&[Site::R], 2);
        prepare(&mut nat);
        let nodes = setups.ends_up();
        Some(Self { nat, setups, nodes, _third: third })
    }

    fn netcheck(&self, site: Site) -> Option<Json> {
        let interface = &self.setups.of(site).interface;
        let output = ringlane(&["netcheck", "--json", "--interface", interface]);
        // 3: it could be found out, and UDP is blocked.
        matches!(output.status.code(), Some(0 | 3)).then(|| json(&output.stdout))
    }

    /// Waits until netcheck has this to say of both families.
    fn wait_kinds(&self, site: Site, [v4, v6]: [&str; 2]) -> Json {
        let mut last = (Json::Null, Json::Null);
        wait_for(&format!("netcheck of {site:?} to say {v4} and {v6}"), || {
            let found = self.netcheck(site)?;
            let kinds = (found["ipv4"]["kind"].clone(), found["ipv6"]["kind"].clone());
            if kinds != last {
                println!("{site:?}: {kinds:?}");
                last = kinds;
            }
            (last.0 == v4 && last.1 == v6).then_some(found)
        })
    }

    /// Waits until status names this obstacle between two sites.
    fn wait_obstacle(&mut self, site: Site, peer: Site, code: &str) -> Status {
        let node = &mut self.nodes[usize::from(site == Site::B)];
        node.wait_until(&format!("the obstacle {code}"), |status| {
            status.peer(peer).is_some_and(|peer| peer["obstacle"]["code"] == code)
        })
    }

    /// The lines of `ringlane ping` to a peer, and how it ended.
    fn ping(&self, site: Site, peer: &str, more: &[&str]) -> (Vec<Json>, Option<i32>) {
        let interface = &self.setups.of(site).interface;
        let output = ringlane(&[&["ping", peer, "--json", "--interface", interface], more].concat());
        let lines = String::from_utf8_lossy(&output.stdout).lines().map(|line| json(line.as_bytes())).collect();
        (lines, output.status.code())
    }
}

fn ringlane(arguments: &[&str]) -> Output {
    Command::new(RINGLANE).args(arguments).stdin(Stdio::null()).output().expect("the binary can be run")
}

fn json(bytes: &[u8]) -> Json {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

/// The codes of netcheck's advice.
fn advice(found: &Json) -> Vec<&str> {
    let advice = found["advice"].as_array().expect("a list");
    advice.iter().filter_map(|advice| advice["code"].as_str()).collect()
}

#[test]
fn netcheck_tells_a_full_cone_from_a_nat_that_lets_in_only_answers() {
    let pair = Pair::Apart(Kind::FullCone, Kind::PortRestricted);
    let Some(lab) = Started::up(pair, |_| ()) else { return };
    // Whether it lets in other hosts, peers with one address cannot tell.
    let full_cone = lab.wait_kinds(Site::A, ["address_restricted_or_less", "absent"]);
    let restricted = lab.wait_kinds(Site::B, ["port_restricted", "absent"]);
    for (site, found) in [(Site::A, full_cone), (Site::B, restricted)] {
        assert_eq!(found["is_running"], true);
        assert_eq!((&found["ipv4"]["is_translated"], &found["ipv4"]["is_udp_blocked"]), (&true.into(), &false.into()));
        assert_eq!(found["ipv4"]["mtu_bytes"], 1500);
        let outside = found["ipv4"]["outside"].as_array().expect("a list");
        let seen_at = lab.nat.seen_at(site).to_string();
        assert!(outside.len() == 2 && outside.iter().all(|at| at.as_str().is_some_and(|at| at.starts_with(&seen_at))));
        assert_eq!(found["lane_ports"], serde_json::json!([8100, 8101]));
        assert!(!advice(&found).contains(&"symmetric"), "{found}");
    }
    // libp2p's port goes through the same NAT: peers tell, as its socket cannot ask by STUN.
    let mapped = format!("/ip4/{}/udp/{}/quic-v1", lab.nat.seen_at(Site::A), CONTROL_PORT ^ 0x4000);
    wait_for("netcheck to say where peers see the control port", || {
        let control = lab.netcheck(Site::A)?["control"].clone();
        control.as_array()?.iter().any(|seen| seen["address"] == mapped.as_str()).then_some(())
    });
    let relays = wait_for("a relay with a round-trip time", || {
        let found = lab.netcheck(Site::A)?;
        let relays = found["relays"].as_array()?.clone();
        relays.iter().any(|relay| relay["reserved"] == true && relay["rtt_us"].is_u64()).then_some(relays)
    });
    assert!(relays.iter().all(|relay| relay["name"] == name_of(Site::R) || relay["name"] == name_of(Site::S)));
}

#[test]
fn netcheck_and_status_say_why_a_symmetric_nat_and_a_network_without_udp_have_no_lanes() {
    let pair = Pair::Apart(Kind::Symmetric, Kind::UdpBlocked);
    let Some(mut lab) = Started::up(pair, |_| ()) else { return };
    let symmetric = lab.wait_kinds(Site::A, ["symmetric", "absent"]);
    assert!(advice(&symmetric).contains(&"symmetric"), "{symmetric}");
    let blocked = lab.wait_kinds(Site::B, ["udp_blocked", "absent"]);
    assert!(advice(&blocked).contains(&"udp_blocked"), "{blocked}");
    assert_eq!(blocked["ipv4"]["is_udp_blocked"], true);
    let interface = &lab.setups.of(Site::B).interface;
    let text = ringlane(&["netcheck", "--interface", interface]);
    assert_eq!(text.status.code(), Some(3), "a network that UDP does not leave");
    let text = String::from_utf8(text.stdout).expect("UTF-8");
    assert!(text.starts_with("IPv4        UDP is blocked") && text.contains("have its firewall let UDP out"), "{text}");

    let here = lab.wait_obstacle(Site::B, Site::A, "udp_blocked");
    let obstacle = here.peer(Site::A).map(|peer| peer["obstacle"]["text"].clone()).expect("A is a peer");
    assert!(obstacle.as_str().is_some_and(|text| text.starts_with("no UDP leaves this network: ")), "{obstacle}");
    lab.wait_obstacle(Site::A, Site::B, "peer_udp_blocked");
    let text = ringlane(&["status", "--interface", &lab.setups.of(Site::B).interface]).stdout;
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(text.contains("\n  obstacle    no UDP leaves this network: packets go by a stream "), "{text}");

    // By name, by the beginning of an id, and by a built-in address.
    let id = lab.setups.of(Site::A).id.clone();
    let address = here.peer(Site::A).and_then(|peer| peer["addresses"][1].as_str().map(str::to_owned));
    for peer in [name_of(Site::A), id, address.expect("it has an IPv6 address")] {
        let (lines, code) = lab.ping(Site::B, &peer, &["--count", "2", "--interval", "100", "--timeout", "8000"]);
        assert_eq!((lines.len(), code), (2, Some(0)), "{lines:?}");
        let [.., last] = &lines[..] else { unreachable!() };
        assert!(last["answered"] == true && last["direct"] == false && last["rtt_us"].is_u64(), "{last}");
        assert_eq!(last["paths"][0]["carrier"], "stream");
        assert_eq!(last["obstacle"]["code"], "udp_blocked");
    }
    let (lines, code) = lab.ping(Site::B, &name_of(Site::A), &["--until-direct", "--count", "1", "--timeout", "8000"]);
    assert_eq!((lines.len(), code), (1, Some(3)));
    let (lines, code) = lab.ping(Site::B, "nobody", &[]);
    assert_eq!((lines.len(), code), (0, Some(1)));
}

#[test]
fn status_says_that_one_nat_leads_from_neither_end_to_the_other() {
    let Some(mut lab) = Started::up(Pair::SameNat { hairpins: false }, |_| ()) else { return };
    for (site, peer) in [(Site::A, Site::B), (Site::B, Site::A)] {
        lab.wait_obstacle(site, peer, "same_nat");
    }
}

#[test]
fn a_node_and_netcheck_without_one_tell_a_nat_that_hairpins_from_one_that_does_not() {
    for hairpins in [true, false] {
        let Some(nat) = NatLab::up(Pair::SameNat { hairpins }) else { return };
        let _servers = [Site::R, Site::S].map(|site| PublicServer::start(&nat, site));
        let servers = [Site::R, Site::S].map(|site| Toml::from(format!("{}:{STUN_PORT}", public(site).0)));
        let mut setup = Setup::init(nat.lab(), Site::A).workers(2);
        setup.set("control", "listen", Toml::Array(vec!["/ip4/0.0.0.0/udp/8001/quic-v1".into()]));
        setup.set("nat", "stun_servers", Toml::Array(servers.into()));
        setup.write();
        let mut command = setup.router.command(RINGLANE);
        command.args(["netcheck", "--json", "--config"]).arg(&setup.file).stdin(Stdio::null());
        let alone = json(&command.output().expect("the binary can be run").stdout);
        assert_eq!((&alone["ipv4"]["kind"], &alone["ipv4"]["hairpins"]), (&"cone".into(), &hairpins.into()), "{alone}");
        let mapped = format!("/ip4/{}/udp/{}/quic-v1", nat.seen_at(Site::A), CONTROL_PORT ^ 0x4000);
        assert_eq!(alone["control"], serde_json::json!([{"address": mapped, "peers": 1}]));

        let _node = Node::up(&setup);
        let told = wait_for("the node to have tried it", || {
            let output = ringlane(&["netcheck", "--json", "--interface", &setup.interface]);
            let found = matches!(output.status.code(), Some(0 | 3)).then(|| json(&output.stdout))?;
            let hairpins = found["ipv4"]["hairpins"].clone();
            hairpins.is_boolean().then_some(hairpins)
        });
        assert_eq!(told, hairpins);
        let text = ringlane(&["netcheck", "--interface", &setup.interface]).stdout;
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.contains(if hairpins { "; hairpins" } else { "; does not hairpin" }), "{text}");
    }
}

#[test]
fn netcheck_tells_ipv6_behind_a_firewall_from_a_public_place() {
    let pair = Pair::Apart(Kind::Ipv6Only, Kind::Public);
    let Some(lab) = Started::up(pair, |_| ()) else { return };
    let ipv6 = lab.wait_kinds(Site::A, ["absent", "firewall"]);
    assert_eq!(ipv6["ipv6"]["is_translated"], false);
    assert!(advice(&ipv6).contains(&"ipv6_firewall"), "{ipv6}");
    let public = wait_for("netcheck of B to say that it has no NAT", || {
        let found = lab.netcheck(Site::B)?;
        let kinds = ["ipv4", "ipv6"].map(|family| found[family]["kind"].as_str().unwrap_or_default().to_owned());
        // Peers answer addresses of a family that they are connected by.
        let is_told = kinds.iter().all(|kind| ["no_nat", "unknown"].contains(&kind.as_str()));
        (is_told && kinds.iter().any(|kind| kind == "no_nat")).then_some(found)
    });
    assert!(!advice(&public).contains(&"ipv6_firewall"), "{public}");
}

#[test]
fn a_ping_goes_on_from_a_relayed_path_until_a_direct_one_answers() {
    let pair = Pair::Apart(Kind::PortRestricted, Kind::PortRestricted);
    // Nothing passes between the two at first.
    let Some(lab) = Started::up(pair, |nat| nat.part([Site::A, Site::B], Family::Both)) else { return };
    let peer = name_of(Site::B);
    let relayed = wait_for("a relayed answer", || {
        let (lines, _) = lab.ping(Site::A, &peer, &["--count", "1", "--timeout", "2000"]);
        lines.into_iter().find(|line| line["answered"] == true)
    });
    assert_eq!(relayed["direct"], false);
    let kind = relayed["paths"][0]["kind"].as_str().expect("a path has a kind");
    assert!(["relayed_stream", "udp_relay"].contains(&kind), "{relayed}");
    assert!(relayed["obstacle"]["code"].is_string(), "{relayed}");

    lab.nat.join();
    let (lines, code) =
        lab.ping(Site::A, &peer, &["--until-direct", "--count", "400", "--interval", "200", "--timeout", "2000"]);
    assert_eq!(code, Some(0), "{:?}", lines.last());
    let last = lines.last().expect("it has asked");
    assert!(last["direct"] == true && last["rtt_us"].is_u64(), "{last}");
    let paths = last["paths"].as_array().expect("a list");
    let direct =
        paths.iter().find(|path| path["lane"].is_u64() && path["rtt_us"].is_u64()).expect("a lane has answered");
    assert_eq!(direct["kind"], "translated");
    let seen_at = lab.nat.seen_at(Site::B).to_string();
    assert!(direct["remote"].as_str().is_some_and(|remote| remote.starts_with(&seen_at)), "{direct}");
    assert!(lines.iter().enumerate().all(|(at, line)| line["sequence"] == at + 1), "one line each, in order");
    // For people, once it is direct: asked once.
    let text = ringlane(&["ping", &peer, "--timeout", "8000", "--interface", &lab.setups.of(Site::A).interface]);
    let text = String::from_utf8(text.stdout).expect("UTF-8");
    assert!(text.starts_with(&format!("1: {peer} answers in ")) && text.contains("on lane 0 (worker 0)"), "{text}");
}

/// A STUN server at R or S, which knows nothing of anybody's peers. It ends with this.
struct PublicServer(Arc<AtomicBool>);

const STUN_PORT: u16 = 3478;

impl PublicServer {
    fn start(nat: &NatLab, site: Site) -> Self {
        let at = (public(site).0, STUN_PORT);
        let socket = nat.lab().router(site).enter(|| UdpSocket::bind(at).expect("nobody else has the port"));
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        thread::spawn(move || {
            let mut datagram = [0; 2048];
            while !told.load(Ordering::Relaxed) {
                let Ok((bytes, from)) = socket.recv_from(&mut datagram) else { continue };
                if let Ok(Message::Request(request)) = Message::parse(&datagram[..bytes]) {
                    let answer = Success { id: request.id, mapped: from, other: None, origin: None };
                    let _ = answer.to_bytes(1000).map(|answer| socket.send_to(&answer, from));
                }
            }
        });
        Self(ended)
    }
}

impl Drop for PublicServer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn without_a_node_netcheck_finds_out_by_itself() {
    let Some(nat) = NatLab::up(Pair::Apart(Kind::Symmetric, Kind::UdpBlocked)) else { return };
    let _servers = [Site::R, Site::S].map(|site| PublicServer::start(&nat, site));
    let servers = [Site::R, Site::S].map(|site| format!("{}:{STUN_PORT}", public(site).0));
    let mut setups = [Site::A, Site::B].map(|site| {
        let mut setup = Setup::init(nat.lab(), site).workers(2);
        let nobody = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";
        setup.add_peer("nobody", nobody, &[format!("/ip4/{}/tcp/9", public(Site::R).0)], &[]);
        setup
    });
    let [a, b] = &mut setups;
    let netcheck = |setup: &mut Setup, servers: &[String]| {
        setup.set("control", "listen", Toml::Array(vec!["/ip4/0.0.0.0/tcp/8001".into(), "/ip6/::/tcp/8001".into()]));
        setup.set("nat", "stun_servers", Toml::Array(servers.iter().cloned().map(Toml::String).collect()));
        setup.write();
        let mut command = setup.router.command(RINGLANE);
        command.args(["netcheck", "--json", "--config"]).arg(&setup.file).stdin(Stdio::null());
        let output = command.output().expect("the binary can be run");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.stdout.is_empty(), "{error}");
        (json(&output.stdout), output.status.code())
    };
    let (symmetric, code) = netcheck(a, &servers);
    assert_eq!(
        (&symmetric["ipv4"]["kind"], &symmetric["ipv6"]["kind"], code),
        (&"symmetric".into(), &"absent".into(), Some(0))
    );
    assert_eq!(symmetric["is_running"], false);
    assert_eq!(symmetric["contacts"][0]["took_us"], Json::Null);
    assert!(symmetric["contacts"][0]["problem"].as_str().is_some_and(|problem| problem.contains("refused")));
    assert_eq!(symmetric["mappings"]["gateways"][0]["method"], Json::Null, "{symmetric}");
    assert!(advice(&symmetric).contains(&"no_contact"), "{symmetric}");
    let (blocked, code) = netcheck(b, &servers);
    assert_eq!((&blocked["ipv4"]["kind"], code), (&"udp_blocked".into(), Some(3)), "{blocked}");
    assert_eq!(blocked["stun_servers"][1]["addresses"], serde_json::json!([&servers[1]]));

    // Nobody to ask, or nobody knows who that is.
    let (unasked, _) = netcheck(a, &[]);
    assert_eq!(unasked["ipv4"]["kind"], "unknown");
    assert!(advice(&unasked).contains(&"nobody_asked"), "{unasked}");
    let (unknown, _) = netcheck(a, &["stun.invalid:3478".to_owned()]);
    assert_eq!(unknown["ipv4"]["kind"], "unknown");
    assert!(unknown["stun_servers"][0]["problem"].is_string(), "{unknown}");
    let told = advice(&unknown);
    assert!(told.contains(&"stun_names") && !told.contains(&"nobody_asked"), "{unknown}");
}
