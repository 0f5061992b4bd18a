//! What one gateway is asked for, and what it has granted: a state machine without a clock or a socket.
//!
//! ```text
//! search:   PCP --no answer--> NAT-PMP --no answer--> UPnP --no answer--> rest, longer each time, and again
//!            \________________ any answer ________________/
//!                                   v
//! settled:  each wanted port   wanted --asked, granted--> granted --half of the lifetime--> asked again
//!                              ^   |                         |  gateway restarted, lifetime over
//!                              |   +--refused--> again, later <---+
//!           every 20 s         is it still there, has it started again, what is its address outside?
//!           silence            search again; what was granted stands until its lifetime is over
//! ```
//! One question is under way at a time, as RFC 6886 asks for (section 3.1). No port is asked for twice within 4 s (RFC
//! 6887, section 11.2.1), whatever the gateway answers, so a hostile one cannot make us busy.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ringlane_shared::limits::PORT_MAPPINGS_PER_GATEWAY_MAX;
use ringlane_shared::wire::pcp::Transport;

/// What mappings are asked to last: RFC 6886's recommendation, in seconds.
pub(crate) const LIFETIME_SECONDS: u32 = 7200;
/// What a mapping is taken to last at most (RFC 6887, section 15).
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Between two questions about the same port.
const ASK_INTERVAL: Duration = Duration::from_secs(4);
/// Between two looks at whether the gateway is still what it was.
const CHECK_INTERVAL: Duration = Duration::from_secs(20);
/// Between two restarts of the gateway that are believed.
const RESTART_INTERVAL: Duration = Duration::from_secs(10);
/// Until a refused port is asked for again, and until a gateway that answers nothing is: the first time, doubled each time.
const REST_MIN: Duration = Duration::from_secs(15);
/// And at most.
const REST_MAX: Duration = Duration::from_secs(15 * 60);
/// Until a datagram is sent again: the first time, doubled each time.
const RESEND_FIRST: Duration = Duration::from_millis(250);
/// Datagrams sent in vain before a protocol is given up: in a search, of a gateway that has spoken it, and at the end.
const SENDS: [u32; 3] = [3, 5, 2];
/// How long a question over HTTP may take; the shell's own limits are shorter.
const HTTP_LIMIT: Duration = Duration::from_secs(12);

/// How a gateway is spoken with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Method {
    Pcp,
    NatPmp,
    Upnp,
}

impl Method {
    /// In the order they are tried.
    pub(crate) const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];
    /// Those that open pinholes for IPv6.
    pub(crate) const IPV6: [Self; 1] = [Self::Pcp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

/// A port of ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Port {
    pub(crate) transport: Transport,
    pub(crate) internal: u16,
}

/// What to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Question {
    /// Who and where are you? What the address outside is, and the epoch, are part of the answer.
    Check,
    /// For UPnP, `external` must not be 0.
    Map {
        port: Port,
        external: (Option<IpAddr>, u16),
        lifetime: u32,
    },
    Unmap {
        port: Port,
        external: u16,
    },
}

/// A question, and in what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) question: Question,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// To [`Question::Check`]. UPnP's epoch is the uptime of its connection, and may be unknown.
    Alive { epoch: Option<u32>, external: Option<IpAddr> },
    /// To [`Question::Map`]. Only PCP knows the address; a lifetime of 0 is a refusal.
    Mapped { external: (Option<IpAddr>, u16), lifetime: u32, epoch: Option<u32> },
    /// To [`Question::Unmap`], whatever became of it.
    Unmapped,
    /// To either, in words, and for how many seconds the answer will not change, if the gateway says so.
    Refused { reason: String, seconds: u32 },
    /// The gateway does not speak this at all.
    Unsupported,
    /// It did not answer in time. Only the shell's HTTP says so; silence of datagrams is noticed here.
    Silent,
}

/// A mapping that stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grant {
    pub(crate) method: Method,
    ip: Option<IpAddr>,
    pub(crate) external: u16,
    pub(crate) lifetime: Duration,
    renew_at: Instant,
    pub(crate) expires_at: Instant,
}

