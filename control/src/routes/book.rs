//! Which peers route which prefix, and which of them does at the moment. Pure.
//!
//! Of a prefix's routers the one with the lowest metric carries it, and of several with that metric the one with the
//! shortest round trip. What keeps that from flapping:
//!
//! | When | Then |
//! |---|---|
//! | the active router is unreachable and another is not | the best of the others, at once |
//! | none is reachable | nothing changes |
//! | one of a lower metric is reachable | it, once it has been reachable for `RETURN_HOLD` without a break |
//! | one of the same metric is nearer by a quarter and `RTT_MARGIN_US` | it, once that has held for `RTT_HOLD` |
//!
//! Being unreachable is settled elsewhere (all lanes silent or gone), after retries; it needs no hold of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::ROUTES_MAX;
use thiserror::Error;

/// How long a router must have been reachable before it takes a prefix back from one that works.
pub(super) const RETURN_HOLD: Duration = Duration::from_secs(10);
/// How long a router of the same metric must have been nearer before it takes a prefix over.
pub(super) const RTT_HOLD: Duration = Duration::from_secs(30);
/// By how much it must be nearer at least, in microseconds; a quarter of the active one's round trip if that is more.
pub(super) const RTT_MARGIN_US: u64 = 5_000;
/// Between two looks at round trips, where there is a choice.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Where a route was said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// In the configuration.
    Configured,
    /// By `ringlane route add`: gone when the node ends.
    Added,
}

/// One peer that routes a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Router {
    /// Who.
    pub peer: PeerIndex,
    /// The lowest is preferred.
    pub metric: u32,
    /// Who says so.
    pub origin: Origin,
}

/// What is known of a peer at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// Whether packets reach it.
    pub reachable: bool,
    /// Round trip in microseconds, if it is known.
    pub rtt_us: Option<u64>,
}

/// A line of the book.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The prefix.
    pub prefix: IpNet,
    /// Who routes it, for how much.
    pub router: Router,
    /// Whether packets go this way.
    pub active: bool,
    /// Whether nobody carries the prefix at the moment: the host is directly connected to it.
    pub withdrawn: bool,
}

/// Why the book was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RouteError {
    /// The same peer has it, with the same metric.
    #[error("{0} is already routed to this peer")]
    Exists(IpNet),
    /// Nobody has it.
    #[error("there is no route to {0}")]
    Unknown(IpNet),
    /// Others have it.
    #[error("{0} is not routed to this peer")]
    NotThere(IpNet),
    /// The book is full.
    #[error("there are {ROUTES_MAX} routes already")]
    Full,
}

#[derive(Debug)]
struct Entry {
    routers: Vec<Router>,
    active: PeerIndex,
    withdrawn: bool,
    /// A router of the active one's metric that is nearer, and since when.
    rival: Option<(PeerIndex, Instant)>,
}

/// The book. Owner: the control thread.
#[derive(Debug, Default)]
pub struct RouteBook {
    entries: BTreeMap<IpNet, Entry>,
    /// Prefixes with more than one router.
    contested: BTreeSet<IpNet>,
    /// Since when each router of a contested prefix has been reachable.
    reachable_since: BTreeMap<PeerIndex, Instant>,
    routers: usize,
    looked_at: Option<Instant>,
}

impl RouteBook {
    /// Adds a router; one that is there gets the new metric. Host bits of the prefix must be cleared.
    pub fn add(&mut self, prefix: IpNet, router: Router) -> Result<(), RouteError> {
        debug_assert_eq!(prefix, prefix.trunc());
        if let Some(entry) = self.entries.get_mut(&prefix)
            && let Some(known) = entry.routers.iter_mut().find(|known| known.peer == router.peer)
        {
            if known.metric == router.metric {
                return Err(RouteError::Exists(prefix));
            }
            *known = router;
            return Ok(());
        }
        if self.routers >= ROUTES_MAX {
            return Err(RouteError::Full);
        }
        let entry = self.entries.entry(prefix).or_insert_with(|| Entry {
            routers: Vec::new(),
            active: router.peer,
            withdrawn: false,
            rival: None,
        });
        entry.routers.push(router);
        // Before anybody has been heard of, the metric alone decides.
        if entry.routers.iter().all(|other| !self.reachable_since.contains_key(&other.peer))
            && let Some(best) = entry.routers.iter().min_by_key(|router| router.metric)
        {
            entry.active = best.peer;
        }
        if entry.routers.len() > 1 {
            self.contested.insert(prefix);
        }
        self.routers += 1;
        Ok(())
    }

    /// Takes a peer's route out, or all of a prefix. Returns whether the prefix is gone altogether.
    pub fn remove(&mut self, prefix: IpNet, peer: Option<PeerIndex>) -> Result<bool, RouteError> {
        let entry = self.entries.get_mut(&prefix).ok_or(RouteError::Unknown(prefix))?;
        let before = entry.routers.len();
        entry.routers.retain(|router| peer.is_some_and(|peer| router.peer != peer));
        if entry.routers.len() == before {
            return Err(RouteError::NotThere(prefix));
        }
        self.routers -= before - entry.routers.len();
        if entry.routers.len() < 2 {
            self.contested.remove(&prefix);
        }
        let Some(best) = entry.routers.iter().min_by_key(|router| router.metric) else {
            self.entries.remove(&prefix);
            return Ok(true);
        };
        if entry.routers.iter().all(|router| router.peer != entry.active) {
            // The next update corrects it if that one is unreachable.
            entry.active = best.peer;
            entry.rival = None;
        }
        Ok(false)
    }

