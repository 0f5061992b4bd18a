//! `ringlane netcheck`: what lies between this node and everybody else, in words.
//!
//! | Module | What it is |
//! |---|---|
//! | `mod.rs` | what each family of addresses comes to: pure but for a look at the kernel's routes |
//! | `advice.rs` | what could be better: pure |
//! | [`alone`] | finding out without a running node |
//! | `routers.rs` | whether a router maps ports, without having it map any |

pub(crate) mod advice;
pub mod alone;
mod routers;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ringlane_shared::stun::nat::{Filtering, Mapping, Scope};
use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
use socket2::Type;

use crate::admin::nat::HostStatus;
use crate::admin::netcheck::FamilyStatus;
use crate::underlay;

/// A root name server of each family: there is a route to them wherever there is one to the Internet, also where no default
/// route is. The kernel is asked for it; nothing is ever sent there.
const FAR_AWAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)), IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30))];

/// Where the kernel is asked about: no packet is ever sent there.
const ASKED_PORT: u16 = 9;

/// The way out of this host's networks in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WayOut {
    /// Our address on it.
    pub(crate) source: IpAddr,
    /// What the kernel knows it to carry.
    pub(crate) mtu_bytes: Option<u32>,
}

/// The ways out over IPv4 and IPv6, outside the tunnel, from one of our addresses by which lanes may leave.
pub(crate) fn ways_out(usable: &[IpAddr]) -> [Option<WayOut>; 2] {
    FAR_AWAY.map(|ip| {
        let remote = SocketAddr::new(ip, ASKED_PORT);
        let of_family = usable.iter().copied().filter(|ours| ours.is_ipv4() == ip.is_ipv4());
        // What the kernel would choose, or else any from which it knows a way.
        let chosen = way_to(remote, None).ok().filter(|way| usable.contains(&way.source));
        chosen.or_else(|| of_family.filter_map(|ours| way_to(remote, Some(ours)).ok()).next())
    })
}

fn way_to(remote: SocketAddr, from: Option<IpAddr>) -> io::Result<WayOut> {
    let socket: UdpSocket = {
        let socket = underlay::socket(remote, Type::DGRAM)?;
        if let Some(ours) = from {
            socket.bind(&SocketAddr::new(ours, 0).into())?;
        }
        socket.into()
    };
    socket.connect(remote)?;
    let mtu = if remote.is_ipv4() { ip_mtu(&socket) } else { ipv6_mtu(&socket) };
    Ok(WayOut { source: socket.local_addr()?.ip(), mtu_bytes: mtu.ok() })
}

/// What one family comes to.
pub(crate) fn family(is_v4: bool, way: Option<WayOut>, hosts: &[HostStatus]) -> FamilyStatus {
    let ours = || hosts.iter().filter(|host| host.view.local.is_ipv4() == is_v4);
    let mut blocked = ours().filter_map(|host| host.is_udp_blocked).peekable();
    let is_udp_blocked = blocked.peek().is_some().then(|| blocked.all(|is_blocked| is_blocked));
    // Of several addresses the one that is furthest from home.
    let told = ours().filter(|host| host.view.scope > Some(Scope::Neighbours));
    let best = told.max_by_key(|host| (host.view.scope, way.is_some_and(|way| way.source == host.view.local)));
    let ports = best.into_iter().flat_map(|host| &host.view.ports);
    let kind = match best.map(|host| &host.view) {
        None if way.is_none() => "absent",
        _ if is_udp_blocked == Some(true) => "udp_blocked",
        None => "unknown",
        Some(view) if view.is_translated == Some(true) => match (view.mapping, view.filtering) {
            (Mapping::AddressDependent | Mapping::AddressAndPortDependent, _) => "symmetric",
            (_, Filtering::EndpointIndependent) => "full_cone",
            (_, Filtering::AddressDependent) => "address_restricted",
            (_, Filtering::AddressDependentOrLess) => "address_restricted_or_less",
            (_, Filtering::AddressAndPortDependent) => "port_restricted",
            (_, Filtering::Unknown) => "cone",
        },
        Some(view) => match view.filtering {
            Filtering::EndpointIndependent => "open",
            Filtering::AddressDependent | Filtering::AddressAndPortDependent => "firewall",
            Filtering::AddressDependentOrLess | Filtering::Unknown => "no_nat",
        },
    };
    FamilyStatus {
        kind: kind.to_owned(),
        source: way.map(|way| way.source).or(best.map(|host| host.view.local)),
        mtu_bytes: way.and_then(|way| way.mtu_bytes),
        is_udp_blocked,
        is_translated: best.and_then(|host| host.view.is_translated),
        hairpins: best.and_then(|host| host.view.hairpins),
        outside: ports.filter_map(|port| port.mapped).collect(),
    }
}

