//! Two service networks joined by socket pairs, with a host of many connections at one of them.

mod hosts;
mod packets;

use std::future::Future;
use std::time::{Duration, Instant};

use futures::FutureExt;
use ringlane_shared::config::{ServiceSettings, ServiceTarget};
use ringlane_shared::id::{PeerId, PeerIndex};
use ringlane_shared::identity::{service_address, service_id};
use ringlane_shared::limits::{
    SERVICE_CONNECTIONS_PER_PEER_MAX, SERVICE_CONNECTIONS_TO_US_MAX, SERVICE_COPY_BYTES, SERVICE_LARGE_BUFFERS_MAX,
};
use smoltcp::socket::tcp::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use self::hosts::Host;
use super::far::Target;
use super::{AskError, ServiceIntent, ServiceNetwork};

/// Above what any of these tests takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// Node A with a host, and node B, which has services.
struct Mesh {
    a: ServiceNetwork,
    b: ServiceNetwork,
    ids: [PeerId; 2],
    host: Host,
    b_is: Reached,
    /// Streams that B has and does not look at.
    unanswered: Vec<UnixStream>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    Yes,
    Silent,
    No,
}

impl Mesh {
    /// `own` are A's services, `theirs` B's.
    fn new(own: Vec<ServiceSettings>, theirs: Vec<ServiceSettings>) -> Self {
        let ids = [1, 2].map(|seed| {
            ringlane_shared::identity::keypair_from_seed(zeroize::Zeroizing::new([seed; 32])).unwrap().public().into()
        });
        Self {
            a: ServiceNetwork::new(&ids[0], [&ids[1]].into_iter(), own, 1),
            b: ServiceNetwork::new(&ids[1], [&ids[0]].into_iter(), theirs, 2),
            ids,
            host: Host::new(),
            b_is: Reached::Yes,
            unanswered: Vec::new(),
        }
    }

    fn connect(&mut self, node: usize, service: &str, port: u16) -> usize {
        self.host.connect(service_address(&self.ids[node], service), port)
    }

    /// Lets everything run until `is_done`.
    async fn run(&mut self, what: &str, mut is_done: impl FnMut(&mut Host) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Instant::now();
            while let Some(batch) = self.host.packets(now) {
                self.a.handle_packets(batch, now);
            }
            if is_done(&mut self.host) {
                return;
            }
            if now >= deadline {
                let mut states = std::collections::BTreeMap::<String, usize>::new();
                self.host.states().for_each(|state| *states.entry(state.to_string()).or_default() += 1);
                let [a, b] = [self.a.status(&self.ids[0]), self.b.status(&self.ids[1])];
                panic!("gave up waiting until {what}; {states:?}\n{a:?}\n{b:?}");
            }
            self.turn().await;
        }
    }

    /// Lets the networks do what they can do at once, or wait a moment for something to do.
    async fn turn(&mut self) {
        tokio::select! {
            intent = self.a.next() => self.carry_out(intent),
            intent = self.b.next() => panic!("B has no clients: {intent:?}"),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        for _ in 0..100 {
            let Some(intent) = self.a.next().now_or_never() else { return };
            self.carry_out(intent);
        }
    }

    fn carry_out(&mut self, intent: ServiceIntent) {
        match intent {
            ServiceIntent::Deliver(batch) => self.host.deliver(&batch, Instant::now()),
            ServiceIntent::Open { key, .. } if self.b_is == Reached::No => {
                self.a.handle_stream(key, Err(AskError::NotReached));
            }
            ServiceIntent::Open { peer, key } => {
                assert_eq!(peer, PeerIndex(0));
                let (ours, theirs) = UnixStream::pair().unwrap();
                self.a.handle_stream(key, Ok(Box::new(Target::Unix(ours))));
                match self.b_is {
                    Reached::Silent => self.unanswered.push(theirs),
                    _ => self.b.handle_inbound(PeerIndex(0), Box::new(Target::Unix(theirs))),
                }
            }
        }
    }

    /// Lets everything run until A has no connection any more, and checks that it has forgotten all of them.
    async fn run_until_nothing_is_left(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.a.clients.is_empty() {
            assert!(Instant::now() < deadline, "{} connections are left", self.a.clients.len());
            self.run("", |_| true).await;
            self.turn().await;
        }
        self.assert_nothing_is_left();
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!((self.a.clients.len(), self.a.flows.len(), self.a.asking.len()), (0, 0, 0));
        assert_eq!((self.a.clients_of.len(), self.a.large_buffers, self.a.deadlines.len()), (0, 0, 0));
    }
}

