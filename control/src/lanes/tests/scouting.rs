//! Lanes that stand look for better paths.

use ringlane_shared::limits::{PROBES_PER_ADDRESS_MAX, PROBES_PER_PEER_MAX, SCOUT_PAIRS_MAX};
use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::path::loss::Loss;
use ringlane_shared::path::prober::{ATTEMPTS_MAX, PROBING_PERIOD, SAMPLES};
use ringlane_shared::plane::{LaneChange, PlaneCommand, TrialPath};

use super::super::scouting::ProbeRate;
use super::*;

/// Two nodes with one lane between 127.77.`net`.1 and .2, who then have addresses in 127.78.`net`.0/24 too, which both
/// are connected to.
async fn that_meet(net: u8) -> (Node, Node, [Box<LaneHandOver>; 2]) {
    let (a, b, lanes) = that_meet_with(net, 1).await;
    (a, b, lanes.map(|mut lanes| lanes.remove(0)))
}

/// The same with as many lanes.
async fn that_meet_with(net: u8, lanes: u8) -> (Node, Node, [Vec<Box<LaneHandOver>>; 2]) {
    let (mut a, mut b) = (Node::listening(net, 1, lanes), Node::listening(net, 2, lanes));
    start_both(&mut a, &mut b, 1);
    let told = outcomes(&mut a, &mut b, [lanes.into(); 2]).await;
    let lanes = told.map(|told| told.into_iter().map(|told| established(told).1).collect());
    let now = Instant::now().into_std();
    for node in [&mut a, &mut b] {
        let near = near(node);
        node.engine.set_local_addresses(&[node.ip, near]).unwrap();
        node.engine.set_on_link(vec![format!("127.78.{net}.0/24").parse().unwrap()], now);
    }
    (a, b, lanes)
}

fn near(node: &Node) -> IpAddr {
    let IpAddr::V4(ip) = node.ip else { unreachable!("nodes have IPv4 addresses") };
    let [_, _, net, host] = ip.octets();
    Ipv4Addr::new(127, 78, net, host).into()
}

/// An exchange of offers that name both addresses of each.
fn exchange(a: &mut Node, b: &mut Node, number: u8, change: impl Fn(&mut Offer)) {
    let now = Instant::now().into_std();
    let [mut for_a, mut for_b] = requests(a, b, number);
    for (request, nodes) in [(&mut for_a, [&*a, &*b]), (&mut for_b, [&*b, &*a])] {
        for (offer, node) in [(&mut request.ours, nodes[0]), (&mut request.theirs, nodes[1])] {
            offer.candidates.push(Candidate { kind: CandidateKind::Host, ip: near(node), port: PORT });
            change(offer);
        }
    }
    a.engine.set_candidates(PEER, &for_a.theirs, now);
    b.engine.set_candidates(PEER, &for_b.theirs, now);
    a.engine.scout(for_a, now);
    b.engine.scout(for_b, now);
}

