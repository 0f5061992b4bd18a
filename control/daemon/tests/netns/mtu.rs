//! Packets of every size cross paths of every size: in fragments where no record holds them, or their sender is told.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};

use crate::lab::{Lab, Namespace, Site, wait_for};
use crate::node::{Node, Setup, mesh, two_direct, up_and_direct};
use crate::traffic::{Content, introduce, receiver, sender, tcp_both_ways, uninterrupted};

/// How long a datagram may take before it is sent again: the first of a size teaches its sender the path's MTU.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// IP and UDP headers of both versions.
const UDP_V4_BYTES: usize = 28;
const UDP_V6_BYTES: usize = 48;
/// What drops reasons a healthy path has none of.
const FAULTS: [&str; 7] = [
    "too_big",
    "fragment_incomplete",
    "frame_malformed",
    "packet_too_big",
    "packet_malformed",
    "outbound_malformed",
    "send_failed",
];

/// A lab whose routers are joined by a path of `underlay` bytes, with hosts of `inner` bytes each.
fn lab_with(underlay: usize, inner: [usize; 2]) -> Option<Lab> {
    let lab = Lab::up(2)?;
    for (site, inner) in [Site::A, Site::B].into_iter().zip(inner) {
        lab.router(site).run(&format!("ip link set underlay mtu {underlay}"));
        set_inner(&lab, site, inner);
    }
    Some(lab)
}

fn set_inner(lab: &Lab, site: Site, inner: usize) {
    for (namespace, device) in [(lab.router(site), "lan"), (lab.host(site), "eth0")] {
        namespace.run(&format!("ip link set {device} mtu {inner}"));
    }
}

/// Two nodes of these inner MTUs, up and direct.
fn nodes(setups: &mut [Setup; 2], inner: [usize; 2], fragments: bool) -> [Node; 2] {
    for (setup, inner) in setups.iter_mut().zip(inner) {
        setup.set("dataplane", "mtu", inner as i64);
        setup.set("dataplane", "fragments", fragments);
        setup.write();
    }
    up_and_direct(setups, [1, 1])
}

fn setups(lab: &Lab) -> [Setup; 2] {
    mesh(lab, [(Site::A, 1), (Site::B, 1)])
}

