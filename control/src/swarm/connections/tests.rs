use super::*;

fn connection(id: usize, peer: PeerId, established: Instant) -> ConnectionInfo {
    let address = "/ip4/10.0.0.1/udp/1/quic-v1".parse().unwrap();
    let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: address };
    ConnectionInfo::new(ConnectionId::new_unchecked(id), peer, &endpoint, established)
}

/// Two tables of a pair of nodes, the decider's first.
fn pair() -> [(Connections, PeerId); 2] {
    let mut ids = [PeerId::random(), PeerId::random()];
    ids.sort();
    let [low, high] = ids;
    [(Connections::new(low), high), (Connections::new(high), low)]
}

#[test]
fn only_the_lower_id_closes_the_older_connection_and_not_before_the_grace() {
    let now = Instant::now();
    let [mut decider, mut other] = pair();
    for (table, peer) in [&mut decider, &mut other] {
        table.insert(connection(1, *peer, now));
        assert_eq!(table.poll_timeout(), None);
        table.insert(connection(2, *peer, now));
        assert!(table.poll_surplus(now).is_empty());
    }
    let (later, older) = (now + SURPLUS_GRACE, ConnectionId::new_unchecked(1));
    assert_eq!(other.0.poll_timeout(), None);
    assert!(other.0.poll_surplus(later).is_empty());
    assert_eq!(decider.0.poll_timeout(), Some(later));
    assert_eq!(decider.0.poll_surplus(later), [older]);
    assert!(decider.0.poll_surplus(later).is_empty(), "told once");
    assert_eq!(decider.0.poll_timeout(), Some(later + RETIRING_LIMIT));
}

#[test]
fn a_retired_connection_is_closed_once_by_who_decided_when_it_is_drained_or_overdue_and_by_the_other_only_much_later() {
    let now = Instant::now();
    let id = ConnectionId::new_unchecked(1);
    for is_drained in [true, false] {
        let [mut decider, mut other] = pair();
        for (table, peer) in [&mut decider, &mut other] {
            table.insert(connection(1, *peer, now));
            table.insert(connection(2, *peer, now));
            assert!(!table.handle_drained(peer, id), "it is not retired");
        }
        let later = now + SURPLUS_GRACE;
        assert_eq!(decider.0.poll_surplus(later), [id]);
        other.0.handle_retired(&other.1, id, later);
        for (table, peer) in [&decider, &other] {
            assert_eq!(table.best(peer).unwrap().id, ConnectionId::new_unchecked(2));
        }
        let overdue = later + RETIRING_LIMIT;
        assert!(decider.0.poll_overdue(overdue - Duration::from_millis(1)).is_empty());
        if is_drained {
            assert!(decider.0.handle_drained(&decider.1, id));
        } else {
            assert_eq!(decider.0.poll_overdue(overdue), [id]);
        }
        assert!(!decider.0.handle_drained(&decider.1, id) && decider.0.poll_overdue(overdue).is_empty(), "once");
        assert_eq!(decider.0.poll_timeout(), None);
        assert!(other.0.poll_overdue(overdue).is_empty(), "it is the decider's to close");
        assert_eq!(other.0.poll_timeout(), Some(later + PEERS_RETIRING_LIMIT));
        assert_eq!(other.0.poll_overdue(later + PEERS_RETIRING_LIMIT), [id]);
    }
}

#[test]
fn what_has_begun_on_a_retired_connection_keeps_it_until_it_ends() {
    let now = Instant::now();
    let id = ConnectionId::new_unchecked(1);
    let [(mut table, peer), _] = pair();
    table.insert(connection(1, peer, now));
    table.insert(connection(2, peer, now));
    let later = now + SURPLUS_GRACE;
    assert_eq!(table.poll_surplus(later), [id]);
    let held = table.of(&peer).next().unwrap().hold();
    let overdue = later + RETIRING_LIMIT;
    assert!(!table.handle_drained(&peer, id) && table.poll_overdue(overdue).is_empty());
    assert_eq!(table.poll_timeout(), None, "nothing to wake up for");
    drop(held);
    assert_eq!(table.poll_overdue(overdue), [id]);
}

