//! `ringlane ping`: a question to a peer on every path that packets to it take.
//!
//! Each lane's worker asks by an echo, as it does for itself; a stream's path is asked by libp2p's ping, on a stream of its
//! own, or, of a Hyprspace node, by opening one. One admin client has one question under way, so there are no more than clients.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{Stream, StreamProtocol};
use ringlane_shared::id::{LaneSerial, PeerId, PeerIndex};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::path::choice::PathClass;
use ringlane_shared::plane::{LaneCarrier, PlaneCommand};
use ringlane_shared::wire::offer::CandidateKind;

use super::{Control, wait_until};
use crate::admin::AdminReply;
use crate::admin::ping::{PingPath, PingStatus};
use crate::admin::relay::RelayNode;
use crate::admin::status::Carrier;
use crate::coordinator::LaneUp;
use crate::routes::{ReferenceError, find_peer};
use crate::swarm::{ConnectionInfo, OpenError, OpenId, PeerKind};

/// libp2p's ping: 32 bytes, and the same 32 bytes back.
const PING: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");
const PING_BYTES: usize = 32;

/// What Hyprspace nodes are asked by: they take two streams of pings of one peer at a time, which the library's pings on each
/// connection need. Agreeing on a protocol takes one round trip, and what they then say of themselves is not read.
const IDENTIFY: StreamProtocol = StreamProtocol::new("/ipfs/id/1.0.0");

/// How long an answer is waited for at least and at most; the latter is less than an admin client waits.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(8);

/// A question under way.
struct Ping {
    reply: AdminReply,
    peer: PeerIndex,
    asked_at: Instant,
    deadline: Instant,
    paths: Vec<PingPath>,
    /// The lane of each path; none of a stream's.
    lanes: Vec<LaneSerial>,
    /// The stream that is being opened.
    opening: Option<OpenId>,
}

impl Ping {
    fn is_answered(&self) -> bool {
        self.paths.iter().all(|path| path.rtt_us.is_some())
    }
}

/// All questions under way. Owner: the control loop.
#[derive(Default)]
pub(super) struct Pings {
    asked: u64,
    pending: BTreeMap<u64, Ping>,
    streams: FuturesUnordered<BoxFuture<'static, (u64, Option<Duration>)>>,
}

/// What [`Pings::next`] found.
pub(super) enum PingEvent {
    /// The stream of this question has been answered, or will not be.
    Answered(u64, Option<Duration>),
    /// Time is up for some.
    Due,
}

impl Pings {
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> PingEvent {
        let deadline = self.pending.values().map(|ping| ping.deadline).min();
        tokio::select! {
            Some((ask, rtt)) = self.streams.next() => PingEvent::Answered(ask, rtt),
            () = wait_until(deadline) => PingEvent::Due,
        }
    }

    pub(super) fn has_opening(&self, id: OpenId) -> bool {
        self.pending.values().any(|ping| ping.opening == Some(id))
    }

    /// The stream of a question is open, or cannot be opened.
    pub(super) fn handle_opened(&mut self, id: OpenId, result: Result<(StreamProtocol, Box<Stream>), OpenError>) {
        let found = self.pending.iter_mut().find(|(_, ping)| ping.opening == Some(id));
        let Some((ask, ping)) = found else { return };
        ping.opening = None;
        let now = Instant::now();
        let (ask, took) = (*ask, now.saturating_duration_since(ping.asked_at));
        let left = ping.deadline.saturating_duration_since(now);
        self.streams.push(Box::pin(async move {
            let Ok((protocol, stream)) = result else { return (ask, None) };
            if protocol == IDENTIFY {
                return (ask, Some(took));
            }
            let answered = tokio::time::timeout(left, ask_on(*stream)).await;
            (ask, answered.ok().and_then(Result::ok))
        }));
    }
}