/// Every size at which a datagram could begin to be carried in another way, and a few more.
fn sizes(underlay: usize, inner: [usize; 2], headers: usize) -> Vec<usize> {
    let borders = [underlay - 28, underlay - 48, 1420, 1500, 2 * (underlay - 48), inner[0], inner[1]];
    let around = |border: usize| {
        let near = (border.saturating_sub(headers + 31)..border.saturating_sub(headers)).step_by(5);
        near.chain([border.saturating_sub(headers), (border + 1).saturating_sub(headers)])
    };
    let mut sizes: Vec<_> = borders.into_iter().flat_map(around).chain([1, 2, 30, 5000, 9001, 20_000]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Sends a datagram of each size and compares what arrives.
fn datagrams_cross(near: &Namespace, far: &Namespace, address: IpAddr, sizes: &[usize]) {
    introduce(near, address);
    let receiver = receiver(far, address);
    receiver.set_read_timeout(Some(AGAIN_AFTER)).expect("a timeout can be set");
    let sender = near.enter(|| sender(receiver.local_addr().expect("a bound socket has an address")));
    for &size in sizes {
        let mut sent = vec![0; size];
        Content::of(size as u64).fill(&mut sent);
        wait_for(&format!("a datagram of {size} bytes to {address}"), || {
            // What does not pass any more is an error of this send, and cut by the host in the next.
            let _ = sender.send(&sent);
            receive_like(&receiver, &sent)
        });
    }
}

/// Receives until a datagram as long as `sent` comes, which must be it; those of the sizes before may come again.
fn receive_like(receiver: &UdpSocket, sent: &[u8]) -> Option<()> {
    let mut received = vec![0; 1 << 16];
    loop {
        let length = uninterrupted(|| receiver.recv(&mut received)).ok()?;
        if length == sent.len() {
            assert!(received[..length] == *sent, "a datagram of {length} bytes differs");
            return Some(());
        }
    }
}

/// Streams and datagrams of all sizes cross both ways.
fn everything_crosses(lab: &Lab, underlay: usize, inner: [usize; 2]) {
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for (near, far, addresses) in [(&a, &b, Site::B.host()), (&b, &a, Site::A.host())] {
        for address in addresses {
            tcp_both_ways(near, far, address, 2, 1_000_000);
            let headers = if address.is_ipv4() { UDP_V4_BYTES } else { UDP_V6_BYTES };
            datagrams_cross(near, far, address, &sizes(underlay, inner, headers));
        }
    }
}

fn no_faults(nodes: &[Node; 2]) {
    for node in nodes {
        let status = node.status();
        for reason in FAULTS {
            assert_eq!(status.dropped(reason), 0, "{reason} in {status:?}");
        }
    }
}

fn crosses(underlay: usize) {
    let Some(lab) = lab_with(underlay, [1280, 9000]) else { return };
    let mut setups = setups(&lab);
    for inner in [[1280, 9000], [1420, 1420], [1500, 1500]] {
        [Site::A, Site::B].into_iter().zip(inner).for_each(|(site, inner)| set_inner(&lab, site, inner));
        let mut nodes = nodes(&mut setups, inner, true);
        everything_crosses(&lab, underlay, inner);
        no_faults(&nodes);
        // The interfaces of nodes that are killed may outlive them for a moment, in which no others can have them.
        nodes.iter_mut().for_each(|node| assert!(node.terminate().success()));
    }
}

#[test]
fn packets_of_every_size_cross_a_path_of_1280_bytes() {
    crosses(1280);
}

#[test]
fn packets_of_every_size_cross_a_path_of_1300_bytes() {
    crosses(1300);
}

#[test]
fn packets_of_every_size_cross_a_path_of_1420_bytes() {
    crosses(1420);
}

#[test]
fn packets_of_every_size_cross_a_path_of_1500_bytes() {
    crosses(1500);
}

#[test]
fn packets_of_every_size_cross_a_path_of_9000_bytes() {
    crosses(9000);
}

#[test]
fn records_of_a_path_of_9000_bytes_carry_several_packets_without_any_configuration() {
    let Some(lab) = lab_with(9000, [1420, 1420]) else { return };
    let (_, nodes) = two_direct(&lab, [1, 1]);
    tcp_both_ways(&lab.host(Site::A), &lab.host(Site::B), Site::B.host()[0], 2, 5_000_000);
    no_faults(&nodes);
    for node in &nodes {
        let status = node.status();
        let (records, packets) = (status.sum("records_sent"), status.sum("packets_sent"));
        assert!(packets > 3 * records, "{packets} packets in {records} records");
    }
}

/// What a host knows of the MTU towards an address, if it was told any.
fn learnt(host: &Namespace, address: IpAddr) -> Option<usize> {
    let route = host.run(&format!("ip route get {address}"));
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
}

#[test]
fn where_packets_are_not_cut_senders_learn_the_mtu_and_streams_go_on() {
    let Some(lab) = lab_with(1280, [1500, 1500]) else { return };
    let nodes = nodes(&mut setups(&lab), [1500, 1500], false);
    let hosts = [lab.host(Site::A), lab.host(Site::B)];
    // A record of 1252 bytes less its header, tag and one byte; and what IPv6 takes for granted.
    for (address, mtu) in Site::B.host().into_iter().zip([1252 - 28 - 1, 1280]) {
        let socket = hosts[0].enter(|| {
            let socket = sender((address, 9).into());
            dont_fragment(&socket, address);
            socket
        });
        let too_long = vec![0; 1400];
        let error = wait_for("the sender to be told", || socket.send(&too_long).err());
        assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()), "{error}");
        assert_eq!(learnt(&hosts[0], address), Some(mtu));
        let headers = if address.is_ipv4() { UDP_V4_BYTES } else { UDP_V6_BYTES };
        datagrams_cross(&hosts[0], &hosts[1], address, &[mtu - headers, mtu - headers + 1, 1400, 4000]);
        tcp_both_ways(&hosts[0], &hosts[1], address, 2, 2_000_000);
    }
    let status = nodes[0].status();
    assert!(status.dropped("too_big") > 0, "{status:?}");
    for reason in FAULTS.into_iter().filter(|reason| *reason != "too_big") {
        assert_eq!(status.dropped(reason), 0, "{reason} in {status:?}");
    }
}

/// Packets of this socket are not fragmented by anybody.
fn dont_fragment(socket: &UdpSocket, address: IpAddr) {
    let set = match address {
        IpAddr::V4(_) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO),
        IpAddr::V6(_) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO),
    };
    set.expect("any socket can refuse to fragment");
}