#[test]
fn a_retired_connection_does_not_hide_that_the_kept_one_is_dead() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    assert!(!table.is_answered(&peer) && !table.are_all_closing(&peer));
    table.insert(connection(1, peer, now));
    table.insert(connection(2, peer, now));
    assert_eq!(table.poll_surplus(now + SURPLUS_GRACE), [ConnectionId::new_unchecked(1)]);
    assert!(table.is_answered(&peer) && !table.are_all_closing(&peer));
    let news = let_down(&mut table, &peer, 2, now + SURPLUS_GRACE);
    assert!(news.contains(&HealthNews::Late) && !table.is_answered(&peer), "{news:?}");
    table.remove(&peer, ConnectionId::new_unchecked(2));
    assert!(table.are_all_closing(&peer));
}

#[test]
fn few_connections_are_retired_at_once_and_the_oldest_beyond_that_is_closed() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    let retired = RETIRING_CONNECTIONS_PER_PEER_MAX + 1;
    (0..retired + 1).for_each(|id| table.insert(connection(id, peer, now)));
    let later = now + SURPLUS_GRACE;
    assert_eq!(table.poll_surplus(later).len(), retired);
    assert_eq!(table.poll_overdue(later), [ConnectionId::new_unchecked(0)]);
}

#[test]
fn a_dialled_connection_replaces_older_ones_only_when_the_peer_has_it_too() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    table.insert(connection(1, peer, now));
    table.insert(ConnectionInfo { confirmed: false, ..connection(2, peer, now) });
    let (later, dialled) = (now + SURPLUS_GRACE, ConnectionId::new_unchecked(2));
    assert_eq!(table.poll_timeout(), None);
    assert!(table.poll_surplus(later).is_empty());
    table.get_mut(&peer, dialled).unwrap().confirm();
    assert_eq!(table.poll_surplus(later), [ConnectionId::new_unchecked(1)]);
}

#[test]
fn a_flood_of_connections_is_cut_to_the_bound_at_once_by_either_side_oldest_first() {
    let now = Instant::now();
    for (mut table, peer) in pair() {
        for id in 0..KEPT_CONNECTIONS_PER_PEER_MAX + 2 {
            table.insert(connection(id, peer, now));
        }
        assert_eq!(table.poll_surplus(now), [0, 1].map(ConnectionId::new_unchecked));
        assert_eq!(table.poll_overdue(now), [0, 1].map(ConnectionId::new_unchecked));
    }
}

#[test]
fn a_connection_that_is_held_stays_until_it_is_let_go_but_not_at_the_price_of_all_new_ones() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    table.insert(connection(1, peer, now));
    let held = table.of(&peer).next().unwrap().hold();
    table.insert(connection(2, peer, now));
    let later = now + SURPLUS_GRACE;
    assert!(table.poll_surplus(later).is_empty());
    assert_eq!(table.poll_timeout(), None, "nothing to wake up for");
    drop(held);
    assert_eq!(table.poll_surplus(later), [ConnectionId::new_unchecked(1)]);

    let (mut flooded, peer) = pair().into_iter().next().unwrap();
    let mut holds = Vec::new();
    for id in 0..KEPT_CONNECTIONS_PER_PEER_MAX + 2 {
        flooded.insert(connection(id, peer, now));
        holds.extend(flooded.of(&peer).last().map(ConnectionInfo::hold));
    }
    assert_eq!(flooded.poll_surplus(now), [0, 1].map(ConnectionId::new_unchecked));
}

#[test]
fn two_pings_in_a_row_may_come_to_nothing_and_no_third_unless_it_is_held() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    table.insert(connection(1, peer, now));
    let id = ConnectionId::new_unchecked(1);
    assert!(table.forgives(&peer, id) && table.forgives(&peer, id));
    table.get_mut(&peer, id).unwrap().handle_pong(Duration::from_millis(1));
    assert!(table.forgives(&peer, id) && table.forgives(&peer, id));
    assert!(!table.forgives(&peer, id));
    let _held = table.of(&peer).next().unwrap().hold();
    assert!(table.forgives(&peer, id), "what uses it would know if it were dead");
}