async fn ask_on(mut stream: Stream) -> std::io::Result<Duration> {
    let mut question = [0; PING_BYTES];
    let mut answer = [0; PING_BYTES];
    // Nothing depends on its being hard to guess.
    let _ = aws_lc_rs::rand::fill(&mut question);
    let asked_at = Instant::now();
    stream.write_all(&question).await?;
    stream.flush().await?;
    stream.read_exact(&mut answer).await?;
    let rtt = asked_at.elapsed();
    // A peer that does not take the end of the stream has answered all the same.
    let _ = stream.close().await;
    if answer == question { Ok(rtt) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

impl Control {
    /// A client asks for a question to a peer.
    pub(super) fn ping(&mut self, peer: &str, timeout: Duration, reply: AdminReply, now: Instant) {
        let index = match self.find_peer_or_address(peer) {
            Ok(index) => index,
            Err(error) => return reply.refuse(&error.to_string()),
        };
        self.pings.asked += 1;
        let ask = self.pings.asked;
        let deadline = now + timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        let mut ping =
            Ping { reply, peer: index, asked_at: now, deadline, paths: Vec::new(), lanes: Vec::new(), opening: None };
        match self.coordinator.link(index) {
            Some(link) if link.carries() => {
                for (lane, up) in link.lanes() {
                    let command = PlaneCommand::AskLane { serial: up.serial, ask };
                    // A worker that busy does not answer.
                    let _ = self.workers.commands.get(up.worker.position()).map(|worker| worker.try_send(command));
                    ping.paths.push(self.path_of_lane(lane.get(), up));
                    ping.lanes.push(up.serial);
                }
            }
            _ => {
                if let Some((path, connection)) = self.path_of_stream(index) {
                    let is_hyprspace = self.packets.kind(index) == Some(PeerKind::Hyprspace);
                    let protocol = if is_hyprspace { IDENTIFY } else { PING };
                    ping.opening = Some(self.node.open_stream(connection, vec![protocol]));
                    ping.paths.push(path);
                }
            }
        }
        if ping.paths.is_empty() {
            return self.answer_ping(ping, now);
        }
        self.pings.pending.insert(ask, ping);
    }

    pub(super) fn handle_ping(&mut self, event: PingEvent, now: Instant) {
        match event {
            PingEvent::Answered(ask, rtt) => {
                let Some(mut ping) = self.pings.pending.remove(&ask) else { return };
                if let Some(path) = ping.paths.first_mut() {
                    path.rtt_us = rtt.map(micros);
                }
                if ping.is_answered() {
                    self.answer_ping(ping, now);
                } else {
                    // A refusal comes at once, and is no reason to be asked again at once.
                    self.pings.pending.insert(ask, ping);
                }
            }
            PingEvent::Due => {
                let is_due = |_: &u64, ping: &mut Ping| ping.deadline <= now;
                for (_, ping) in self.pings.pending.extract_if(.., is_due).collect::<Vec<_>>() {
                    self.answer_ping(ping, now);
                }
            }
        }
    }

    /// A lane's peer has answered what was asked for a client.
    pub(super) fn handle_lane_answered(&mut self, serial: LaneSerial, ask: u64, rtt: Duration, now: Instant) {
        let Some(ping) = self.pings.pending.get_mut(&ask) else { return };
        let Some(position) = ping.lanes.iter().position(|lane| *lane == serial) else { return };
        if let Some(path) = ping.paths.get_mut(position) {
            path.rtt_us = Some(micros(rtt));
        }
        if ping.is_answered()
            && let Some(ping) = self.pings.pending.remove(&ask)
        {
            self.answer_ping(ping, now);
        }
    }

    fn answer_ping(&self, ping: Ping, now: Instant) {
        let Some(peer) = self.settings.peers.get(ping.peer.position()) else { return };
        let answered = || ping.paths.iter().filter(|path| path.rtt_us.is_some());
        let is_direct = |path: &PingPath| path.lane.is_some() && path.kind != UDP_RELAY;
        let status = PingStatus {
            peer: self.relay_node(&peer.id),
            answered: answered().next().is_some(),
            direct: answered().any(is_direct),
            rtt_us: answered().filter_map(|path| path.rtt_us).min(),
            obstacle: self.obstacle_to(ping.peer, now),
            paths: ping.paths,
        };
        ping.reply.send(status);
    }

    fn path_of_lane(&self, lane: u8, up: &LaneUp) -> PingPath {
        let path = self.engine.path_of(up.serial);
        let relay = self.engine.relay_of(up.local).and_then(|relay| self.settings.peers.get(relay.position()));
        PingPath {
            carrier: match up.gauges.carrier() {
                LaneCarrier::Records => Carrier::Lane,
                LaneCarrier::Quic => Carrier::Quic,
            },
            kind: match relay {
                Some(_) => UDP_RELAY,
                None => path.map_or("translated", |(class, kind)| kind_of(class, kind)),
            }
            .to_owned(),
            lane: Some(lane),
            worker: Some(up.worker.0),
            local: Some(up.local),
            remote: Some(up.remote),
            connection: None,
            transport: None,
            relay: relay.map(|relay| self.relay_node(&relay.id)),
            rtt_us: None,
            loss_percent: up.gauges.loss().percent(),
        }
    }

    /// The connection that packets take which no lane takes, or would.
    fn path_of_stream(&self, index: PeerIndex) -> Option<(PingPath, libp2p::swarm::ConnectionId)> {
        let peer = self.settings.peers.get(index.position())?;
        let way = self.node.packet_way(&peer.id).map(|way| way.connection);
        let is_it = |known: &&ConnectionInfo| Some(known.id) == way;
        let taken = self.node.connections(&peer.id).find(is_it).or_else(|| self.node.best_connection(&peer.id))?;
        let path = PingPath {
            carrier: Carrier::Stream,
            kind: if taken.relayed { "relayed_stream" } else { "stream" }.to_owned(),
            lane: None,
            worker: None,
            local: None,
            remote: None,
            connection: Some(taken.remote.to_string()),
            transport: taken.transport.map(|transport| transport.name().to_owned()),
            relay: taken.relay.map(|relay| self.relay_node(&relay)),
            rtt_us: None,
            loss_percent: None,
        };
        Some((path, taken.id))
    }

    fn relay_node(&self, id: &PeerId) -> RelayNode {
        RelayNode::of(&self.settings.peers, id)
    }

    /// The peer that a name, the beginning of an id, or a built-in address stands for.
    fn find_peer_or_address(&self, text: &str) -> Result<PeerIndex, ReferenceError> {
        let found = find_peer(&self.settings.peers, text);
        let Ok(address) = text.parse::<IpAddr>() else { return found };
        found.or_else(|error| {
            let has = |id| IpAddr::from(builtin_ipv4(id)) == address || IpAddr::from(builtin_ipv6(id)) == address;
            let position = self.settings.peers.iter().position(|peer| has(&peer.id)).ok_or(error)?;
            Ok(PeerIndex(position as u16))
        })
    }
}

const UDP_RELAY: &str = "udp_relay";

fn kind_of(class: PathClass, kind: Option<CandidateKind>) -> &'static str {
    match class {
        PathClass::Lan => "lan",
        PathClass::DirectV6 => "direct_v6",
        PathClass::DirectV4 => "direct_v4",
        PathClass::Translated if kind == Some(CandidateKind::Mapped) => "mapped",
        PathClass::Translated => "translated",
        PathClass::Relay => UDP_RELAY,
        PathClass::Stream => "stream",
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}
