//! What outsiders find out about a site with nothing but UDP sockets, as RFC 5780 would, and that it is what
//! [`kinds`](super::kinds) says: else the lab would lie.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::kinds::{Filtering, Kind, Mapping, Pair};
use super::lab::{Family, NatLab, UNDERLAY, numbered, public};
use super::rules::NEXT_PORTS;
use crate::lab::{PATIENCE, SILENCE, Site, wait_for};
use crate::node::LANE_PORT;
use crate::traffic::uninterrupted;

/// Sockets on the internet: one; another port at its address; its port at another address; and somebody else.
struct Outsiders([UdpSocket; 4]);

impl Outsiders {
    fn of(nat: &NatLab, is_v6: bool) -> Self {
        let (v4, v6) = numbered(Site::R, 3);
        // Even where duplicates are not looked for, an address may be bound only when the kernel got round to not
        // looking, unless it comes with `nodad`.
        let second = if is_v6 { format!("{v6}/64 dev {UNDERLAY} nodad") } else { format!("{v4}/24 dev {UNDERLAY}") };
        nat.lab().router(Site::R).run(&format!("ip address replace {second}"));
        let at = |site, number, port| {
            let (v4, v6) = numbered(site, number);
            let address = if is_v6 { IpAddr::V6(v6) } else { IpAddr::V4(v4) };
            let bound = nat.lab().router(site).enter(|| UdpSocket::bind((address, port)));
            let socket = bound.expect("the router has the address");
            socket.set_read_timeout(Some(SILENCE)).expect("a timeout can be set");
            socket
        };
        Self([at(Site::R, 2, 3478), at(Site::R, 2, 3479), at(Site::R, 3, 3478), at(Site::S, 2, 3478)])
    }

    fn address(&self, which: usize) -> SocketAddr {
        self.0[which].local_addr().expect("a bound socket has an address")
    }

    /// Where each sees datagrams of a socket come from, if they come at all.
    fn see(&self, client: &UdpSocket) -> [Option<SocketAddr>; 4] {
        [0, 1, 2, 3].map(|which| self.sees(which, client))
    }

    fn sees(&self, which: usize, client: &UdpSocket) -> Option<SocketAddr> {
        // Neighbours that have to be found first may cost a datagram.
        (0..3).find_map(|_| {
            // That there is no route is an answer, too.
            let _ = client.send_to(b"who am I?", self.address(which));
            let mut datagram = [0; 64];
            uninterrupted(|| self.0[which].recv_from(&mut datagram)).ok().map(|(_, from)| from)
        })
    }

    /// Who is let in to a new port from which only the first was sent something.
    fn let_in(&self, client: &UdpSocket) -> [bool; 4] {
        let mapped = self.sees(0, client).expect("datagrams leave");
        // Who is asked last is let in: when that has come, all that comes has come.
        for which in [3, 2, 1, 0] {
            self.0[which].send_to(&[0], mapped).expect("an outsider has a route");
        }
        let mut let_in = [false; 4];
        while let Some(from) = received(client) {
            let which = (0..4).find(|&which| self.address(which) == from);
            let_in[which.expect("a datagram comes from where it was sent")] = true;
        }
        let_in
    }
}

/// A socket of a site's node.
fn client(nat: &NatLab, site: Site, is_v6: bool, port: u16) -> UdpSocket {
    let any = if is_v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let bound = nat.lab().router(site).enter(|| UdpSocket::bind((any, port)));
    let socket = bound.expect("the port is free");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout can be set");
    socket
}

/// Where the next datagram comes from; `None` when there is silence.
fn received(socket: &UdpSocket) -> Option<SocketAddr> {
    let mut datagram = [0; 64];
    match uninterrupted(|| socket.recv_from(&mut datagram)) {
        Ok((_, from)) => Some(from),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("receiving: {error}"),
    }
}

/// That a datagram from one socket to an address arrives at the other from where `source` says; or, if it is `None`, not at all.
fn assert_crosses(from: &UdpSocket, to: SocketAddr, at: &UdpSocket, source: Option<SocketAddr>) {
    from.send_to(&[0], to).expect("there is a route");
    assert_eq!(received(at), source, "to {to}");
}

fn classify(let_in: [bool; 4]) -> Filtering {
    match let_in {
        [true, false, false, false] => Filtering::AddressAndPort,
        [true, true, false, false] => Filtering::Address,
        [true, true, true, true] => Filtering::Independent,
        other => panic!("no filtering lets in {other:?}"),
    }
}

