//! Metrics, scraped from a node on a real kernel.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::lab::{Lab, PATIENCE, Site, succeed};
use crate::node::{RINGLANE, mesh, name_of, up_and_direct};

#[test]
fn a_node_says_what_it_does_over_http_and_over_its_admin_socket() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    setups[0].set("metrics", "listen", "127.0.0.1:9100");
    setups[0].write();
    let _nodes = up_and_direct(&setups, [1, 1]);
    for address in Site::B.host() {
        lab.host(Site::A).ping(address);
    }

    let scraped = setups[0].router.enter(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9100").expect("the metrics are served");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        let request = "GET /metrics HTTP/1.1\r\nhost: ringlane\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("the request leaves");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("there is a response");
        response
    });
    assert!(scraped.starts_with("HTTP/1.1 200 OK\r\n") && scraped.ends_with("# EOF\n"), "{scraped}");
    let printed = succeed(Command::new(RINGLANE).args(["metrics", "--interface", &setups[0].interface])).stdout;
    let printed = String::from_utf8(printed).expect("metrics are text");

    let peer = format!("{{peer=\"{}\",name=\"{}\"}}", setups[1].id, name_of(Site::B));
    for text in [&scraped, &printed] {
        let figure = |name: &str| -> f64 {
            let start = format!("{name} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is missing in\n{text}"))
        };
        assert_eq!(figure(&format!("ringlane_peer_up{peer}")), 1.0);
        assert_eq!(figure(&format!("ringlane_peer_lanes{peer}")), 1.0);
        // Three packets of each family.
        assert!(figure(&format!("ringlane_peer_sent_packets_total{peer}")) >= 6.0);
        assert!(figure(&format!("ringlane_peer_received_packets_total{peer}")) >= 6.0);
        assert!(figure("process_resident_memory_bytes") > 0.0);
        assert!(text.contains("libp2p_swarm_connections_established_total{"), "{text}");
    }
    assert!(printed.starts_with("# HELP ") && printed.ends_with("# EOF\n"));
}
