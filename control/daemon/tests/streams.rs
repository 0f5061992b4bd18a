//! What leaves by control reaches a real TUN: two dataplanes without a lane, whose batches of packets a thread passes from
//! one to the other as control does by a stream, and the kernel's own TCP and UDP over it. Each dataplane's TUN is in a
//! network namespace of its own, which ends with its process.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::env;
use std::fs::{File, read_link};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use ringlane_dataplane::{Dataplane, Tun};
use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::{Generation, PeerId, PeerIndex};
use ringlane_shared::limits::{BATCH_QUEUE_MESSAGES, STREAM_PACKET_BYTES_MAX};
use ringlane_shared::plane::queue::{plane_queue, plane_queue_of};
use ringlane_shared::plane::{
    BatchItemForm, Engine, PacketBatch, PeerCounters, PeerEntry, PlaneCommand, PlaneEvent, PlaneReceiver, PlaneSender,
    Snapshot, StreamForm, ToControl, WorkerSettings,
};
use ringlane_shared::route::RouteTable;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const INSIDE: &str = "RINGLANE_TEST_INSIDE_NAMESPACE";
const PATIENCE: Duration = Duration::from_secs(30);
const PEER: PeerIndex = PeerIndex(0);
const TCP_BYTES: usize = 4 << 20;
/// Datagrams of one send that the kernel cuts.
const PIECES: usize = 20;
const PIECE_BYTES: usize = 1200;
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

#[test]
fn tcp_and_udp_pass_between_tuns_by_streams_of_whole_packets() {
    passes("tcp_and_udp_pass_between_tuns_by_streams_of_whole_packets", Engine::IoUring, StreamForm::Whole, 1420);
}

/// The interfaces take more than the streams.
#[test]
fn senders_find_out_what_streams_of_whole_packets_take() {
    passes("senders_find_out_what_streams_of_whole_packets_take", Engine::Epoll, StreamForm::Whole, 1500);
}

#[test]
fn tcp_and_udp_pass_between_tuns_by_streams_between_ringlane_nodes() {
    let test = "tcp_and_udp_pass_between_tuns_by_streams_between_ringlane_nodes";
    passes(test, Engine::IoUring, StreamForm::Offloaded, 1420);
}

#[test]
fn tcp_and_udp_pass_by_streams_between_ringlane_nodes_on_epoll() {
    let test = "tcp_and_udp_pass_by_streams_between_ringlane_nodes_on_epoll";
    passes(test, Engine::Epoll, StreamForm::Offloaded, 9000);
}

fn passes(test: &str, engine: Engine, form: StreamForm, mtu: u16) {
    if env::var_os(INSIDE).is_none() {
        return run_in_namespace(test);
    }
    // A worker asks loopback what offloads the kernel has.
    run("ip", "link set lo up");
    let other = OtherNamespace::new();
    let [(here, from_here), (there, from_there)] = [0, 1].map(|number| Side::new(number, &other, engine, form, mtu));
    let ends = [(from_here, &there), (from_there, &here)]
        .map(|(outbound, to)| pass_on(outbound, to.dataplane.deliveries[0].clone(), form));

    let served = other.run(serve);
    let mut client = connect((THERE, 5001).into());
    let sent: Vec<u8> = (0..TCP_BYTES).map(|at| (at / 1000 + at) as u8).collect();
    let reader = {
        let mut client = client.try_clone().unwrap();
        spawn(move || {
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            back
        })
    };
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(reader.join().unwrap() == sent, "what comes back is what was sent");

    let socket = UdpSocket::bind((HERE, 0)).unwrap();
    socket.connect((THERE, 5002)).unwrap();
    setsockopt(&socket, sockopt::UdpGsoSegment, &(PIECE_BYTES as i32)).unwrap();
    socket.send(&[3; PIECES * PIECE_BYTES]).unwrap();
    assert_eq!(served.join().unwrap(), PIECES);

    for side in [&here, &there] {
        let (peer, worker) = (&side.counters[0], &side.dataplane.counters[0]);
        assert_eq!(peer.stream_packets_sent.get(), peer.packets_sent.get());
        assert!(peer.stream_packets_received.get() > 0);
        let wrong = [
            DropReason::OutboundMalformed,
            DropReason::NoLane,
            DropReason::PacketMalformed,
            DropReason::FrameMalformed,
            DropReason::SourceNotAllowed,
            DropReason::PacketTooBig,
            DropReason::TunWriteFailed,
        ];
        for reason in wrong {
            assert_eq!(peer.drops.get(reason), 0, "{reason:?}");
        }
        assert!(worker.super_segments_read.get() > 0 && worker.super_segments_written.get() > 0);
        assert!(side.is_calm());
    }
    let is_told = here.counters[0].drops.get(DropReason::TooBig) > 0;
    assert!(!is_told || usize::from(mtu) > STREAM_PACKET_BYTES_MAX);
    for side in [here, there] {
        side.dataplane.commands[0].try_send(PlaneCommand::Stop).unwrap();
        side.dataplane.join();
    }
    let seen = ends.map(|end| end.join().unwrap());
    assert_eq!(seen.iter().any(|seen| *seen), form == StreamForm::Offloaded, "super-segments in batches");
}

