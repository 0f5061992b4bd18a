use libp2p::multiaddr::Protocol;
use ringlane_shared::limits::{
    CIRCUITS_DIALED_MAX, DIALED_ADDRESSES_MAX, DIALS_PER_PEER_MAX, KNOWN_ADDRESSES_PER_PEER_MAX,
};

use super::pace::{PAUSE_MAX, PAUSE_MIN, pause};
use super::peer::{DIRECT_HEAD_START, PROMPT_SPACING};
use super::*;

/// The dials of a peer until there are `count`, with none of them ended well.
fn dials_in_vain(dialer: &mut Dialer, peer: &PeerId, mut now: Instant, count: usize) -> Vec<Vec<Multiaddr>> {
    let mut dials = Vec::new();
    while dials.len() < count {
        now = dialer.poll_timeout().unwrap().max(now);
        let dial = dialer.poll_dial(now).unwrap();
        dialer.handle_dial_ended(peer, dial.by_relay);
        dials.push(dial.addresses);
    }
    dials
}

#[test]
fn circuits_are_dialled_beside_direct_addresses_after_a_head_start_and_of_a_relayed_peer_not_at_all() {
    let now = Instant::now();
    let [peer, relay] = [PeerId::random(), PeerId::random()];
    let circuit = |relay: PeerId| address(9).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
    let mut dialer = Dialer::new([peer], 1, now);
    dialer.set_relays(now, vec![circuit(peer)]);
    assert_eq!(dialer.poll_timeout(), None, "a peer is no relay to itself");
    dialer.set_relays(now, vec![circuit(peer), circuit(relay)]);
    assert_eq!(dialer.poll_timeout(), Some(now), "nothing else is known");
    assert_eq!(dials_in_vain(&mut dialer, &peer, now, 2), [[circuit(relay)], [circuit(relay)]]);

    let mut dialer = Dialer::new([peer], 1, now);
    let own = circuit(PeerId::random());
    dialer.add_address(now, &peer, &address(1), Source::Configured);
    dialer.add_address(now, &peer, &own, Source::SignedRecord);
    dialer.set_relays(now, vec![circuit(relay)]);
    assert_eq!(dialer.circuits_wait_until(&peer), Some(now + DIRECT_HEAD_START));
    let dials = dials_in_vain(&mut dialer, &peer, now, 12);
    let (direct, circuits) = (vec![address(1)], vec![own, circuit(relay)]);
    assert_eq!(dials[0], direct);
    assert!(dials.iter().all(|dial| [&direct, &circuits].contains(&dial)));
    assert!(dials.windows(4).all(|some| some.contains(&direct) && some.contains(&circuits)), "{dials:?}");

    let later = now + PAUSE_MAX * 10;
    dialer.handle_connected(later, &peer);
    assert_eq!(dialer.poll_timeout(), None);
    dialer.seek_better(later, &peer, Some(Better::Direct));
    assert_eq!(dials_in_vain(&mut dialer, &peer, later, 4), [(); 4].map(|()| direct.clone()));
    dialer.seek_better(later, &peer, None);
    assert_eq!(dialer.poll_timeout(), None);
    dialer.seek(later, &peer, true);
    let both = dials_in_vain(&mut dialer, &peer, later, 2);
    assert!(both.contains(&direct) && both.contains(&circuits), "one that seems lost is dialled both ways at once");
}

#[test]
fn who_is_lost_is_dialled_through_relays_at_once() {
    let now = Instant::now();
    let [peer, relay] = [PeerId::random(), PeerId::random()];
    let (mut dialer, circuit) =
        (Dialer::new([peer], 1, now), address(9).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit));
    dialer.set_relays(now, vec![circuit.clone()]);
    dials_in_vain(&mut dialer, &peer, now, 9);
    dialer.handle_connected(now, &peer);
    let lost = now + STABLE_AFTER;
    dialer.handle_disconnected(lost, &peer);
    assert_eq!(dialer.poll_dial(lost).map(|dial| (dial.addresses, dial.by_relay)), Some((vec![circuit], true)));
}