#[test]
fn a_direct_connection_is_better_than_a_newer_relayed_one() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    table.insert(connection(1, peer, now));
    table.insert(ConnectionInfo { relayed: true, ..connection(2, peer, now) });
    assert_eq!(table.best(&peer).unwrap().id, ConnectionId::new_unchecked(1));
    table.remove(&peer, ConnectionId::new_unchecked(1));
    assert_eq!(table.best(&peer).unwrap().id, ConnectionId::new_unchecked(2));
}

#[test]
fn a_relayed_connection_goes_when_there_is_a_direct_one_whichever_came_first() {
    let now = Instant::now();
    for relayed in [1, 2] {
        let [(mut table, peer), _] = pair();
        for id in [1, 2] {
            table.insert(ConnectionInfo { relayed: id == relayed, ..connection(id, peer, now) });
        }
        assert!(table.poll_surplus(now).is_empty());
        assert_eq!(table.poll_timeout(), Some(now + SURPLUS_GRACE));
        assert_eq!(table.poll_surplus(now + SURPLUS_GRACE), [ConnectionId::new_unchecked(relayed)]);
        assert!(table.handle_drained(&peer, ConnectionId::new_unchecked(relayed)));
        assert_eq!(table.poll_timeout(), None);
    }
}

/// Has time pass for a connection that is doubted until it is a suspect.
fn let_down(table: &mut Connections, peer: &PeerId, id: usize, now: Instant) -> Vec<HealthNews> {
    let id = ConnectionId::new_unchecked(id);
    assert!(table.get_mut(peer, id).unwrap().health.doubt(now));
    let mut news = Vec::new();
    while let Some(at) = table.get_mut(peer, id).and_then(|known| known.health.poll_timeout(known.rtt)) {
        news.extend(table.poll_doubts(at).into_iter().map(|(_, of, news)| {
            assert_eq!(of, id);
            news
        }));
    }
    news
}

#[test]
fn a_connection_that_does_not_answer_is_left_for_a_relay_and_stays_until_it_does_or_is_given_up() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    table.insert(connection(1, peer, now));
    table.insert(ConnectionInfo { relayed: true, ..connection(2, peer, now) });
    let best = |table: &Connections| table.best(&peer).unwrap().id;
    assert_eq!(best(&table), ConnectionId::new_unchecked(1));
    assert_eq!(let_down(&mut table, &peer, 1, now), [HealthNews::Late, HealthNews::Suspect]);
    assert_eq!(best(&table), ConnectionId::new_unchecked(2));
    let later = now + SURPLUS_GRACE;
    assert!(table.poll_surplus(later).is_empty(), "neither is given up for the other");
    assert!(table.get_mut(&peer, ConnectionId::new_unchecked(1)).unwrap().health.handle_heard(now));
    assert_eq!(best(&table), ConnectionId::new_unchecked(1));
    assert_eq!(table.poll_surplus(later), [ConnectionId::new_unchecked(2)]);
}

#[test]
fn too_many_connections_cost_the_oldest_and_not_the_one_that_is_known_to_be_alive() {
    let now = Instant::now();
    for (mut table, peer) in pair() {
        for id in 0..=KEPT_CONNECTIONS_PER_PEER_MAX {
            table.insert(connection(id, peer, now));
            if id < KEPT_CONNECTIONS_PER_PEER_MAX {
                table.get_mut(&peer, ConnectionId::new_unchecked(id)).unwrap().health.doubt(now);
            }
        }
        assert_eq!(table.poll_surplus(now), [ConnectionId::new_unchecked(0)]);
    }
}