/// That ports were chosen in this way for one inside port.
fn assert_mapped(mapping: Mapping, inside: u16, outside: &[u16]) {
    let chosen_once = outside.iter().all(|port| *port == outside[0]);
    let steps: Vec<_> = outside.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    let fits = match mapping {
        Mapping::Same => chosen_once && outside[0] == inside,
        Mapping::Other => chosen_once && outside[0] != inside,
        Mapping::Next => outside.iter().all(|port| NEXT_PORTS.contains(port)) && steps.iter().all(|step| *step == 1),
        Mapping::Random => {
            let mut distinct = outside.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            distinct.len() == outside.len() && steps.iter().any(|step| *step != 1)
        }
    };
    assert!(fits, "{inside} was seen at {outside:?}, which is not {mapping:?}");
}

/// That a site whose kind passes UDP over IPv4 maps and filters so.
fn behaves(kind: Kind, mapping: Mapping, filtering: Filtering) {
    let Some(nat) = NatLab::up(Pair::Apart(kind, Kind::Public)) else { return };
    let outsiders = Outsiders::of(&nat, false);
    let seen = outsiders.see(&client(&nat, Site::A, false, LANE_PORT)).map(|seen| seen.expect("datagrams leave"));
    assert!(seen.iter().all(|seen| seen.ip() == public(Site::A).0), "{seen:?}");
    assert_mapped(mapping, LANE_PORT, &seen.map(|seen| seen.port()));
    let let_in = outsiders.let_in(&client(&nat, Site::A, false, LANE_PORT + 1));
    assert_eq!(classify(let_in), filtering);
    if kind != Kind::Public {
        // Nobody comes in to a port from which nothing has left.
        let silent = client(&nat, Site::A, false, LANE_PORT + 2);
        let guesses = [LANE_PORT + 2, (LANE_PORT + 2) ^ 0x4000];
        for (guess, outsider) in guesses.into_iter().zip(&outsiders.0) {
            assert_crosses(outsider, (public(Site::A).0, guess).into(), &silent, None);
        }
    }
}

/// That a site has IPv6 without translation, and lets in whom the filtering says.
fn has_v6(nat: &NatLab, filtering: Filtering) {
    let outsiders = Outsiders::of(nat, true);
    let asking = client(nat, Site::A, true, LANE_PORT);
    let seen = outsiders.see(&asking).map(|seen| seen.expect("datagrams leave"));
    assert_mapped(Mapping::Same, LANE_PORT, &seen.map(|seen| seen.port()));
    let addresses = nat.lab().router(Site::A).run("ip -6 -brief address show scope global dev underlay");
    assert!(seen.iter().all(|seen| addresses.contains(&format!("{}/", seen.ip()))), "{seen:?} of {addresses}");
    assert_eq!(classify(outsiders.let_in(&client(nat, Site::A, true, LANE_PORT + 1))), filtering);
}

/// Whether a TCP connection to a port of R opens and carries something back.
fn reaches_by_tcp(nat: &NatLab, port: u16) -> bool {
    let target = SocketAddr::from((public(Site::R).0, port));
    let listener = nat.lab().router(Site::R).enter(|| TcpListener::bind(target)).expect("the port is free");
    let opened = nat.lab().router(Site::A).enter(|| TcpStream::connect_timeout(&target, 3 * SILENCE));
    let Ok(mut near) = opened else { return false };
    let (far, _) = listener.accept().expect("an open connection can be accepted");
    drop(far);
    near.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    near.read(&mut [0; 1]).is_ok_and(|length| length == 0)
}

#[test]
fn a_public_site_is_as_it_is() {
    behaves(Kind::Public, Mapping::Same, Filtering::Independent);
    let Some(nat) = NatLab::up(Pair::Apart(Kind::Public, Kind::Public)) else { return };
    has_v6(&nat, Filtering::Independent);
}

#[test]
fn a_full_cone_has_one_other_port_and_lets_in_everybody() {
    behaves(Kind::FullCone, Mapping::Other, Filtering::Independent);
}

#[test]
fn an_address_restricted_cone_lets_in_other_ports_of_whom_it_knows() {
    behaves(Kind::AddressRestricted, Mapping::Same, Filtering::Address);
}

#[test]
fn a_port_restricted_cone_lets_in_answers_only() {
    behaves(Kind::PortRestricted, Mapping::Same, Filtering::AddressAndPort);
}

#[test]
fn a_symmetric_nat_has_a_random_port_for_each_destination() {
    behaves(Kind::Symmetric, Mapping::Random, Filtering::AddressAndPort);
}

#[test]
fn a_sequential_symmetric_nat_has_the_next_port_for_each_destination() {
    behaves(Kind::SymmetricSequential, Mapping::Next, Filtering::AddressAndPort);
}

#[test]
fn a_double_nat_lets_in_answers_only() {
    behaves(Kind::DoubleNat, Mapping::Same, Filtering::AddressAndPort);
}