#[test]
fn of_many_relays_a_dial_takes_a_few_and_all_have_their_turn() {
    let now = Instant::now();
    let peer = PeerId::random();
    let relays: Vec<Multiaddr> = (0..2 * CIRCUITS_DIALED_MAX as u16 + 1)
        .map(|port| address(port + 1).with(Protocol::P2p(PeerId::random())).with(Protocol::P2pCircuit))
        .collect();
    let mut dialer = Dialer::new([peer], 1, now);
    dialer.set_relays(now, relays.clone());
    let dials = dials_in_vain(&mut dialer, &peer, now, 40);
    assert!(dials.iter().all(|addresses| addresses.len() == CIRCUITS_DIALED_MAX));
    assert!(relays.iter().all(|relay| dials.iter().flatten().any(|dialled| dialled == relay)));
}

#[test]
fn relays_have_their_turn_however_they_are_ranked_and_of_those_not_tried_yet_the_best_come_first() {
    for seed in 0..200 {
        let (mut jitter, mut now) = (Jitter::new(seed), Instant::now());
        let peer = PeerId::random();
        let circuit = |port: u64| address(port as u16).with(Protocol::P2p(PeerId::random())).with(Protocol::P2pCircuit);
        let mut relays: Vec<Multiaddr> = (0..=jitter.next() % 12).map(|port| circuit(port + 1)).collect();
        let mut dialer = Dialer::new([peer], seed, now);
        let own = jitter.next() % 3;
        (0..own).for_each(|port| dialer.add_address(now, &peer, &circuit(100 + port), Source::SignedRecord));
        let room = CIRCUITS_DIALED_MAX - own as usize;
        let mut times = vec![0; relays.len()];
        let known = relays.clone();
        for _ in 0..20 {
            // As when every one of them tells another load.
            for at in (1..relays.len()).rev() {
                relays.swap(at, jitter.next() as usize % (at + 1));
            }
            dialer.set_relays(now, relays.clone());
            let dial = dials_in_vain(&mut dialer, &peer, now, 1).remove(0);
            now += PAUSE_MAX;
            let place = |relay: &Multiaddr| known.iter().position(|known| known == relay);
            // The twin: who was tried least often, of those the best.
            let mut first: Vec<usize> = relays.iter().filter_map(place).collect();
            first.sort_by_key(|relay| times[*relay]);
            first.truncate(room);
            let mut dialled: Vec<usize> = dial.iter().filter_map(place).collect();
            dialled.iter().for_each(|relay| times[*relay] += 1);
            let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            assert!(most - least <= 1, "seed {seed}: {times:?}");
            assert_eq!(dial.len(), room.min(relays.len()) + own as usize, "seed {seed}");
            if *most == 1 {
                first.sort_unstable();
                dialled.sort_unstable();
                assert_eq!(dialled, first, "seed {seed}");
            }
        }
        dialer.handle_connected(now, &peer);
        now += STABLE_AFTER;
        dialer.handle_disconnected(now, &peer);
        let dial = dials_in_vain(&mut dialer, &peer, now, 1).remove(0);
        let anew = dial.iter().filter(|circuit| relays.contains(circuit));
        assert!(anew.eq(relays.iter().take(room)), "seed {seed}: the best again");
    }
}

impl Dialer {
    fn circuits_wait_until(&self, peer: &PeerId) -> Option<Instant> {
        self.peers[peer].circuits_due(peer, &self.relays)
    }
}

fn address(port: u16) -> Multiaddr {
    format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
}

fn dialer(now: Instant) -> (Dialer, PeerId) {
    let peer = PeerId::random();
    let mut dialer = Dialer::new([peer], 1, now);
    dialer.add_address(now, &peer, &address(1), Source::Configured);
    (dialer, peer)
}

/// Runs until the next dial, which fails at once; its time.
fn next_dial(dialer: &mut Dialer) -> (Instant, Dial) {
    let at = dialer.poll_timeout().unwrap();
    let dial = dialer.poll_dial(at).unwrap();
    dialer.handle_dial_ended(&dial.peer, dial.by_relay);
    (at, dial)
}