    /// Has nobody carry a prefix, or its routers again. Returns whether that is a change.
    pub fn withdraw(&mut self, prefix: IpNet, withdrawn: bool) -> bool {
        let Some(entry) = self.entries.get_mut(&prefix) else { return false };
        std::mem::replace(&mut entry.withdrawn, withdrawn) != withdrawn
    }

    /// Chooses anew; `health` tells of a peer. Returns whether packets to any prefix take another way from now on.
    pub fn update(&mut self, now: Instant, health: impl Fn(PeerIndex) -> Health) -> bool {
        self.looked_at = Some(now);
        let Self { entries, contested, reachable_since, .. } = self;
        let mut told: BTreeMap<PeerIndex, Health> = BTreeMap::new();
        for prefix in contested.iter() {
            let routers = entries.get(prefix).map(|entry| entry.routers.as_slice()).unwrap_or_default();
            for router in routers {
                told.entry(router.peer).or_insert_with(|| health(router.peer));
            }
        }
        reachable_since.retain(|peer, _| told.get(peer).is_some_and(|health| health.reachable));
        for (peer, _) in told.iter().filter(|(_, health)| health.reachable) {
            reachable_since.entry(*peer).or_insert(now);
        }
        let mut changed = false;
        for prefix in contested.iter() {
            let Some(entry) = entries.get_mut(prefix) else { continue };
            let rtt_us = |peer: PeerIndex| told.get(&peer).and_then(|health| health.rtt_us);
            let chosen = entry.choose(now, reachable_since, rtt_us);
            if chosen != entry.active {
                entry.active = chosen;
                entry.rival = None;
                changed |= !entry.withdrawn;
            }
        }
        changed
    }

    /// When to call [`Self::update`] at the latest; `None` as long as there is no choice.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let looked_at = self.looked_at?;
        (!self.contested.is_empty()).then(|| looked_at + LOOK_INTERVAL)
    }

    /// Whether any prefix has several routers.
    pub fn has_choice(&self) -> bool {
        !self.contested.is_empty()
    }

    /// Every prefix that is carried, and by whom.
    pub fn active(&self) -> impl Iterator<Item = (IpNet, PeerIndex)> {
        self.entries.iter().filter(|(_, entry)| !entry.withdrawn).map(|(prefix, entry)| (*prefix, entry.active))
    }

    /// Every prefix, whether it is carried or not.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.entries.keys().copied()
    }

    /// Whether somebody routes exactly this prefix.
    pub fn contains(&self, prefix: IpNet) -> bool {
        self.entries.contains_key(&prefix)
    }

    /// Every router of every prefix.
    pub fn offers(&self) -> impl Iterator<Item = Offer> {
        self.entries.iter().flat_map(|(prefix, entry)| {
            entry.routers.iter().map(|router| Offer {
                prefix: *prefix,
                router: *router,
                active: router.peer == entry.active && !entry.withdrawn,
                withdrawn: entry.withdrawn,
            })
        })
    }
}

impl Entry {
    fn choose(
        &mut self,
        now: Instant,
        reachable_since: &BTreeMap<PeerIndex, Instant>,
        rtt_us: impl Fn(PeerIndex) -> Option<u64>,
    ) -> PeerIndex {
        // An unknown round trip is a long one.
        let cost = |router: &&Router| (router.metric, rtt_us(router.peer).unwrap_or(u64::MAX));
        let reachable = self.routers.iter().filter(|router| reachable_since.contains_key(&router.peer));
        let active = self.routers.iter().find(|router| router.peer == self.active);
        let Some(active) = active.filter(|active| reachable_since.contains_key(&active.peer)) else {
            self.rival = None;
            return reachable.min_by_key(cost).map_or(self.active, |router| router.peer);
        };

        let has_returned = |router: &&Router| {
            router.metric < active.metric
                && reachable_since.get(&router.peer).is_some_and(|since| now.duration_since(*since) >= RETURN_HOLD)
        };
        if let Some(better) = reachable.clone().filter(has_returned).min_by_key(cost) {
            return better.peer;
        }

        let is_nearer = |router: &&Router| match (rtt_us(router.peer), rtt_us(active.peer)) {
            (Some(rtt), Some(ours)) => rtt.saturating_add(RTT_MARGIN_US.max(ours / 4)) < ours,
            _ => false,
        };
        let rivals = reachable.filter(|router| router.metric == active.metric).filter(is_nearer);
        let Some(nearest) = rivals.min_by_key(cost).map(|router| router.peer) else {
            self.rival = None;
            return self.active;
        };
        match self.rival {
            Some((rival, since)) if rival == nearest => {
                if now.duration_since(since) >= RTT_HOLD {
                    return nearest;
                }
            }
            _ => self.rival = Some((nearest, now)),
        }
        self.active
    }
}

#[cfg(test)]
mod tests;
