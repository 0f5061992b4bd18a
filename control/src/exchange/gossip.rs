//! Which signed records a node has, and to whom it tells which: a state machine without streams, clock or keys of its
//! own, so that any number of nodes can be run against each other in one process.
//!
//! A new record of ours goes to every connected peer. Who gets a new one of a third node passes it on to
//! `FANOUT` others that are not known to have it; what that misses, two nodes find out when they compare what they
//! have: at a new connection, and every `ROUND` with one peer in turn. Comparing begins with sixteen bytes and goes on
//! only if they differ. Everything waits for `PACE` before it leaves, so that what comes together travels together, and
//! one message to a peer is under way at a time. So a node sends, for each record that changes anywhere, about
//! `FANOUT` copies, and in quiet times 19 bytes each `ROUND`, however many nodes there are.
//!
//! There is one record of each configured peer; others' are dropped. A record counts only with its subject's signature,
//! and one that is not newer is not looked at. A node that finds a newer record of itself than it knows of (its clock was
//! set back) makes one that is newer still.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::bucket::Bucket;
use ringlane_shared::limits::{PEERS_MESSAGE_BYTES_MAX, SIGNED_RECORD_BYTES_MAX};
use ringlane_shared::wire::peers::{
    LENGTH_BYTES, PeerRecord, PeersMessage, RECORD_LIFETIME, RecordVersion, Tag, record_bytes, summary,
};
use thiserror::Error;

/// Peers to whom a third node's new record is passed on.
const FANOUT: usize = 4;
/// How long a record waits for others before it leaves: between half of this and all of it.
const PACE: Duration = Duration::from_millis(400);
/// How long our own addresses must stand still before we sign them.
const OWN_PACE: Duration = Duration::from_millis(300);
/// Between two comparisons with one of the peers.
const ROUND: Duration = Duration::from_secs(30);
/// Digests that are sent without being asked for: so many at once, and one per second after that.
const DIGESTS_BURST: u32 = 8;
/// Digests of one peer that are answered: so many at once, and one per second after that.
const ANSWERS_BURST: u32 = 4;

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// For everything that waits.
    pub now: Instant,
    /// For sequence numbers and expiry: milliseconds since 1970.
    pub unix_ms: u64,
}

/// Signs our records and checks others'. Simulations have one without keys.
pub trait Notary {
    /// Our record in an envelope; `None` if it cannot be made.
    fn sign(&self, record: &PeerRecord) -> Option<Bytes>;
    /// The record in an envelope, if the record's subject signed it.
    fn open(&self, envelope: &[u8]) -> Option<PeerRecord>;
}

/// What a peer must not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum GossipFault {
    /// A record that is not its subject's.
    #[error("it passed on a record that its subject has not signed")]
    Forged,
}

/// What a peer has said of itself, anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Learnt {
    /// Who.
    pub peer: PeerId,
    /// Its addresses now.
    pub addresses: Vec<Multiaddr>,
    /// Those it had before and has no more.
    pub gone: Vec<Multiaddr>,
}

/// What was sent and received, lengths included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GossipCounters {
    /// Messages sent.
    pub messages_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Records that were news.
    pub records_learnt: u64,
    /// Records that were known, or nobody's here.
    pub records_ignored: u64,
    /// Records whose signature was not their subject's.
    pub records_forged: u64,
}

/// One node's part. Owned by the control thread.
pub struct Gossip<N> {
    notary: N,
    /// Our place among the subjects.
    own: usize,
    own_addresses: Vec<Multiaddr>,
    own_due: Option<Instant>,
    /// By tag: we and the configured peers.
    subjects: Vec<Subject>,
    places: BTreeMap<PeerId, usize>,
    /// The connected peers that speak this, by their place.
    links: BTreeMap<usize, Link>,
    next_round: Instant,
    last_compared: usize,
    digests: Bucket,
    jitter: u64,
    learnt: VecDeque<Learnt>,
    counters: GossipCounters,
}

struct Subject {
    id: PeerId,
    tag: Tag,
    held: Option<Held>,
}

struct Held {
    sequence: u64,
    expires_unix_s: u64,
    envelope: Bytes,
    addresses: Vec<Multiaddr>,
}