#[test]
fn a_connected_peer_is_dialled_while_it_is_sought_and_until_it_answers() {
    let start = Instant::now();
    let (mut dialer, peer) = dialer(start);
    next_dial(&mut dialer);
    dialer.handle_connected(start, &peer);
    assert_eq!(dialer.poll_timeout(), None);
    let later = start + STABLE_AFTER;
    dialer.seek(later, &peer, true);
    assert_eq!(next_dial(&mut dialer).0, later);
    dialer.seek(later, &peer, true);
    assert!(dialer.poll_timeout().is_some_and(|at| at > later), "pauses are kept");
    dialer.seek(later, &peer, false);
    assert_eq!(dialer.poll_timeout(), None);
    dialer.seek(later, &peer, true);
    assert_eq!(dialer.poll_timeout(), Some(later + SEEK_SPACING), "not at once again and again");
    dialer.handle_connected(later, &peer);
    assert_eq!(dialer.poll_timeout(), None);
}

#[test]
fn names_are_looked_up_but_for_those_of_tcp_that_a_proxy_looks_up() {
    let now = Instant::now();
    let names = ["/dns4/b.example/tcp/443/wss", "/dns4/b.example/udp/1/quic-v1"].map(|name| name.parse().unwrap());
    for (passes_names, passed, looked_up) in [(false, 0, 2), (true, 1, 1)] {
        let (dialer, peer) = dialer(now);
        let mut dialer = dialer.passing_names(passes_names);
        names.iter().for_each(|name| dialer.add_address(now, &peer, name, Source::Configured));
        let dial = next_dial(&mut dialer).1;
        assert_eq!((dial.addresses.len(), dial.names.len()), (1 + passed, looked_up));
        assert_eq!(dial.addresses.contains(&names[0]), passes_names);
    }
}

#[test]
fn websockets_wait_for_their_turn_behind_others() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    let web: Multiaddr = "/ip4/10.0.0.1/tcp/443/wss".parse().unwrap();
    dialer.add_address(now, &peer, &web, Source::Configured);
    for port in 2..=DIALED_ADDRESSES_MAX as u16 {
        dialer.add_address(now, &peer, &address(port), Source::Dht);
    }
    assert!(!next_dial(&mut dialer).1.addresses.contains(&web));
    assert!(next_dial(&mut dialer).1.addresses.contains(&web));
}

#[test]
fn who_is_connected_by_a_websocket_is_dialled_at_its_other_addresses() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    dialer.add_address(now, &peer, &"/ip4/10.0.0.1/tcp/443/wss".parse().unwrap(), Source::Configured);
    assert_eq!(next_dial(&mut dialer).1.addresses.len(), 2);
    dialer.handle_connected(now, &peer);
    dialer.seek_better(now, &peer, Some(Better::Plain));
    for _ in 0..3 {
        assert_eq!(next_dial(&mut dialer).1.addresses, [address(1)]);
    }
    dialer.seek_better(now, &peer, Some(Better::Direct));
    assert_eq!(next_dial(&mut dialer).1.addresses.len(), 2, "to who is relayed a WebSocket is better");
    dialer.seek_better(now, &peer, Some(Better::Unproxied));
    assert_eq!(dialer.poll_timeout(), None, "all of TCP goes through the proxy");
    let quic: Multiaddr = "/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap();
    dialer.add_address(now, &peer, &quic, Source::Identify);
    assert_eq!(next_dial(&mut dialer).1.addresses, [quic]);
}