/// Passes batches on until the worker that sends them has ended. Returns whether there were super-segments in any.
fn pass_on((from, woken): Outbound, to: PlaneSender<PacketBatch>, form: StreamForm) -> JoinHandle<bool> {
    spawn(move || {
        let mut has_super_segments = false;
        while woken.recv().is_ok() {
            while let Some(batch) = from.try_recv() {
                for item in batch.items() {
                    let is_super_segment = matches!(item.form, BatchItemForm::SuperSegment { .. });
                    has_super_segments |= is_super_segment;
                    if form == StreamForm::Whole {
                        assert_eq!(item.form, BatchItemForm::Packet { is_partial: false });
                        assert!(item.packet.len() <= STREAM_PACKET_BYTES_MAX);
                    }
                }
                // Full, or at the end: a stream would wait, and what is lost here TCP sends again.
                let _ = to.try_send(batch);
            }
        }
        has_super_segments
    })
}

/// Sends back all that comes by TCP, then counts datagrams.
fn serve() -> usize {
    let mut buffer = vec![0; 65_536];
    let datagrams = UdpSocket::bind((THERE, 5002)).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let listener = TcpListener::bind((THERE, 5001)).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    loop {
        let bytes = stream.read(&mut buffer).unwrap();
        if bytes == 0 {
            break;
        }
        stream.write_all(&buffer[..bytes]).unwrap();
    }
    drop(stream);
    let mut count = 0;
    while count < PIECES {
        assert_eq!(datagrams.recv(&mut buffer).unwrap(), PIECE_BYTES);
        assert!(buffer[..PIECE_BYTES].iter().all(|&byte| byte == 3));
        count += 1;
    }
    count
}

/// Connects as soon as somebody listens.
fn connect(to: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}

/// What a worker gives control, and what tells that there is some.
type Outbound = (PlaneReceiver<PacketBatch>, Receiver<()>);

/// A dataplane of one worker whose peer has a stream.
struct Side {
    dataplane: Dataplane,
    counters: Arc<[PeerCounters]>,
    events: PlaneReceiver<PlaneEvent>,
}

impl Side {
    /// Side n has 10.n.0.1 on its TUN, in the namespace n, and routes the other side's network into it.
    fn new(number: u8, other: &OtherNamespace, engine: Engine, form: StreamForm, mtu: u16) -> (Self, Outbound) {
        let interface = format!("rlst{number}");
        let settings = WorkerSettings { engine, ..WorkerSettings::new(mtu, 1) };
        let tun = Tun::create(&interface, 1, settings.offloads).unwrap();
        let ip = |arguments: &str| match number {
            0 => run("ip", arguments),
            _ => run("nsenter", &format!("--net={} ip {arguments}", other.path())),
        };
        if number != 0 {
            run("ip", &format!("link set {interface} netns {}", other.process.id()));
        }
        ip(&format!("address add 10.{number}.0.1/32 dev {interface}"));
        ip(&format!("link set {interface} up mtu {mtu}"));
        ip(&format!("route add 10.{}.0.0/16 dev {interface}", 1 - number));
        let (sender, events) = plane_queue(|| {});
        let (wake, woken): (SyncSender<()>, _) = sync_channel(1);
        let (batches, outbound) = plane_queue_of(BATCH_QUEUE_MESSAGES, move || _ = wake.try_send(()));
        let dataplane = ringlane_dataplane::spawn(tun, &settings, &ToControl { events: sender, batches }).unwrap();
        let counters: Arc<[PeerCounters]> = Arc::new([PeerCounters::default()]);
        let (mut routes, mut sources) = (RouteTable::default(), RouteTable::default());
        let behind_peer = format!("10.{}.0.0/16", 1 - number).parse().unwrap();
        routes.insert(behind_peer, PEER);
        sources.insert(behind_peer, true);
        let peer = PeerEntry {
            id: PeerId::random(),
            sources: Arc::new(sources),
            workers_with_lane: 0,
            stream: Some(form),
            avoided: 0,
            counters: Arc::clone(&counters),
        };
        let snapshot = Snapshot { generation: Generation(1), routes: Arc::new(routes), peers: vec![peer] };
        dataplane.commands[0].try_send(PlaneCommand::Publish(Arc::new(snapshot))).unwrap();
        (Self { dataplane, counters, events }, (outbound, woken))
    }

    /// The worker has said nothing but that it has adopted the tables.
    fn is_calm(&self) -> bool {
        std::iter::from_fn(|| self.events.try_recv()).all(|event| matches!(event, PlaneEvent::Adopted { .. }))
    }
}

/// A second network namespace, of a process that only waits.
struct OtherNamespace {
    process: Child,
}

impl OtherNamespace {
    fn new() -> Self {
        let process = Command::new("unshare").args(["--net", "sleep", "120"]).spawn().unwrap();
        let this = Self { process };
        let own = read_link("/proc/self/ns/net").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while read_link(this.path()).is_ok_and(|namespace| namespace == own) {
            assert!(Instant::now() < deadline, "the process has a namespace of its own");
            std::thread::yield_now();
        }
        this
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.process.id())
    }

    /// Runs this on a thread in there.
    fn run<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = File::open(self.path()).unwrap();
        spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        })
    }
}

impl Drop for OtherNamespace {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs this test again as a process of its own in a new network namespace.
fn run_in_namespace(test: &str) {
    let mut probe = Command::new("unshare");
    probe.args(["--net", "ip", "tuntap", "add", "rlst9", "mode", "tun"]).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        let missing = "a network namespace with a TUN needs root, ip and /dev/net/tun";
        assert!(env::var_os("RINGLANE_REQUIRE_NETNS").is_none_or(|value| value != "1"), "{missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    let mut inside = Command::new("unshare");
    inside.arg("--net").arg(env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = inside.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    println!("{text}");
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
