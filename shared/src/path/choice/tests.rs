use super::*;

const FRESH: Duration = Duration::from_secs(10);

fn ends(remote: &str) -> Ends {
    Ends { local: "192.168.1.2:8100".parse().unwrap(), remote: remote.parse().unwrap() }
}

fn rtt(ms: u64) -> Measurement {
    Measurement { rtt: Duration::from_millis(ms), loss_percent: 0 }
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
    book.handle_measured(ends(NEAR), PathClass::Lan, Measurement { loss_percent: 40, ..rtt(1) }, rtt(20), now);
    assert_eq!(book.choose(FRESH, now), None, "nor one that loses much");
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
}