#[test]
fn a_connected_peer_without_tcp_is_dialled_at_its_tcp_addresses_only() {
    let start = Instant::now();
    let (mut dialer, peer) = dialer(start);
    dialer.add_address(start, &peer, &"/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap(), Source::Configured);
    assert_eq!(next_dial(&mut dialer).1.addresses.len(), 2);
    dialer.handle_connected(start, &peer);
    assert_eq!(dialer.poll_timeout(), None);
    dialer.seek_tcp(start, &peer, true);
    assert_eq!(dialer.poll_timeout(), Some(start));
    for _ in 0..4 {
        assert_eq!(next_dial(&mut dialer).1.addresses, [address(1)]);
    }
    dialer.seek_tcp(start, &peer, false);
    assert_eq!(dialer.poll_timeout(), None);
}

#[test]
fn an_unreachable_peer_is_dialled_for_ever_with_growing_jittered_pauses() {
    let start = Instant::now();
    let (mut dialer, _) = dialer(start);
    let times: Vec<_> = (0..100).map(|_| next_dial(&mut dialer).0).collect();
    assert_eq!(times[0], start);
    for (dials, pair) in times.windows(2).enumerate() {
        let (waited, nominal) = (pair[1] - pair[0], pause(dials as u32));
        assert!(waited <= nominal && waited >= nominal.mul_f64(0.75), "{waited:?} of {nominal:?}");
    }
    assert_eq!(pause(0), PAUSE_MIN);
    assert_eq!(pause(99), PAUSE_MAX);
}

#[test]
fn two_seeds_do_not_stay_in_step() {
    let start = Instant::now();
    let peer = PeerId::random();
    let [a, b] = [1, 2].map(|seed| {
        let mut dialer = Dialer::new([peer], seed, start);
        dialer.add_address(start, &peer, &address(1), Source::Configured);
        (0..20).map(|_| next_dial(&mut dialer).0).collect::<Vec<_>>()
    });
    assert!(a.iter().zip(&b).skip(1).all(|(a, b)| a != b));
}

#[test]
fn a_peer_lost_after_a_real_connection_is_dialled_within_a_quarter_of_a_second() {
    let start = Instant::now();
    let (mut dialer, peer) = dialer(start);
    let connected = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
    dialer.handle_connected(connected, &peer);
    assert_eq!(dialer.poll_timeout(), None);
    let lost = connected + STABLE_AFTER;
    dialer.handle_disconnected(lost, &peer);
    assert!(next_dial(&mut dialer).0 <= lost + PAUSE_MIN);
}

#[test]
fn a_peer_that_throws_us_out_at_once_is_not_hammered() {
    let mut now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    let start = now;
    for _ in 0..20 {
        now = next_dial(&mut dialer).0;
        dialer.handle_connected(now, &peer);
        dialer.handle_disconnected(now, &peer);
    }
    assert!(now - start > PAUSE_MAX * 8, "{:?}", now - start);
}

#[test]
fn dials_overlap_up_to_the_bound_and_no_further() {
    let start = Instant::now();
    let (mut dialer, peer) = dialer(start);
    for _ in 0..DIALS_PER_PEER_MAX {
        let at = dialer.poll_timeout().unwrap();
        assert!(dialer.poll_dial(at).is_some());
    }
    assert_eq!(dialer.poll_timeout(), None);
    assert_eq!(dialer.poll_dial(start + PAUSE_MAX * 2), None);
    dialer.handle_dial_ended(&peer, false);
    assert!(dialer.poll_dial(start + PAUSE_MAX * 2).is_some());
}

#[test]
fn told_to_dial_all_it_forgets_its_pauses() {
    let start = Instant::now();
    let (mut dialer, _) = dialer(start);
    let now = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
    assert!(dialer.poll_timeout().unwrap() > now + PAUSE_MAX / 2);
    dialer.dial_all(now);
    assert_eq!(next_dial(&mut dialer).0, now);
    assert!(dialer.poll_timeout().unwrap() <= now + PAUSE_MIN);
}

#[test]
fn a_new_address_of_a_missing_peer_is_tried_soon_and_a_known_one_changes_nothing() {
    let start = Instant::now();
    let (mut dialer, peer) = dialer(start);
    let now = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
    let planned = dialer.poll_timeout();
    dialer.add_address(now, &peer, &address(1), Source::Mdns);
    assert_eq!(dialer.poll_timeout(), planned);
    dialer.add_address(now, &peer, &address(2), Source::Mdns);
    assert_eq!(dialer.poll_timeout(), Some(now + PAUSE_MIN));
    assert_eq!(next_dial(&mut dialer).1.addresses[0], address(2), "never tried comes first");
}

#[test]
fn a_sign_of_life_brings_a_dial_forward_and_a_flood_of_them_or_of_lies_only_a_few() {
    let start = Instant::now();
    let (mut dialer, peer) = dialer(start);
    let now = (0..20).map(|_| next_dial(&mut dialer).0).last().unwrap();
    dialer.handle_sign_of_life(now, &peer);
    assert_eq!(next_dial(&mut dialer).0, now + PAUSE_MIN);
    let (mut dials, span) = (0, Duration::from_secs(60));
    for ms in 0..span.as_millis() as u64 {
        let now = now + PAUSE_MIN + Duration::from_millis(ms);
        dialer.handle_sign_of_life(now, &peer);
        dialer.add_address(now, &peer, &address(2 + ms as u16), Source::Mdns);
        while dialer.poll_dial(now).is_some() {
            dialer.handle_dial_ended(&peer, false);
            dials += 1;
        }
    }
    let most = span.as_secs() / PROMPT_SPACING.as_secs();
    assert!((most - 1..=most + 1).contains(&dials), "{dials}");
    dialer.handle_connected(now, &peer);
    dialer.handle_sign_of_life(now, &peer);
    assert_eq!(dialer.poll_timeout(), None, "who is connected is not dialled");
}

#[test]
fn addresses_are_bounded_and_neither_configured_nor_proven_ones_make_room_for_hearsay() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    dialer.handle_success(now, &peer, &address(2));
    for port in 100..100 + 3 * KNOWN_ADDRESSES_PER_PEER_MAX as u16 {
        dialer.add_address(now, &peer, &address(port), Source::Identify);
    }
    assert_eq!(dialer.peers[&peer].addresses.len(), KNOWN_ADDRESSES_PER_PEER_MAX);
    assert!(dialer.knows(&peer, &address(1)) && dialer.knows(&peer, &address(2)));
    let proven: Vec<_> = dialer.proven_addresses().collect();
    assert_eq!(proven, [(peer, &address(2), now)]);
}

