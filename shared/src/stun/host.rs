//! One address of ours: its rounds of questions, and what follows from the answers.
//!
//! ```text
//! round     every lane port asks server A and server B
//! thorough  and, when they have answered:
//!           first port    A, answer from elsewhere (CHANGE-REQUEST)   where nothing has been sent: filtering
//!           last port     A at its other port                         mapping by port; with one port B at its other
//!           first and second port, each the other's outside address   hairpin
//! ```
//! A round is thorough when it is the first, when something has changed, and every [`THOROUGH_EVERY`]th time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Target, Transmit};
use super::message::{Change, Request, Success, TransactionId};
use super::nat::{Filtering, HostView, Mapping, PortView, Scope};
use super::round::{Heard, Kind, Round};
use crate::path::candidate::{AddressPolicy, is_local_use};

/// The first retransmission timeout of RFC 8489, section 6.2.1; each is twice the one before.
pub(super) const RTO: Duration = Duration::from_millis(500);
/// How often a question is sent (the RFC's Rc). After the last time an answer is awaited for [`RTO`] times 2^3: 7.5 s in all
/// instead of the RFC's 39.5 s, as another round follows anyway.
const SENDS_MAX: u32 = 4;
/// Between two rounds while there is a NAT: shorter than the 30 s that the briefest ones remember a mapping.
pub(super) const REFRESH: Duration = Duration::from_secs(25);
/// Between two rounds while there is none.
pub(super) const WATCH: Duration = Duration::from_secs(300);
/// One round in so many is thorough.
const THOROUGH_EVERY: u32 = 12;
/// Between a round and the next one when something is to be found out.
const SOON: Duration = Duration::from_secs(1);
/// Between two thorough rounds that changes have asked for.
const THOROUGH_PAUSE: Duration = Duration::from_secs(10);
/// How long a server that has not answered is left alone; doubles each time.
const RETRY_MIN: Duration = REFRESH;
/// Longest such time.
const RETRY_MAX: Duration = Duration::from_secs(1800);
/// After so long a NAT has forgotten whom we have sent something to; what it lets in tells nothing before.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Destinations remembered for that.
const SENT_TO_MAX: usize = 256;
/// Silent rounds after which a mapping is taken for lost.
const SILENT_ROUNDS_MAX: u32 = 2;

struct Server {
    target: Target,
    failures: u32,
    retry_at: Option<Instant>,
}

pub(super) struct Question {
    pub(super) kind: Kind,
    pub(super) worker: u8,
    /// Where it goes, and from where the answer must come.
    to: SocketAddr,
    from: SocketAddr,
    change: Change,
    sends: u32,
    first_sent: Instant,
    due: Instant,
    /// In which order the questions of a round left.
    order: u32,
}

/// What [`Host`] has counted since it was last asked.
#[derive(Default)]
pub(super) struct News {
    /// The view is another.
    pub(super) is_changed: bool,
    /// Mappings that turned out to be others than they were.
    pub(super) mappings_changed: u64,
}

pub(super) struct Host {
    pub(super) local: IpAddr,
    pub(super) policy: Arc<AddressPolicy>,
    pub(super) first_port: u16,
    ports: u8,
    servers: Vec<Server>,
    pub(super) round: Option<Round>,
    next_round: Option<Instant>,
    last_thorough: Option<Instant>,
    is_thorough_due: bool,
    rounds: u32,
    silent_rounds: u32,
    pub(super) questions: BTreeMap<TransactionId, Question>,
    sent_to: BTreeMap<(u8, SocketAddr), Instant>,
    /// What each server saw of a worker's port when it was last asked.
    known: BTreeMap<(u8, SocketAddr), SocketAddr>,
    pub(super) view: HostView,
    pub(super) news: News,
}

