//! Translators (RFC 4787) and a network of realms joined by them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What a mapping, or a filter, depends on besides our own end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Dependence {
    Nothing,
    Address,
    AddressAndPort,
}

impl Dependence {
    fn of(self, remote: SocketAddr) -> Option<(IpAddr, u16)> {
        match self {
            Self::Nothing => None,
            Self::Address => Some((remote.ip(), 0)),
            Self::AddressAndPort => Some((remote.ip(), remote.port())),
        }
    }

    pub fn any(random: &mut Random) -> Self {
        [Self::Nothing, Self::Address, Self::AddressAndPort][random.below(3) as usize]
    }
}

/// How a translator chooses ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    /// The host's own, while nobody else has it.
    Preserved,
    /// The next one.
    Sequential,
    Random,
}

#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub mapping: Dependence,
    pub ports: Ports,
    pub filtering: Dependence,
    pub hairpin: bool,
    /// Milliseconds after which a mapping that nothing has left by is forgotten.
    pub expiry: u64,
}

impl Kind {
    pub fn any(random: &mut Random) -> Self {
        Self {
            mapping: Dependence::any(random),
            ports: [Ports::Preserved, Ports::Sequential, Ports::Random][random.below(3) as usize],
            filtering: Dependence::any(random),
            hairpin: random.one_in(2),
            expiry: 30_000 + random.below(90_000),
        }
    }

    /// Whether others see another port at each destination.
    pub fn is_symmetric(&self) -> bool {
        self.mapping != Dependence::Nothing && self.ports != Ports::Preserved
    }
}

struct Mapped {
    inside: SocketAddr,
    towards: Option<(IpAddr, u16)>,
    /// Whom something has been sent to.
    filter: BTreeSet<(IpAddr, u16)>,
    used_at: u64,
}

/// One translator. Its outside is in the realm `parent`.
pub struct Translator {
    pub kind: Kind,
    pub outside: IpAddr,
    pub parent: usize,
    mapped: BTreeMap<u16, Mapped>,
    next_port: u16,
}

impl Translator {
    pub fn new(kind: Kind, outside: IpAddr, parent: usize, random: &mut Random) -> Self {
        Self { kind, outside, parent, mapped: BTreeMap::new(), next_port: 20_000 + random.below(20_000) as u16 }
    }

    pub fn flush(&mut self) {
        self.mapped.clear();
    }

    fn outbound(&mut self, from: SocketAddr, to: SocketAddr, now: u64, random: &mut Random) -> SocketAddr {
        let expiry = self.kind.expiry;
        self.mapped.retain(|_, mapped| now - mapped.used_at < expiry);
        let towards = self.kind.mapping.of(to);
        // Where ports are preserved, one mapping serves all destinations.
        let towards = towards.filter(|_| self.kind.ports != Ports::Preserved);
        let known = self.mapped.iter().find(|(_, mapped)| mapped.inside == from && mapped.towards == towards);
        let port = match known.map(|(port, _)| *port) {
            Some(port) => port,
            None => loop {
                let port = match self.kind.ports {
                    Ports::Preserved if !self.mapped.contains_key(&from.port()) => from.port(),
                    Ports::Preserved | Ports::Random => 1024 + random.below(60_000) as u16,
                    Ports::Sequential => {
                        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
                        self.next_port
                    }
                };
                if !self.mapped.contains_key(&port) {
                    break port;
                }
            },
        };
        let mapped = Mapped { inside: from, towards, filter: BTreeSet::new(), used_at: now };
        let mapped = self.mapped.entry(port).or_insert(mapped);
        mapped.used_at = now;
        mapped.filter.extend(self.kind.filtering.of(to));
        SocketAddr::new(self.outside, port)
    }

    fn inbound(&self, from: SocketAddr, to: u16, now: u64) -> Option<SocketAddr> {
        let mapped = self.mapped.get(&to).filter(|mapped| now - mapped.used_at < self.kind.expiry)?;
        let passes = self.kind.filtering.of(from).is_none_or(|from| mapped.filter.contains(&from));
        passes.then_some(mapped.inside)
    }
}

/// A place where addresses mean one thing. Realm 0 is the public one; every other has the translator of its number.
#[derive(Default)]
pub struct Network {
    pub translators: BTreeMap<usize, Translator>,
    /// Who has an address in a realm.
    pub hosts: BTreeMap<(usize, IpAddr), usize>,
}

impl Network {
    /// Who receives a datagram that `from`, in a realm, sends, and where it seems to come from.
    pub fn carry(
        &mut self,
        mut realm: usize,
        mut from: SocketAddr,
        mut to: SocketAddr,
        now: u64,
        random: &mut Random,
    ) -> Option<(usize, SocketAddr, SocketAddr)> {
        // Up, until somebody has the address.
        let mut last = None;
        loop {
            if let Some(host) = self.hosts.get(&(realm, to.ip())) {
                return Some((*host, from, to));
            }
            let inner = self.translators.iter().find(|(_, inner)| inner.parent == realm && inner.outside == to.ip());
            if let Some((&inside, translator)) = inner {
                if last == Some(inside) && !translator.kind.hairpin {
                    return None;
                }
                to = translator.inbound(from, to.port(), now)?;
                (realm, last) = (inside, None);
                continue;
            }
            let outer = self.translators.get_mut(&realm)?;
            from = outer.outbound(from, to, now, random);
            (realm, last) = (outer.parent, Some(realm));
        }
    }

    /// The translators between a realm and the public one, nearest first.
    pub fn chain(&self, mut realm: usize) -> Vec<usize> {
        let mut chain = Vec::new();
        while let Some(translator) = self.translators.get(&realm) {
            chain.push(realm);
            realm = translator.parent;
        }
        chain
    }
}

pub fn address(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    Ipv4Addr::new(a, b, c, d).into()
}
