//! What stands between a node and the internet, as data: every kind of place a node can be in, and the gateways it is
//! made of, in the words of RFC 4787. `rules` makes nftables of them, and `behaviour` proves that these do as is said here.

/// Where a node is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// On the internet itself, IPv4 and IPv6, nothing in between.
    Public,
    /// Behind a NAT that lets everybody in to a port once something has left by it.
    FullCone,
    /// Behind a NAT that lets in whoever has the address of somebody that was sent something.
    AddressRestricted,
    /// Behind a NAT that lets in only answers, and keeps ports: a Linux router's masquerading.
    PortRestricted,
    /// Behind a NAT that has another port, at random, for every destination.
    Symmetric,
    /// The same, each port being the one after the last.
    SymmetricSequential,
    /// Behind two NATs that let in only answers.
    DoubleNat,
    /// Behind a home's NAT, behind a provider's, with 100.64.0.0/10 between them.
    Cgnat,
    /// Behind a NAT that passes no UDP.
    UdpBlocked,
    /// Behind a NAT that passes nothing but TCP to port 443.
    Tcp443Only,
    /// With IPv6 only, behind a firewall that lets in only answers.
    Ipv6Only,
    /// With IPv6 behind such a firewall, and IPv4 behind a NAT that lets in only answers.
    Ipv6AndNat,
}

/// How a NAT chooses its outside port for one inside (RFC 4787, section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mapping {
    /// The inside port itself, whatever the destination.
    Same,
    /// Another port, the same for every destination.
    Other,
    /// Another port for every destination, at random.
    Random,
    /// Another port for every destination, the one after the last.
    Next,
}

/// Whom a NAT lets in to an outside port (RFC 4787, section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Filtering {
    /// Everybody.
    Independent,
    /// Whoever has an address that was sent something from this port.
    Address,
    /// Whoever has an address and port that was sent something from this port.
    AddressAndPort,
}

/// What a gateway passes at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passes {
    Everything,
    NoUdp,
    OnlyTcp443,
}

/// One router with a NAT for IPv4, and for IPv6 a firewall that lets in only answers. What it does not let in it drops
/// without a word, also what is for itself: a mapping that is asked for too early must not take its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gateway {
    pub(crate) mapping: Mapping,
    pub(crate) filtering: Filtering,
    pub(crate) passes: Passes,
    /// Whether two inside reach each other by outside addresses, with outside sources (RFC 4787, section 6).
    pub(crate) hairpins: bool,
    /// The first three numbers of its inside network; it is number 1 there.
    pub(crate) inside: [u8; 3],
}

/// A home's router.
const HOME: Gateway = Gateway {
    mapping: Mapping::Same,
    filtering: Filtering::AddressAndPort,
    passes: Passes::Everything,
    hairpins: false,
    inside: [192, 168, 1],
};

/// The NAT that two nodes share: as permissive as NATs are, so that nothing but hairpinning is missing.
pub(crate) const SHARED: Gateway = Gateway { mapping: Mapping::Other, filtering: Filtering::Independent, ..HOME };

impl Kind {
    pub(crate) const ALL: [Self; 12] = [
        Self::Public,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::SymmetricSequential,
        Self::DoubleNat,
        Self::Cgnat,
        Self::UdpBlocked,
        Self::Tcp443Only,
        Self::Ipv6Only,
        Self::Ipv6AndNat,
    ];

    /// As tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::SymmetricSequential => "symmetric, sequential",
            Self::DoubleNat => "double NAT",
            Self::Cgnat => "CGNAT and home",
            Self::UdpBlocked => "UDP blocked",
            Self::Tcp443Only => "TCP 443 only",
            Self::Ipv6Only => "IPv6 only",
            Self::Ipv6AndNat => "IPv6 and NAT",
        }
    }

    /// What is between the node and the internet, the node's own gateway first.
    pub(crate) fn gateways(self) -> Vec<Gateway> {
        match self {
            Self::Public => vec![],
            Self::FullCone => {
                vec![Gateway { mapping: Mapping::Other, filtering: Filtering::Independent, ..HOME }]
            }
            Self::AddressRestricted => vec![Gateway { filtering: Filtering::Address, ..HOME }],
            Self::PortRestricted | Self::Ipv6Only | Self::Ipv6AndNat => vec![HOME],
            Self::Symmetric => vec![Gateway { mapping: Mapping::Random, ..HOME }],
            Self::SymmetricSequential => vec![Gateway { mapping: Mapping::Next, ..HOME }],
            Self::DoubleNat => vec![HOME, Gateway { inside: [192, 168, 0], ..HOME }],
            // RFC 6888 wants a provider's NAT to be independent of endpoints in both.
            Self::Cgnat => vec![HOME, Gateway { inside: [100, 72, 7], ..SHARED }],
            Self::UdpBlocked => vec![Gateway { passes: Passes::NoUdp, ..HOME }],
            Self::Tcp443Only => vec![Gateway { passes: Passes::OnlyTcp443, ..HOME }],
        }
    }

    pub(crate) fn has_v4(self) -> bool {
        self != Self::Ipv6Only
    }

    pub(crate) fn has_v6(self) -> bool {
        matches!(self, Self::Public | Self::Ipv6Only | Self::Ipv6AndNat)
    }
}

/// Where two nodes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pair {
    /// Each in a place of its own.
    Apart(Kind, Kind),
    /// Behind one NAT, in networks that it keeps apart.
    SameNat {
        /// Whether it takes them to each other by its outside addresses.
        hairpins: bool,
    },
    /// In one network behind one NAT.
    SameLan,
}
