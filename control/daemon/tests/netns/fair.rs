//! Whoever fills the link does not make the others wait: with a configured rate, and where a device is the bottleneck.
//! What the path says of congestion reaches those who understand it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::lab::{Lab, Namespace, Site, wait_for};
use crate::node::{LANE_PORT, Node, Setup, mesh};
use crate::traffic::{connected, expect_content, receiver, send_content, sender, uninterrupted};
use crate::wire::{Capture, Datagram};

/// Runs that must be good, and bad ones that end it: the median of five decides, and is known after three to five. Whoever
/// waits for a core sees milliseconds that no queue of ours has made, and a queue that is at fault is so in every run.
const MAJORITY: u32 = 3;
/// By how much pings may take longer beside a transfer. On a machine with nothing else to do it is less than [`TIGHT`], which
/// is reported; where others keep the cores busy, nodes and `ping` wait for a core for several times that. The slow device
/// below has room for a second.
const BOUND: Duration = Duration::from_millis(40);
const TIGHT: Duration = Duration::from_millis(10);
const PINGS: usize = 200;
const RATE_MBIT: u64 = 100;

/// Whether most of five runs are good.
fn mostly(mut run: impl FnMut() -> bool) -> bool {
    let (mut good, mut bad) = (0, 0);
    while good < MAJORITY && bad < MAJORITY {
        *if run() { &mut good } else { &mut bad } += 1;
    }
    good == MAJORITY
}

fn report(base: Duration, figures: &[(Duration, f64)]) {
    let tight = figures.iter().filter(|(p99, _)| *p99 < base + TIGHT).count();
    println!("base {base:?}; p99 and Mbit/s: {figures:?}; {tight} of {} within {TIGHT:?}", figures.len());
}

/// Two sites whose nodes are as `change` says, both up.
fn two_nodes(lab: &Lab, workers: u8, change: impl Fn(&mut Setup)) -> [Node; 2] {
    let mut setups = mesh(lab, [(Site::A, workers), (Site::B, workers)]);
    for setup in &mut setups {
        change(setup);
        setup.write();
    }
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], workers.into());
    nodes[1].wait_direct(&[Site::A], workers.into());
    nodes
}

/// The round-trip times of `count` pings 10 ms apart, shortest first. Panics unless all are answered.
fn ping_times(from: &Namespace, to: IpAddr, count: usize) -> Vec<Duration> {
    let printed = from.run(&format!("ping -n -i 0.01 -W 5 -c {count} {to}"));
    let times = printed.lines().filter_map(|line| line.split_once("time=")?.1.strip_suffix(" ms")?.parse::<f64>().ok());
    let mut times: Vec<_> = times.map(|millis| Duration::from_secs_f64(millis / 1e3)).collect();
    assert_eq!(times.len(), count, "a ping was not answered");
    times.sort_unstable();
    times
}

/// The longest of all but the longest one in a hundred.
fn p99(times: &[Duration]) -> Duration {
    times[times.len() - 1 - times.len() / 100]
}

fn median(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

/// A TCP transfer that goes on for as long as `meanwhile` takes, which is told how many bytes have arrived.
fn during_transfer<T>(from: &Namespace, to: &Namespace, address: IpAddr, meanwhile: impl FnOnce(&AtomicU64) -> T) -> T {
    let [near, far] = connected(from, to, address, |_| ());
    let (stopped, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| send_until(near, &stopped));
        scope.spawn(|| receive(far, &arrived));
        // However it ends, the others must.
        let stop = Stop(&stopped);
        let done = meanwhile(&arrived);
        drop(stop);
        done
    })
}

struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn send_until(mut stream: TcpStream, stopped: &AtomicBool) {
    let chunk = [0xa5; 64 << 10];
    while !stopped.load(Ordering::Relaxed) {
        stream.write_all(&chunk).expect("an open stream takes bytes");
    }
    stream.shutdown(Shutdown::Write).expect("an open stream can be shut");
}

fn receive(mut stream: TcpStream, arrived: &AtomicU64) {
    let mut chunk = vec![0; 256 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(bytes) => _ = arrived.fetch_add(bytes as u64, Ordering::Relaxed),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("the transfer: {error}"),
        }
    }
}

/// Bytes that have left a router on the underlay, from IP headers on.
fn outer_bytes(router: &Namespace) -> u64 {
    const ETHERNET_HEADER_BYTES: u64 = 14;
    let listing = router.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("the kernel counts");
    let line = listing.lines().find_map(|line| line.trim().strip_prefix("underlay:")).expect("the router has it");
    // Eight columns of what was received, then bytes and packets that were sent.
    let sent: Vec<u64> = line.split_whitespace().skip(8).map(|count| count.parse().expect("a count")).collect();
    sent[0] - ETHERNET_HEADER_BYTES * sent[1]
}