#[cfg(test)]
mod tests {
    use ringlane_shared::stun::nat::{HostView, PortView};

    use super::*;

    fn host(local: &str, scope: Scope, mapping: Mapping, filtering: Filtering) -> HostStatus {
        let mapped = Some(SocketAddr::new("5.30.0.2".parse().unwrap(), 4000));
        let is_translated = mapping != Mapping::None;
        let view = HostView {
            local: local.parse().unwrap(),
            scope: Some(scope),
            servers_asked: 2,
            servers_answered: 2,
            is_silent: false,
            is_translated: Some(is_translated),
            mapping,
            is_mapping_certain: true,
            filtering,
            keeps_ports: None,
            port_step: None,
            hairpins: is_translated.then_some(false),
            rtt_us: None,
            ports: vec![PortView { worker: 0, local_port: 8100, mapped }],
        };
        HostStatus { view, is_udp_blocked: Some(false) }
    }

    #[test]
    fn the_kernel_says_what_a_way_carries_and_nothing_leads_out_from_nowhere() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let to = SocketAddr::new(loopback, ASKED_PORT);
        for from in [None, Some(loopback)] {
            let way = way_to(to, from).unwrap();
            assert_eq!(way.source, loopback);
            assert!(way.mtu_bytes.is_some_and(|bytes| bytes >= 1280), "{way:?}");
        }
        assert_eq!(ways_out(&[]), [None, None]);
        // No host sends from there.
        assert_eq!(ways_out(&["203.0.113.1".parse().unwrap()]), [None, None]);
    }

    #[test]
    fn each_kind_of_nat_has_its_name() {
        use Filtering as F;
        use Mapping as M;
        let way = Some(WayOut { source: "192.168.1.2".parse().unwrap(), mtu_bytes: Some(1500) });
        let cases = [
            (M::EndpointIndependent, F::EndpointIndependent, "full_cone"),
            (M::EndpointIndependent, F::AddressDependent, "address_restricted"),
            (M::EndpointIndependent, F::AddressDependentOrLess, "address_restricted_or_less"),
            (M::EndpointIndependent, F::AddressAndPortDependent, "port_restricted"),
            (M::Unknown, F::Unknown, "cone"),
            (M::AddressDependent, F::EndpointIndependent, "symmetric"),
            (M::AddressAndPortDependent, F::Unknown, "symmetric"),
            (M::None, F::EndpointIndependent, "open"),
            (M::None, F::AddressAndPortDependent, "firewall"),
            (M::None, F::AddressDependentOrLess, "no_nat"),
            (M::None, F::Unknown, "no_nat"),
        ];
        for (mapping, filtering, kind) in cases {
            let far = host("192.168.1.2", Scope::Internet, mapping, filtering);
            let near = host("10.0.0.1", Scope::Neighbours, M::None, F::EndpointIndependent);
            let of_other_family = host("2a01::1", Scope::Internet, M::None, F::EndpointIndependent);
            let status = family(true, way, &[near, of_other_family, far.clone()]);
            assert_eq!(status.kind, kind, "{mapping:?} {filtering:?}");
            assert_eq!(status.hairpins, (mapping != M::None).then_some(false));
            assert_eq!(status.outside, ["5.30.0.2:4000".parse().unwrap()]);
            assert_eq!((status.mtu_bytes, status.is_udp_blocked), (Some(1500), Some(false)));
            assert_eq!(family(true, None, std::slice::from_ref(&far)).kind, kind, "an answer from afar is a way out");
            let blocked = HostStatus { is_udp_blocked: Some(true), ..far };
            assert_eq!(family(true, way, &[blocked]).kind, "udp_blocked");
        }
        let near = host("192.168.1.2", Scope::Neighbours, M::None, F::Unknown);
        assert_eq!(family(true, way, &[near]).kind, "unknown", "neighbours see no NAT");
        assert_eq!(family(true, None, &[]).kind, "absent");
        let unasked = family(true, way, &[]);
        assert_eq!((unasked.kind.as_str(), unasked.is_udp_blocked), ("unknown", None));
    }
}
