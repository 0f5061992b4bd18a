//! Lanes that stand, and what makes control look for other paths of theirs.

use std::collections::BTreeMap;

use ringlane_shared::lane::seal::Sequence;
use ringlane_shared::limits::PASSED_ON_MAX;
use ringlane_shared::plane::{LaneChange, PassedOn, PlaneCommand, TrialPath};
use ringlane_shared::wire::record::{EpochTag, RecordHeader};

use super::*;

/// Two nodes at 127.77.`net`.1 and .2 with one lane, and that lane at both.
async fn with_a_lane(net: u8) -> (Node, Node, [Box<LaneHandOver>; 2]) {
    let (mut a, mut b) = (Node::listening(net, 1, 1), Node::listening(net, 2, 1));
    start_both(&mut a, &mut b, 1);
    let [at_a, at_b] = outcomes(&mut a, &mut b, [1, 1]).await.map(|mut told| established(told.remove(0)).1);
    (a, b, [at_a, at_b])
}

/// All that the engine has for workers now.
async fn orders(node: &mut Node) -> Vec<PlaneCommand> {
    let mut orders = Vec::new();
    while let Ok(outcome) = timeout(Duration::from_millis(20), node.engine.next()).await {
        match outcome {
            LaneOutcome::Order { command, .. } => orders.push(command),
            other => panic!("{other:?}"),
        }
    }
    orders
}

fn passed(orders: Vec<PlaneCommand>) -> Vec<PassedOn> {
    let passed = |order| match order {
        PlaneCommand::PassOn(passed) => *passed,
        other => panic!("{other:?}"),
    };
    orders.into_iter().map(passed).collect()
}

fn tried(orders: Vec<PlaneCommand>) -> Vec<TrialPath> {
    let tried = |order| match order {
        PlaneCommand::TryPath(trial) => *trial,
        other => panic!("{other:?}"),
    };
    orders.into_iter().map(tried).collect()
}

/// Something that looks like a record of this lane.
fn record_like(lane: LaneId, counter: u64) -> Vec<u8> {
    let mut record = RecordHeader { epoch: EpochTag::default(), lane, counter }.to_bytes().to_vec();
    record.resize(RECORD_OVERHEAD_BYTES + 9, 7);
    record
}

#[tokio::test]
async fn a_record_from_elsewhere_that_names_a_lane_is_its_workers_to_look_at_until_the_lane_ends() {
    let (_a, mut b, [_, lane]) = with_a_lane(40).await;
    let stranger = UdpSocket::bind("127.77.40.9:5").unwrap();
    let record = record_like(lane.inbound_id, 0);
    stranger.send_to(&record, b.address(0)).unwrap();
    let seen = PassedOn {
        serial: lane.serial,
        local: b.address(0),
        from: stranger.local_addr().unwrap(),
        datagram: record.clone().into(),
    };
    assert_eq!(passed(orders(&mut b).await), [seen]);

    let unknown = record_like(LaneId::new(0x00ff_fff0).unwrap(), 0);
    stranger.send_to(&unknown, b.address(0)).unwrap();
    b.engine.handle_lane_ended(lane.serial);
    stranger.send_to(&record, b.address(0)).unwrap();
    assert!(orders(&mut b).await.is_empty());
    assert_eq!(b.engine.drops().get(ListenerDrop::UnknownRecord), 2);
}