#[test]
fn a_websocket_goes_when_there_is_something_plain_and_is_better_than_a_relay() {
    let now = Instant::now();
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3]] {
        let [(mut table, peer), _] = pair();
        for id in order {
            let transport = Some(if id == 2 { TransportName::Wss } else { TransportName::Tcp });
            table.insert(ConnectionInfo { transport, relayed: id == 3, ..connection(id, peer, now) });
        }
        let best = |table: &Connections| table.best(&peer).unwrap().id;
        assert_eq!(best(&table), ConnectionId::new_unchecked(1));
        let mut gone = table.poll_surplus(now + SURPLUS_GRACE);
        gone.sort();
        assert_eq!(gone, [2, 3].map(ConnectionId::new_unchecked));
        table.remove(&peer, ConnectionId::new_unchecked(1));
        let mut web = Connections::new(table.local);
        for id in order.into_iter().filter(|id| *id != 1) {
            let transport = Some(TransportName::Wss);
            web.insert(ConnectionInfo { transport, relayed: id == 3, ..connection(id, peer, now) });
        }
        assert_eq!(best(&web), ConnectionId::new_unchecked(2));
    }
}

fn hyprspace(id: usize, peer: PeerId, transport: TransportName, established: Instant) -> ConnectionInfo {
    let (transport, kind) = (Some(transport), Some(PeerKind::Hyprspace));
    ConnectionInfo { transport, kind, ..connection(id, peer, established) }
}

#[test]
fn of_a_hyprspace_nodes_connections_the_newest_of_each_transport_stays_whoever_is_lower() {
    let now = Instant::now();
    for (mut table, peer) in pair() {
        for (id, transport) in [(1, TransportName::Tcp), (2, TransportName::Quic), (3, TransportName::Quic)] {
            table.insert(hyprspace(id, peer, transport, now));
        }
        assert!(table.poll_surplus(now).is_empty());
        let later = now + SURPLUS_GRACE;
        assert_eq!(table.poll_timeout(), Some(later));
        assert_eq!(table.poll_surplus(later), [ConnectionId::new_unchecked(2)]);
        assert_eq!(table.poll_timeout(), Some(later + RETIRING_LIMIT));
        for id in 4..4 + KEPT_CONNECTIONS_PER_PEER_MAX {
            table.insert(hyprspace(id, peer, TransportName::Quic, later));
        }
        let flood = table.poll_surplus(later);
        assert!(!flood.is_empty() && !flood.contains(&ConnectionId::new_unchecked(1)), "{flood:?}");
    }
}

#[test]
fn packets_to_a_hyprspace_node_take_tcp_or_a_relay_and_quic_only_when_nothing_else_comes() {
    let now = Instant::now();
    let [(mut table, peer), _] = pair();
    assert_eq!(table.packet_way(&peer, now), None);
    table.insert(hyprspace(1, peer, TransportName::Quic, now));
    assert!(table.lacks_tcp(&peer));
    assert_eq!(table.packet_way(&peer, now), None);
    let way = |id, quality| Some(Way { connection: ConnectionId::new_unchecked(id), quality });
    assert_eq!(table.packet_way(&peer, now + TCP_PATIENCE), way(1, Quality::Paced));
    table.insert(ConnectionInfo { relayed: true, ..hyprspace(2, peer, TransportName::Quic, now) });
    assert_eq!(table.packet_way(&peer, now + TCP_PATIENCE), way(2, Quality::Relayed));
    table.insert(hyprspace(3, peer, TransportName::Tcp, now));
    table.insert(hyprspace(4, peer, TransportName::Tcp, now));
    table.insert(hyprspace(5, peer, TransportName::Quic, now));
    assert_eq!(table.packet_way(&peer, now), way(4, Quality::Direct));
    assert!(!table.lacks_tcp(&peer));
    table.get_mut(&peer, ConnectionId::new_unchecked(5)).unwrap().kind = Some(PeerKind::Ringlane);
    assert_eq!(table.packet_way(&peer, now), way(5, Quality::Direct), "it is something else by now");
}
