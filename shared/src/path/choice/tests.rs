use super::*;

const FRESH: Duration = Duration::from_secs(10);

fn ends(remote: &str) -> Ends {
    Ends { local: "192.168.1.2:8100".parse().unwrap(), remote: remote.parse().unwrap() }
}

fn rtt(ms: u64) -> Measurement {
    Measurement { rtt: Duration::from_millis(ms), loss: Loss::default() }
}

fn lossy(ms: u64, asked: u16, lost: u16) -> Measurement {
    Measurement { loss: Loss::new(asked, lost), ..rtt(ms) }
}

const WIDE: &str = "203.0.113.7:8100";
const OTHER: &str = "203.0.113.8:8100";
const NEAR: &str = "192.168.1.3:8100";

#[test]
fn a_class_follows_from_the_addresses_and_from_what_the_peer_says_of_its_own() {
    let on_link: Vec<IpNet> = ["192.168.1.0/24", "2001:db8:1::/64"].map(|net| net.parse().unwrap()).to_vec();
    let host = Some(CandidateKind::Host);
    let cases = [
        ("192.168.1.2", "192.168.1.3", host, PathClass::Lan),
        ("192.168.1.2", "192.168.1.3", None, PathClass::Lan),
        ("192.168.1.2", "192.168.2.3", host, PathClass::DirectV4),
        ("10.0.0.2", "192.168.1.3", host, PathClass::DirectV4),
        ("192.168.1.2", "203.0.113.7", host, PathClass::Translated),
        ("198.51.100.1", "203.0.113.7", host, PathClass::DirectV4),
        ("198.51.100.1", "203.0.113.7", None, PathClass::Translated),
        ("198.51.100.1", "203.0.113.7", Some(CandidateKind::Mapped), PathClass::Translated),
        ("198.51.100.1", "203.0.113.7", Some(CandidateKind::Relayed), PathClass::Relay),
        ("2001:db8:1::2", "2001:db8:1::3", host, PathClass::Lan),
        ("2001:db8:1::2", "2001:db8:2::3", host, PathClass::DirectV6),
    ];
    for (local, remote, kind, class) in cases {
        let found = PathClass::of(local.parse().unwrap(), remote.parse().unwrap(), kind, &on_link);
        assert_eq!(found, class, "{local} {remote} {kind:?}");
    }
}

#[test]
fn a_better_class_is_taken_at_once_and_alike_paths_are_not() {
    let now = Instant::now();
    let mut book = PathBook::new(ends(WIDE), PathClass::Translated, now);
    book.handle_measured(ends(OTHER), PathClass::Translated, rtt(19), rtt(20), now);
    assert_eq!(book.choose(FRESH, now), None);
    book.handle_measured(ends(NEAR), PathClass::Lan, rtt(21), rtt(20), now);
    assert_eq!(book.choose(FRESH, now), Some(ends(NEAR)));
    assert_eq!(book.choose(FRESH, now + FRESH * 2), None, "that was long ago");
}

#[test]
fn a_near_path_that_is_much_slower_is_not_taken() {
    let now = Instant::now();
    let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
    book.handle_measured(ends(NEAR), PathClass::Lan, rtt(300), rtt(20), now);
    assert_eq!(book.choose(FRESH, now), None);
    book.handle_measured(ends(NEAR), PathClass::Lan, lossy(1, 64, 26), rtt(20), now);
    assert_eq!(book.choose(FRESH, now), None, "nor one that loses much");
}