#[tokio::test]
async fn a_flood_reaches_no_worker_and_does_not_keep_out_what_could_be_the_next_record() {
    let (_a, mut b, [_, lane]) = with_a_lane(41).await;
    lane.gauges.set_newest(Sequence { epoch: 0, counter: 1000 });
    let now = Instant::now().into_std();
    let from = |port| Stray {
        local: b.address(0),
        from: SocketAddr::new([127, 77, 41, 9].into(), port),
        datagram: Box::default(),
    };
    let mut strays: Vec<_> =
        (1..=500).map(|port| Stray { datagram: record_like(lane.inbound_id, 1 << 40).into(), ..from(port) }).collect();
    // Who knows the lane's id knows also how the next epoch begins.
    let first_of_next = |lane| {
        let mut record = record_like(lane, 0);
        let header = RecordHeader { epoch: EpochTag::of_epoch(1), lane, counter: 0 };
        record[..RECORD_HEADER_BYTES].copy_from_slice(&header.to_bytes());
        record
    };
    strays.extend((1001..=1500).map(|port| Stray { datagram: first_of_next(lane.inbound_id).into(), ..from(port) }));
    strays.extend((501..=520).map(|port| Stray { datagram: record_like(lane.inbound_id, 1003).into(), ..from(port) }));
    for stray in &strays {
        b.engine.handle_stray(stray.clone(), now);
    }
    let mut by_counter = BTreeMap::<u64, usize>::new();
    for passed in passed(orders(&mut b).await) {
        *by_counter.entry(RecordHeader::parse(&passed.datagram).unwrap().counter).or_default() += 1;
    }
    assert_eq!(by_counter, BTreeMap::from([(1 << 40, 2), (1003, 8)]));
    assert_eq!(b.engine.drops().get(ListenerDrop::TooMany), 1010);
    // Later there is room again.
    b.engine.handle_stray(strays[0].clone(), now + Duration::from_millis(100));
    assert_eq!(orders(&mut b).await.len(), 1);
    assert_eq!((b.engine.movement().passed_on, b.engine.movement().ignored), (11, 1010));
}

#[tokio::test]
async fn records_that_nobody_fetches_are_dropped_rather_than_gathered() {
    let (_a, mut b, [_, lane]) = with_a_lane(45).await;
    let begun = Instant::now().into_std();
    let stray = Stray {
        local: b.address(0),
        from: "127.77.45.9:5".parse().unwrap(),
        datagram: record_like(lane.inbound_id, 0).into(),
    };
    for period in 0..100 {
        for _ in 0..8 {
            b.engine.handle_stray(stray.clone(), begun + period * Duration::from_millis(100));
        }
    }
    let most = PASSED_ON_MAX as usize;
    assert_eq!(b.engine.drops().get(ListenerDrop::TooMany), 800 - most as u64);
    assert_eq!(passed(orders(&mut b).await).len(), most);
    b.engine.handle_stray(stray, begun + Duration::from_secs(60));
    assert_eq!(orders(&mut b).await.len(), 1, "there is room again");
}

#[tokio::test]
async fn what_waits_for_the_control_loop_is_given_out_before_anything_is_read() {
    let (_a, mut b, [_, lane]) = with_a_lane(46).await;
    let elsewhere = "127.77.46.9:77".parse().unwrap();
    for _ in 0..3 {
        b.engine.handle_path_seen(lane.serial, b.address(0), elsewhere, Instant::now().into_std());
    }
    let stranger = UdpSocket::bind("127.77.46.9:5").unwrap();
    stranger.send_to(&record_like(LaneId::new(0x00ff_fff0).unwrap(), 0), b.address(0)).unwrap();
    // Lets the runtime see that the socket can be read.
    tokio::time::sleep(Duration::from_millis(1)).await;
    for _ in 0..3 {
        assert!(matches!(b.engine.next().await, LaneOutcome::Order { .. }));
        assert_eq!(b.engine.drops().get(ListenerDrop::UnknownRecord), 0);
    }
    assert!(orders(&mut b).await.is_empty());
    assert_eq!(b.engine.drops().get(ListenerDrop::UnknownRecord), 1);
}

