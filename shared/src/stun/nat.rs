//! What a NAT does, as far as answers tell: the words of RFC 4787 and RFC 5780.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// How far away the servers are that a finding rests on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// On a network that we are connected to: what lies beyond it is not seen.
    Neighbours,
    /// In private networks, beyond a router.
    Private,
    /// On the Internet.
    Internet,
}

/// Whether and how the source address and port are translated. The later one is, the harder it is to get through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// No answer has told yet.
    #[default]
    Unknown,
    /// Others see our own address and port.
    None,
    /// One port of ours looks the same to everybody.
    EndpointIndependent,
    /// Each address sees another one.
    AddressDependent,
    /// Each address and port sees another one: what is called symmetric.
    AddressAndPortDependent,
}

impl Mapping {
    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::EndpointIndependent => "endpoint_independent",
            Self::AddressDependent => "address_dependent",
            Self::AddressAndPortDependent => "address_and_port_dependent",
        }
    }

    /// Whether what a third party sees says nothing of the port that others will see.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent)
    }

    /// Whether what a third party sees is what others will see.
    pub fn is_same_to_all(self) -> bool {
        matches!(self, Self::None | Self::EndpointIndependent)
    }
}

/// Whom a NAT or firewall lets in at a port that we have sent something from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filtering {
    /// No server could tell.
    #[default]
    Unknown,
    /// Everybody.
    EndpointIndependent,
    /// Every port of an address that we have sent to, and perhaps everybody: a peer can answer from another port, but not
    /// from another address.
    AddressDependentOrLess,
    /// Every port of an address that we have sent to.
    AddressDependent,
    /// Only the address and port that we have sent to.
    AddressAndPortDependent,
}

impl Filtering {
    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "endpoint_independent",
            Self::AddressDependentOrLess => "address_dependent_or_less",
            Self::AddressDependent => "address_dependent",
            Self::AddressAndPortDependent => "address_and_port_dependent",
        }
    }
}

/// What one lane port is to others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct PortView {
    /// Whose port.
    pub worker: u8,
    /// The port.
    pub local_port: u16,
    /// What the best server sees of it; `null` if no server has answered.
    pub mapped: Option<SocketAddr>,
}

/// What one of our addresses is to others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostView {
    /// The address.
    pub local: IpAddr,
    /// Where those are that it rests on; `null` while there is no answer.
    pub scope: Option<Scope>,
    /// Servers asked in the last round.
    pub servers_asked: u8,
    /// Those that answered.
    pub servers_answered: u8,
    /// Servers were asked, and none answered anything.
    pub is_silent: bool,
    /// Whether there is a NAT; `null` while there is no answer.
    pub is_translated: Option<bool>,
    /// How ports are mapped.
    pub mapping: Mapping,
    /// Whether two addresses have answered. With one, "endpoint independent" may turn out as "address dependent".
    pub is_mapping_certain: bool,
    /// Who is let in.
    pub filtering: Filtering,
    /// Whether mapped ports are our own; `null` while there is no NAT or no answer.
    pub keeps_ports: Option<bool>,
    /// By how much the port of one new mapping exceeds that of the one before, if that is always the same.
    pub port_step: Option<i32>,
    /// Whether what one port of ours sends to the outside address of another comes to it; `null` where the last thorough round
    /// did not try that: without a NAT, with one port, where the outside port is another for each destination, where no two
    /// parties agreed on it, and where no lane may go there.
    pub hairpins: Option<bool>,
    /// Smallest round-trip time to a server.
    pub rtt_us: Option<u32>,
    /// The lane ports.
    pub ports: Vec<PortView>,
}

/// The step between ports of mappings, in the order they were asked for, if there is one: all steps are the same, or at least
/// three mappings lie so close to each other that it is no chance. Then others have come between, or some were made
/// earlier, and what all distances have in common is the step; nearly everybody who counts, counts upwards.
pub(super) fn port_step(ports: &[u16]) -> Option<i32> {
    /// Larger ones are chance.
    const STEP_MAX: i32 = 64;
    /// Three random ports are that close to each other once in 14,000 times.
    const CLOSE: u16 = 320;
    let mut steps = ports.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0]));
    let first = steps.next()?;
    if first != 0 && first.abs() <= STEP_MAX && steps.all(|step| step == first) {
        return Some(first);
    }
    let (least, most) = (*ports.iter().min()?, *ports.iter().max()?);
    if ports.len() < 3 || most - least > CLOSE {
        return None;
    }
    let common = ports.iter().fold(0, |common, port| divisor(common, port - least));
    (1..=STEP_MAX).contains(&i32::from(common)).then_some(i32::from(common))
}

fn divisor(one: u16, other: u16) -> u16 {
    if other == 0 { one } else { divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_that_all_mappings_take() {
        assert_eq!(port_step(&[1000, 1002, 1004, 1006]), Some(2));
        assert_eq!(port_step(&[1000, 999]), Some(-1));
        assert_eq!(port_step(&[1004, 1005, 1000, 1009]), Some(1), "others have come between");
        assert_eq!(port_step(&[1020, 1000, 1008]), Some(4));
        for none in [&[][..], &[1], &[5, 5], &[5, 5, 5], &[1, 2, 4000], &[1000, 40_000], &[1000, 1100, 1300]] {
            assert_eq!(port_step(none), None, "{none:?}");
        }
    }
}
