//! Finding peers on the local networks: multicast DNS that libp2p's other implementations hear and that hears them.
//!
//! | Module | What it is |
//! |---|---|
//! | `schedule` | when to ask and when to tell on one interface: pure |
//! | `heard` | what was heard of configured peers, and for how long it holds: pure |
//! | `socket` | a socket in the group, on one interface |
//!
//! It lives on the interfaces that control names, [`Segment`] by segment, and tells on each the addresses that we listen
//! on at that interface and no others. Nothing heard is authentic: an address is only a place to dial, and a wrong one
//! costs a dial.

mod heard;
mod schedule;
mod socket;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use ringlane_shared::bucket::Bucket;
use ringlane_shared::limits::{
    MDNS_INTERFACES_MAX, MDNS_NEWS_BURST, MDNS_NEWS_PER_SECOND, MDNS_PACKETS_BURST, MDNS_PACKETS_PER_SECOND,
};
use ringlane_shared::wire::mdns::{self as wire, Announcement, Instance, TTL_SECONDS};
use tokio::time::Sleep;

use heard::{Change, Heard};
use schedule::{Due, Schedule};
use socket::{Family, GroupSocket};

/// An interface, as control sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its index.
    pub interface: u32,
    /// Its name, for the log.
    pub name: String,
    /// Its addresses, link-local ones too; those families that are among them are used.
    pub hosts: Vec<IpAddr>,
    /// Where we listen at it. Without any we ask there and tell nothing.
    pub addresses: Vec<Multiaddr>,
}

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MdnsCounters {
    /// Packets that ask who is there.
    pub queries_sent: u64,
    /// Packets that tell where we are.
    pub announcements_sent: u64,
    /// Packets that were read.
    pub packets_heard: u64,
    /// Packets that made no sense.
    pub packets_malformed: u64,
    /// Packets that were not looked at, because too many came.
    pub packets_ignored: u64,
    /// Addresses of configured peers known from it now.
    pub addresses: u64,
}

/// What was heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum MdnsEvent {
    /// A configured peer is there, it says, perhaps not for the first time.
    Learnt(PeerId, Multiaddr),
    /// It is there no more, or has not said so for too long.
    Lost(PeerId, Multiaddr),
}

/// The responder and browser. Owned by the node.
pub(super) struct Mdns {
    own: PeerId,
    instance: Instance,
    configured: BTreeSet<PeerId>,
    places: Vec<Place>,
    heard: Heard,
    /// For addresses not heard before.
    news: Bucket,
    /// In the order in which things were heard: an address that had to make room stays forgotten.
    events: VecDeque<MdnsEvent>,
    seed: u64,
    timer: Pin<Box<Sleep>>,
    counters: MdnsCounters,
}

/// A segment and what goes on there.
struct Place {
    segment: Segment,
    sockets: Vec<GroupSocket>,
    schedule: Schedule,
    packets: Bucket,
    /// It could not be used; said once.
    is_complained_of: bool,
}

impl Mdns {
    pub(super) fn new(
        own: PeerId,
        configured: impl IntoIterator<Item = PeerId>,
        instance: Instance,
        seed: u64,
    ) -> Self {
        Self {
            own,
            instance,
            configured: configured.into_iter().collect(),
            places: Vec::new(),
            heard: Heard::default(),
            news: Bucket::new(MDNS_NEWS_BURST, MDNS_NEWS_PER_SECOND, Instant::now()),
            events: VecDeque::new(),
            seed,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            counters: MdnsCounters::default(),
        }
    }