#[test]
fn a_lossy_path_is_left_for_a_clean_one_that_is_no_better_otherwise_and_not_taken_again_soon() {
    let mut now = Instant::now();
    let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
    let (own, clean) = (lossy(20, 128, 26), lossy(40, 64, 0));
    book.handle_measured(ends(OTHER), PathClass::DirectV4, clean, own, now);
    assert_eq!(book.choose(FRESH, now), None, "once is not enough");
    book.handle_measured(ends(OTHER), PathClass::DirectV4, clean, own, now);
    assert_eq!(book.choose(FRESH, now), Some(ends(OTHER)));
    assert!(!book.remembers_loss(now));
    book.handle_moved(ends(OTHER), PathClass::DirectV4, false, now);
    assert!(book.remembers_loss(now));
    // It is shorter, and nothing is known yet of what the new one loses.
    for _ in 0..3 {
        book.handle_measured(ends(WIDE), PathClass::DirectV4, rtt(20), rtt(40), now);
    }
    now += AVOID_LOSSY_MIN - Duration::from_secs(1);
    book.handle_measured(ends(WIDE), PathClass::DirectV4, rtt(20), rtt(40), now);
    assert_eq!(book.choose(FRESH, now), None);
    // Measured thoroughly it is found to be as lossy as it was, then to be clean.
    now += AVOID_MAX;
    for own in [rtt(40), lossy(40, 128, 1)] {
        book.handle_measured(ends(WIDE), PathClass::DirectV4, lossy(20, 64, 13), own, now);
        book.handle_measured(ends(WIDE), PathClass::DirectV4, lossy(20, 64, 13), own, now);
        assert_eq!(book.choose(FRESH, now), None);
        assert!(book.remembers_loss(now) && !book.remembers_loss(now + FORGIVEN_AFTER));
    }
    // Nor is it enough that few were lost by chance.
    for _ in 0..3 {
        book.handle_measured(ends(WIDE), PathClass::DirectV4, lossy(20, 64, 4), lossy(40, 128, 1), now);
        assert_eq!(book.choose(FRESH, now), None);
    }
    // It is still remembered when it was asked too little in between.
    book.handle_measured(ends(WIDE), PathClass::DirectV4, rtt(20), lossy(40, 128, 1), now);
    assert!(book.remembers_loss(now));
    book.handle_measured(ends(WIDE), PathClass::DirectV4, lossy(20, 64, 1), lossy(40, 128, 1), now);
    assert!(book.is_to_be_confirmed(now) && !book.is_to_be_confirmed(now + FRESH));
    book.handle_measured(ends(WIDE), PathClass::DirectV4, lossy(20, 64, 1), lossy(40, 128, 1), now);
    assert_eq!(book.choose(FRESH, now), Some(ends(WIDE)));
}

#[test]
fn what_many_questions_have_found_stays_known_for_a_while_where_few_are_asked() {
    let now = Instant::now();
    let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
    let own = lossy(40, 128, 13);
    assert_eq!(book.found_no_better(now), []);
    book.handle_measured(ends(OTHER), PathClass::DirectV4, rtt(20), own, now);
    assert_eq!(book.found_no_better(now), [], "which is not known to lose");
    book.handle_measured(ends(OTHER), PathClass::DirectV4, lossy(20, 64, 30), own, now);
    assert_eq!(book.found_no_better(now), [ends(OTHER)]);
    let mut later = now;
    while later < now + FORGIVEN_AFTER {
        // It is shorter, but what it loses is not forgotten.
        book.handle_measured(ends(OTHER), PathClass::DirectV4, rtt(20), own, later);
        assert_eq!((book.choose(FRESH, later), book.remembers_loss(later)), (None, true));
        assert_eq!(book.found_no_better(later), [ends(OTHER)]);
        later += Duration::from_secs(60);
    }
    for _ in 0..2 {
        book.handle_measured(ends(OTHER), PathClass::DirectV4, rtt(20), own, later);
        assert_eq!((book.found_no_better(later), book.remembers_loss(later)), (vec![], false));
    }
    assert_eq!(book.choose(FRESH, later), Some(ends(OTHER)));
}

#[test]
fn where_all_paths_lose_alike_or_nothing_is_sure_the_lane_stays() {
    let now = Instant::now();
    let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
    for (measured, own) in [
        (lossy(20, 64, 13), lossy(20, 128, 26)),
        (lossy(20, 64, 7), lossy(20, 128, 20)),
        (lossy(20, 3, 0), lossy(20, 128, 26)),
        (lossy(20, 64, 0), lossy(20, 10, 5)),
        (lossy(10, 64, 20), lossy(20, 128, 2)),
    ] {
        book.handle_measured(ends(OTHER), PathClass::DirectV4, measured, own, now);
        book.handle_measured(ends(OTHER), PathClass::DirectV4, measured, own, now);
        assert_eq!(book.choose(FRESH, now), None, "{measured:?} {own:?}");
    }
    // Other differences count as ever.
    for _ in 0..2 {
        book.handle_measured(ends(OTHER), PathClass::DirectV4, lossy(10, 64, 13), lossy(20, 128, 26), now);
    }
    assert_eq!(book.choose(FRESH, now), Some(ends(OTHER)));
}