fn service(name: &str, target: ServiceTarget) -> ServiceSettings {
    ServiceSettings { name: name.to_owned(), id: service_id(name), target, allow: None, deny: Vec::new() }
}

/// A target that does `serve` with each connection.
async fn target<F: Future<Output = ()> + Send + 'static>(serve: fn(TcpStream) -> F) -> ServiceTarget {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    ServiceTarget::Tcp(address)
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// Reads all there is, and only then says how much it was.
async fn count(mut stream: TcpStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    stream.write_all(all.len().to_string().as_bytes()).await.unwrap();
}

/// Bytes that are nowhere the same.
fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(next).collect()
}

#[tokio::test]
async fn a_connection_carries_every_byte_both_ways_on_any_port_to_tcp_and_unix_targets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let by_tcp = service("example", target(echo).await);
    let own = ServiceSettings { name: "own".to_owned(), id: service_id("own"), ..by_tcp.clone() };
    let mut mesh = Mesh::new(vec![own], vec![by_tcp, service("socket", ServiceTarget::Unix(path))]);
    let bytes = pattern(1 << 20);
    let clients = [
        mesh.connect(1, "example", 80),
        mesh.connect(1, "example", 9999),
        mesh.connect(1, "socket", 1),
        mesh.connect(0, "own", 65535),
    ];
    let (mut sent, mut received) = ([0; 4], [const { Vec::new() }; 4]);
    mesh.run("all bytes are back", |host| {
        for (position, client) in clients.into_iter().enumerate() {
            sent[position] += host.send(client, &bytes[sent[position]..]);
            if sent[position] == bytes.len() {
                host.close(client);
            }
            host.receive(client, &mut received[position]);
        }
        clients.into_iter().all(|client| host.is_over(client))
    })
    .await;
    assert!(received.iter().all(|received| *received == bytes));
    mesh.run_until_nothing_is_left().await;
    let status = mesh.a.status(&mesh.ids[0]);
    assert_eq!((status.accepted_by_peers, status.connections_to_peers), (3, 0));
    assert_eq!((status.offered[0].accepted, status.offered[0].connections), (1, 0));
    assert_eq!(status.offered[0].address, service_address(&mesh.ids[0], "own"));
}

#[tokio::test]
async fn a_client_that_has_said_all_still_hears_the_answer() {
    let mut mesh = Mesh::new(vec![], vec![service("count", target(count).await)]);
    let client = mesh.connect(1, "count", 80);
    let (bytes, mut sent, mut received) = (pattern(300_000), 0, Vec::new());
    mesh.run("the answer is there", |host| {
        sent += host.send(client, &bytes[sent..]);
        if sent == bytes.len() {
            host.close(client);
        }
        host.receive(client, &mut received);
        host.is_over(client)
    })
    .await;
    assert_eq!(received, b"300000");
}

#[tokio::test]
async fn a_target_that_has_said_all_still_hears_the_client() {
    async fn talk_first(mut stream: TcpStream) {
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        let mut report = TcpStream::connect(("127.0.0.1", all[0] as u16 * 256 + all[1] as u16)).await.unwrap();
        report.write_all(&all[2..]).await.unwrap();
    }
    let reports = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = reports.local_addr().unwrap().port();
    let reported = tokio::spawn(async move {
        let mut all = Vec::new();
        reports.accept().await.unwrap().0.read_to_end(&mut all).await.unwrap();
        all
    });
    let mut mesh = Mesh::new(vec![], vec![service("talk", target(talk_first).await)]);
    let client = mesh.connect(1, "talk", 80);
    let bytes = [&port.to_be_bytes()[..], &pattern(100_000)].concat();
    let (mut sent, mut received) = (0, Vec::new());
    mesh.run("the target has all", |host| {
        host.receive(client, &mut received);
        if host.state(client) == State::CloseWait {
            sent += host.send(client, &bytes[sent..]);
        }
        if sent == bytes.len() {
            host.close(client);
        }
        reported.is_finished()
    })
    .await;
    assert_eq!(received, b"hello");
    assert!(reported.await.unwrap() == bytes[2..]);
}

