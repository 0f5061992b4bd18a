//! One engine as the server, and clients whose every datagram the test sends itself.

use std::sync::Arc;

use ringlane_shared::lane::connection::LaneConnection;
use ringlane_shared::limits::LANE_HANDSHAKES_MAX;
use ringlane_shared::wire::offer::LinkSecrets;

use super::quic::QuicConfig;
use super::tls::{LaneTls, PublicKeyInfo};
use super::*;

/// A client whose datagrams the test sends by hand, dialling lane 0 of `server`.
struct HandClient {
    connection: LaneConnection,
    socket: UdpSocket,
    server: SocketAddr,
    token: [u8; 20],
}

impl HandClient {
    /// Starts the server's side, too: it expects `keypair` from here on.
    fn dial(net: u8, server: &mut Node) -> Self {
        // Never listens: its engine only lends its key and offer.
        let client = Node::new(net, 1, 1);
        let [for_client, for_server] = requests(&client, server, 1);
        let lane = LaneIndex::new(0).unwrap();
        let token = LinkSecrets::derive(&for_client.ours, &for_client.theirs).lane_token(lane);
        let now = Instant::now().into_std();
        server.engine.start(for_server, now);
        let tls = LaneTls::new(&client.keypair).unwrap();
        let crypto = tls.client(PublicKeyInfo::of_peer(&server.peer_id()).unwrap()).unwrap();
        let quic = QuicConfig::new(MTU);
        let config = quic.client(Arc::new(crypto), token);
        let connection = LaneConnection::connect(quic.endpoint(), config, server.address(0), now).unwrap();
        let socket = UdpSocket::bind(client.address(0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { connection, socket, server: server.address(0), token }
    }

    fn due(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams = vec![];
        self.connection.drive(Instant::now().into_std(), |datagram| datagrams.push(datagram.to_vec()));
        datagrams
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.server).unwrap();
    }

    /// Answers the server until its engine tells an outcome.
    async fn finish(&mut self, server: &mut Node) -> LaneOutcome {
        let all = async {
            loop {
                tokio::select! {
                    outcome = server.engine.next() => return outcome,
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
                let mut buffer = [0; 2048];
                while let Ok(length) = self.socket.recv(&mut buffer) {
                    if DatagramKind::of(&buffer[..length]) == DatagramKind::Quic {
                        self.connection.handle_datagram(Instant::now().into_std(), &buffer[..length]);
                    }
                }
                for datagram in self.due() {
                    self.send(&datagram);
                }
            }
        };
        timeout(Duration::from_secs(30), all).await.expect("an outcome comes in time")
    }
}

/// Lets the engine read what has been sent to it.
async fn settle(node: &mut Node) {
    let outcome = timeout(Duration::from_millis(5), node.engine.next()).await;
    assert!(outcome.is_err(), "{outcome:?}");
}

#[tokio::test]
async fn a_client_hello_in_two_datagrams_is_accepted_in_either_order_and_without_its_first_part() {
    for (net, order) in [(13, &[0, 1][..]), (14, &[1, 0]), (15, &[1])] {
        let mut server = Node::listening(net, 2, 1);
        let mut client = HandClient::dial(net, &mut server);
        let hello = client.due();
        assert_eq!(hello.len(), 2);
        for &part in order {
            client.send(&hello[part]);
        }
        let outcome = client.finish(&mut server).await;
        assert_eq!(established(outcome).1.remote, client.socket.local_addr().unwrap(), "{order:?}");
    }
}

#[tokio::test]
async fn an_initial_that_a_worker_hands_back_is_as_good_as_one_from_the_listener() {
    let mut server = Node::listening(16, 2, 1);
    let mut client = HandClient::dial(16, &mut server);
    for datagram in client.due() {
        let from = client.socket.local_addr().unwrap();
        let stray = Stray { local: server.address(0), from, datagram: datagram.into() };
        server.engine.handle_stray(stray, Instant::now().into_std());
    }
    established(client.finish(&mut server).await);
}

#[tokio::test]
async fn junk_under_the_right_token_does_not_spend_it() {
    let mut server = Node::listening(17, 2, 1);
    let mut client = HandClient::dial(17, &mut server);
    let hello = client.due();
    assert_eq!(&hello[0][6..26], &client.token);
    let from = client.socket.local_addr().unwrap();
    let mut junk: Vec<_> = (0..hello[0].len()).map(|length| (from, hello[0][..length].to_vec())).collect();
    for position in 0..hello[0].len() {
        let mut flipped = hello[0].clone();
        flipped[position] ^= 1 << (position % 8);
        junk.push((from, flipped));
    }
    hand_in(&mut server, &junk);
    assert_eq!(server.engine.pending(), 1);
    assert!(server.engine.drops().get(ListenerDrop::BadInitial) > 2000, "{:?}", server.engine.drops());
    hello.iter().for_each(|datagram| client.send(datagram));
    established(client.finish(&mut server).await);
}

#[tokio::test]
async fn an_unknown_token_gets_no_answer() {
    let mut server = Node::listening(18, 2, 1);
    let mut client = HandClient::dial(18, &mut server);
    for mut datagram in client.due() {
        // Another token, another version, and a server's long header that no handshake waits for.
        for (position, value) in [(6, datagram[6] ^ 1), (4, 2), (5, 8)] {
            let before = std::mem::replace(&mut datagram[position], value);
            client.send(&datagram);
            datagram[position] = before;
        }
    }
    settle(&mut server).await;
    assert_eq!(server.engine.drops().get(ListenerDrop::UnknownToken), 6);
    // The server probes an address it was told of; nothing else may come.
    let mut buffer = [0; 2048];
    while let Ok(length) = client.socket.recv(&mut buffer) {
        assert_eq!(DatagramKind::of(&buffer[..length]), DatagramKind::Probe);
    }
}

/// `peers` peers with 64 lanes each start dialling `server`; returns each lane's Initial.
fn dial_all_lanes(server: &mut Node, net: u8, peers: u8) -> Vec<(SocketAddr, Vec<u8>)> {
    let quic = QuicConfig::new(MTU);
    let server_key = PublicKeyInfo::of_peer(&server.peer_id()).unwrap();
    let now = Instant::now().into_std();
    let mut initials = vec![];
    for peer in 0..peers {
        let client = Node::new(net, 100 + peer, 64);
        let [for_client, mut for_server] = requests(&client, server, 1);
        for_server.peer = PeerIndex(u16::from(peer));
        server.engine.start(for_server, now);
        let secrets = LinkSecrets::derive(&for_client.ours, &for_client.theirs);
        let crypto = Arc::new(LaneTls::new(&client.keypair).unwrap().client(server_key).unwrap());
        for lane in for_client.lanes.iter() {
            let config = quic.client(Arc::clone(&crypto), secrets.lane_token(lane));
            let mut dial = LaneConnection::connect(quic.endpoint(), config, server.address(0), now).unwrap();
            let mut sent = vec![];
            dial.drive(now, |datagram| sent.push(datagram.to_vec()));
            initials.push((client.address(lane.get()), sent.swap_remove(0)));
        }
    }
    initials
}

#[tokio::test]
async fn handshakes_beyond_the_bound_wait_for_their_clients_to_repeat() {
    let mut server = Node::listening(22, 2, 1);
    let initials = dial_all_lanes(&mut server, 22, 5);
    let beyond = initials.len() - LANE_HANDSHAKES_MAX;
    assert_eq!(hand_in(&mut server, &initials), beyond as u64);
    server.engine.cancel(PeerIndex(0));
    // 64 lanes have made room, and there is a repeated Initial for each.
    assert_eq!(hand_in(&mut server, &initials[LANE_HANDSHAKES_MAX..]), beyond as u64);
}

/// Hands datagrams in as a worker would. Returns how many were turned away as too many so far.
fn hand_in(server: &mut Node, datagrams: &[(SocketAddr, Vec<u8>)]) -> u64 {
    for (from, datagram) in datagrams {
        let stray = Stray { local: server.address(0), from: *from, datagram: datagram.as_slice().into() };
        server.engine.handle_stray(stray, Instant::now().into_std());
    }
    server.engine.drops().get(ListenerDrop::Busy)
}

#[tokio::test]
async fn records_that_overtake_the_handshake_are_kept_and_late_ones_are_counted() {
    let mut server = Node::listening(19, 2, 1);
    let mut client = HandClient::dial(19, &mut server);
    let elsewhere = UdpSocket::bind((Ipv4Addr::new(127, 77, 19, 9), 0)).unwrap();
    let record = vec![0x30; 64];
    client.send(&record);
    settle(&mut server).await;
    assert_eq!(server.engine.drops().get(ListenerDrop::UnknownRecord), 1);
    let hello = client.due();
    hello.iter().for_each(|datagram| client.send(datagram));
    settle(&mut server).await;
    client.send(&record);
    elsewhere.send_to(&hello[0], client.server).unwrap();
    settle(&mut server).await;
    assert_eq!(server.engine.drops().get(ListenerDrop::OtherPath), 1);
    let (_, lane) = established(client.finish(&mut server).await);
    assert_eq!(lane.early, std::slice::from_ref(&record));
    drop(lane);
    client.send(&record);
    client.send(&[0x41; 64]);
    settle(&mut server).await;
    assert_eq!(server.engine.drops().get(ListenerDrop::Late), 2);
}