/// A connected peer.
struct Link {
    /// The subjects of which it has what we have.
    has: Bits,
    /// Those of which it is to get what we have.
    owed: Bits,
    flush_at: Option<Instant>,
    /// What goes before records.
    say: Option<Say>,
    /// A message is under way.
    is_writing: bool,
    answers: Bucket,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Say {
    Summary,
    Digest { wanted: bool },
}

impl<N: Notary> Gossip<N> {
    /// The part of node `own`, which knows `peers`. `seed` should differ from node to node.
    pub fn new(own: PeerId, peers: impl IntoIterator<Item = PeerId>, notary: N, seed: u64, time: Time) -> Self {
        let ids = peers.into_iter().filter(|peer| *peer != own).chain([own]);
        let mut subjects: Vec<_> = ids.map(|id| Subject { id, tag: Tag::of(&id), held: None }).collect();
        subjects.sort_by_key(|subject| subject.tag);
        subjects.dedup_by_key(|subject| subject.tag);
        let places: BTreeMap<_, _> = subjects.iter().enumerate().map(|(at, subject)| (subject.id, at)).collect();
        Self {
            notary,
            own: places.get(&own).copied().unwrap_or(usize::MAX),
            own_addresses: Vec::new(),
            own_due: Some(time.now + OWN_PACE),
            subjects,
            places,
            links: BTreeMap::new(),
            next_round: time.now + ROUND,
            last_compared: 0,
            digests: Bucket::new(DIGESTS_BURST, 1, time.now),
            jitter: seed,
            learnt: VecDeque::new(),
            counters: GossipCounters::default(),
        }
    }

    /// Where we can be reached, from now on.
    pub fn set_own_addresses(&mut self, addresses: Vec<Multiaddr>, time: Time) {
        if addresses != self.own_addresses {
            self.own_addresses = addresses;
            self.own_due = Some(time.now + OWN_PACE);
        }
    }

    /// A peer can be written to. It gets our record, and one of us says what it has.
    pub fn handle_connected(&mut self, peer: PeerId, time: Time) {
        let Some(&place) = self.places.get(&peer).filter(|place| **place != self.own) else { return };
        let count = self.subjects.len();
        let mut link = Link {
            has: Bits::new(count),
            owed: Bits::new(count),
            flush_at: None,
            say: None,
            is_writing: false,
            answers: Bucket::new(ANSWERS_BURST, 1, time.now),
        };
        if self.subjects.get(self.own).is_some_and(|own| own.held.is_some()) {
            link.owed.set(self.own);
            link.flush_at = Some(time.now);
        }
        if self.own < place {
            link.say = Some(Say::Summary);
            if self.digests.take(time.now) {
                link.say = Some(Say::Digest { wanted: true });
            }
        }
        self.links.insert(place, link);
    }

    /// A peer cannot be written to any more, and what was under way to it is lost.
    pub fn handle_disconnected(&mut self, peer: &PeerId) {
        if let Some(place) = self.places.get(peer) {
            self.links.remove(place);
        }
    }

    /// The message to this peer has left.
    pub fn handle_sent(&mut self, peer: &PeerId) {
        if let Some(link) = self.places.get(peer).and_then(|place| self.links.get_mut(place)) {
            link.is_writing = false;
        }
    }

    /// A peer has written something.
    pub fn handle_message(&mut self, from: &PeerId, message: PeersMessage, time: Time) -> Result<(), GossipFault> {
        self.counters.messages_received += 1;
        self.counters.bytes_received += message.wire_bytes() as u64;
        let Some(&from) = self.places.get(from) else { return Ok(()) };
        match message {
            PeersMessage::Summary(theirs) => {
                if theirs != summary(digest(&self.subjects)) && self.digests.take(time.now) {
                    self.say(from, Say::Digest { wanted: true });
                }
                Ok(())
            }
            PeersMessage::Digest { wanted, entries } => {
                self.handle_digest(from, wanted, &entries, time);
                Ok(())
            }
            PeersMessage::Records(records) => records
                .into_iter()
                .try_for_each(|(version, envelope)| self.handle_record(from, version, envelope, time)),
        }
    }

    fn handle_digest(&mut self, from: usize, wanted: bool, entries: &[RecordVersion], time: Time) {
        let flush_at = time.now + self.pace();
        let Some(link) = self.links.get_mut(&from) else { return };
        if !link.answers.take(time.now) {
            return;
        }
        let mut is_behind = false;
        for entry in entries {
            let Ok(place) = self.subjects.binary_search_by_key(&entry.tag, |subject| subject.tag) else { continue };
            let ours = self.subjects[place].held.as_ref().map_or(0, |held| held.sequence);
            is_behind |= entry.sequence > ours;
            if entry.sequence >= ours {
                link.has.set(place);
                link.owed.clear(place);
            } else {
                link.has.clear(place);
                link.owed.set(place);
                link.flush_at = Some(link.flush_at.map_or(flush_at, |at| at.min(flush_at)));
            }
        }
        if wanted && is_behind {
            self.say(from, Say::Digest { wanted: false });
        }
    }