/// Waits until the transfer has come to its speed: until it has moved so many bytes.
fn wait_for_bytes(arrived: &AtomicU64, bytes: u64) {
    wait_for("the transfer to get going", || (arrived.load(Ordering::Relaxed) >= bytes).then_some(()));
}

#[test]
fn beside_a_transfer_that_fills_the_configured_rate_every_ping_is_answered_soon() {
    let Some(lab) = Lab::up(2) else { return };
    let nodes = two_nodes(&lab, 2, |setup| setup.set("dataplane", "rate_mbit", RATE_MBIT as i64));
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    let [address, _] = Site::B.host();
    // Each record is a packet of its own on the wire, so that the interface counts what the rate does.
    lab.router(Site::A).run("ethtool -K underlay gso off tso off tx-udp-segmentation off");
    let base = median(&ping_times(&a, address, 50));

    let mut figures = Vec::new();
    let is_quick = mostly(|| {
        let (times, mbit) = during_transfer(&a, &b, address, |arrived| {
            wait_for_bytes(arrived, 5_000_000);
            let began = Instant::now();
            let before = outer_bytes(&lab.router(Site::A));
            let times = ping_times(&a, address, PINGS);
            let bytes = outer_bytes(&lab.router(Site::A)) - before;
            (times, bytes as f64 * 8e-6 / began.elapsed().as_secs_f64())
        });
        figures.push((p99(&times), mbit));
        // Never more than the rate, whatever the machine is busy with.
        assert!(mbit < RATE_MBIT as f64 * 1.02, "{figures:?} Mbit/s are too many");
        p99(&times) < base + BOUND && mbit > RATE_MBIT as f64 * 0.7
    });
    report(base, &figures);
    assert!(is_quick, "base {base:?}; p99 and Mbit/s: {figures:?}");
    let status = nodes[0].status();
    assert_eq!(status.egress_states(), ["queueing"; 2]);
    assert_eq!(status.dropped("send_failed") + status.dropped("send_buffer_full"), 0, "{status:?}");
}

#[test]
fn beside_a_transfer_that_fills_a_slow_device_every_ping_is_answered_soon_and_no_sealed_record_is_lost() {
    let Some(lab) = Lab::up(2) else { return };
    // 100 Mbit/s with a second of room for whoever fills it, as slow devices have.
    let slow = format!("tc qdisc replace dev underlay root tbf rate {RATE_MBIT}mbit burst 32k limit 12500000");
    if !lab.router(Site::A).command("sh").args(["-c", &slow]).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: this kernel has no token bucket (sch_tbf)");
        return;
    }
    let mut nodes = two_nodes(&lab, 1, |_| ());
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    let [address, _] = Site::B.host();
    let base = median(&ping_times(&a, address, 50));

    let mut figures = Vec::new();
    let is_quick = during_transfer(&a, &b, address, |arrived| {
        wait_for_bytes(arrived, 5_000_000);
        let queueing = |status: &crate::node::Status| status.egress_states().contains(&"queueing".to_owned());
        nodes[0].wait_until("the slow device to be noticed", queueing);
        mostly(|| {
            let before = (arrived.load(Ordering::Relaxed), Instant::now());
            let times = ping_times(&a, address, PINGS);
            let bytes = arrived.load(Ordering::Relaxed) - before.0;
            let mbit = bytes as f64 * 8e-6 / before.1.elapsed().as_secs_f64();
            figures.push((p99(&times), mbit));
            // TCP, inner IP and the record take 10 % of it.
            p99(&times) < base + BOUND && mbit > RATE_MBIT as f64 * 0.7
        })
    });
    report(base, &figures);
    let status = nodes[0].status();
    assert!(is_quick, "base {base:?}; p99 and Mbit/s: {figures:?}; {status:?}");
    assert_eq!(status.dropped("send_failed") + status.dropped("send_buffer_full"), 0, "{status:?}");
    nodes[0].wait_until("packets to leave at once again", |status| status.egress_states() == ["direct"]);
}

/// What a datagram says whose records are told from all others by their size: echoes are far shorter, probes of the path MTU
/// far longer.
const TOLD_APART_BYTES: usize = 600;

/// The bytes of DSCP and ECN of the records that left for a site's lane with such a datagram, in order.
fn outer_classes(packets: &[Vec<u8>], to: Site) -> Vec<u8> {
    let is_to = |datagram: &Datagram| {
        *datagram.destination.ip() == to.underlay()
            && datagram.is_record()
            && (TOLD_APART_BYTES..TOLD_APART_BYTES + 100).contains(&datagram.payload.len())
    };
    packets
        .iter()
        .filter(|packet| Datagram::parse(packet).as_ref().is_some_and(is_to))
        .map(|packet| packet[1])
        .collect()
}