#[tokio::test]
async fn a_path_that_was_seen_is_tried_if_a_lane_may_take_it_and_not_too_often() {
    let (a, mut b, [_, lane]) = with_a_lane(42).await;
    let now = Instant::now().into_std();
    let elsewhere: SocketAddr = "127.77.42.9:77".parse().unwrap();
    b.engine.handle_path_seen(lane.serial, b.address(0), elsewhere, now);
    let trials = tried(orders(&mut b).await);
    assert_eq!(trials.len(), 1);
    let socket = UdpSocket::from(trials.into_iter().next().unwrap().socket);
    assert_eq!((socket.local_addr().unwrap(), socket.peer_addr().unwrap()), (b.address(0), elsewhere));

    // Its own path, an address that is not ours, our own address, and no lane of that name.
    let b_0 = b.address(0);
    b.engine.handle_path_seen(lane.serial, b_0, a.address(0), now);
    b.engine.handle_path_seen(lane.serial, "127.77.42.3:18100".parse().unwrap(), elsewhere, now);
    b.engine.handle_path_seen(lane.serial, b_0, SocketAddr::new(b_0.ip(), 9), now);
    b.engine.handle_path_seen(LaneSerial(99), b_0, elsewhere, now);
    assert!(orders(&mut b).await.is_empty());
    assert_eq!(b.engine.movement().paths_refused, 4);

    for port in 100..200 {
        b.engine.handle_path_seen(lane.serial, b_0, SocketAddr::new(elsewhere.ip(), port), now);
    }
    assert_eq!(orders(&mut b).await.len(), 7, "eight in a second");
}

#[tokio::test]
async fn a_lane_whose_address_is_gone_or_that_is_silent_looks_for_others_and_stops_when_it_has_one() {
    let (mut a, b, [lane, _]) = with_a_lane(43).await;
    let new: IpAddr = "127.77.43.3".parse().unwrap();
    a.engine.set_local_addresses(&[a.ip, new]).unwrap();
    assert!(orders(&mut a).await.is_empty(), "nothing is wrong with it");

    let silent_at = Instant::now().into_std();
    a.engine.handle_lane_changed(lane.serial, LaneChange::Silent, silent_at);
    let ends = |trial: TrialPath| (trial.local, trial.remote);
    let other = (SocketAddr::new(new, PORT), b.address(0));
    assert_eq!(tried(orders(&mut a).await).into_iter().map(ends).collect::<Vec<_>>(), [other]);
    a.engine.handle_lane_changed(lane.serial, LaneChange::Heard, silent_at);

    a.engine.set_local_addresses(&[new]).unwrap();
    assert_eq!(tried(orders(&mut a).await).into_iter().map(ends).collect::<Vec<_>>(), [other]);
    let moved = LaneChange::Moved { local: other.0, remote: other.1 };
    a.engine.handle_lane_changed(lane.serial, moved, silent_at);
    tokio::time::pause();
    assert!(timeout(Duration::from_secs(60), a.engine.next()).await.is_err(), "it has a path");
}

#[tokio::test]
async fn a_lane_that_finds_no_path_goes_on_looking_ever_more_rarely() {
    let (mut a, b, [lane, _]) = with_a_lane(44).await;
    let theirs = Offer {
        candidates: (10..20)
            .map(|host| Candidate {
                kind: CandidateKind::Host,
                ip: Ipv4Addr::new(127, 77, 44, host).into(),
                port: PORT,
            })
            .collect(),
        ..b.offer(LaneSet(1), 1)
    };
    a.engine.set_candidates(PEER, &theirs, Instant::now().into_std());
    tokio::time::pause();
    let begun = Instant::now();
    a.engine.handle_lane_changed(lane.serial, LaneChange::Silent, begun.into_std());
    let mut tried_at = BTreeMap::<u64, Vec<SocketAddr>>::new();
    while begun.elapsed() < Duration::from_secs(30) {
        if let Ok(LaneOutcome::Order { command: PlaneCommand::TryPath(trial), .. }) =
            timeout(Duration::from_secs(30), a.engine.next()).await
        {
            tried_at.entry(begun.elapsed().as_millis() as u64).or_default().push(trial.remote);
        }
    }
    tried_at.retain(|at_ms, _| *at_ms < 30_000);
    let rounds: Vec<_> = tried_at.values().map(Vec::len).collect();
    assert!(rounds.iter().all(|round| *round == 4) && (4..=6).contains(&rounds.len()), "{tried_at:?}");
    let remotes: std::collections::BTreeSet<_> = tried_at.values().flatten().collect();
    assert_eq!(remotes.len(), 10, "all of them have their turn: {tried_at:?}");
}
