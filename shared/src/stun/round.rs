//! One round of questions, and what its answers say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::client::Target;
use super::nat::{Filtering, HostView, Mapping, port_step};

/// What a question is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// What server A sees.
    First,
    /// What server B sees.
    Second,
    /// What one of them sees at its other port.
    OtherPort,
    /// Whether server A's other port is let in.
    FilterPort,
    /// Whether its other address is.
    FilterBoth,
    /// Whether what we send to our own outside address comes back to us.
    Hairpin,
}

impl Kind {
    /// Whether the answer tells how our ports are mapped.
    pub(super) fn is_about_mapping(self) -> bool {
        matches!(self, Self::First | Self::Second | Self::OtherPort)
    }
}

/// How a question about filtering has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    Answer,
    Nothing,
}

pub(super) struct Round {
    pub(super) started: Instant,
    pub(super) first: Target,
    pub(super) second: Option<Target>,
    pub(super) is_thorough: bool,
    /// How many questions have left.
    pub(super) sent: u32,
    /// What was seen of a worker's port, and as which of the round's questions it was asked.
    pub(super) answers: BTreeMap<(u8, Kind), (SocketAddr, u32)>,
    /// The answer that the one of the other port is to be compared with.
    pub(super) compared: Option<(u8, Kind)>,
    pub(super) filter_port: Option<Heard>,
    pub(super) filter_both: Option<Heard>,
    /// Whether one of the questions to ourselves has arrived.
    pub(super) hairpins: Option<bool>,
    pub(super) has_asked_ourselves: bool,
    /// The smallest.
    pub(super) rtt: Option<Duration>,
    /// Mappings that are others than they were.
    pub(super) changed: u64,
}

impl Round {
    pub(super) fn new(first: Target, second: Option<Target>, is_thorough: bool, started: Instant) -> Self {
        Self {
            started,
            first,
            second,
            is_thorough,
            sent: 0,
            answers: BTreeMap::new(),
            compared: None,
            filter_port: None,
            filter_both: None,
            hairpins: None,
            has_asked_ourselves: false,
            rtt: None,
            changed: 0,
        }
    }

    fn seen(&self, worker: u8, kind: Kind) -> Option<SocketAddr> {
        self.answers.get(&(worker, kind)).map(|(mapped, _)| *mapped)
    }

    /// What two parties alike have seen of a worker's port.
    pub(super) fn agreed(&self, worker: u8) -> Option<SocketAddr> {
        let is_one_party = self.second.is_none_or(|second| second.is_same_party(&self.first));
        let told = self.seen(worker, Kind::First).filter(|_| !is_one_party);
        told.filter(|told| self.seen(worker, Kind::Second) == Some(*told))
    }

    /// Says where our ports are seen. What was not answered stays as it was.
    pub(super) fn tell_ports(&self, view: &mut HostView) {
        if self.answers.is_empty() {
            return;
        }
        view.scope = Some(self.first.scope);
        view.rtt_us = self.rtt.map(|rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)).or(view.rtt_us);
        for port in &mut view.ports {
            let mapped = self.seen(port.worker, Kind::First).or(self.seen(port.worker, Kind::Second));
            port.mapped = mapped.or(port.mapped);
        }
        let locals: BTreeMap<u8, SocketAddr> = local_ports(view);
        let is_same =
            |((worker, _), (mapped, _)): (&(u8, Kind), &(SocketAddr, u32))| locals.get(worker) == Some(mapped);
        view.is_translated = Some(!self.answers.iter().all(is_same));
    }

    /// Says all that a round which is over says.
    pub(super) fn tell(&self, view: &mut HostView) {
        let count = |kind| u8::from(self.answers.keys().any(|(_, of)| *of == kind));
        view.servers_asked = 1 + u8::from(self.second.is_some());
        view.servers_answered = count(Kind::First) + count(Kind::Second);
        view.is_silent = view.servers_answered == 0;
        if view.is_silent {
            return;
        }
        self.tell_ports(view);
        self.tell_mapping(view);
        let filtering = match (self.filter_port, self.filter_both) {
            (_, Some(Heard::Answer)) => Filtering::EndpointIndependent,
            (Some(Heard::Answer), Some(Heard::Nothing)) => Filtering::AddressDependent,
            (Some(Heard::Answer), None) => Filtering::AddressDependentOrLess,
            (Some(Heard::Nothing), _) => Filtering::AddressAndPortDependent,
            _ => view.filtering,
        };
        view.filtering = filtering;
        if view.mapping != Mapping::EndpointIndependent {
            view.hairpins = None;
        } else {
            view.hairpins = self.hairpins.or(view.hairpins);
        }
    }

    /// Says how our ports are mapped.
    pub(super) fn tell_mapping(&self, view: &mut HostView) {
        let is_translated = view.is_translated == Some(true);
        let told = if is_translated { self.mapping(view.ports.len()) } else { Some((Mapping::None, true)) };
        if let Some((mapping, is_certain)) = told {
            // A plain round tells less; what a thorough one found out stands until something contradicts it.
            let is_known =
                !self.is_thorough && mapping == Mapping::AddressAndPortDependent && view.mapping.is_symmetric();
            if !is_known {
                (view.mapping, view.is_mapping_certain) = (mapping, is_certain);
            }
        }
        let locals = local_ports(view);
        let keeps = |((worker, _), (mapped, _)): (&(u8, Kind), &(SocketAddr, u32))| {
            locals.get(worker).is_some_and(|local| local.port() == mapped.port())
        };
        view.keeps_ports = is_translated.then(|| self.answers.iter().all(keeps));
        view.port_step = None;
        if view.mapping.is_symmetric() {
            let mut ports: Vec<_> = self.answers.values().map(|(mapped, order)| (*order, mapped.port())).collect();
            ports.sort_unstable();
            let mut made = Vec::new();
            for (_, port) in ports {
                // A mapping that serves two questions was made once.
                if !made.contains(&port) {
                    made.push(port);
                }
            }
            view.port_step = port_step(&made);
        }
    }

    /// How a NAT maps, and whether two addresses have said it; `None` if the answers do not tell.
    fn mapping(&self, ports: usize) -> Option<(Mapping, bool)> {
        let both = |worker| Some((self.seen(worker, Kind::First)?, self.seen(worker, Kind::Second)?));
        let both: Vec<_> = (0..ports as u8).filter_map(both).collect();
        let differs_by_port = self
            .compared
            .and_then(|(worker, kind)| Some(self.seen(worker, kind)? != self.seen(worker, Kind::OtherPort)?));
        match (both.iter().any(|(first, second)| first != second), differs_by_port) {
            (_, Some(true)) => Some((Mapping::AddressAndPortDependent, true)),
            (true, Some(false)) => Some((Mapping::AddressDependent, true)),
            // Every port of a server might see another one, and most often does.
            (true, None) => Some((Mapping::AddressAndPortDependent, false)),
            (false, by_port) if !both.is_empty() || by_port.is_some() => {
                Some((Mapping::EndpointIndependent, !both.is_empty()))
            }
            (false, _) => None,
        }
    }
}

/// Our own addresses and ports, by worker.
fn local_ports(view: &HostView) -> BTreeMap<u8, SocketAddr> {
    view.ports.iter().map(|port| (port.worker, SocketAddr::new(view.local, port.local_port))).collect()
}