    /// Lives on exactly these interfaces. Where something has changed it asks and tells anew.
    pub(super) fn set_segments(&mut self, segments: Vec<Segment>) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.places);
        for segment in segments.into_iter().take(MDNS_INTERFACES_MAX) {
            let known = before.iter().position(|place| place.segment.interface == segment.interface);
            let mut place = match known.map(|at| before.swap_remove(at)) {
                Some(place) if place.segment == segment => place,
                Some(mut place) => {
                    place.sockets.retain(|socket| segment.hosts.iter().any(|ip| socket.family == Family::of(*ip)));
                    place.schedule.handle_change(now);
                    Place { segment, ..place }
                }
                None => {
                    self.seed = self.seed.wrapping_add(1);
                    let packets = Bucket::new(MDNS_PACKETS_BURST, MDNS_PACKETS_PER_SECOND, now);
                    let schedule = Schedule::new(self.seed, now);
                    Place { segment, sockets: Vec::new(), schedule, packets, is_complained_of: false }
                }
            };
            place.open_missing();
            self.places.push(place);
        }
        // Makes the timer see the new schedules.
        self.timer.as_mut().reset(now.into());
    }

    /// Asks and tells anew, everywhere.
    pub(super) fn rediscover(&mut self) {
        let now = Instant::now();
        self.places.iter_mut().for_each(|place| place.schedule.handle_change(now));
        self.timer.as_mut().reset(now.into());
    }

    /// Takes back what was told.
    pub(super) fn say_goodbye(&mut self) {
        for at in 0..self.places.len() {
            self.announce(at, 0);
        }
    }

    pub(super) fn counters(&self) -> MdnsCounters {
        MdnsCounters { addresses: self.heard.count() as u64, ..self.counters }
    }

    /// The next thing heard. However much comes, the runtime's own budget ends a poll.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<MdnsEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            self.receive(cx);
            if !self.events.is_empty() {
                continue;
            }
            let now = Instant::now();
            for at in 0..self.places.len() {
                match self.places[at].schedule.poll(now) {
                    Some(Due::Query) => self.query(at),
                    Some(Due::Announce) => self.announce(at, TTL_SECONDS),
                    None => {}
                }
            }
            let gone = self.heard.expire(now);
            self.events.extend(gone.into_iter().map(|(peer, address)| MdnsEvent::Lost(peer, address)));
            let schedules = self.places.iter().map(|place| place.schedule.poll_timeout());
            let Some(deadline) = schedules.chain(self.heard.next_expiry()).min() else { return Poll::Pending };
            self.timer.as_mut().reset(deadline.into());
            if self.timer.as_mut().poll(cx).is_pending() && self.events.is_empty() {
                return Poll::Pending;
            }
        }
    }

    /// Reads what has come, until something of it is news.
    fn receive(&mut self, cx: &mut Context<'_>) {
        for place in &mut self.places {
            for socket in &place.sockets {
                while let Poll::Ready(packet) = socket.poll_receive(cx) {
                    let now = Instant::now();
                    if !place.packets.take(now) {
                        self.counters.packets_ignored += 1;
                        continue;
                    }
                    self.counters.packets_heard += 1;
                    let Ok(heard) = wire::parse(&packet) else {
                        self.counters.packets_malformed += 1;
                        continue;
                    };
                    if heard.asks {
                        place.schedule.handle_query(now);
                    }
                    for told in heard.told.into_iter().filter(|told| self.configured.contains(&told.peer)) {
                        if !self.heard.knows(&told.peer, &told.address) && !self.news.take(now) {
                            continue;
                        }
                        let lifetime = Duration::from_secs(told.ttl_seconds.into());
                        match self.heard.hear(now, told.peer, &told.address, lifetime) {
                            Change::Learnt { forgotten } => {
                                self.events.extend(forgotten.map(|address| MdnsEvent::Lost(told.peer, address)));
                                self.events.push_back(MdnsEvent::Learnt(told.peer, told.address));
                            }
                            Change::Repeated => self.events.push_back(MdnsEvent::Learnt(told.peer, told.address)),
                            Change::Lost => self.events.push_back(MdnsEvent::Lost(told.peer, told.address)),
                            Change::Nothing => {}
                        }
                    }
                    if !self.events.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    fn query(&mut self, at: usize) {
        let place = &mut self.places[at];
        place.open_missing();
        match wire::query() {
            Ok(packet) => self.counters.queries_sent += place.send(&packet),
            Err(error) => tracing::debug!(%error, "cannot ask for neighbours"),
        }
    }

    fn announce(&mut self, at: usize, ttl_seconds: u32) {
        let place = &self.places[at];
        if place.segment.addresses.is_empty() {
            return;
        }
        let announcement = Announcement {
            instance: &self.instance,
            peer: self.own,
            addresses: &place.segment.addresses,
            hosts: &place.segment.hosts,
        };
        match announcement.to_packet(ttl_seconds) {
            Ok(packet) => self.counters.announcements_sent += place.send(&packet),
            Err(error) => tracing::debug!(%error, "cannot tell neighbours where we are"),
        }
    }
}

impl Place {
    /// Opens the sockets that should be there; what fails is tried again with the next query.
    fn open_missing(&mut self) {
        let families: BTreeSet<Family> = self.segment.hosts.iter().map(|ip| Family::of(*ip)).collect();
        for family in families {
            if self.sockets.iter().any(|socket| socket.family == family) {
                continue;
            }
            match GroupSocket::open(family, self.segment.interface) {
                Ok(socket) => self.sockets.push(socket),
                Err(error) if !self.is_complained_of => {
                    self.is_complained_of = true;
                    let interface = &self.segment.name;
                    tracing::warn!(interface, ?family, %error, "mDNS cannot be used here; trying again");
                }
                Err(_) => {}
            }
        }
    }

    /// How many of the sockets took it.
    fn send(&self, packet: &[u8]) -> u64 {
        self.sockets.iter().filter(|socket| socket.send(packet)).count() as u64
    }
}