/// One wanted port.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    grant: Option<Grant>,
    /// The external port to ask for.
    preferred: u16,
    /// When to ask at the earliest.
    ask_at: Instant,
    /// Refusals in a row.
    refusals: u32,
    refusal: Option<String>,
    renewals: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Nobody answers anything, or everything is refused.
    Resting {
        until: Instant,
    },
    /// The methods from this position on are tried.
    Trying(usize),
    Settled(usize),
    /// All that was granted is given back.
    Leaving,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    ask: Ask,
    sends: u32,
    /// When to send again, or to give up.
    deadline: Instant,
}

/// What is to be told of one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mapping<'b> {
    pub(crate) port: Port,
    pub(crate) grant: Option<Grant>,
    /// Where it is reached, if there is a grant and the gateway knows its address.
    pub(crate) external: Option<(IpAddr, u16)>,
    pub(crate) refusal: Option<&'b str>,
    pub(crate) renewals: u64,
}

/// The books of one gateway. Owner: its session, on the control thread.
#[derive(Debug)]
pub(crate) struct Book {
    methods: &'static [Method],
    entries: BTreeMap<Port, Entry>,
    /// Granted, and not wanted any more.
    unwanted: Vec<(Port, Grant)>,
    phase: Phase,
    pending: Option<Pending>,
    /// The method that answered last.
    settled_on: Option<Method>,
    external: Option<IpAddr>,
    epoch: Option<(u32, Instant)>,
    restarted_at: Option<Instant>,
    restarts: u64,
    check_at: Instant,
    checked_at: Option<Instant>,
    rests: u32,
}

impl Book {
    pub(crate) fn new(methods: &'static [Method], now: Instant) -> Self {
        Self {
            methods,
            entries: BTreeMap::new(),
            unwanted: Vec::new(),
            phase: Phase::Trying(0),
            pending: None,
            settled_on: None,
            external: None,
            epoch: None,
            restarted_at: None,
            restarts: 0,
            check_at: now,
            checked_at: None,
            rests: 0,
        }
    }

    /// Wants exactly these ports, at most [`PORT_MAPPINGS_PER_GATEWAY_MAX`].
    pub(crate) fn set_wanted(&mut self, ports: impl IntoIterator<Item = Port>, now: Instant) {
        let mut old = std::mem::take(&mut self.entries);
        for port in ports.into_iter().take(PORT_MAPPINGS_PER_GATEWAY_MAX) {
            let entry = old.remove(&port).unwrap_or(Entry {
                grant: None,
                preferred: port.internal,
                ask_at: now,
                refusals: 0,
                refusal: None,
                renewals: 0,
            });
            self.entries.insert(port, entry);
        }
        for (port, entry) in old {
            if let Some(grant) = entry.grant {
                self.unwanted.push((port, grant));
            }
        }
        self.unwanted.retain(|(port, _)| !self.entries.contains_key(port));
        // A port that is asked for and not wanted any more would be forgotten when it is granted.
        if let Some(Pending { ask: Ask { question: Question::Map { port, .. }, .. }, .. }) = self.pending
            && !self.entries.contains_key(&port)
        {
            self.pending = None;
        }
    }

    /// Gives everything back, as far as the gateway answers; [`Self::has_left`] says when it is done.
    pub(crate) fn leave(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        self.unwanted.extend(entries.into_iter().filter_map(|(port, entry)| Some((port, entry.grant?))));
        self.pending = None;
        self.phase = Phase::Leaving;
    }

    /// Whether there is nothing left to be given back.
    pub(crate) fn has_left(&self) -> bool {
        self.phase == Phase::Leaving && self.unwanted.is_empty() && self.pending.is_none()
    }

    /// Somebody with the gateway's address says that something has changed there: look, soon.
    pub(crate) fn look_again(&mut self, now: Instant) {
        self.check_at = self.checked_at.map_or(now, |at| now.max(at + ASK_INTERVAL)).min(self.check_at.max(now));
        if let Phase::Resting { until } = self.phase {
            self.phase = Phase::Resting { until: until.min(now + ASK_INTERVAL) };
        }
        // The clock of a gateway that restarts twice within seconds does not show it.
        for grant in self.entries.values_mut().filter_map(|entry| entry.grant.as_mut()) {
            grant.renew_at = now;
        }
    }