#[test]
fn a_relay_is_taken_only_where_a_direct_path_loses_a_good_part() {
    for (lost, is_taken) in [(0, false), (13, false), (26, false), (52, true)] {
        let now = Instant::now();
        let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
        for _ in 0..2 {
            book.handle_measured(ends(OTHER), PathClass::Relay, lossy(30, 64, 0), lossy(20, 128, lost), now);
        }
        assert_eq!(book.choose(FRESH, now).is_some(), is_taken, "{lost} of 128");
    }
}

#[test]
fn a_path_of_the_same_class_must_be_better_by_a_margin_twice_in_a_row() {
    let now = Instant::now();
    let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
    for (measured, choice) in [(20, None), (50, None), (20, None), (20, Some(ends(OTHER)))] {
        book.handle_measured(ends(OTHER), PathClass::DirectV4, rtt(measured), rtt(40), now);
        assert_eq!(book.choose(FRESH, now), choice);
    }
}

#[test]
fn a_path_that_had_to_be_left_is_avoided_ever_longer_and_comes_first_again_in_the_end() {
    let (start, mut now) = (Instant::now(), Instant::now());
    let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
    let mut moves = 0;
    let mut pauses = Vec::new();
    let mut left_at = now;
    while now < start + Duration::from_secs(1800) {
        book.handle_measured(ends(NEAR), PathClass::Lan, rtt(1), rtt(20), now);
        if let Some(chosen) = book.choose(FRESH, now) {
            moves += 1;
            pauses.push((now - left_at).as_secs());
            book.handle_moved(chosen, PathClass::Lan, false, now);
            now += Duration::from_secs(1);
            book.handle_moved(ends(WIDE), PathClass::DirectV4, true, now);
            left_at = now;
        }
        now += Duration::from_secs(1);
    }
    assert!((8..=14).contains(&moves) && pauses.is_sorted(), "{pauses:?}");
    book.forgive(now);
    book.handle_measured(ends(NEAR), PathClass::Lan, rtt(1), rtt(20), now);
    assert_eq!(book.choose(FRESH, now), Some(ends(NEAR)));
    assert_eq!(book.others(), [ends(NEAR)]);
}

#[test]
fn thousands_of_paths_are_not_kept() {
    let now = Instant::now();
    let mut book = PathBook::new(ends(WIDE), PathClass::DirectV4, now);
    for port in 1..5000 {
        let at = now + Duration::from_millis(port.into());
        let path = Ends { remote: SocketAddr::from(([198, 51, 100, 1], port)), ..ends(WIDE) };
        book.handle_measured(path, PathClass::DirectV4, rtt(20), rtt(20), at);
    }
    assert_eq!(book.others().len(), PATHS_KNOWN_MAX);
}

#[test]
fn looking_for_something_better_never_stops_and_becomes_rare() {
    let start = Instant::now();
    let (mut retry, mut looks) = (Retry::new(start), Vec::new());
    while looks.len() < 10 {
        let at = retry.poll_timeout();
        assert!(!retry.poll(at - Duration::from_millis(1)) && retry.poll(at));
        looks.push((at - start).as_secs());
    }
    assert_eq!(looks, [5, 15, 35, 75, 155, 315, 615, 915, 1215, 1515]);
    // Once more soon, and then as rarely as before.
    let now = start + Duration::from_secs(1515);
    retry.hasten(now);
    assert_eq!(retry.poll_timeout(), now + Retry::PAUSE_MIN);
    assert!(retry.poll(now + Retry::PAUSE_MIN));
    assert_eq!(retry.poll_timeout(), now + Retry::PAUSE_MIN + Retry::PAUSE_MAX);
}
