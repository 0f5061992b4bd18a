//! A node behind a NAT of nftables knows what the NAT does, from a peer outside.
//!
//! A runs on the host behind router A, which translates; B on router B. A dials B.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use toml::Value as Toml;

use crate::lab::{Lab, Namespace, Site, wait_for};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, Setup, Status, name_of};

/// A round of questions that nothing hastens begins 25 s after the one before, which in a test has only just been; 10 s if there
/// is something to be found out.
const UNHASTENED: Duration = Duration::from_secs(8);

/// A node behind router A, and one outside, both with two workers.
fn setups(lab: &Lab) -> [Setup; 2] {
    let mut inside = Setup::init(lab, Site::A).workers(2);
    let mut outside = Setup::init(lab, Site::B).workers(2);
    inside.router = lab.host(Site::A);
    let listen = [format!("/ip4/0.0.0.0/udp/{CONTROL_PORT}/quic-v1"), format!("/ip4/0.0.0.0/tcp/{CONTROL_PORT}")];
    inside.set("control", "listen", Toml::Array(listen.map(Toml::String).into()));
    let of_b = [format!("/ip4/{}/udp/{CONTROL_PORT}/quic-v1", Site::B.underlay())];
    inside.add_peer(&name_of(Site::B), &outside.id, &of_b, &[]);
    outside.add_peer(&name_of(Site::A), &inside.id, &[], &[]);
    [inside, outside]
}

fn translate(lab: &Lab, how: &str) {
    let rules = format!(
        "table ip nat\ndelete table ip nat\ntable ip nat {{\n chain out {{\n  type nat hook postrouting priority 100\n  \
         oifname underlay masquerade {how}\n }}\n}}\n"
    );
    nft(lab, &lab.router(Site::A), &rules);
}

fn nft(lab: &Lab, router: &Namespace, rules: &str) {
    let file = lab.directory().join("rules.nft");
    fs::write(&file, rules).expect("a file can be written");
    router.run(&format!("nft -f {}", file.display()));
}

fn up(setups: &[Setup; 2]) -> [Node; 2] {
    setups.each_ref().map(|setup| {
        setup.write();
        Node::up(setup)
    })
}

/// What A knows of the NAT before its only address.
fn host(status: &Status) -> Option<&Json> {
    status.nat()["hosts"].as_array()?.iter().find(|host| host["local"] == "10.10.0.2")
}

/// Where others see A's lane ports.
fn mapped(status: &Status) -> Vec<String> {
    let ports = host(status).and_then(|host| host["ports"].as_array());
    ports.into_iter().flatten().filter_map(|port| Some(port["mapped"].as_str()?.to_owned())).collect()
}

fn knows(status: &Status, mapping: &str, filtering: &str) -> bool {
    let told = host(status).is_some_and(|host| host["mapping"] == mapping && host["filtering"] == filtering);
    told && mapped(status).len() == 2
}

#[test]
fn a_masquerade_that_keeps_ports_is_told_as_what_it_is() {
    let Some(lab) = Lab::up(2) else { return };
    translate(&lab, "");
    let mut nodes = up(&setups(&lab));
    let status = nodes[0].wait_until("what the masquerade does", |status| {
        knows(status, "endpoint_independent", "address_and_port_dependent")
    });
    let seen = [LANE_PORT, LANE_PORT + 1].map(|port| format!("{}:{port}", Site::A.underlay()));
    assert_eq!(mapped(&status), seen);
    let view = host(&status).expect("it knows");
    assert_eq!((&view["keeps_ports"], &view["scope"]), (&Json::Bool(true), &Json::from("private")));
    assert_eq!(view["is_udp_blocked"], false);
    let candidates = status.nat()["candidates"].as_array().expect("a list");
    let at = |worker: usize| serde_json::json!({"worker": worker, "kind": "server_reflexive", "address": seen[worker]});
    assert_eq!(candidates, &[at(0), at(1)]);
    // libp2p's own socket cannot ask; what B says of it is told beside.
    let control = status.nat()["control"].as_array().expect("a list");
    assert!(control.iter().any(|seen| seen["address"].as_str().is_some_and(|at| at.starts_with("/ip4/10.201.0.1/"))));
    // Addresses that come and go are known from the kernel: nothing looks for them from time to time.
    for (change, is_there) in [("add", true), ("del", false)] {
        lab.host(Site::A).run(&format!("ip address {change} 10.10.0.9/16 dev eth0"));
        nodes[0].wait_until(&format!("an address after {change}"), |status| {
            let hosts = status.nat()["hosts"].as_array();
            hosts.is_some_and(|hosts| hosts.iter().any(|host| host["local"] == "10.10.0.9") == is_there)
        });
    }
    // Outside, B asked nobody beyond its network, and answered A.
    let outside = nodes[1].status();
    assert!(outside.nat()["stun"]["requests_answered"].as_u64() > Some(0));
    assert_eq!(outside.nat()["candidates"], serde_json::json!([]));
}