#[test]
fn every_address_gets_its_turn_and_proven_ones_are_in_every_dial() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    dialer.handle_success(now, &peer, &address(7));
    for port in 100..140 {
        dialer.add_address(now, &peer, &address(port), Source::Identify);
    }
    let mut tried = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let (_, dial) = next_dial(&mut dialer);
        assert_eq!(dial.addresses.len(), DIALED_ADDRESSES_MAX);
        assert_eq!(dial.addresses[0], address(7));
        tried.extend(dial.addresses);
    }
    assert_eq!(tried.len(), 42);
}

#[test]
fn an_address_where_a_stranger_answers_does_not_hide_the_others() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    for (port, source) in [(2, Source::Configured), (3, Source::Cache)] {
        dialer.add_address(now, &peer, &address(port), source);
    }
    assert!(dialer.handle_stranger(&peer, &address(1)) && dialer.handle_stranger(&peer, &address(3)));
    assert!(!dialer.handle_stranger(&peer, &address(1)), "told once");
    let dials: Vec<_> = (0..5).map(|_| next_dial(&mut dialer).1.addresses).collect();
    let (other, wrong) = (vec![address(2)], vec![address(1)]);
    assert_eq!(dials, [other.clone(), other.clone(), other.clone(), wrong, other]);
    dialer.handle_success(now, &peer, &address(1));
    assert_eq!(next_dial(&mut dialer).1.addresses, [address(1), address(2)]);
}

#[test]
fn what_only_mdns_told_is_forgotten_when_it_expires() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    for port in [1, 2] {
        dialer.add_address(now, &peer, &address(port), Source::Mdns);
        dialer.expire_address(&peer, &address(port), Source::Mdns);
    }
    assert!(dialer.knows(&peer, &address(1)));
    assert!(!dialer.knows(&peer, &address(2)));
}

#[test]
fn what_worked_is_told_first_and_what_others_said_never() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    for (port, source) in [
        (2, Source::Identify),
        (3, Source::PeerExchange),
        (4, Source::Mdns),
        (5, Source::PeerExchange),
        (6, Source::Cache),
        (7, Source::SignedRecord),
    ] {
        dialer.add_address(now, &peer, &address(port), source);
    }
    dialer.handle_success(now, &peer, &address(5));
    dialer.handle_stranger(&peer, &address(7));
    let told: Vec<_> = dialer.tellable(&peer).into_iter().cloned().collect();
    assert_eq!(told, [address(5), address(1), address(2)]);
}

#[test]
fn strangers_and_other_peers_addresses_are_not_learnt() {
    let now = Instant::now();
    let (mut dialer, peer) = dialer(now);
    dialer.add_address(now, &PeerId::random(), &address(9), Source::Mdns);
    let other = address(9).with_p2p(PeerId::random()).unwrap();
    dialer.add_address(now, &peer, &other, Source::Mdns);
    assert_eq!(next_dial(&mut dialer).1.addresses, [address(1)]);
}

#[test]
fn one_dial_in_four_leaves_from_a_fresh_port() {
    let (mut dialer, _) = dialer(Instant::now());
    let fresh: Vec<_> = (0..4).map(|_| next_dial(&mut dialer).1.fresh_port).collect();
    assert_eq!(fresh, [false, false, false, true]);
}