#[test]
fn a_providers_nat_before_a_homes_has_one_other_port_and_lets_in_answers_only() {
    behaves(Kind::Cgnat, Mapping::Other, Filtering::AddressAndPort);
}

#[test]
fn where_udp_is_blocked_no_datagram_passes_and_tcp_does() {
    let Some(nat) = NatLab::up(Pair::Apart(Kind::UdpBlocked, Kind::Public)) else { return };
    assert_eq!(Outsiders::of(&nat, false).see(&client(&nat, Site::A, false, LANE_PORT)), [None; 4]);
    assert!(reaches_by_tcp(&nat, 443) && reaches_by_tcp(&nat, 8001));
}

#[test]
fn where_only_tcp_443_passes_nothing_else_does() {
    let Some(nat) = NatLab::up(Pair::Apart(Kind::Tcp443Only, Kind::Public)) else { return };
    assert_eq!(Outsiders::of(&nat, false).see(&client(&nat, Site::A, false, LANE_PORT)), [None; 4]);
    assert!(reaches_by_tcp(&nat, 443) && !reaches_by_tcp(&nat, 8001));
}

#[test]
fn with_ipv6_only_a_firewall_lets_in_answers_and_ipv4_leads_nowhere() {
    let Some(nat) = NatLab::up(Pair::Apart(Kind::Ipv6Only, Kind::Public)) else { return };
    has_v6(&nat, Filtering::AddressAndPort);
    assert_eq!(Outsiders::of(&nat, false).see(&client(&nat, Site::A, false, LANE_PORT)), [None; 4]);
}

#[test]
fn beside_a_nat_ipv6_passes_a_firewall_that_lets_in_answers() {
    behaves(Kind::Ipv6AndNat, Mapping::Same, Filtering::AddressAndPort);
    let Some(nat) = NatLab::up(Pair::Apart(Kind::Ipv6AndNat, Kind::Public)) else { return };
    has_v6(&nat, Filtering::AddressAndPort);
}

/// Two sockets of two nodes that have one outside address, and where they are seen.
fn two_behind_one(nat: &NatLab) -> [(UdpSocket, SocketAddr); 2] {
    let outsiders = Outsiders::of(nat, false);
    let found = [Site::A, Site::B].map(|site| {
        let socket = client(nat, site, false, LANE_PORT);
        let seen = outsiders.sees(0, &socket).expect("datagrams leave");
        (socket, seen)
    });
    assert!(found.iter().all(|(_, seen)| seen.ip() == public(Site::A).0) && found[0].1 != found[1].1, "{found:?}");
    found
}

#[test]
fn a_nat_that_hairpins_takes_two_to_each_other_by_outside_addresses_only() {
    let Some(nat) = NatLab::up(Pair::SameNat { hairpins: true }) else { return };
    let [(a, seen_a), (b, seen_b)] = two_behind_one(&nat);
    assert_crosses(&a, seen_b, &b, Some(seen_a));
    assert_crosses(&b, seen_a, &a, Some(seen_b));
    assert_crosses(&a, (Ipv4Addr::new(192, 168, 2, 20), LANE_PORT).into(), &b, None);
}

#[test]
fn a_nat_that_does_not_hairpin_keeps_two_apart() {
    let Some(nat) = NatLab::up(Pair::SameNat { hairpins: false }) else { return };
    let [(a, seen_a), (b, seen_b)] = two_behind_one(&nat);
    assert_crosses(&a, seen_b, &b, None);
    assert_crosses(&b, seen_a, &a, None);
    assert_crosses(&a, (Ipv4Addr::new(192, 168, 2, 20), LANE_PORT).into(), &b, None);
}

#[test]
fn two_in_one_network_reach_each_other_by_inside_addresses_only() {
    let Some(nat) = NatLab::up(Pair::SameLan) else { return };
    let [(a, _), (b, seen_b)] = two_behind_one(&nat);
    let [inside_a, inside_b] = [10, 20].map(|number| SocketAddr::from((Ipv4Addr::new(192, 168, 1, number), LANE_PORT)));
    assert_crosses(&a, inside_b, &b, Some(inside_a));
    assert_crosses(&a, seen_b, &b, None);
}

#[test]
fn what_a_gateway_forgets_gets_another_port_and_a_renumbered_one_another_address() {
    let Some(mut nat) = NatLab::up(Pair::Apart(Kind::Cgnat, Kind::Public)) else { return };
    let outsiders = Outsiders::of(&nat, false);
    let socket = client(&nat, Site::A, false, LANE_PORT);
    let before = outsiders.sees(0, &socket).expect("datagrams leave");
    nat.forget(Site::A);
    assert_crosses(&outsiders.0[0], before, &socket, None);
    let after = outsiders.sees(0, &socket).expect("datagrams leave");
    assert!(after.ip() == before.ip() && after.port() != before.port(), "{before}, {after}");
    nat.renumber(Site::A);
    let renumbered = outsiders.sees(0, &socket).expect("datagrams leave");
    assert_eq!(renumbered.ip(), nat.seen_at(Site::A));
    assert_ne!(renumbered.ip(), before.ip());
    assert_crosses(&outsiders.0[0], renumbered, &socket, Some(outsiders.address(0)));
}