    fn handle_record(
        &mut self,
        from: usize,
        version: RecordVersion,
        envelope: Bytes,
        time: Time,
    ) -> Result<(), GossipFault> {
        let Ok(place) = self.subjects.binary_search_by_key(&version.tag, |subject| subject.tag) else {
            self.counters.records_ignored += 1;
            return Ok(());
        };
        let held = self.subjects[place].held.as_ref().map_or(0, |held| held.sequence);
        if version.sequence <= held {
            self.counters.records_ignored += 1;
            if version.sequence == held
                && let Some(link) = self.links.get_mut(&from)
            {
                link.has.set(place);
                link.owed.clear(place);
            }
            return Ok(());
        }
        let opened = self.notary.open(&envelope).filter(|record| {
            envelope.len() <= SIGNED_RECORD_BYTES_MAX
                && record.peer == self.subjects[place].id
                && record.sequence == version.sequence
        });
        let Some(record) = opened else {
            self.counters.records_forged += 1;
            return Err(GossipFault::Forged);
        };
        if place == self.own {
            // Ours, of a time when our clock was ahead. It has to go.
            self.sign_after(version.sequence, time);
            return Ok(());
        }
        if record.expires_unix_s.saturating_mul(1000) <= time.unix_ms {
            self.counters.records_ignored += 1;
            return Ok(());
        }
        self.counters.records_learnt += 1;
        let known = self.subjects[place].held.take().map_or(Vec::new(), |held| held.addresses);
        let gone = known.into_iter().filter(|address| !record.addresses.contains(address)).collect();
        self.learnt.push_back(Learnt { peer: record.peer, addresses: record.addresses.clone(), gone });
        let PeerRecord { sequence, expires_unix_s, addresses, .. } = record;
        self.hold(place, Held { sequence, expires_unix_s, envelope, addresses });
        for known in [from, place] {
            if let Some(link) = self.links.get_mut(&known) {
                link.has.set(place);
            }
        }
        self.pass_on(place, time);
        Ok(())
    }

    /// Replaces a subject's record: nobody has it yet.
    fn hold(&mut self, place: usize, held: Held) {
        self.subjects[place].held = Some(held);
        for link in self.links.values_mut() {
            link.has.clear(place);
            link.owed.clear(place);
        }
    }

    /// Owes a third node's new record to some of those that do not have it.
    fn pass_on(&mut self, place: usize, time: Time) {
        let mut lacking: Vec<usize> =
            self.links.iter().filter(|(_, link)| !link.has.get(place)).map(|(at, _)| *at).collect();
        for _ in 0..FANOUT {
            if lacking.is_empty() {
                return;
            }
            let chosen = lacking.swap_remove((self.random() % lacking.len() as u64) as usize);
            self.owe(chosen, place, time);
        }
    }

    fn owe(&mut self, to: usize, place: usize, time: Time) {
        let flush_at = time.now + self.pace();
        if let Some(link) = self.links.get_mut(&to) {
            link.owed.set(place);
            link.flush_at.get_or_insert(flush_at);
        }
    }

    fn say(&mut self, to: usize, say: Say) {
        if let Some(link) = self.links.get_mut(&to) {
            link.say = link.say.max(Some(say));
        }
    }

    /// Signs a record that is newer than `sequence`, and owes it to everybody.
    fn sign_after(&mut self, sequence: u64, time: Time) {
        self.own_due = None;
        let Some(own) = self.subjects.get(self.own) else { return };
        let last = own.held.as_ref().map_or(0, |held| held.sequence).max(sequence);
        let record = PeerRecord {
            peer: own.id,
            sequence: last.saturating_add(1).max(time.unix_ms),
            expires_unix_s: (time.unix_ms / 1000).saturating_add(RECORD_LIFETIME.as_secs()),
            addresses: self.own_addresses.clone(),
        };
        let Some(envelope) = self.notary.sign(&record).filter(|made| made.len() <= SIGNED_RECORD_BYTES_MAX) else {
            return;
        };
        let PeerRecord { sequence, expires_unix_s, addresses, .. } = record;
        self.hold(self.own, Held { sequence, expires_unix_s, envelope, addresses });
        let connected: Vec<usize> = self.links.keys().copied().collect();
        for to in connected {
            self.owe(to, self.own, time);
        }
    }