impl Host {
    pub(super) fn new(local: IpAddr, first_port: u16, ports: u8, policy: Arc<AddressPolicy>) -> Self {
        let port = |worker| PortView { worker, local_port: first_port.saturating_add(worker.into()), mapped: None };
        Self {
            local,
            policy,
            first_port,
            ports,
            servers: Vec::new(),
            round: None,
            next_round: None,
            last_thorough: None,
            is_thorough_due: true,
            rounds: 0,
            silent_rounds: 0,
            questions: BTreeMap::new(),
            sent_to: BTreeMap::new(),
            known: BTreeMap::new(),
            view: HostView {
                local,
                scope: None,
                servers_asked: 0,
                servers_answered: 0,
                is_silent: false,
                is_translated: None,
                mapping: Mapping::Unknown,
                is_mapping_certain: false,
                filtering: Filtering::Unknown,
                keeps_ports: None,
                port_step: None,
                hairpins: None,
                rtt_us: None,
                ports: (0..ports).map(port).collect(),
            },
            news: News { is_changed: true, mappings_changed: 0 },
        }
    }

    pub(super) fn view(&self) -> &HostView {
        &self.view
    }

    /// Whom to ask. Servers that are known already keep what is known of them.
    pub(super) fn set_targets(&mut self, targets: &[Target], now: Instant, draw: &mut dyn FnMut() -> TransactionId) {
        let (had, was_one_party) = (self.servers.len(), self.is_one_party());
        self.servers.retain(|server| targets.iter().any(|target| target.address == server.target.address));
        for target in targets {
            match self.servers.iter_mut().find(|server| server.target.address == target.address) {
                Some(server) => server.target = *target,
                None => self.servers.push(Server { target: *target, failures: 0, retry_at: None }),
            }
        }
        // Few servers, and now there are more, or better ones: perhaps more can be told.
        let is_fresh = |server: &Server| server.retry_at.is_none() && server.failures == 0;
        let is_better = |server: &Server| is_fresh(server) && Some(server.target.scope) > self.view.scope;
        let is_more = self.servers.len() > had && had < 2 && self.servers.iter().any(is_fresh);
        let has_better = self.servers.iter().any(is_better);
        if has_better && self.asks_only_itself() {
            self.questions.clear();
            self.end_if_done(now, draw);
        }
        // Two that can agree on what our address is: unless the round under way asks the other one too, the next one does.
        let is_late = self.round.as_ref().is_none_or(|round| round.second.is_some());
        let two_can_agree = was_one_party && !self.is_one_party() && is_late;
        self.is_thorough_due |= two_can_agree;
        if self.round.is_none() && (is_more || has_better || two_can_agree) {
            self.is_thorough_due = true;
            self.next_round = Some(self.next_round.unwrap_or(now).min(now));
        }
        self.ask_second(now, draw);
    }

    fn is_one_party(&self) -> bool {
        self.servers.windows(2).all(|pair| matches!(pair, [one, next] if one.target.is_same_party(&next.target)))
    }

    /// A round that began with one server goes on with two, as soon as there is another: only two tell how a NAT maps, and
    /// whoever is to be reached through it should not wait for the next round.
    fn ask_second(&mut self, now: Instant, draw: &mut dyn FnMut() -> TransactionId) {
        let Some(round) = self.round.as_mut().filter(|round| round.second.is_none()) else { return };
        let first = round.first;
        let is_second = |server: &&Server| {
            let target = &server.target;
            server.retry_at.is_none() && target.address.ip() != first.address.ip() && target.scope == first.scope
        };
        let seconds = self.servers.iter().filter(is_second).map(|server| server.target);
        let Some(second) = seconds.min_by_key(|target| target.is_same_party(&first)) else { return };
        round.second = Some(second);
        for worker in 0..self.ports {
            self.ask(Kind::Second, worker, second.address_for(worker), None, Change::default(), now, draw);
        }
    }

