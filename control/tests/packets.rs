//! Packets between real nodes over loopback: everything of the carrier `stream` but the workers, whose queues the tests
//! hold. What accepts only Hyprspace's protocols is taken for a Hyprspace node.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use ringlane_control::packets::{self, PacketProtocol, Packets, PacketsEvent, StreamInfo};
use ringlane_control::swarm::{Node, NodeConfig, NodeEvent, PeerKind, Quality, TransportName, Way};
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::BATCH_QUEUE_MESSAGES;
use ringlane_shared::plane::queue::plane_queue_of;
use ringlane_shared::plane::{BatchEnd, BatchItemForm, PacketBatch, PlaneReceiver};
use ringlane_shared::wire::packets::Framing;

/// Everything here takes far less; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nothing is under way any more that has not come for so long.
const QUIET: Duration = Duration::from_secs(4);
/// How often packets are sent anew because connections died meanwhile.
const TRIES: usize = 20;
/// After how many connections that were given up for others it is enough.
const REPLACED: usize = 3;
const PEER: PeerIndex = PeerIndex(0);
const WHOLE: BatchItemForm = BatchItemForm::Packet { is_partial: false };

type Items = Vec<(BatchItemForm, Vec<u8>)>;

/// A node with one peer, wired up as the control loop does it.
struct Site {
    node: Node,
    packets: Packets,
    worker: PlaneReceiver<PacketBatch>,
    peer: PeerId,
    got: Items,
    /// How often a connection has gone that was not given up for another, or has been doubted.
    changes: usize,
    /// The connections that are given up, and how many of them are gone.
    retired: HashSet<ConnectionId>,
    replaced: usize,
}

impl Site {
    async fn step(&mut self) {
        let event = tokio::select! {
            event = self.node.next() => event,
            event = self.packets.next() => {
                let protocols = match event {
                    PacketsEvent::OpenStream { protocols, .. } => protocols,
                    PacketsEvent::Doubt { connection, .. } => {
                        self.node.doubt_connection(&self.peer, connection);
                        return;
                    }
                    PacketsEvent::Retired { connection, .. } => {
                        self.retired.insert(connection);
                        self.node.retire_connection(&self.peer, connection);
                        return;
                    }
                    PacketsEvent::Drained { connection, .. } => {
                        self.node.close_drained(&self.peer, connection);
                        return;
                    }
                };
                match self.node.packet_way(&self.peer) {
                    Some(way) if self.packets.wants(PEER, way) => {
                        let protocols = protocols.iter().map(|protocol| protocol.stream_protocol()).collect();
                        let id = self.node.open_stream(way.connection, protocols);
                        self.packets.handle_opening(PEER, id, way);
                    }
                    Some(_) => {}
                    None => self.packets.handle_no_way(PEER, Instant::now()),
                }
                return;
            }
            // The worker has no waker.
            () = tokio::time::sleep(Duration::from_millis(1)) => {
                for batch in std::iter::from_fn(|| self.worker.try_recv()) {
                    assert_eq!(batch.end(), BatchEnd::Peer(PEER));
                    self.got.extend(batch.items().map(|item| (item.form, item.packet.to_vec())));
                }
                return;
            }
        };
        let now = Instant::now();
        match event {
            NodeEvent::ConnectionClosed { connection, .. } if self.retired.remove(&connection) => self.replaced += 1,
            NodeEvent::PeerDisconnected { .. }
            | NodeEvent::ConnectionClosed { .. }
            | NodeEvent::ConnectionSuspect { .. } => self.changes += 1,
            _ => {}
        }
        match event {
            NodeEvent::ConnectionRetired { connection, .. } => {
                self.retired.insert(connection);
                self.packets.handle_connection_retired(PEER, connection, now);
            }
            NodeEvent::ConnectionClosed { connection, .. } => {
                self.packets.handle_connection_closed(PEER, connection, now);
            }
            NodeEvent::ConnectionSuspect { connection, .. } => {
                self.packets.handle_connection_suspect(PEER, connection, now);
            }
            NodeEvent::ConnectionHeard { connection, .. } => {
                self.packets.handle_connection_heard(PEER, connection, now);
            }
            NodeEvent::PeerConnected { .. } => self.packets.handle_connected(PEER, now),
            NodeEvent::PeerDisconnected { .. } => self.packets.handle_disconnected(PEER),
            NodeEvent::Identified { kind, .. } => self.packets.handle_identified(PEER, kind),
            NodeEvent::StreamInbound { peer, connection, protocol, stream } => {
                let is_hyprspace = PacketProtocol::of(&protocol).unwrap().framing() == Framing::Hyprspace;
                if let Some(quality) = self.node.quality(&peer, connection, is_hyprspace) {
                    self.packets.handle_inbound(PEER, Way { connection, quality }, &protocol, stream);
                }
            }
            NodeEvent::StreamOpened { id, result } => {
                self.packets.handle_opened(id, result.map(|(protocol, stream)| (protocol, stream as _)));
            }
            _ => {}
        }
    }

