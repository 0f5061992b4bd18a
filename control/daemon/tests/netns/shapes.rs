//! TCP of the shapes that hurt code which splits and joins: what crosses is what was sent.

use std::io::Write;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::thread;

use socket2::{SockRef, Socket};

use crate::lab::{Lab, Namespace, Site};
use crate::node::{Node, two_direct, two_direct_on};
use crate::traffic::{Content, connected, expect_content, send_content};

/// Two nodes that are up, and the hosts behind them.
fn joined() -> Option<(Lab, [Node; 2], [Namespace; 2])> {
    let lab = Lab::up(2)?;
    let (_, nodes) = two_direct(&lab, [2, 2]);
    let hosts = [Site::A, Site::B].map(|site| lab.host(site));
    Some((lab, nodes, hosts))
}

/// Moves `bytes` each way at once over one connection; `send` sends from a seed.
fn both_ways([near, far]: &[TcpStream; 2], bytes: usize, send: impl Fn(TcpStream, u64, usize) + Sync + Copy + Send) {
    thread::scope(|scope| {
        for (from, to, seed) in [(near, far, 1), (far, near, 2)] {
            let (from, to) = (from.try_clone().expect("clones"), to.try_clone().expect("clones"));
            scope.spawn(move || send(from, seed, bytes));
            scope.spawn(move || expect_content(to, seed, bytes));
        }
    });
}

/// Super-segments were split on one side and rebuilt on the other.
fn offloads_were_used(nodes: &[Node; 2]) {
    for node in nodes {
        let status = node.status();
        assert!(status.sum("super_segments_read") > 0 && status.sum("super_segments_written") > 0, "{status:?}");
        for reason in ["outbound_malformed", "frame_malformed", "packet_malformed", "tun_write_failed"] {
            assert_eq!(status.dropped(reason), 0, "{reason} in {status:?}");
        }
    }
}

#[test]
fn streams_of_tiny_segments_are_whole() {
    let Some((_lab, nodes, [a, b])) = joined() else { return };
    for address in Site::B.host() {
        for mss in [88, 133, 300, 536] {
            let tiny = |socket: &Socket| socket.set_tcp_mss(mss).expect("an MSS can be set");
            let ends = connected(&a, &b, address, tiny);
            for end in &ends {
                let mss_in_use = SockRef::from(end).tcp_mss().expect("a stream has an MSS");
                assert!(mss_in_use <= mss, "{mss_in_use} of {mss}");
            }
            both_ways(&ends, 100_000, send_content);
        }
    }
    offloads_were_used(&nodes);
}

/// Sends without waiting to fill segments, in writes of one to many; every so often two bytes are urgent.
fn send_in_mixed_writes(mut stream: TcpStream, seed: u64, bytes: usize) {
    let mut content = vec![0; bytes];
    Content::of(seed).fill(&mut content);
    let mut rest = &content[..];
    for length in [1, 3, 1, 40_000, 2, 1368, 1, 1369, 7, 9000].into_iter().cycle() {
        let (now, later) = rest.split_at(rest.len().min(length));
        rest = later;
        if length == 2 {
            let sent = SockRef::from(&stream).send_out_of_band(now).expect("urgent data can be sent");
            assert_eq!(sent, now.len());
        } else {
            stream.write_all(now).expect("the other end reads");
        }
        if rest.is_empty() {
            break;
        }
    }
    stream.shutdown(Shutdown::Write).expect("an open stream can be shut");
}

#[test]
fn streams_of_single_bytes_bulk_and_urgent_data_in_turn_are_whole() {
    let Some(joined) = joined() else { return };
    mixed_streams_are_whole(joined);
}

#[test]
fn streams_of_single_bytes_bulk_and_urgent_data_in_turn_are_whole_on_epoll() {
    let Some(lab) = Lab::up(2) else { return };
    let (_, nodes) = two_direct_on(&lab, [2, 2], ["epoll"; 2]);
    let hosts = [Site::A, Site::B].map(|site| lab.host(site));
    mixed_streams_are_whole((lab, nodes, hosts));
}

fn mixed_streams_are_whole((_lab, nodes, [a, b]): (Lab, [Node; 2], [Namespace; 2])) {
    let impatient = |socket: &Socket| {
        socket.set_tcp_nodelay(true).expect("Nagle's algorithm can be switched off");
        socket.set_out_of_band_inline(true).expect("urgent data can stay in line");
    };
    for address in Site::B.host() {
        both_ways(&connected(&a, &b, address, impatient), 2_000_000, send_in_mixed_writes);
    }
    offloads_were_used(&nodes);
}

/// Sends all in one go with the stream's end in the last segment of data.
fn send_with_the_end(mut stream: TcpStream, seed: u64, bytes: usize) {
    let mut content = vec![0; bytes];
    Content::of(seed).fill(&mut content);
    SockRef::from(&stream).set_tcp_cork(true).expect("a stream can be corked");
    stream.write_all(&content).expect("the other end reads");
    stream.shutdown(Shutdown::Write).expect("an open stream can be shut");
}

#[test]
fn streams_that_end_with_their_last_data_are_whole() {
    let Some((_lab, nodes, [a, b])) = joined() else { return };
    for address in Site::B.host() {
        for bytes in [1, 1347, 1348, 1349, 1368, 1369, 4000, 5000, 13_680, 60_001] {
            both_ways(&connected(&a, &b, address, |_| ()), bytes, send_with_the_end);
        }
    }
    offloads_were_used(&nodes);
}

/// A counter of the kernel in this namespace: of the table `IpExt` of netstat, or of IPv6.
fn kernel_counter(at: &Namespace, name: &str) -> u64 {
    let netstat = at.run("cat /proc/net/netstat");
    let mut tables = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (tables.next().expect("names"), tables.next().expect("values"));
    let ipv6 = at.run("cat /proc/net/snmp6");
    let ipv4 = names.split_whitespace().zip(values.split_whitespace());
    let ipv6 = ipv6.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let found = ipv4.chain(ipv6).find(|(found, _)| *found == name);
    found.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or_else(|| panic!("the kernel counts no {name}"))
}

#[test]
fn marks_of_congestion_cross_and_streams_that_heed_them_are_whole() {
    let Some((_lab, nodes, [a, b])) = joined() else { return };
    for host in [&a, &b] {
        host.run("sysctl -q -w net.ipv4.tcp_ecn=1");
        host.run("nft add table inet lab");
        host.run("nft add chain inet lab output { type filter hook output priority 0 ; }");
        for ip in ["ip", "ip6"] {
            host.run(&format!("nft add rule inet lab output {ip} ecn ect0 numgen inc mod 10 0 {ip} ecn set ce"));
        }
    }
    for address in Site::B.host() {
        both_ways(&connected(&a, &b, address, |_| ()), 2_000_000, send_content);
        both_ways(&connected(&b, &a, other_end(address), |_| ()), 2_000_000, send_content);
    }
    for host in [&a, &b] {
        for counter in ["InCEPkts", "InECT0Pkts", "Ip6InCEPkts", "Ip6InECT0Pkts"] {
            assert!(kernel_counter(host, counter) > 0, "{counter}");
        }
    }
    offloads_were_used(&nodes);
}

/// The address of A's host of the same family.
fn other_end(address: IpAddr) -> IpAddr {
    Site::A.host()[usize::from(address.is_ipv6())]
}
