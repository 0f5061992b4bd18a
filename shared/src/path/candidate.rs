//! Which pairs of an own and a foreign address are worth a probe.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use crate::limits::PROBE_PAIRS_MAX;
use crate::wire::offer::CandidateKind;

/// One way a lane could go: from an address of ours to one of the peer's. Our port follows from the lane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pair {
    /// Our address.
    pub local: IpAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
}

/// Where one of our workers' lane ports can be reached, beside the addresses of our interfaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OwnCandidate {
    /// Whose port.
    pub worker: u8,
    /// How we know of it.
    pub kind: CandidateKind,
    /// What others send to.
    pub address: SocketAddr,
}

/// Which addresses may be an end of a lane. Owner: control.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    /// Admit loopback addresses: for tests and for trials on a single machine. A peer that offers a loopback address
    /// means its own machine, never ours.
    pub allow_loopback: bool,
    /// Networks that are reached through Ringlane itself. A lane to an address in one of them would carry itself.
    pub inner_networks: Vec<IpNet>,
    /// Refuse peers' addresses in private networks; our own may well be in one.
    pub filter_private: bool,
    /// Try no ports but those that peers have named.
    pub only_named: bool,
    /// The only networks in which peers are: those that this host is directly connected to. `None` for any.
    pub lan: Option<Vec<IpNet>>,
}

/// Whether Hyprspace's `filterPrivateAddresses` is about this address: 10/8, 172.16/12, 192.168/16, 169.254/16, 127/8,
/// fe80::/10 and ::1. Neither fc00::/7 nor 100.64/10 is among them.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

/// Whether an address means something in its own network only: the private ones, those that providers share (RFC 6598), and
/// unique local ones.
pub fn is_local_use(ip: IpAddr) -> bool {
    is_private(ip)
        || match ip.to_canonical() {
            IpAddr::V4(ip) => ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64,
            IpAddr::V6(ip) => ip.is_unique_local(),
        }
}

impl AddressPolicy {
    /// Whether a lane may begin or end at this address.
    pub fn admits(&self, ip: IpAddr) -> bool {
        let ordinary = match ip {
            IpAddr::V4(ip) => ip != Ipv4Addr::BROADCAST && ip.octets()[0] != 0,
            // A link-local address means nothing without an interface, and offers carry none.
            IpAddr::V6(ip) => !ip.is_unicast_link_local() && ip.to_ipv4_mapped().is_none(),
        };
        ordinary
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && (self.allow_loopback || !ip.is_loopback())
            && !self.inner_networks.iter().any(|network| network.contains(&ip))
    }

    /// The pairs to probe, in the order of `candidates` (best first), each once, at most [`PROBE_PAIRS_MAX`].
    ///
    /// `locals` are all of our addresses: none of them is taken for a peer's.
    pub fn pairs(&self, locals: &[IpAddr], candidates: impl IntoIterator<Item = SocketAddr>) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for remote in candidates {
            if remote.port() == 0 || locals.contains(&remote.ip()) || !self.admits(remote.ip()) {
                continue;
            }
            if self.filter_private && is_private(remote.ip()) {
                continue;
            }
            if self.lan.as_ref().is_some_and(|lan| !lan.iter().any(|network| network.contains(&remote.ip()))) {
                continue;
            }
            for &local in locals {
                let pair = Pair { local, remote };
                if self.admits(local) && can_reach(local, remote.ip()) && !pairs.contains(&pair) {
                    pairs.push(pair);
                }
                if pairs.len() == PROBE_PAIRS_MAX {
                    return pairs;
                }
            }
        }
        pairs
    }
}

fn can_reach(local: IpAddr, remote: IpAddr) -> bool {
    local.is_ipv4() == remote.is_ipv4() && local.is_loopback() == remote.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_that_cannot_be_a_peers_are_never_admitted() {
        let policy = AddressPolicy { inner_networks: vec!["10.20.0.0/16".parse().unwrap()], ..Default::default() };
        for refused in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "fe80::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "10.20.3.4",
        ] {
            assert!(!policy.admits(ip(refused)), "{refused}");
        }
        for admitted in ["10.21.0.1", "192.168.1.1", "169.254.1.1", "203.0.113.9", "2001:db8::1", "fd00::1"] {
            assert!(policy.admits(ip(admitted)), "{admitted}");
        }
        assert!(AddressPolicy { allow_loopback: true, ..policy }.admits(ip("127.0.0.2")));
    }

    #[test]
    fn pairs_keep_to_one_family_and_never_lead_to_ourselves() {
        let policy = AddressPolicy { allow_loopback: true, ..Default::default() };
        let locals = [ip("10.0.0.1"), ip("2001:db8::1"), ip("127.0.0.1")];
        let candidates = [
            "10.0.0.2:8100",
            "10.0.0.1:8100",
            "10.0.0.2:0",
            "[2001:db8::2]:8100",
            "10.0.0.2:8100",
            "127.0.0.2:8100",
            "127.0.0.1:9000",
        ];
        let pairs = policy.pairs(&locals, candidates.map(|candidate| candidate.parse().unwrap()));
        let expected =
            [("10.0.0.1", "10.0.0.2:8100"), ("2001:db8::1", "[2001:db8::2]:8100"), ("127.0.0.1", "127.0.0.2:8100")];
        assert_eq!(pairs, expected.map(|(local, remote)| Pair { local: ip(local), remote: remote.parse().unwrap() }));
    }

    #[test]
    fn private_addresses_are_told_from_others_and_filtered_as_a_peers_only() {
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.9.9",
            "169.254.1.1",
            "127.0.0.1",
            "::1",
            "fe80::1",
            "febf::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_private(ip(private)), "{private}");
        }
        for public in
            ["172.32.0.1", "11.0.0.1", "100.64.0.1", "192.169.0.1", "fd00::1", "fc00::1", "fec0::1", "2001:db8::1"]
        {
            assert!(!is_private(ip(public)), "{public}");
        }
        let policy = AddressPolicy { filter_private: true, ..Default::default() };
        let remotes = ["10.0.0.2:1", "203.0.113.1:1"].map(|remote| remote.parse().unwrap());
        let pairs = policy.pairs(&[ip("10.0.0.1")], remotes);
        assert_eq!(pairs, [Pair { local: ip("10.0.0.1"), remote: "203.0.113.1:1".parse().unwrap() }]);
    }

    #[test]
    fn on_a_lan_a_peer_is_in_one_of_its_networks() {
        let policy = AddressPolicy { lan: Some(vec!["10.0.0.0/24".parse().unwrap()]), ..Default::default() };
        let remotes = ["10.0.0.2:1", "10.0.1.2:1", "203.0.113.1:1"].map(|remote| remote.parse().unwrap());
        let pairs = policy.pairs(&[ip("10.0.0.1"), ip("10.0.1.1")], remotes);
        let near = |local| Pair { local: ip(local), remote: "10.0.0.2:1".parse().unwrap() };
        assert_eq!(pairs, [near("10.0.0.1"), near("10.0.1.1")]);
    }

    #[test]
    fn the_number_of_pairs_is_bounded() {
        let locals: Vec<IpAddr> = (1..=32).map(|host| Ipv4Addr::new(10, 0, 0, host).into()).collect();
        let candidates = (1..=32).map(|host| SocketAddr::new(Ipv4Addr::new(10, 0, 1, host).into(), 8100));
        assert_eq!(AddressPolicy::default().pairs(&locals, candidates).len(), PROBE_PAIRS_MAX);
    }
}