    /// Begins a thorough round at once; what is under way is forgotten.
    pub(super) fn ask_anew(&mut self, now: Instant) {
        self.questions.clear();
        self.round = None;
        self.is_thorough_due = true;
        for server in &mut self.servers {
            server.retry_at = None;
        }
        self.next_round = Some(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.round {
            Some(_) => self.questions.values().map(|question| question.due).min(),
            None => self.next_round,
        }
    }

    /// Begins the round that is due, and gives up questions that nobody has answered.
    pub(super) fn handle_timeout(&mut self, now: Instant, draw: &mut dyn FnMut() -> TransactionId) {
        if self.round.is_none() && self.next_round.is_some_and(|at| at <= now) {
            self.begin(now, draw);
        }
        let is_over = |question: &Question| question.sends >= SENDS_MAX && question.due <= now;
        let over: Vec<_> = self.questions.iter().filter(|(_, question)| is_over(question)).map(|(id, _)| *id).collect();
        for id in over {
            let Some(question) = self.questions.remove(&id) else { continue };
            self.conclude(&question, Some(Heard::Nothing), None, now, draw);
        }
        self.end_if_done(now, draw);
    }

    /// The next datagram that is due, if there is one.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        let round = self.round.as_mut()?;
        let is_due = |question: &Question| question.due <= now && question.sends < SENDS_MAX;
        let (id, question) = self
            .questions
            .iter_mut()
            .filter(|(_, question)| is_due(question))
            .min_by_key(|(_, question)| (question.sends, question.kind, question.worker))?;
        if question.sends == 0 {
            question.first_sent = now;
            question.order = round.sent;
            round.sent += 1;
        }
        question.due = now + RTO * (1 << question.sends);
        question.sends += 1;
        let asked = if question.kind == Kind::Second { round.second } else { Some(round.first) };
        let room = asked.is_some_and(|target| target.is_peer) && question.kind != Kind::Hairpin;
        let bytes = Request::new(*id, question.change).to_bytes(question.to, room);
        let local = SocketAddr::new(self.local, self.first_port.saturating_add(question.worker.into()));
        let sent = (question.worker, question.to);
        let transmit = Transmit { local, to: question.to, bytes };
        if self.sent_to.len() >= SENT_TO_MAX && !self.sent_to.contains_key(&sent) {
            self.sent_to.retain(|_, at| now.saturating_duration_since(*at) < FORGOTTEN);
            if self.sent_to.len() >= SENT_TO_MAX {
                // Whoever changes servers that often learns nothing of filtering.
                self.sent_to.clear();
            }
        }
        self.sent_to.insert(sent, now);
        Some(transmit)
    }

    /// Whether this is the answer to a question that is under way: the id, the port it came to and who sent it fit.
    pub(super) fn asked(&self, id: TransactionId, local_port: u16, from: SocketAddr) -> bool {
        self.questions.get(&id).is_some_and(|question| {
            question.sends > 0
                && question.from == from
                && self.first_port.saturating_add(question.worker.into()) == local_port
        })
    }

    /// Takes in the answer to a question that [`Self::asked`] confirms; `None` for a refusal.
    pub(super) fn handle_answer(
        &mut self,
        id: TransactionId,
        success: Option<Success>,
        now: Instant,
        draw: &mut dyn FnMut() -> TransactionId,
    ) {
        let Some(question) = self.questions.remove(&id) else { return };
        let heard = success.map(|_| Heard::Answer);
        if let (Some(success), Some(round)) = (success, &mut self.round) {
            let key = (question.worker, question.kind);
            if question.kind.is_about_mapping() {
                round.answers.insert(key, (success.mapped, question.order));
            }
            if question.sends == 1 {
                let rtt = now.saturating_duration_since(question.first_sent);
                round.rtt = Some(round.rtt.map_or(rtt, |least| least.min(rtt)));
            }
        }
        self.conclude(&question, heard, success.and_then(|success| success.other), now, draw);
        // Whoever wants to be reached needs not wait until it is clear that nobody answers from elsewhere.
        let is_seen = !self.questions.values().any(|left| left.kind == Kind::First);
        if is_seen && success.is_some() && !self.questions.is_empty() {
            self.look(false);
            self.ask_ourselves(now, draw);
        }
        self.end_if_done(now, draw);
    }

    pub(super) fn is_mapping_told(&self) -> bool {
        !self.questions.values().any(|left| left.kind.is_about_mapping())
    }

    /// Takes note of what the answers of the round under way say; unless it `is_over`, only of where our ports are seen, and
    /// of how they are mapped when nothing is left to be heard of that.
    fn look(&mut self, is_over: bool) {
        let is_mapping_told = self.is_mapping_told();
        let Some(mut round) = self.round.take() else { return };
        let changed = self.compare(&round);
        round.changed += changed;
        let before = self.view.clone();
        if is_over {
            round.tell(&mut self.view);
        } else {
            round.tell_ports(&mut self.view);
            if is_mapping_told {
                round.tell_mapping(&mut self.view);
            }
        }
        self.news.is_changed |= before != HostView { rtt_us: before.rtt_us, ..self.view.clone() };
        self.news.mappings_changed += changed;
        self.round = Some(round);
    }