#[tokio::test]
async fn what_is_refused_is_refused_before_the_client_is_connected() {
    // A port that nobody listens on.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut denied = service("denied", target(echo).await);
    denied.deny.push(PeerIndex(0));
    let mut not_allowed = service("not-allowed", denied.target.clone());
    not_allowed.allow = Some(Vec::new());
    let dead = service("dead", ServiceTarget::Tcp(nobody));
    let mut mesh = Mesh::new(vec![dead.clone()], vec![denied, not_allowed, dead]);
    let cases = [(1, "denied"), (1, "not-allowed"), (1, "dead"), (1, "unknown"), (0, "unknown"), (0, "dead")];
    let clients = cases.map(|(node, service)| mesh.connect(node, service, 80));
    mesh.run("all are refused", |host| {
        assert!(clients.into_iter().all(|client| matches!(host.state(client), State::SynSent | State::Closed)));
        clients.into_iter().all(|client| host.state(client) == State::Closed)
    })
    .await;
    mesh.assert_nothing_is_left();
    let [a, b] = [mesh.a.status(&mesh.ids[0]), mesh.b.status(&mesh.ids[1])];
    let refused = |counts: &std::collections::BTreeMap<String, u64>| format!("{counts:?}");
    assert_eq!(refused(&a.refused), r#"{"not_allowed": 2, "unknown_at_peer": 2, "unknown_here": 1}"#);
    assert_eq!(refused(&a.offered[0].refused), r#"{"target_failed": 1}"#);
    assert_eq!(refused(&b.refused_to_peers), r#"{"unknown": 1}"#);
    let theirs: Vec<_> = b.offered.iter().map(|offered| refused(&offered.refused)).collect();
    assert_eq!(theirs, [r#"{"not_allowed": 1}"#, r#"{"not_allowed": 1}"#, r#"{"target_failed": 1}"#]);
}

#[tokio::test]
async fn a_service_of_a_peer_without_connection_is_unreachable() {
    let mut mesh = Mesh::new(vec![], vec![]);
    mesh.b_is = Reached::No;
    mesh.connect(1, "example", 80);
    mesh.run("the host hears it", |host| !host.icmp.is_empty()).await;
    // Type 1, code 3: the address is unreachable. The quoted packet is the one that asked.
    assert_eq!(mesh.host.icmp[0][40..42], [1, 3]);
    assert_eq!(mesh.host.icmp[0][40 + 8 + 6], 6);
    mesh.assert_nothing_is_left();
}

#[tokio::test]
async fn a_client_that_goes_before_anybody_has_answered_is_forgotten() {
    let mut mesh = Mesh::new(vec![], vec![]);
    mesh.b_is = Reached::Silent;
    let client = mesh.connect(1, "example", 80);
    mesh.run("B is asked", |_| true).await;
    while mesh.unanswered.is_empty() {
        mesh.turn().await;
    }
    mesh.host.abort(client);
    mesh.run("the host has said so", |_| true).await;
    // Its place among those that wait is taken until B has answered.
    assert_eq!((mesh.a.clients.len(), mesh.a.asking.len()), (0, 1));
    mesh.unanswered.clear();
    while !mesh.a.asking.is_empty() {
        mesh.turn().await;
    }
    mesh.assert_nothing_is_left();
    assert!(mesh.a.status(&mesh.ids[0]).refused.is_empty());
}

#[tokio::test]
async fn a_reset_of_either_side_reaches_the_other() {
    async fn reset(stream: TcpStream) {
        let mut byte = [0];
        let _ = stream.readable().await;
        let _ = stream.try_read(&mut byte);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    async fn wait_for_reset(mut stream: TcpStream) {
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        SEEN.notify_one();
    }
    static SEEN: tokio::sync::Notify = tokio::sync::Notify::const_new();
    let own = vec![service("resets", target(reset).await), service("is-reset", target(wait_for_reset).await)];
    let mut mesh = Mesh::new(own, vec![]);
    let [first, second] = ["resets", "is-reset"].map(|name| mesh.connect(0, name, 80));
    mesh.run("the client is reset", |host| {
        if host.state(second) == State::Established {
            host.abort(second);
        }
        host.send(first, b"x");
        host.state(first) == State::Closed && host.state(second) == State::Closed
    })
    .await;
    let mut seen = std::pin::pin!(SEEN.notified());
    let mut is_seen = false;
    mesh.run("the target is reset", |_| {
        is_seen |= (&mut seen).now_or_never().is_some();
        is_seen
    })
    .await;
    mesh.assert_nothing_is_left();
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_back_the_target() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    async fn write_much(mut stream: TcpStream) {
        socket2::SockRef::from(&stream).set_send_buffer_size(SERVICE_COPY_BYTES).unwrap();
        for chunk in pattern(4 << 20).chunks(SERVICE_COPY_BYTES) {
            stream.write_all(chunk).await.unwrap();
            WRITTEN.fetch_add(chunk.len(), Ordering::Relaxed);
        }
    }
    let mut mesh = Mesh::new(vec![], vec![service("much", target(write_much).await)]);
    let client = mesh.connect(1, "much", 80);
    // Written does not change for a while: everything on the way is full.
    let (mut last, mut since) = (0, Instant::now());
    mesh.run("the target is held back", |_| {
        let written = WRITTEN.load(Ordering::Relaxed);
        if written != last {
            (last, since) = (written, Instant::now());
        }
        written > 0 && since.elapsed() > Duration::from_millis(500)
    })
    .await;
    assert!(last < 4 << 20, "{last} bytes are on their way to a client that reads nothing");
    let mut received = Vec::new();
    mesh.run("all is read", |host| {
        host.receive(client, &mut received);
        received.len() == 4 << 20
    })
    .await;
    assert!(received == pattern(4 << 20));
}

#[tokio::test]
async fn as_many_connections_as_there_may_be_work_at_once_and_no_more() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let settings = service("example", target(echo).await);
    let mut mesh = Mesh::new(vec![settings.clone()], vec![settings]);
    let wanted = [
        vec![service_address(&mesh.ids[0], "example"); SERVICE_CONNECTIONS_TO_US_MAX + 1],
        vec![service_address(&mesh.ids[1], "example"); SERVICE_CONNECTIONS_PER_PEER_MAX + 1],
    ];
    let wanted = wanted.concat();
    let (mut sent, mut received) = (vec![0; wanted.len()], vec![Vec::new(); wanted.len()]);
    let bytes = pattern(3000);
    mesh.run("all but two have their echo", |host| {
        let under_way = host.states().filter(|state| *state == State::SynSent).count();
        for _ in under_way..100 {
            if let Some(to) = wanted.get(host.connections()) {
                host.connect(*to, 80);
            }
        }
        let unanswered = (0..host.connections()).filter(|client| received[*client] != bytes).collect::<Vec<_>>();
        for client in unanswered {
            sent[client] += host.send(client, &bytes[sent[client]..]);
            host.receive(client, &mut received[client]);
        }
        received.iter().filter(|received| **received == bytes).count() == wanted.len() - 2
    })
    .await;
    let refused = mesh.a.status(&mesh.ids[0]).refused;
    assert_eq!(refused.get("too_many"), Some(&2), "{refused:?}");
    assert_eq!(mesh.a.clients.len(), wanted.len() - 2);
    assert_eq!(mesh.a.large_buffers, SERVICE_LARGE_BUFFERS_MAX);
    assert_eq!(mesh.host.states().filter(|state| *state == State::Closed).count(), 2);
    for client in 0..wanted.len() {
        mesh.host.abort(client);
    }
    mesh.run_until_nothing_is_left().await;
}