#[test]
fn a_public_site_can_be_renumbered() {
    let Some(mut nat) = NatLab::up(Pair::Apart(Kind::Public, Kind::Public)) else { return };
    let (old, outsiders) = (nat.seen_at(Site::A), Outsiders::of(&nat, false));
    nat.renumber(Site::A);
    let seen = outsiders.sees(0, &client(&nat, Site::A, false, LANE_PORT)).expect("datagrams leave");
    assert!(seen.ip() == nat.seen_at(Site::A) && seen.ip() != old, "{seen}");
}

#[test]
fn gateways_forget_who_is_silent_for_as_long_as_they_are_told() {
    for kind in [Kind::FullCone, Kind::AddressRestricted, Kind::PortRestricted] {
        let Some(mut nat) = NatLab::up(Pair::Apart(kind, Kind::Public)) else { return };
        nat.set_udp_timeout(Site::A, Duration::from_secs(1));
        let outsiders = Outsiders::of(&nat, false);
        let socket = client(&nat, Site::A, false, LANE_PORT);
        let seen = outsiders.sees(0, &socket).expect("datagrams leave");
        // Who sends there renews what is asked for.
        wait_for("the gateway to forget", || (!nat.remembers(Site::A)).then_some(()));
        assert_crosses(&outsiders.0[0], seen, &socket, None);
    }
}

#[test]
fn two_sites_that_are_parted_still_reach_all_others() {
    let Some(nat) = NatLab::up(Pair::Apart(Kind::Public, Kind::Public)) else { return };
    let [a, b] = [Site::A, Site::B]
        .map(|site| [(false, LANE_PORT), (true, LANE_PORT + 1)].map(|(is_v6, port)| client(&nat, site, is_v6, port)));
    let ends = [Site::A, Site::B].map(|site| {
        let (v4, v6) = public(site);
        [SocketAddr::from((v4, LANE_PORT)), SocketAddr::from((v6, LANE_PORT + 1))]
    });
    let passes = |family: usize, passes: bool| {
        assert_crosses(&a[family], ends[1][family], &b[family], passes.then_some(ends[0][family]));
        assert_crosses(&b[family], ends[0][family], &a[family], passes.then_some(ends[1][family]));
    };
    for (parted, v4, v6) in [(Family::V4, false, true), (Family::V6, true, false), (Family::Both, false, false)] {
        nat.part([Site::A, Site::B], parted);
        passes(0, v4);
        passes(1, v6);
        assert!(Outsiders::of(&nat, false).sees(3, &a[0]).is_some());
        nat.join();
    }
    passes(0, true);
    passes(1, true);
}

/// Whether two sockets come to hear each other that send to where an outsider has seen the other, and then to where they hear
/// it from.
fn can_be_punched(a: Kind, b: Kind) -> Option<bool> {
    let nat = NatLab::up(Pair::Apart(a, b))?;
    let outsiders = Outsiders::of(&nat, false);
    let sockets = [Site::A, Site::B].map(|site| client(&nat, site, false, LANE_PORT));
    let [seen_a, seen_b] = sockets.each_ref().map(|socket| outsiders.sees(0, socket).expect("datagrams leave"));
    let (mut targets, mut heard) = ([seen_b, seen_a], [false; 2]);
    // The first of A opens its own NAT, the first of B crosses, the second of A answers; one round to spare.
    for _ in 0..3 {
        for from in [0, 1] {
            let to = 1 - from;
            sockets[from].send_to(&[0], targets[from]).expect("there is a route");
            if let Some(source) = received(&sockets[to]) {
                (targets[to], heard[to]) = (source, true);
            }
        }
    }
    Some(heard == [true; 2])
}

#[test]
fn two_nats_with_one_port_for_all_can_be_punched() {
    for (a, b) in [(Kind::PortRestricted, Kind::PortRestricted), (Kind::DoubleNat, Kind::Cgnat)] {
        assert_ne!(can_be_punched(a, b), Some(false), "{a:?}, {b:?}");
    }
}

#[test]
fn a_symmetric_nat_can_be_punched_where_ports_are_not_asked_for() {
    for (a, can) in [(Kind::AddressRestricted, true), (Kind::PortRestricted, false), (Kind::Symmetric, false)] {
        let Some(punched) = can_be_punched(a, Kind::Symmetric) else { return };
        assert_eq!(punched, can, "{a:?}");
    }
}