#[test]
fn outer_headers_carry_what_the_policy_says_of_dscp_and_ecn() {
    const CLASSES: [u8; 5] = [0, 0b10, 46 << 2, 46 << 2 | 0b01, 0b11];
    let policies = [
        (false, true, [0, 0b10, 0, 0b01, 0b11]),
        (true, true, CLASSES),
        (true, false, [0, 0, 46 << 2, 46 << 2, 0]),
        (false, false, [0; 5]),
    ];
    for (copies_dscp, copies_ecn, expected) in policies {
        let Some(lab) = Lab::up(3) else { return };
        let _nodes = two_nodes(&lab, 1, |setup| {
            setup.set("dataplane", "copy_dscp", copies_dscp);
            setup.set("dataplane", "copy_ecn", copies_ecn);
        });
        let (a, b) = (lab.host(Site::A), lab.host(Site::B));
        let far = receiver(&b, Site::B.host_v4().into());
        far.set_read_timeout(Some(crate::lab::PATIENCE)).unwrap();
        let near = a.enter(|| sender(far.local_addr().unwrap()));
        let capture = Capture::start(&lab.underlay());
        for class in CLASSES {
            SockRef::from(&near).set_tos_v4(class.into()).unwrap();
            near.send(&[class; TOLD_APART_BYTES]).unwrap();
            assert_eq!(uninterrupted(|| far.recv(&mut [0; 1000])).unwrap(), TOLD_APART_BYTES);
        }
        // Each is seen as it enters the bridge and as it leaves it.
        let mut seen = outer_classes(&capture.stop(), Site::B);
        seen.dedup();
        let mut expected = expected.to_vec();
        expected.dedup();
        assert_eq!(seen, expected, "DSCP {copies_dscp}, ECN {copies_ecn}");
    }
}

/// A figure that a host's kernel counts for IP.
fn ip_count(host: &Namespace, name: &str) -> u64 {
    let listing = host.enter(|| fs::read_to_string("/proc/thread-self/net/netstat")).expect("the kernel counts");
    let mut lines = listing.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, counts) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split_whitespace().zip(counts.split_whitespace());
    pairs.find(|(found, _)| *found == name).and_then(|(_, count)| count.parse().ok()).expect("IP counts it")
}

/// Has the bridge mark records with what is given as a rule, and count them.
fn mark_records(lab: &Lab, rule: &str) {
    let underlay = lab.underlay();
    underlay.run("nft add table netdev lab");
    for port in ["port-a", "port-b"] {
        underlay
            .run(&format!("nft add chain netdev lab {port} {{ type filter hook ingress device {port} priority 0 ; }}"));
        underlay.run(&format!("nft add rule netdev lab {port} udp dport {LANE_PORT} {rule}"));
    }
}

#[test]
fn a_path_that_marks_congestion_slows_tcp_down_without_a_loss() {
    const BYTES: usize = 8_000_000;
    let Some(lab) = Lab::up(3) else { return };
    let nodes = two_nodes(&lab, 1, |_| ());
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    [&a, &b].into_iter().for_each(|host| _ = host.run("sysctl -q -w net.ipv4.tcp_ecn=1"));
    for site in [Site::A, Site::B] {
        // One frame on the wire is one record.
        lab.router(site).run("ethtool -K underlay tso off gso off tx-udp-segmentation off");
    }
    mark_records(&lab, "ip ecn ect0 numgen inc mod 50 0 ip ecn set ce counter");
    let [near, far] = connected(&a, &b, Site::B.host_v4().into(), |_| ());
    thread::scope(|scope| {
        scope.spawn(|| send_content(near, 1, BYTES));
        scope.spawn(|| expect_content(far, 1, BYTES));
    });
    let (marked, capable) = (ip_count(&b, "InCEPkts"), ip_count(&b, "InECT0Pkts"));
    assert!(marked > 0 && capable > marked, "{marked} of {capable} packets were marked");
    for node in &nodes {
        let status = node.status();
        for reason in ["ce_not_ect", "packet_malformed", "frame_malformed", "unauthentic"] {
            assert_eq!(status.dropped(reason), 0, "{reason}: {status:?}");
        }
    }
}

#[test]
fn a_packet_that_does_not_understand_a_mark_is_dropped_and_counted() {
    let Some(lab) = Lab::up(3) else { return };
    let mut nodes = two_nodes(&lab, 1, |_| ());
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    let far = receiver(&b, Site::B.host_v4().into());
    let near = a.enter(|| sender(far.local_addr().unwrap()));
    far.set_nonblocking(true).unwrap();
    mark_records(&lab, "ip ecn set ce counter");
    near.send(b"does anybody hear this?").unwrap();
    nodes[1].wait_until("the drop", |status| status.dropped("ce_not_ect") > 0);
    assert!(far.recv(&mut [0; 64]).is_err(), "it was counted as dropped");
    SockRef::from(&near).set_tos_v4(0b10).unwrap();
    near.send(b"I would").unwrap();
    let heard = wait_for("the packet that understands", || far.recv(&mut [0; 64]).ok());
    assert_eq!(heard, b"I would".len());
}