    /// The next thing to ask, again if need be. Call it until it has none after each call of another method, and when
    /// [`Self::poll_timeout`] is over.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Ask> {
        if let Some(pending) = self.pending {
            if now < pending.deadline {
                return None;
            }
            let sends_max = match self.phase {
                Phase::Settled(_) => SENDS[1],
                Phase::Leaving => SENDS[2],
                _ => SENDS[0],
            };
            if pending.ask.method != Method::Upnp && pending.sends < sends_max {
                return Some(self.send(pending.ask, pending.sends + 1, now));
            }
            self.handle(Reply::Silent, now);
        }
        self.expire(now);
        if let Phase::Resting { until } = self.phase
            && now >= until
        {
            self.phase = Phase::Trying(0);
        }
        let ask = match self.phase {
            Phase::Resting { .. } => None,
            Phase::Trying(_) if self.entries.is_empty() => None,
            Phase::Trying(at) => self.methods.get(at).map(|&method| Ask { method, question: Question::Check }),
            Phase::Settled(at) => self.methods.get(at).and_then(|&method| self.next_question(method, now)),
            Phase::Leaving => self.next_removal(),
        }?;
        Some(self.send(ask, 1, now))
    }

    /// When to call [`Self::poll`] again.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if let Some(pending) = &self.pending {
            return Some(pending.deadline);
        }
        let expiry = self.entries.values().filter_map(|entry| Some(entry.grant?.expires_at)).min();
        let due = match self.phase {
            Phase::Resting { until } => Some(until),
            Phase::Trying(_) | Phase::Leaving => None,
            Phase::Settled(_) => self.entries.values().map(Entry::due).chain([self.check_at]).min(),
        };
        [expiry, due].into_iter().flatten().min()
    }

    /// What is asked and not yet answered.
    pub(crate) fn pending(&self) -> Option<Ask> {
        self.pending.map(|pending| pending.ask)
    }

    /// What came of the question under way.
    pub(crate) fn handle(&mut self, reply: Reply, now: Instant) {
        let Some(Pending { ask, .. }) = self.pending.take() else { return };
        if self.phase == Phase::Leaving {
            self.handle_left(ask, &reply);
            return;
        }
        let at = match self.phase {
            Phase::Trying(at) | Phase::Settled(at) => at,
            Phase::Resting { .. } | Phase::Leaving => return,
        };
        match (ask.question, reply) {
            (Question::Unmap { port, .. }, _) => self.unwanted.retain(|(other, _)| *other != port),
            (_, Reply::Unsupported) => self.try_from(at + 1, now),
            // What has been heard of before may be there again, under another protocol perhaps.
            (_, Reply::Silent) if matches!(self.phase, Phase::Settled(_)) => self.phase = Phase::Trying(0),
            (_, Reply::Silent) => self.try_from(at + 1, now),
            (Question::Check, Reply::Alive { epoch, external }) => {
                self.settle(at, ask.method, now);
                self.handle_epoch(ask.method, epoch, now);
                self.handle_external(external, now);
            }
            // A gateway that refuses to say is there all the same.
            (Question::Check, _) => self.settle(at, ask.method, now),
            (Question::Map { port, .. }, Reply::Mapped { external, lifetime, epoch })
                if lifetime > 0 && external.1 > 0 =>
            {
                self.handle_epoch(ask.method, epoch, now);
                self.handle_granted(port, ask.method, external, lifetime, now);
            }
            (Question::Map { port, .. }, Reply::Refused { reason, seconds }) => {
                self.handle_refused(port, reason, seconds, now);
            }
            (Question::Map { port, .. }, _) => {
                self.handle_refused(port, "the gateway's answer makes no sense".to_owned(), 0, now);
            }
        }
    }

    /// All wanted ports.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = Mapping<'_>> {
        self.entries.iter().map(|(port, entry)| {
            let external = entry.grant.and_then(|grant| Some((grant.ip.or(self.external)?, grant.external)));
            let refusal = entry.refusal.as_deref();
            Mapping { port: *port, grant: entry.grant, external, refusal, renewals: entry.renewals }
        })
    }

    /// How the gateway is spoken with, if it answers.
    pub(crate) fn method(&self) -> Option<Method> {
        match self.phase {
            Phase::Settled(at) => self.methods.get(at).copied(),
            _ => None,
        }
    }

    /// `searching`, `idle` (nobody answers; it is tried again later), `settled` or `leaving`.
    pub(crate) fn state(&self) -> &'static str {
        match self.phase {
            Phase::Resting { .. } => "idle",
            Phase::Trying(_) => "searching",
            Phase::Settled(_) => "settled",
            Phase::Leaving => "leaving",
        }
    }

    /// Its address outside, as it says.
    pub(crate) fn external(&self) -> Option<IpAddr> {
        self.external.or_else(|| self.entries.values().find_map(|entry| entry.grant?.ip))
    }

    /// How often it has lost its mappings.
    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }

    fn send(&mut self, ask: Ask, sends: u32, now: Instant) -> Ask {
        let wait = if ask.method == Method::Upnp { HTTP_LIMIT } else { RESEND_FIRST * (1 << (sends - 1).min(8)) };
        self.pending = Some(Pending { ask, sends, deadline: now + wait });
        ask
    }

    fn next_question(&mut self, method: Method, now: Instant) -> Option<Ask> {
        if let Some((port, grant)) = self.unwanted.first() {
            // Only who granted it can take it back.
            let question = Question::Unmap { port: *port, external: grant.external };
            return Some(Ask { method: grant.method, question });
        }
        if now >= self.check_at {
            return Some(Ask { method, question: Question::Check });
        }
        let (port, entry) =
            self.entries.iter_mut().filter(|(_, entry)| entry.due() <= now).min_by_key(|(_, entry)| entry.due())?;
        entry.ask_at = now + ASK_INTERVAL;
        let external = (entry.grant.and_then(|grant| grant.ip), entry.preferred);
        Some(Ask { method, question: Question::Map { port: *port, external, lifetime: LIFETIME_SECONDS } })
    }

    fn next_removal(&self) -> Option<Ask> {
        let (port, grant) = self.unwanted.first()?;
        Some(Ask { method: grant.method, question: Question::Unmap { port: *port, external: grant.external } })
    }

    fn handle_left(&mut self, ask: Ask, reply: &Reply) {
        match (ask.question, reply) {
            // Whoever is silent now stays so for the little time there is.
            (_, Reply::Silent) => self.unwanted.clear(),
            (Question::Unmap { port, .. }, _) => self.unwanted.retain(|(other, _)| *other != port),
            _ => {}
        }
    }

    fn settle(&mut self, at: usize, method: Method, now: Instant) {
        self.phase = Phase::Settled(at);
        self.checked_at = Some(now);
        self.check_at = now + CHECK_INTERVAL;
        if self.settled_on.replace(method) == Some(method) {
            return;
        }
        // What another protocol granted or refused says nothing about this one. Nor does its clock.
        self.epoch = None;
        for entry in self.entries.values_mut() {
            (entry.refusals, entry.ask_at) = (0, now);
            if let Some(grant) = entry.grant.as_mut().filter(|grant| grant.method != method) {
                grant.renew_at = now;
            }
        }
    }

    fn try_from(&mut self, at: usize, now: Instant) {
        if at < self.methods.len() {
            self.phase = Phase::Trying(at);
            return;
        }
        let rest = (REST_MIN * (1 << self.rests.min(8))).min(REST_MAX);
        self.rests = self.rests.saturating_add(1);
        self.phase = Phase::Resting { until: now + rest };
    }

    /// Takes note of a gateway's clock, and forgets what it has forgotten.
    fn handle_epoch(&mut self, method: Method, epoch: Option<u32>, now: Instant) {
        let Some(epoch) = epoch else { return };
        let before = self.epoch.replace((epoch, now));
        let Some((before, at)) = before else { return };
        let theirs = i64::from(epoch) - i64::from(before);
        let ours = i64::try_from(now.duration_since(at).as_secs()).unwrap_or(i64::MAX);
        let has_restarted = match method {
            // RFC 6887, section 8.5.
            Method::Pcp => theirs < -1 || ours + 2 < theirs - theirs / 16 || theirs + 2 < ours - ours / 16,
            // RFC 6886, section 3.6.
            Method::NatPmp => theirs + 2 < ours - ours / 8,
            // Not every router counts.
            Method::Upnp => theirs < 0 || theirs != 0 && theirs + 2 < ours - ours / 8,
        };
        if !has_restarted {
            return;
        }
        if self.restarted_at.is_some_and(|at| now < at + RESTART_INTERVAL) {
            // Believed later, if it is still said then.
            self.epoch = Some((before, at));
            return;
        }
        self.restarted_at = Some(now);
        self.restarts += 1;
        self.unwanted.clear();
        for entry in self.entries.values_mut() {
            entry.grant = None;
        }
    }

    fn handle_external(&mut self, external: Option<IpAddr>, now: Instant) {
        let external = external.filter(|ip| !ip.is_unspecified());
        if external.is_none() || external == self.external {
            // PCP does not say, and who cannot say now has no connection; the lifetimes will tell.
            return;
        }
        if self.external.is_some() {
            for entry in self.entries.values_mut() {
                if let Some(grant) = &mut entry.grant {
                    grant.renew_at = now;
                }
            }
        }
        self.external = external;
    }

    fn handle_granted(
        &mut self,
        port: Port,
        method: Method,
        external: (Option<IpAddr>, u16),
        lifetime: u32,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(&port) else { return };
        let lifetime = Duration::from_secs(lifetime.into()).min(LIFETIME_MAX);
        let ip = external.0.filter(|ip| !ip.is_unspecified());
        let before = entry.grant.replace(Grant {
            method,
            ip,
            external: external.1,
            lifetime,
            renew_at: now + (lifetime / 2).max(ASK_INTERVAL),
            expires_at: now + lifetime,
        });
        entry.renewals += u64::from(before.is_some());
        entry.preferred = external.1;
        (entry.refusals, entry.refusal) = (0, None);
        self.rests = 0;
        let is_other = before.is_none_or(|before| (before.ip, before.external) != (ip, external.1));
        // PCP tells the address with each mapping: one that is not the others' is news about them too.
        if is_other && ip.is_some() {
            for other in self.entries.values_mut().filter_map(|entry| entry.grant.as_mut()) {
                if other.method == Method::Pcp && other.ip != ip {
                    other.renew_at = now;
                }
            }
        }
    }

    fn handle_refused(&mut self, port: Port, reason: String, seconds: u32, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&port) {
            entry.refusals = entry.refusals.saturating_add(1);
            let rest = (REST_MIN * (1 << entry.refusals.min(9).saturating_sub(1))).min(REST_MAX);
            let said = Duration::from_secs(seconds.into()).min(REST_MAX);
            entry.ask_at = now + rest.max(said);
            entry.refusal = Some(reason);
            // Somebody else's wish for that port, perhaps.
            entry.preferred = port.internal;
            if let Some(grant) = &mut entry.grant {
                // RFC 6887, section 11.2.1: at half of what is left, each time.
                let left = grant.expires_at.saturating_duration_since(now);
                grant.renew_at = now + (left / 2).max(ASK_INTERVAL);
                entry.ask_at = grant.renew_at;
            }
        }
        let Phase::Settled(at) = self.phase else { return };
        if self.entries.values().all(|entry| entry.grant.is_none() && entry.refusals > 0) {
            self.try_from(at + 1, now);
        }
    }

    fn expire(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if entry.grant.is_some_and(|grant| now >= grant.expires_at) {
                entry.grant = None;
            }
        }
        self.unwanted.retain(|(_, grant)| now < grant.expires_at);
    }
}

impl Entry {
    fn due(&self) -> Instant {
        self.grant.map_or(self.ask_at, |grant| grant.renew_at.max(self.ask_at))
    }
}