/// What a, the client, has for its worker first; b has nothing for its own.
async fn first_trial(a: &mut Node, b: &mut Node) -> TrialPath {
    let first = async {
        tokio::select! {
            outcome = a.engine.next() => outcome,
            outcome = b.engine.next() => panic!("the server decides nothing: {outcome:?}"),
        }
    };
    match timeout(Duration::from_secs(60), first).await.expect("a better path is found") {
        LaneOutcome::Order { command: PlaneCommand::TryPath(trial), .. } => *trial,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn when_both_ends_come_onto_one_network_the_client_has_the_lane_moved_there() {
    let (mut a, mut b, [at_a, _]) = that_meet(50).await;
    at_a.gauges.set_rtt(Duration::from_millis(20));
    exchange(&mut a, &mut b, 2, |_| ());
    let trial = first_trial(&mut a, &mut b).await;
    assert_eq!((trial.serial, trial.is_better), (at_a.serial, true));
    assert_eq!((trial.local, trial.remote), (SocketAddr::new(near(&a), PORT), SocketAddr::new(near(&b), PORT)));
}

#[tokio::test]
async fn a_lane_in_the_making_goes_where_a_later_exchange_says_and_keeps_what_was_agreed_on() {
    let (mut a, mut b) = (Node::listening(54, 1, 1), Node::listening(54, 2, 1));
    let now = Instant::now().into_std();
    let blank = |mut request: LinkStart| {
        request.ours.candidates.clear();
        request.theirs.candidates.clear();
        request
    };
    let [for_a, for_b] = requests(&a, &b, 1).map(blank);
    a.engine.start(for_a, now);
    b.engine.start(for_b, now);
    let [for_a, for_b] = requests(&a, &b, 2);
    a.engine.scout(for_a, now);
    // The other end asks back as soon as it is asked, whether or not it has heard.
    drop(for_b);
    let [at_a, at_b] = outcomes(&mut a, &mut b, [1, 1]).await.map(|mut told| established(told.remove(0)).1);
    assert_eq!((at_a.remote, at_b.remote), (b.address(0), a.address(0)));
    let (mut at_a, mut at_b) = (at_a, at_b);
    carry_record(&mut at_a, &mut at_b);
}

#[tokio::test]
async fn a_lane_that_is_there_looks_no_further_and_one_that_must_leave_goes_back_where_it_was() {
    let (mut a, mut b, [at_a, _]) = that_meet(51).await;
    at_a.gauges.set_rtt(Duration::from_millis(20));
    exchange(&mut a, &mut b, 2, |_| ());
    let trial = first_trial(&mut a, &mut b).await;
    let moved = LaneChange::Moved { local: trial.local, remote: trial.remote };
    a.engine.handle_lane_changed(at_a.serial, moved, Instant::now().into_std());
    exchange(&mut a, &mut b, 3, |_| ());
    let both = async {
        tokio::select! {
            outcome = a.engine.next() => outcome,
            outcome = b.engine.next() => outcome,
        }
    };
    tokio::time::pause();
    assert!(timeout(Duration::from_secs(60), both).await.is_err(), "there is nothing better");
    a.engine.handle_lane_changed(at_a.serial, LaneChange::Silent, Instant::now().into_std());
    let back = first_trial(&mut a, &mut b).await;
    assert_eq!((back.local, back.remote, back.is_better), (at_a.local, at_a.remote, false));
}

#[tokio::test]
async fn a_lane_whose_path_is_lossy_asks_at_once_and_takes_a_clean_one_that_is_not_as_near() {
    let (mut a, mut b, [at_a, _]) = that_meet(55).await;
    let now = Instant::now().into_std();
    for node in [&mut a, &mut b] {
        node.engine.set_on_link(vec!["127.77.55.0/24".parse().unwrap()], now);
    }
    at_a.gauges.set_rtt(Duration::from_millis(20));
    let mut sent = a.engine.probes_sent();
    exchange(&mut a, &mut b, 2, |_| ());
    at_a.gauges.set_loss(Loss::new(128, 30));
    a.engine.handle_lane_changed(at_a.serial, LaneChange::Lossy(true), now);
    let wish = timeout(Duration::from_secs(2), a.engine.next()).await.expect("it is asked for at once");
    assert!(matches!(wish, LaneOutcome::Improve { peer: PEER }), "{wish:?}");
    assert_eq!(a.engine.probes_sent(), sent, "a path that is not as near is none to look at");
    for number in [3, 4] {
        exchange(&mut a, &mut b, number, |_| ());
        let both = async {
            loop {
                let outcome = tokio::select! {
                    outcome = a.engine.next() => outcome,
                    outcome = b.engine.next() => panic!("the server decides nothing: {outcome:?}"),
                };
                if let LaneOutcome::Order { command: PlaneCommand::TryPath(trial), .. } = outcome {
                    return *trial;
                }
            }
        };
        let trial = timeout(PROBING_PERIOD + Duration::from_millis(100), both).await;
        let asked = a.engine.probes_sent() - sent;
        // The three other pairs of the two addresses of each.
        let sampled = u64::from(SAMPLES);
        assert!((3 * sampled..=3 * (sampled + u64::from(ATTEMPTS_MAX))).contains(&asked), "{asked}");
        sent = a.engine.probes_sent();
        match number {
            3 => assert!(trial.is_err(), "once is not enough"),
            _ => {
                let trial = trial.expect("a clean path is found");
                let own = (at_a.local, at_a.remote);
                assert!(trial.is_better && (trial.local, trial.remote) != own, "{trial:?}");
            }
        }
    }
}

#[tokio::test]
async fn many_lossy_lanes_find_out_together_what_other_paths_lose_and_all_leave() {
    const LANES: u8 = 12;
    let (mut a, mut b, [at_a, _at_b]) = that_meet_with(56, LANES).await;
    let now = Instant::now().into_std();
    for node in [&mut a, &mut b] {
        node.engine.set_on_link(Vec::new(), now);
    }
    for lane in &at_a {
        lane.gauges.set_rtt(Duration::from_millis(20));
        lane.gauges.set_loss(Loss::new(128, 30));
        a.engine.handle_lane_changed(lane.serial, LaneChange::Lossy(true), now);
    }
    let mut leave = std::collections::BTreeSet::new();
    for number in [2, 3] {
        let sent = a.engine.probes_sent();
        exchange(&mut a, &mut b, number, |_| ());
        let both = async {
            loop {
                let outcome = tokio::select! {
                    outcome = a.engine.next() => outcome,
                    outcome = b.engine.next() => panic!("the server decides nothing: {outcome:?}"),
                };
                if let LaneOutcome::Order { command: PlaneCommand::TryPath(trial), .. } = outcome {
                    leave.insert(trial.serial);
                }
            }
        };
        assert!(timeout(PROBING_PERIOD + Duration::from_millis(100), both).await.is_err());
        let asked = a.engine.probes_sent() - sent;
        let (sampled, each) = (3 * u64::from(SAMPLES), 3 * u64::from(ATTEMPTS_MAX) * u64::from(LANES));
        assert!((sampled..=sampled + each).contains(&asked), "{asked}");
    }
    assert_eq!(leave, at_a.iter().map(|lane| lane.serial).collect());
}

#[tokio::test]
async fn a_lane_that_is_not_used_does_not_find_out_what_other_paths_lose() {
    let (mut a, mut b, [at_a, _at_b]) = that_meet(57).await;
    let now = Instant::now().into_std();
    for node in [&mut a, &mut b] {
        node.engine.set_on_link(Vec::new(), now);
    }
    at_a.gauges.set_rtt(Duration::from_millis(20));
    at_a.gauges.set_loss(Loss::new(128, 30));
    a.engine.handle_lane_changed(at_a.serial, LaneChange::Lossy(true), now);
    let to = LaneChange::Moved { local: SocketAddr::new(near(&a), PORT), remote: SocketAddr::new(near(&b), PORT) };
    // Sure of a loss, then just moved because of it, then in use, then idle.
    for (number, found, is_thorough) in
        [(2, Loss::new(128, 30), true), (3, Loss::new(25, 0), true), (4, Loss::default(), false)]
    {
        at_a.gauges.set_loss(found);
        let sent = a.engine.probes_sent();
        exchange(&mut a, &mut b, number, |_| ());
        let both = async {
            loop {
                tokio::select! { _ = a.engine.next() => (), _ = b.engine.next() => () }
            }
        };
        assert!(timeout(PROBING_PERIOD + Duration::from_millis(100), both).await.is_err());
        let asked = a.engine.probes_sent() - sent;
        assert_eq!(asked >= u64::from(SAMPLES), is_thorough, "{asked} in exchange {number}");
        if number == 2 {
            a.engine.handle_lane_changed(at_a.serial, to, Instant::now().into_std());
        }
    }
}

#[tokio::test]
async fn a_better_path_that_does_not_answer_is_asked_for_again_and_again_ever_more_rarely() {
    let (mut a, mut b, [_at_a, _]) = that_meet(52).await;
    b.engine.set_local_addresses(&[b.ip]).unwrap();
    exchange(&mut a, &mut b, 2, |_| ());
    tokio::time::pause();
    let begun = Instant::now();
    let mut asked = Vec::new();
    while asked.len() < 7 {
        let outcome = timeout(Duration::from_secs(600), a.engine.next()).await.expect("it goes on asking");
        assert!(matches!(outcome, LaneOutcome::Improve { peer: PEER }), "{outcome:?}");
        asked.push(begun.elapsed().as_secs());
    }
    assert!(asked.iter().zip([5, 15, 35, 75, 155, 315, 615]).all(|(at, due)| at.abs_diff(due) <= 1), "{asked:?}");
}

#[tokio::test]
async fn probes_of_a_lane_that_stands_are_answered_only_while_both_look() {
    let (mut a, mut b, _lanes) = that_meet(53).await;
    let [for_a, _] = requests(&a, &b, 2);
    let near = near(&b);
    let mut for_a = for_a;
    for_a.theirs.candidates.push(Candidate { kind: CandidateKind::Host, ip: near, port: PORT });
    a.engine.scout(for_a, Instant::now().into_std());
    tokio::time::pause();
    let both = async {
        tokio::select! {
            outcome = a.engine.next() => outcome,
            outcome = b.engine.next() => outcome,
        }
    };
    assert!(timeout(Duration::from_secs(60), both).await.is_err(), "b does not know of that exchange");
    assert!(b.engine.drops().get(ListenerDrop::UnknownProbe) > 0);
}

#[tokio::test]
async fn an_offer_with_hundreds_of_candidates_costs_a_bounded_number_of_probes() {
    let (mut a, mut b, _lanes) = that_meet(54).await;
    let victim = UdpSocket::bind("127.77.54.9:9000").unwrap();
    victim.set_nonblocking(true).unwrap();
    exchange(&mut a, &mut b, 2, |offer| {
        // A third party, over and over.
        offer.extensions.candidates = (0..128)
            .map(|number| OwnCandidate {
                worker: 0,
                kind: CandidateKind::Mapped,
                address: SocketAddr::new("127.77.54.9".parse().unwrap(), 9000 + number % 16),
            })
            .collect();
        offer.candidates = (0..32)
            .map(|host| Candidate {
                kind: CandidateKind::Host,
                ip: Ipv4Addr::new(127, 78, 54, 100 + host).into(),
                port: PORT,
            })
            .collect();
    });
    tokio::time::pause();
    let _ = timeout(Duration::from_secs(60), a.engine.next()).await;
    let mut received = 0;
    while victim.recv(&mut [0; 64]).is_ok() {
        received += 1;
    }
    assert!(received <= 2 * 8, "{received} requests, at most eight from each address of ours");
    // Those of b's requests that came from elsewhere are asked back.
    assert!(a.engine.probes_sent() <= (2 * SCOUT_PAIRS_MAX * 8) as u64, "{}", a.engine.probes_sent());
}

#[test]
fn a_peer_that_names_a_whole_network_has_us_send_there_no_more_than_its_share() {
    let (mut rate, begun) = (ProbeRate::default(), Instant::now().into_std());
    let other = PeerIndex(PEER.0 + 1);
    let taken = |rate: &mut ProbeRate, peer, net, now| {
        let hosts = (0..=255u8).flat_map(|host| (0..100).map(move |_| IpAddr::from([203, 0, net, host])));
        hosts.filter(|host| rate.take(peer, *host, now)).count()
    };
    assert_eq!(taken(&mut rate, PEER, 113, begun), PROBES_PER_PEER_MAX as usize);
    assert_eq!(taken(&mut rate, other, 112, begun), PROBES_PER_PEER_MAX as usize, "which is not another peer's");
    let later = begun + Duration::from_secs(1);
    let one = IpAddr::from([203, 0, 113, 1]);
    let sent = (0..10_000).filter(|number| rate.take(PeerIndex(number % 10), one, later)).count();
    assert_eq!(sent, PROBES_PER_ADDRESS_MAX as usize, "whoever names it");
}
