//! Flows between hosts whose every byte and order is checked.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{SockAddr, Socket, Type};

use crate::lab::{Lab, Namespace, PATIENCE, Site};

/// The pseudo-random bytes of one seed: both ends of a stream make them, so the receiver compares all of them instead
/// of a hash, and a difference has a position.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    state: u64,
}

impl Content {
    pub(crate) fn of(seed: u64) -> Self {
        Self { state: seed }
    }

    /// SplitMix64.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// The next bytes; whole words are drawn, so equal sequences of lengths give equal bytes.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

const CHUNK_BYTES: usize = 64 * 1024;

/// Opens `streams` TCP connections from one host to the other and moves `bytes` both ways on each at once, comparing
/// every byte.
pub(crate) fn tcp_both_ways(client: &Namespace, server: &Namespace, address: IpAddr, streams: u64, bytes: usize) {
    thread::scope(|scope| {
        for stream in 0..streams {
            let [near, far] = connected(client, server, address, |_| ());
            for (from, to, seed) in [(&near, &far, 2 * stream), (&far, &near, 2 * stream + 1)] {
                let (from, to) = (from.try_clone().expect("clones"), to.try_clone().expect("clones"));
                scope.spawn(move || send_content(from, seed, bytes));
                scope.spawn(move || expect_content(to, seed, bytes));
            }
        }
    });
}

/// Opens a TCP connection from one host to the other: the client's end and the server's. `prepare` sees the sockets of
/// both before.
pub(crate) fn connected(
    client: &Namespace,
    server: &Namespace,
    address: IpAddr,
    prepare: impl Fn(&Socket) + Sync,
) -> [TcpStream; 2] {
    let local = SockAddr::from(SocketAddr::new(address, 0));
    let socket = || {
        let socket = Socket::new(local.domain(), Type::STREAM, None).expect("a socket can be made");
        prepare(&socket);
        socket
    };
    let listener = server.enter(socket);
    listener.bind(&local).expect("the server's address is its own");
    listener.listen(1).expect("a bound socket can listen");
    let target = listener.local_addr().expect("a bound socket has an address");
    let near = client.enter(socket);
    near.connect_timeout(&target, PATIENCE).expect("a connection opens");
    let (far, _) = listener.accept().expect("a connected stream can be accepted");
    [near, far].map(|socket| {
        socket.set_nonblocking(false).expect("a socket can block");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        socket.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        socket.into()
    })
}

pub(crate) fn send_content(mut stream: TcpStream, seed: u64, bytes: usize) {
    let mut content = Content::of(seed);
    let mut chunk = vec![0; CHUNK_BYTES];
    for position in (0..bytes).step_by(CHUNK_BYTES) {
        let chunk = &mut chunk[..CHUNK_BYTES.min(bytes - position)];
        content.fill(chunk);
        stream.write_all(chunk).unwrap_or_else(|error| panic!("stream {seed}, sending at {position}: {error}"));
    }
    stream.shutdown(std::net::Shutdown::Write).expect("an open stream can be shut");
}

pub(crate) fn expect_content(mut stream: TcpStream, seed: u64, bytes: usize) {
    let mut content = Content::of(seed);
    let (mut chunk, mut expected) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    for position in (0..bytes).step_by(CHUNK_BYTES) {
        let length = CHUNK_BYTES.min(bytes - position);
        let (chunk, expected) = (&mut chunk[..length], &mut expected[..length]);
        stream.read_exact(chunk).unwrap_or_else(|error| panic!("stream {seed}, receiving at {position}: {error}"));
        content.fill(expected);
        assert!(chunk == expected, "stream {seed} differs within {length} bytes after byte {position}");
    }
    assert_eq!(stream.read(&mut chunk).expect("the end can be read"), 0, "stream {seed} goes on after its end");
}

/// Datagrams that all flows of a test together have under way at most: their buffers (2304 bytes each) fit a socket's
/// default of 208 KiB, so that nothing but a fault can lose one.
const UNDER_WAY_MAX: u32 = 64;

/// Has every hop learn its neighbour's hardware address: until then the kernel keeps few packets and drops the oldest.
pub(crate) fn introduce(client: &Namespace, address: IpAddr) {
    client.run(&format!("ping -n -c 1 -W 5 {address}"));
}

/// Runs `flows` UDP flows at once, each from a port of its own: bursts of numbered datagrams that are echoed. Both
/// ends assert that each flow's numbers arrive in order and none is missing.
pub(crate) fn udp_flows(client: &Namespace, server: &Namespace, address: IpAddr, flows: u32, bursts: u32) {
    introduce(client, address);
    let echo = Echo::bind(server, address);
    let burst = (UNDER_WAY_MAX / flows).max(1);
    thread::scope(|scope| {
        scope.spawn(|| echo.serve());
        let flows: Vec<_> = (0..flows)
            .map(|flow| {
                let mut flow = echo.flow(client, flow);
                scope.spawn(move || (0..bursts).for_each(|_| flow.exchange(burst)))
            })
            .collect();
        // The echo serves until it is told to stop, also when a flow has failed: else this scope would never end.
        let failed = flows.into_iter().filter_map(|flow| flow.join().err()).next();
        echo.stop();
        if let Some(panic) = failed {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Calls again what a signal has interrupted, as the standard library does for streams only.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Sends `flows` UDP flows one way, each from a port of its own, in bursts of numbered datagrams, and asserts that each
/// flow's numbers arrive in order and none is missing. Nothing returns through the tunnel, so nothing but the flow itself
/// can decide which worker sends it.
pub(crate) fn udp_one_way(client: &Namespace, server: &Namespace, address: IpAddr, flows: u32, bursts: u32) {
    introduce(client, address);
    let receiver = receiver(server, address);
    receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let target = receiver.local_addr().expect("a bound socket has an address");
    let senders: Vec<_> = client.enter(|| (0..flows).map(|_| sender(target)).collect());
    let burst = (UNDER_WAY_MAX / flows).max(1);
    let mut expected = vec![0; senders.len()];
    let mut datagram = [0; 2048];
    for first in (0..bursts).map(|round| round * burst) {
        for number in first..first + burst {
            for (flow, sender) in (0..).zip(&senders) {
                sender.send(numbered(&mut datagram, flow, number)).expect("a datagram can be sent");
            }
        }
        for received in 0..burst * flows {
            let length = uninterrupted(|| receiver.recv(&mut datagram)).unwrap_or_else(|error| {
                panic!("{received} of {} datagrams from number {first} on arrived: {error}", burst * flows)
            });
            let (flow, number) = parse(&datagram[..length]);
            assert_eq!(number, expected[flow as usize], "flow {flow}");
            expected[flow as usize] += 1;
        }
    }
}

/// A UDP server that sends every datagram back and checks the order of each flow.
#[derive(Debug)]
pub(crate) struct Echo {
    socket: UdpSocket,
    stopped: AtomicBool,
}

impl Echo {
    pub(crate) fn bind(server: &Namespace, address: IpAddr) -> Self {
        Self { socket: receiver(server, address), stopped: AtomicBool::new(false) }
    }

    /// Serves until [`Echo::stop`].
    pub(crate) fn serve(&self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        let mut expected = std::collections::BTreeMap::<u32, u32>::new();
        let mut datagram = [0; 2048];
        while !self.stopped.load(Ordering::Relaxed) {
            let (length, from) = match uninterrupted(|| self.socket.recv_from(&mut datagram)) {
                Ok(received) => received,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => panic!("the echo server: {error}"),
            };
            let (flow, number) = parse(&datagram[..length]);
            let next = expected.entry(flow).or_default();
            assert_eq!(number, *next, "flow {flow} on its way there");
            *next += 1;
            self.socket.send_to(&datagram[..length], from).expect("an echo can be sent");
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// A flow to this server; each needs a number of its own.
    pub(crate) fn flow(&self, client: &Namespace, flow: u32) -> Flow {
        let target = self.socket.local_addr().expect("a bound socket has an address");
        let socket = client.enter(|| sender(target));
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Flow { socket, flow, next: 0 }
    }
}

/// One UDP flow to an [`Echo`].
#[derive(Debug)]
pub(crate) struct Flow {
    socket: UdpSocket,
    flow: u32,
    next: u32,
}

impl Flow {
    /// Sends `count` numbered datagrams of growing size and expects all of them back in order.
    pub(crate) fn exchange(&mut self, count: u32) {
        let mut datagram = [0; 2048];
        for number in self.next..self.next + count {
            self.socket.send(numbered(&mut datagram, self.flow, number)).expect("a datagram can be sent");
        }
        for number in self.next..self.next + count {
            let length = uninterrupted(|| self.socket.recv(&mut datagram))
                .unwrap_or_else(|error| panic!("flow {}: datagram {number} or its echo is lost: {error}", self.flow));
            assert_eq!(parse(&datagram[..length]), (self.flow, number), "on its way back");
        }
        self.next += count;
    }
}

/// A datagram that says its flow and number, of a length up to what an inner MTU of 1420 carries over IPv6.
fn numbered(datagram: &mut [u8; 2048], flow: u32, number: u32) -> &[u8] {
    datagram[..4].copy_from_slice(&flow.to_be_bytes());
    datagram[4..8].copy_from_slice(&number.to_be_bytes());
    &datagram[..8 + number as usize * 37 % 1365]
}

fn parse(datagram: &[u8]) -> (u32, u32) {
    let word = |at: usize| datagram[at..at + 4].try_into().map(u32::from_be_bytes).expect("four bytes");
    assert!(datagram.len() >= 8, "a datagram of {} bytes is none of ours", datagram.len());
    (word(0), word(4))
}

/// A UDP socket on a port of its own at `address`.
pub(crate) fn receiver(at: &Namespace, address: IpAddr) -> UdpSocket {
    at.enter(|| UdpSocket::bind((address, 0)).expect("the receiver's address is its own"))
}

/// A UDP socket connected to `target`, in the namespace of the calling thread.
pub(crate) fn sender(target: SocketAddr) -> UdpSocket {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a free port exists");
    socket.connect(target).expect("the target is reachable");
    socket
}

/// How long until a datagram from one host is echoed by the other, sending one every 20 ms.
pub(crate) fn time_to_first_echo(client: &Namespace, server: &Namespace, address: IpAddr) -> Duration {
    let started = std::time::Instant::now();
    let far = receiver(server, address);
    let near = client.enter(|| sender(far.local_addr().expect("a bound socket has an address")));
    far.set_nonblocking(true).expect("a socket can be made non-blocking");
    near.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout can be set");
    let mut datagram = [0; 64];
    crate::lab::wait_for("an echo from host to host", || {
        // An unreachable network is what this waits to end.
        let _ = near.send(b"are you there?");
        while let Ok((length, from)) = uninterrupted(|| far.recv_from(&mut datagram)) {
            let _ = far.send_to(&datagram[..length], from);
        }
        uninterrupted(|| near.recv(&mut datagram)).ok()
    });
    started.elapsed()
}

#[test]
fn the_traffic_checks_agree_with_a_network_that_is_known_to_work() {
    let Some(lab) = Lab::up_routed() else { return };
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for address in Site::B.host() {
        tcp_both_ways(&a, &b, address, 3, 300_001);
        udp_flows(&a, &b, address, 4, 3);
        udp_one_way(&a, &b, address, 4, 3);
    }
    assert!(time_to_first_echo(&a, &b, Site::B.host_v4().into()) < PATIENCE);
}

#[test]
#[should_panic(expected = "differs within")]
fn a_stream_with_other_content_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    send_content(near, 1, 1000);
    expect_content(far, 2, 1000);
}