#[test]
fn a_symmetric_masquerade_is_told_and_a_mapping_that_is_flushed_is_noticed() {
    let Some(lab) = Lab::up(2) else { return };
    translate(&lab, "fully-random");
    let mut nodes = up(&setups(&lab));
    let status = nodes[0].wait_until("what the masquerade does", |status| {
        knows(status, "address_and_port_dependent", "address_and_port_dependent")
    });
    let before = mapped(&status);
    assert!(before.iter().all(|address| address.starts_with("10.201.0.1:")), "{before:?}");
    assert_eq!(host(&status).expect("it knows")["keeps_ports"], false);

    lab.router(Site::A).run("conntrack -F");
    // The network is another: the next round begins at once instead of within 25 s.
    let flushed = Instant::now();
    lab.host(Site::A).run("ip address add 10.10.0.3/16 dev eth0");
    let status = nodes[0].wait_until("the new mappings", |status| {
        let now = mapped(status);
        now.len() == 2 && now.iter().all(|address| !before.contains(address))
    });
    let took = flushed.elapsed();
    eprintln!("noticed after {} ms", took.as_millis());
    assert!(took < UNHASTENED, "the change of addresses has hastened nothing: {took:?}");
    assert!(status.nat()["candidates"].as_array().is_some_and(|candidates| candidates.len() == 2));
}

#[test]
fn blocked_udp_is_told_and_so_is_its_end() {
    let Some(lab) = Lab::up(2) else { return };
    translate(&lab, "");
    let block = "table ip block\ndelete table ip block\ntable ip block {\n chain forward {\n  \
                 type filter hook forward priority 0\n  meta l4proto udp drop\n }\n}\n";
    nft(&lab, &lab.router(Site::A), block);
    let [mut inside, outside] = setups(&lab);
    let of_b = Toml::Array(vec![format!("/ip4/{}/tcp/{CONTROL_PORT}", Site::B.underlay()).into()]);
    let peers = inside.settings["peers"].as_array_mut().expect("peers is an array");
    peers[0].as_table_mut().expect("a peer is a table").insert("addresses".into(), of_b);
    // Nobody is there, which is no different where UDP is blocked; once it is not, the peer answers.
    inside.set("nat", "stun_servers", Toml::Array(vec!["10.201.0.77:3478".into()]));
    let mut nodes = up(&[inside, outside]);
    let status = nodes[0]
        .wait_until("that UDP is blocked", |status| host(status).is_some_and(|host| host["is_udp_blocked"] == true));
    assert_eq!(host(&status).expect("it knows")["mapping"], "unknown");
    assert_eq!(status.nat()["candidates"], serde_json::json!([]));
    lab.router(Site::A).run("nft delete table ip block");
    lab.host(Site::A).run("ip address add 10.10.0.3/16 dev eth0");
    nodes[0].wait_until("that it is not", |status| {
        host(status).is_some_and(|host| host["is_udp_blocked"] == false && host["is_translated"] == true)
    });
}

#[test]
fn floods_of_requests_and_forged_answers_are_counted_and_cost_no_lane() {
    let Some(lab) = Lab::up(2) else { return };
    translate(&lab, "");
    let setups = setups(&lab);
    let mut nodes = up(&setups);
    nodes[0].wait_until("what the masquerade does", |status| {
        knows(status, "endpoint_independent", "address_and_port_dependent")
    });
    nodes[0].wait_direct(&[Site::B], 2);
    // Lanes go from port i to port i, and so do questions: they come to the lanes' own sockets, and are answered all the same.
    let count = |status: &Status, what: &str| status.nat()["stun"][what].as_u64().unwrap_or(0);
    let answered = count(&nodes[1].status(), "requests_answered");
    lab.host(Site::A).run("ip address add 10.10.0.3/16 dev eth0");
    let before = nodes[1]
        .wait_until("questions by way of the lanes", |status| count(status, "requests_answered") >= answered + 2);
    // From the address that A has outside, to B: thousands of requests, of which few are answered.
    let (attacker, target) = (lab.router(Site::A), (Site::B.underlay(), LANE_PORT));
    let mut request = vec![0, 1, 0, 0x2c, 0x21, 0x12, 0xa4, 0x42];
    request.extend([9; 12]);
    request.extend([0xf9, 0x52, 0, 0x20]);
    request.extend([0; 32]);
    let fingerprint = crc32(&request) ^ 0x5354_554e;
    request.extend([0x80, 0x28, 0, 4]);
    request.extend(fingerprint.to_be_bytes());
    let (sent, received, bytes) = attacker.enter(|| {
        let socket = std::net::UdpSocket::bind((Site::A.underlay(), 0)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut sent = 0;
        for _ in 0..4000 {
            sent += usize::from(socket.send_to(&request, target).is_ok());
        }
        let (mut received, mut bytes, mut buffer) = (0, 0, [0; 1500]);
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            assert!(length <= request.len());
            received += 1;
            bytes += length;
        }
        // And answers that nobody has asked for.
        let mut forged = request.clone();
        forged[0] = 1;
        for _ in 0..1000 {
            let _ = socket.send_to(&forged, target);
        }
        (sent, received, bytes)
    });
    assert!(received > 0 && received < sent / 2, "{received} answers to {sent} requests");
    assert!(bytes < sent * request.len() / 2);
    let grown = |status: &Status, what| count(status, what) - count(&before, what);
    let status = wait_for("the forged answers to be counted", || {
        let status = nodes[1].status();
        (grown(&status, "unasked_received") > 100).then_some(status)
    });
    assert!(grown(&status, "requests_too_often") > 1000);
    assert_eq!(status.lanes(Site::A), 2);
    assert_eq!(nodes[0].status().lanes(Site::B), 2);
    assert_eq!(nodes[0].log().matches("lane down").count(), 0);
}

/// The one of FINGERPRINT, ISO 3309.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}
