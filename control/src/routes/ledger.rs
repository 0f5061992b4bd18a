//! What the kernel has been told of the networks behind peers, and what it is to be told next. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use ringlane_shared::limits::DETOURS_MAX;

/// Where the kernel has a route of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Placement {
    /// In the main table, as anybody's.
    Main,
    /// In a table of our own, which our own underlay traffic does not look into: the route covers what it has to reach.
    Detour,
}

/// One thing to tell the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Add(IpNet, Placement),
    Remove(IpNet, Placement),
}

/// The kernel's routes to networks behind peers, as far as we know.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    installed: BTreeMap<IpNet, Placement>,
}

impl Ledger {
    /// Whether the kernel has a route to this prefix.
    pub(crate) fn has(&self, prefix: IpNet) -> bool {
        self.installed.contains_key(&prefix)
    }

    /// The prefixes of one placement.
    pub(crate) fn placed(&self, placement: Placement) -> impl Iterator<Item = IpNet> {
        self.installed.iter().filter(move |(_, placed)| **placed == placement).map(|(prefix, _)| *prefix)
    }

    /// Whether a detour of this family stands.
    pub(crate) fn has_detour(&self, ipv4: bool) -> bool {
        self.placed(Placement::Detour).any(|prefix| prefix.addr().is_ipv4() == ipv4)
    }

    /// What is missing of `wanted`. A prefix that stands in the wrong place is added in the right one before it is
    /// removed from the other, so that there is always one of them.
    ///
    /// `underlay` are addresses that our own traffic has to reach; one on a connected network needs no detour, as the
    /// kernel prefers that network's route.
    pub(crate) fn missing(
        &self,
        wanted: impl IntoIterator<Item = IpNet>,
        underlay: &BTreeSet<IpAddr>,
        connected: &[(IpNet, String)],
    ) -> Vec<Step> {
        let mut detours = 0;
        let mut steps = Vec::new();
        for prefix in wanted {
            let mut placement = placement(prefix, underlay, connected);
            // A detour costs every packet of the host a look at its rules.
            detours += usize::from(placement == Placement::Detour);
            if detours > DETOURS_MAX {
                placement = Placement::Main;
            }
            match self.installed.get(&prefix) {
                Some(placed) if *placed == placement => {}
                Some(placed) => steps.extend([Step::Add(prefix, placement), Step::Remove(prefix, *placed)]),
                None => steps.push(Step::Add(prefix, placement)),
            }
        }
        steps
    }

    /// What is there and not among `wanted`.
    pub(crate) fn surplus(&self, wanted: impl IntoIterator<Item = IpNet>) -> Vec<Step> {
        let wanted: BTreeSet<IpNet> = wanted.into_iter().collect();
        let surplus = self.installed.iter().filter(|(prefix, _)| !wanted.contains(prefix));
        surplus.map(|(prefix, placement)| Step::Remove(*prefix, *placement)).collect()
    }

    /// The kernel has done a step.
    pub(crate) fn note(&mut self, step: Step) {
        match step {
            Step::Add(prefix, placement) => {
                self.installed.insert(prefix, placement);
            }
            Step::Remove(prefix, placement) => {
                if self.installed.get(&prefix) == Some(&placement) {
                    self.installed.remove(&prefix);
                }
            }
        }
    }
}

fn placement(prefix: IpNet, underlay: &BTreeSet<IpAddr>, connected: &[(IpNet, String)]) -> Placement {
    let on_a_wire = |address: &&IpAddr| {
        connected.iter().any(|(network, _)| network.prefix_len() > prefix.prefix_len() && network.contains(*address))
    };
    let covers = || underlay.iter().filter(|address| prefix.contains(*address)).any(|address| !on_a_wire(&address));
    if prefix.prefix_len() == 0 || covers() { Placement::Detour } else { Placement::Main }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(prefix: &str) -> IpNet {
        prefix.parse().unwrap()
    }

    #[test]
    fn what_covers_the_way_to_a_peer_is_a_detour_unless_the_peer_is_on_a_wire_of_ours() {
        let underlay: BTreeSet<IpAddr> =
            ["203.0.113.5", "10.201.0.2", "2001:db8::5"].map(|ip| ip.parse().unwrap()).into();
        let connected = [(net("10.201.0.0/24"), "eth0".to_owned())];
        for (prefix, expected) in [
            ("0.0.0.0/0", Placement::Detour),
            ("::/0", Placement::Detour),
            ("203.0.113.0/24", Placement::Detour),
            ("2001:db8::/32", Placement::Detour),
            ("10.0.0.0/8", Placement::Main),
            ("198.51.100.0/24", Placement::Main),
        ] {
            assert_eq!(placement(net(prefix), &underlay, &connected), expected, "{prefix}");
        }
        assert_eq!(placement(net("10.0.0.0/8"), &underlay, &[]), Placement::Detour);
    }

    #[test]
    fn a_route_moves_by_being_added_first_and_an_unwanted_one_goes() {
        let (mut ledger, nobody) = (Ledger::default(), BTreeSet::new());
        let wanted = [net("203.0.113.0/24"), net("10.0.0.0/8")];
        for step in ledger.missing(wanted, &nobody, &[]) {
            ledger.note(step);
        }
        assert!(ledger.missing(wanted, &nobody, &[]).is_empty() && ledger.surplus(wanted).is_empty());
        let peer = BTreeSet::from(["203.0.113.5".parse().unwrap()]);
        let steps = ledger.missing(wanted, &peer, &[]);
        let moved = net("203.0.113.0/24");
        assert_eq!(steps, [Step::Add(moved, Placement::Detour), Step::Remove(moved, Placement::Main)]);
        steps.into_iter().for_each(|step| ledger.note(step));
        assert!(ledger.has(moved) && ledger.has_detour(true) && !ledger.has_detour(false));
        assert_eq!(ledger.placed(Placement::Main).collect::<Vec<_>>(), [net("10.0.0.0/8")]);
        assert_eq!(ledger.surplus([net("10.0.0.0/8")]), [Step::Remove(moved, Placement::Detour)]);
    }

    #[test]
    fn the_number_of_detours_is_bounded() {
        let underlay = BTreeSet::from(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let nets = (0..=64).map(|length| IpNet::new("fd00::1".parse().unwrap(), length).unwrap().trunc());
        let steps = Ledger::default().missing(nets, &underlay, &[]);
        let detours = steps.iter().filter(|step| matches!(step, Step::Add(_, Placement::Detour))).count();
        assert_eq!(detours, DETOURS_MAX);
    }
}