    fn send(&mut self, items: &Items) {
        let mut batch = PacketBatch::new(BatchEnd::Peer(PEER), Vec::new());
        for (form, packet) in items {
            if !batch.push(*form, packet) {
                let full = std::mem::replace(&mut batch, PacketBatch::new(BatchEnd::Peer(PEER), Vec::new()));
                self.packets.send(PEER, full);
                assert!(batch.push(*form, packet));
            }
        }
        self.packets.send(PEER, batch);
    }

    fn dropped(&self) -> u64 {
        self.packets.drops(PEER).map(|(_, count)| count).sum()
    }

    fn sending(&self) -> Option<StreamInfo> {
        self.packets.streams(PEER).into_iter().find(|stream| stream.is_sending)
    }

    fn transports(&self) -> Vec<TransportName> {
        self.node.connections(&self.peer).filter_map(|connection| connection.transport).collect()
    }
}

async fn run_until(sites: &mut [Site; 2], mut done: impl FnMut(&mut [Site; 2]) -> bool) {
    let run = async {
        while !done(sites) {
            let [a, b] = sites.each_mut();
            tokio::select! {
                () = a.step() => {}
                () = b.step() => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it should have happened by now");
}

/// Two nodes that listen on QUIC and TCP and accept these protocols; the first dials the other by `dialled`.
fn pair(accepted: [&[PacketProtocol]; 2], dialled: TransportName) -> [Site; 2] {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let keypairs = [(); 2].map(|()| Keypair::generate_ed25519());
    let ids = keypairs.each_ref().map(|keypair| keypair.public().to_peer_id());
    // 127.2.0.0 and up, apart from the other tests; every process has addresses of its own.
    let ips = [(); 2].map(|()| {
        Ipv4Addr::from(0x7f02_0000 + (std::process::id() % 0xfc00) * 0x100 + NEXT.fetch_add(1, Ordering::Relaxed))
    });
    let addresses = ips.map(|ip| {
        [format!("/ip4/{ip}/udp/8001/quic-v1"), format!("/ip4/{ip}/tcp/8001")]
            .map(|address| address.parse::<Multiaddr>().unwrap())
    });
    let position = usize::from(dialled == TransportName::Tcp);
    [0, 1].map(|us| {
        let them = 1 - us;
        let known = if us == 0 { vec![addresses[them][position].clone()] } else { Vec::new() };
        let mut all = packets::accepted();
        all.retain(|one| accepted[us].iter().any(|protocol| protocol.name() == one.name.as_ref()));
        let mut node = Node::new(NodeConfig {
            allow_loopback: true,
            seed: us as u64,
            accepted: all,
            ..NodeConfig::new(keypairs[us].clone(), vec![(ids[them], known)])
        })
        .unwrap();
        assert!(node.set_listen_addresses(&addresses[us]).is_empty());
        let (sender, worker) = plane_queue_of(BATCH_QUEUE_MESSAGES, || ());
        Site {
            node,
            packets: Packets::new(1, vec![sender]),
            worker,
            peer: ids[them],
            got: Vec::new(),
            changes: 0,
            retired: HashSet::new(),
            replaced: 0,
        }
    })
}

fn whole(numbers: std::ops::Range<u32>) -> Items {
    let packet = |number: u32| {
        let bytes = 24 + number as usize * 7 % 1397;
        let mut packet = vec![0x45; bytes];
        packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
        packet[20..24].copy_from_slice(&number.to_be_bytes());
        (WHOLE, packet)
    };
    numbers.map(packet).collect()
}

/// Whether the one is the other, or it without some.
fn is_part_in_order(got: &Items, sent: &Items) -> bool {
    let mut sent = sent.iter();
    got.iter().all(|item| sent.any(|other| other == item))
}

/// Sends both ways, as much as a queue holds at most, and waits until all has come, in order.
///
/// On a slow machine second dials come through, and their connections are closed as too many while packets are under way:
/// nothing is lost with them. Only a connection that dies takes along what is under way on it; even then Ringlane nodes keep
/// the order.
async fn both_ways(sites: &mut [Site; 2], there: Items, back: Items) {
    let changes = |sites: &[Site; 2]| sites.iter().map(|site| site.changes).sum::<usize>();
    for _ in 0..TRIES {
        run_until(sites, |sites| sites.iter().all(|site| site.packets.kind(PEER).is_some())).await;
        let (before, dropped) = (changes(sites), sites.each_ref().map(Site::dropped));
        sites[0].send(&there);
        sites[1].send(&back);
        let mut heard = ([0; 2], Instant::now());
        run_until(sites, |sites| {
            let got = [sites[0].got.len(), sites[1].got.len()];
            if got != heard.0 {
                heard = (got, Instant::now());
            }
            let is_all = got[0] >= back.len() && got[1] >= there.len();
            is_all || changes(sites) != before && heard.1.elapsed() > QUIET
        })
        .await;
        let is_undisturbed = changes(sites) == before;
        let has_all = sites[1].got == there && sites[0].got == back;
        assert!(has_all || !is_undisturbed, "all of it, in order");
        for (site, sent) in sites.iter().zip([&back, &there]) {
            let is_marked = site.packets.kind(PEER) == Some(PeerKind::Ringlane)
                && site.packets.streams(PEER).iter().all(|stream| stream.protocol == PacketProtocol::Ringlane);
            assert!(!is_marked || is_part_in_order(&site.got, sent), "in order");
        }
        assert!(!is_undisturbed || sites.each_ref().map(Site::dropped) == dropped);
        sites.iter_mut().for_each(|site| site.got.clear());
        if has_all {
            return;
        }
    }
    panic!("no time in which no connection died");
}

#[tokio::test]
async fn ringlane_nodes_exchange_super_segments_and_partial_checksums_over_both_transports() {
    for transport in [TransportName::Quic, TransportName::Tcp] {
        let mut sites = pair([&PacketProtocol::ALL; 2], transport);
        let mut there = whole(0..500);
        for number in 0..8 {
            there.push((BatchItemForm::SuperSegment { segment_bytes: 1380 }, vec![number; 65_535]));
            there.push((BatchItemForm::Packet { is_partial: true }, vec![number; 1400]));
        }
        both_ways(&mut sites, there, whole(1000..2000)).await;
        for site in &sites {
            let sending = site.sending().unwrap();
            assert_eq!((sending.protocol, sending.quality), (PacketProtocol::Ringlane, Quality::Direct));
            assert_eq!(site.packets.kind(PEER), Some(PeerKind::Ringlane));
            let mut transports = site.transports();
            // A second dial may have come through as well.
            transports.dedup();
            assert_eq!(transports, [transport], "no other connection is wanted");
        }
    }
}

#[tokio::test]
async fn packets_to_a_hyprspace_node_that_quic_connected_take_a_tcp_connection_of_their_own() {
    const HYPRSPACE: &[PacketProtocol] = &[PacketProtocol::HyprspaceV0, PacketProtocol::HyprspaceV1];
    let mut sites = pair([&PacketProtocol::ALL, HYPRSPACE], TransportName::Quic);
    both_ways(&mut sites, whole(0..1000), whole(5000..5200)).await;
    let sending = sites[0].sending().unwrap();
    assert_eq!((sending.protocol, sending.quality), (PacketProtocol::HyprspaceV1, Quality::Direct));
    let mut transports = sites[0].transports();
    transports.sort_by_key(|transport| transport.name());
    // A second dial may have come through as well.
    transports.dedup();
    assert_eq!(transports, [TransportName::Quic, TransportName::Tcp]);
    assert_eq!(sites[0].packets.problem(PEER), None);
}

/// New connections replace old ones again and again, and the flow of packets notices nothing.
#[tokio::test]
async fn connections_that_come_and_go_as_too_many_cost_no_packet_and_no_order() {
    const PACKETS: u32 = 40;
    for _ in 0..TRIES {
        let mut sites = pair([&PacketProtocol::ALL; 2], TransportName::Quic);
        run_until(&mut sites, |sites| sites.iter().all(|site| site.packets.kind(PEER).is_some())).await;
        let mut sent = 0;
        let mut next = Instant::now();
        run_until(&mut sites, |sites| {
            if next <= Instant::now() {
                next = Instant::now() + Duration::from_millis(20);
                let more = whole(sent..sent + PACKETS);
                sites.iter_mut().for_each(|site| site.send(&more));
                sent += PACKETS;
                let peer = sites[0].peer;
                sites[0].node.seek(&peer, true);
            }
            sites.iter().any(|site| site.replaced >= REPLACED || site.changes > 0)
        })
        .await;
        let mut heard = ([0; 2], Instant::now());
        run_until(&mut sites, |sites| {
            let got = sites.each_ref().map(|site| site.got.len());
            if got != heard.0 {
                heard = (got, Instant::now());
            }
            got == [sent as usize; 2] || heard.1.elapsed() > QUIET
        })
        .await;
        let all = whole(0..sent);
        let is_undisturbed = sites.iter().all(|site| site.changes == 0);
        if is_undisturbed {
            assert!(sites.iter().all(|site| is_part_in_order(&site.got, &all)), "in order");
            assert!(sites.iter().all(|site| site.got.len() == all.len() && site.dropped() == 0), "all of it");
            return;
        }
    }
    panic!("no time in which no connection died");
}

#[tokio::test]
async fn a_node_without_the_newer_protocol_is_reached_by_the_older_one_in_one_negotiation() {
    let mut sites = pair([&PacketProtocol::ALL, &[PacketProtocol::HyprspaceV0]], TransportName::Tcp);
    for round in 0..3 {
        both_ways(&mut sites, whole(round * 100..round * 100 + 100), whole(900..950)).await;
    }
    let streams = sites[0].packets.streams(PEER);
    let older = streams.iter().filter(|stream| stream.protocol == PacketProtocol::HyprspaceV0);
    assert_eq!(older.filter(|stream| stream.is_sending).count(), 1, "{streams:?}");
}