    fn begin(&mut self, now: Instant, draw: &mut dyn FnMut() -> TransactionId) {
        let mut usable: Vec<Target> =
            self.servers.iter().filter(|server| server.retry_at.is_none_or(|at| at <= now)).map(|s| s.target).collect();
        let failures = |address: SocketAddr| {
            self.servers.iter().find(|server| server.target.address == address).map_or(0, |server| server.failures)
        };
        usable.sort_by_key(|target| {
            (std::cmp::Reverse(target.scope), failures(target.address), !target.can_change(), target.address)
        });
        let Some(first) = usable.first().copied() else {
            self.next_round = self.servers.iter().filter_map(|server| server.retry_at).min();
            return;
        };
        // Servers elsewhere may see another address for good reasons.
        let is_second = |target: &&Target| target.address.ip() != first.address.ip() && target.scope == first.scope;
        let seconds = usable.iter().filter(is_second).copied();
        let second = seconds.min_by_key(|target| (failures(target.address), target.is_same_party(&first)));
        let is_thorough = self.is_thorough_due || self.rounds.is_multiple_of(THOROUGH_EVERY);
        self.is_thorough_due = false;
        self.rounds = self.rounds.wrapping_add(1);
        if is_thorough {
            self.last_thorough = Some(now);
        }
        self.round = Some(Round::new(first, second, is_thorough, now));
        for worker in 0..self.ports {
            self.ask(Kind::First, worker, first.address_for(worker), None, Change::default(), now, draw);
            if let Some(second) = second {
                self.ask(Kind::Second, worker, second.address_for(worker), None, Change::default(), now, draw);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all of them are the question")]
    pub(super) fn ask(
        &mut self,
        kind: Kind,
        worker: u8,
        to: SocketAddr,
        from: Option<SocketAddr>,
        change: Change,
        now: Instant,
        draw: &mut dyn FnMut() -> TransactionId,
    ) {
        let from = from.unwrap_or(to);
        let question = Question { kind, worker, to, from, change, sends: 0, first_sent: now, due: now, order: 0 };
        self.questions.insert(draw(), question);
    }

    /// A question has ended; `heard` is `None` for a refusal. What it made possible is asked next.
    fn conclude(
        &mut self,
        question: &Question,
        heard: Option<Heard>,
        other: Option<SocketAddr>,
        now: Instant,
        draw: &mut dyn FnMut() -> TransactionId,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.is_thorough) else { return };
        match question.kind {
            Kind::FilterPort => round.filter_port = heard,
            Kind::FilterBoth => round.filter_both = heard,
            // Somebody else may have answered: only that it arrives counts.
            Kind::Hairpin => _ = round.hairpins.get_or_insert(false),
            _ => {}
        }
        let asked = if question.kind == Kind::Second { round.second } else { Some(round.first) };
        let to = question.to;
        let usable = asked.zip(other).filter(|(server, other)| is_usable(server, to, *other));
        let Some((server, other)) = usable else { return };
        let beside = SocketAddr::new(to.ip(), other.port());
        let (is_one_port, has_second) = (self.ports == 1, round.second.is_some());
        let is_fresh = |from: SocketAddr| {
            let sent = self.sent_to.get(&(question.worker, from));
            sent.is_none_or(|at| now.saturating_duration_since(*at) >= FORGOTTEN)
        };
        let tells = server.tests_filtering && is_fresh(beside);
        let tells_both = tells && other.ip() != to.ip() && is_fresh(other);
        let is_first = question.kind == Kind::First;
        if is_first && question.worker == 0 && tells {
            self.ask(Kind::FilterPort, 0, to, Some(beside), Change::PORT, now, draw);
            if tells_both {
                self.ask(Kind::FilterBoth, 0, to, Some(other), Change::BOTH, now, draw);
            }
        }
        // Never where an answer from elsewhere was asked for: a NAT that has turned it away may remember it, and map what
        // goes there to another port for that alone (Linux does).
        let is_other_port_due = match question.kind {
            Kind::First if is_one_port => !has_second && !tells,
            Kind::First => question.worker + 1 == self.ports,
            Kind::Second => is_one_port,
            _ => false,
        };
        if is_other_port_due {
            if let Some(round) = &mut self.round {
                round.compared = Some((question.worker, question.kind));
            }
            self.ask(Kind::OtherPort, question.worker, beside, None, Change::default(), now, draw);
        }
    }

    pub(super) fn end_if_done(&mut self, now: Instant, draw: &mut dyn FnMut() -> TransactionId) {
        // What we ask ourselves holds up nothing else.
        if !self.asks_only_itself() {
            return;
        }
        self.look(true);
        self.ask_ourselves(now, draw);
        if !self.questions.is_empty() {
            return;
        }
        self.forget_hairpins_unless_asked();
        let Some(round) = self.round.take() else { return };
        self.judge_servers(&round, now);
        if round.answers.is_empty() {
            self.silent_rounds += 1;
            if self.silent_rounds >= SILENT_ROUNDS_MAX {
                self.forget();
            }
        } else {
            self.silent_rounds = 0;
        }
        let next = match (self.view.servers_answered, self.view.mapping) {
            // The others, if there are any; else the first that may be asked again.
            (0, _) => {
                let soonest = self.servers.iter().map(|server| server.retry_at.unwrap_or(now)).min();
                soonest.unwrap_or(now + REFRESH).max(now + SOON)
            }
            _ if round.changed > 0 => {
                self.is_thorough_due = true;
                self.last_thorough.map_or(now, |at| at + THOROUGH_PAUSE).max(now + SOON)
            }
            (_, Mapping::None) => round.started + WATCH,
            _ => round.started + REFRESH,
        };
        self.is_thorough_due |= self.view.mapping == Mapping::None;
        self.next_round = Some(next.max(now));
    }

    /// Nobody answers any more: what was known says nothing of what is.
    fn forget(&mut self) {
        let before = self.view.clone();
        let view = &mut self.view;
        (view.scope, view.is_translated) = (None, None);
        (view.mapping, view.filtering, view.is_mapping_certain) = (Mapping::Unknown, Filtering::Unknown, false);
        (view.keeps_ports, view.port_step, view.hairpins, view.rtt_us) = (None, None, None, None);
        view.ports.iter_mut().for_each(|port| port.mapped = None);
        self.news.is_changed |= before != self.view;
    }

    fn judge_servers(&mut self, round: &Round, now: Instant) {
        for (target, kind) in [(Some(round.first), Kind::First), (round.second, Kind::Second)] {
            let Some(target) = target else { continue };
            let has_answered = round.answers.keys().any(|(_, of)| *of == kind);
            let server = self.servers.iter_mut().find(|server| server.target.address == target.address);
            let Some(server) = server else { continue };
            if has_answered {
                (server.failures, server.retry_at) = (0, None);
            } else {
                let pause = RETRY_MIN.saturating_mul(1 << server.failures.min(8)).min(RETRY_MAX);
                server.retry_at = Some(now + pause);
                server.failures = server.failures.saturating_add(1);
            }
        }
    }

    /// How many mappings are others than the same server saw before.
    fn compare(&mut self, round: &Round) -> u64 {
        let mut changed = 0;
        for ((worker, kind), (mapped, _)) in &round.answers {
            let target = match kind {
                Kind::First => round.first,
                Kind::Second => round.second.unwrap_or(round.first),
                _ => continue,
            };
            let before = self.known.insert((*worker, target.address), *mapped);
            changed += u64::from(before.is_some_and(|before| before != *mapped));
        }
        let servers = &self.servers;
        self.known.retain(|(_, address), _| servers.iter().any(|server| server.target.address == *address));
        changed
    }
}

/// Whether a server may name this as its other address: a peer only another port, as it could make us send anywhere.
fn is_usable(server: &Target, asked: SocketAddr, other: SocketAddr) -> bool {
    other.port() != 0
        && other.port() != asked.port()
        && other.is_ipv4() == asked.is_ipv4()
        && (other.ip() == asked.ip() || !server.is_peer && is_elsewhere(other.ip()))
}

fn is_elsewhere(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

/// How far away an address is that we are not directly connected to.
pub(super) fn scope_of(ip: IpAddr) -> Scope {
    if is_local_use(ip) { Scope::Private } else { Scope::Internet }
}