    /// Whether our record's life is half over, by the clock as it is now: a router without a battery signs its first one
    /// in 1970, and for everybody else that has expired.
    fn is_own_ageing(&self, time: Time) -> bool {
        let own = self.subjects.get(self.own).and_then(|own| own.held.as_ref());
        let renew_at = (time.unix_ms / 1000).saturating_add(RECORD_LIFETIME.as_secs() / 2);
        own.is_some_and(|held| held.expires_unix_s <= renew_at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, time: Time) {
        if self.own_due.is_some_and(|due| due <= time.now) {
            self.sign_after(0, time);
        }
        if self.next_round <= time.now {
            self.next_round = time.now + ROUND.mul_f64(0.75 + 0.25 * (self.random() as f64 / u64::MAX as f64));
            if self.is_own_ageing(time) {
                self.sign_after(0, time);
            }
            for place in (0..self.subjects.len()).filter(|place| *place != self.own) {
                let held = self.subjects[place].held.take();
                let held = held.filter(|held| held.expires_unix_s.saturating_mul(1000) > time.unix_ms);
                self.subjects[place].held = held;
            }
            let next = self.links.range(self.last_compared + 1..).chain(&self.links).next().map(|(place, _)| *place);
            if let Some(place) = next {
                self.last_compared = place;
                self.say(place, Say::Summary);
            }
        }
    }

    /// The next message, and to whom. It has left when [`Self::handle_sent`] says so; no other goes to this peer until
    /// then.
    pub fn poll_transmit(&mut self, time: Time) -> Option<(PeerId, PeersMessage)> {
        loop {
            let is_due = |link: &Link| link.say.is_some() || link.flush_at.is_some_and(|at| at <= time.now);
            let place = *self.links.iter().find(|(_, link)| !link.is_writing && is_due(link))?.0;
            let peer = self.subjects.get(place)?.id;
            let link = self.links.get_mut(&place)?;
            let message = match link.say.take() {
                Some(Say::Summary) => PeersMessage::Summary(summary(digest(&self.subjects))),
                Some(Say::Digest { wanted }) => {
                    PeersMessage::Digest { wanted, entries: digest(&self.subjects).collect() }
                }
                None => {
                    let (records, has_more) = take_owed(link, &self.subjects);
                    link.flush_at = has_more.then(|| time.now + PACE);
                    if records.is_empty() {
                        continue;
                    }
                    PeersMessage::Records(records)
                }
            };
            link.is_writing = true;
            self.counters.messages_sent += 1;
            self.counters.bytes_sent += message.wire_bytes() as u64;
            return Some((peer, message));
        }
    }

    /// The next news about a peer.
    pub fn poll_learnt(&mut self) -> Option<Learnt> {
        self.learnt.pop_front()
    }

    /// When [`Self::handle_timeout`] and [`Self::poll_transmit`] should be called again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let flushes = self.links.values().filter(|link| !link.is_writing).filter_map(|link| link.flush_at);
        flushes.chain(self.own_due).chain([self.next_round]).min()
    }

    /// What was sent and received so far.
    pub fn counters(&self) -> GossipCounters {
        self.counters
    }

    /// How many peers' records are held.
    pub fn records(&self) -> usize {
        self.subjects.iter().enumerate().filter(|(place, subject)| *place != self.own && subject.held.is_some()).count()
    }

    /// The addresses in a peer's record, if there is one.
    pub fn addresses(&self, peer: &PeerId) -> Option<&[Multiaddr]> {
        let subject = self.subjects.get(*self.places.get(peer)?)?;
        subject.held.as_ref().map(|held| &held.addresses[..])
    }

    /// Between half of [`PACE`] and all of it.
    fn pace(&mut self) -> Duration {
        PACE.mul_f64(0.5 + 0.5 * (self.random() as f64 / u64::MAX as f64))
    }

    /// SplitMix64: spreads work in time and among peers, the same on every run with the same seed. Not for secrets.
    fn random(&mut self) -> u64 {
        self.jitter = self.jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.jitter;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

fn digest(subjects: &[Subject]) -> impl Iterator<Item = RecordVersion> {
    subjects.iter().map(|subject| RecordVersion {
        tag: subject.tag,
        sequence: subject.held.as_ref().map_or(0, |held| held.sequence),
    })
}

/// As many of the records owed as fit a message, and whether there are more.
fn take_owed(link: &mut Link, subjects: &[Subject]) -> (Vec<(RecordVersion, Bytes)>, bool) {
    let (mut records, mut bytes) = (Vec::new(), LENGTH_BYTES + 1);
    for (place, subject) in subjects.iter().enumerate().filter(|(place, _)| link.owed.get(*place)).collect::<Vec<_>>() {
        let Some(held) = &subject.held else {
            link.owed.clear(place);
            continue;
        };
        bytes += record_bytes(&held.envelope);
        if bytes > PEERS_MESSAGE_BYTES_MAX {
            return (records, true);
        }
        link.owed.clear(place);
        link.has.set(place);
        records.push((RecordVersion { tag: subject.tag, sequence: held.sequence }, held.envelope.clone()));
    }
    (records, false)
}

/// A set of places.
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn get(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word & 1 << (at % 64) != 0)
    }

    fn set(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    fn clear(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word &= !(1 << (at % 64));
        }
    }
}

#[cfg(test)]
mod tests;
