//! Services of one kind of node, used from another.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;

use serde_json::json;

use super::{Kind, Running, know_all, lab_of, long, matrix, trust_all};
use crate::lab::wait_for;
use crate::services::{accept, carry, connect, listen};
use crate::traffic::Content;

fn services_are_reached_both_ways(kinds: [Kind; 2]) {
    reach(kinds, &[]);
}

/// By default all prefer QUIC.
fn services_are_reached_over_tcp(kinds: [Kind; 2]) {
    reach(kinds, &["/ip4/0.0.0.0/tcp/8001"]);
}

/// Each offers a service to the other, one it keeps from it, and knows nothing of a third.
fn reach(kinds: [Kind; 2], listen_addresses: &[&str]) {
    let Some((_lab, mut members)) = lab_of(kinds) else { return };
    if !listen_addresses.is_empty() {
        members.iter_mut().for_each(|member| member.config["listenAddresses"] = json!(listen_addresses));
    }
    trust_all(&mut members);
    know_all(&mut members);
    let names = members.each_ref().map(|member| format!("@{}", member.name()));
    for (member, other) in members.iter_mut().zip([&names[1], &names[0]]) {
        member.config["services"] = json!({
            "example": { "target": "/tcp/8080", "acl": { "enableWhitelist": true, "whitelist": [other] } },
            "deny": { "target": "/tcp/8080", "acl": { "blacklist": [other] } },
        });
    }
    let mut nodes = members.each_ref().map(|member| member.up());
    wait_for("both to be connected", || {
        nodes.iter().all(|node| node.log().to_lowercase().contains("connected")).then_some(())
    });
    let [a, b] = &members;
    let bytes = if long() { 100_000_000 } else { 10_000_000 };
    for (from, to) in [(a, b), (b, a)] {
        let target = listen(&to.router, 8080);
        let near = connect(&from.router, to.id, "example", 80).expect("the service answers");
        let far = accept(&target);
        if kinds == [Kind::Rust, Kind::Rust] {
            carry(near, far, bytes);
        } else {
            // Hyprspace knows no half-open connection: an end of one direction ends both.
            one_after_the_other(near, far, bytes);
        }
        let near = connect(&from.router, to.id, "example", 9999).expect("every port answers");
        let far = accept(&target);
        drop((near, far));
        for service in ["deny", "ab"] {
            match connect(&from.router, to.id, service, 80) {
                Err(error) if from.kind == Kind::Rust => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
                Err(error) => panic!("{:?} accepts before it asks: {error}", from.kind),
                Ok(_) if from.kind == Kind::Rust => panic!("{service} is refused by {:?}", to.kind),
                Ok(mut near) => {
                    let ended = near.read(&mut [0]);
                    assert!(ended.as_ref().is_ok_and(|read| *read == 0) || ended.is_err(), "{ended:?}");
                }
            }
        }
    }
    nodes.iter_mut().for_each(Running::expect_alive);
}

/// `bytes` there, and then back.
fn one_after_the_other(mut near: TcpStream, mut far: TcpStream, bytes: usize) {
    transfer(&mut near, &mut far, bytes);
    transfer(&mut far, &mut near, bytes);
}

fn transfer(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    let mut content = vec![0; bytes];
    Content::of(bytes as u64).fill(&mut content);
    let mut received = vec![0; bytes];
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(&content).expect("an open connection"));
        to.read_exact(&mut received).expect("all arrives");
    });
    assert!(content == received, "what arrives is what was sent");
}

matrix!(services_are_reached_both_ways:
    rust_rust [Rust, Rust],
    rust_go [Rust, Go],
    rust_old_go [Rust, OldGo],
);

matrix!(services_are_reached_over_tcp:
    rust_rust [Rust, Rust],
    rust_go [Rust, Go],
);
