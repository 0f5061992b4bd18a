//! Single rules, and whole lives of networks with several routers under seeds.

use super::*;

const B: PeerIndex = PeerIndex(1);
const C: PeerIndex = PeerIndex(2);
const SECOND: Duration = Duration::from_secs(1);

fn net(prefix: &str) -> IpNet {
    prefix.parse().unwrap()
}

fn router(peer: PeerIndex, metric: u32) -> Router {
    Router { peer, metric, origin: Origin::Configured }
}

/// A book where `routers` route one prefix.
fn book(routers: &[(PeerIndex, u32)]) -> RouteBook {
    let mut book = RouteBook::default();
    for (peer, metric) in routers {
        book.add(net("10.0.0.0/8"), router(*peer, *metric)).unwrap();
    }
    book
}

fn active(book: &RouteBook) -> PeerIndex {
    book.active().next().unwrap().1
}

fn up(rtt_ms: u64) -> Health {
    Health { reachable: true, rtt_us: Some(rtt_ms * 1000) }
}

/// Tells the book of the health of B and C.
fn tell(book: &mut RouteBook, now: Instant, b: Health, c: Health) -> bool {
    book.update(now, |peer| if peer == B { b } else { c })
}

#[test]
fn the_lowest_metric_wins_and_before_anybody_is_heard_of_too() {
    assert_eq!(active(&book(&[(B, 20), (C, 10)])), C);
    let mut book = book(&[(B, 10), (C, 20)]);
    assert_eq!(active(&book), B);
    assert!(!tell(&mut book, Instant::now(), up(50), up(1)), "a lower metric counts more than a shorter way");
}

#[test]
fn the_next_router_takes_over_at_once_and_the_first_comes_back_when_it_has_proved_itself() {
    let (mut book, start) = (book(&[(B, 10), (C, 20)]), Instant::now());
    let down = Health::default();
    tell(&mut book, start, up(1), up(1));
    assert!(tell(&mut book, start + SECOND, down, up(1)));
    assert_eq!(active(&book), C);
    let back = start + 2 * SECOND;
    assert!(!tell(&mut book, back, up(1), up(1)));
    assert!(!tell(&mut book, back + RETURN_HOLD - SECOND, up(1), up(1)));
    assert!(tell(&mut book, back + RETURN_HOLD, up(1), up(1)));
    assert_eq!(active(&book), B);
    assert!(!tell(&mut book, back + 2 * RETURN_HOLD, down, down), "nobody is better than nobody");
    assert_eq!(active(&book), B);
}

#[test]
fn a_router_that_comes_and_goes_is_not_returned_to() {
    let (mut book, start) = (book(&[(B, 10), (C, 20)]), Instant::now());
    let mut moves = 0;
    for second in 0..600 {
        let b = if second % 8 < 4 { Health::default() } else { up(1) };
        moves += u32::from(tell(&mut book, start + second * SECOND, b, up(1)));
    }
    assert_eq!((moves, active(&book)), (1, C));
}

#[test]
fn the_nearer_of_equals_takes_over_when_it_stays_nearer_by_the_margin() {
    let (mut book, start) = (book(&[(B, 0), (C, 0)]), Instant::now());
    tell(&mut book, start, Health::default(), up(29));
    assert_eq!(active(&book), C);
    assert!(!tell(&mut book, start + SECOND, up(22), up(29)), "within a quarter");
    assert!(!tell(&mut book, start + 2 * RTT_HOLD, up(22), up(29)));
    let nearer = start + 3 * RTT_HOLD;
    assert!(!tell(&mut book, nearer, up(20), up(29)));
    assert!(!tell(&mut book, nearer + RTT_HOLD / 2, up(28), up(29)), "a break begins it anew");
    assert!(!tell(&mut book, nearer + RTT_HOLD, up(20), up(29)));
    assert!(!tell(&mut book, nearer + 2 * RTT_HOLD - SECOND, up(20), up(29)));
    assert!(tell(&mut book, nearer + 2 * RTT_HOLD, up(20), up(29)));
    assert_eq!(active(&book), B);
    let near = start + 10 * RTT_HOLD;
    for second in 0..100 {
        assert!(!tell(&mut book, near + second * SECOND, up(5), up(1)), "5 ms is never far");
    }
}

#[test]
fn routes_are_added_changed_and_removed() {
    let mut book = book(&[(B, 10), (C, 20)]);
    let ten = net("10.0.0.0/8");
    assert_eq!(book.add(ten, router(B, 10)), Err(RouteError::Exists(ten)));
    assert_eq!(book.add(ten, router(B, 30)), Ok(()));
    assert_eq!(book.remove(net("10.0.0.0/9"), None), Err(RouteError::Unknown(net("10.0.0.0/9"))));
    assert_eq!(book.remove(ten, Some(PeerIndex(7))), Err(RouteError::NotThere(ten)));
    assert_eq!(book.remove(ten, Some(B)), Ok(false));
    assert_eq!((active(&book), book.has_choice()), (C, false));
    assert!(book.withdraw(ten, true) && !book.withdraw(ten, true));
    assert_eq!((book.active().count(), book.offers().count()), (0, 1));
    assert!(book.offers().all(|offer| offer.withdrawn && !offer.active));
    assert_eq!(book.remove(ten, None), Ok(true));
    assert_eq!(book.offers().count(), 0);
}

#[test]
fn a_full_book_says_so() {
    let mut book = RouteBook::default();
    for number in 0..ROUTES_MAX as u32 {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        book.add(std::net::IpAddr::from(address).into(), router(B, 0)).unwrap();
    }
    assert_eq!(book.add(net("::/0"), router(B, 0)), Err(RouteError::Full));
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

#[test]
fn under_any_trouble_a_reachable_router_is_used_nothing_flaps_and_in_quiet_the_best_one_wins() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let peers: Vec<PeerIndex> = (0..2 + random.below(4) as u16).map(PeerIndex).collect();
        let metrics: Vec<u32> = peers.iter().map(|_| 10 * random.below(2) as u32).collect();
        let mut book = book(&peers.iter().copied().zip(metrics.iter().copied()).collect::<Vec<_>>());
        let mut health = vec![Health::default(); peers.len()];
        let start = Instant::now();
        let mut moved_at: Option<Instant> = None;
        const TROUBLE: u32 = 300;
        for second in 0..TROUBLE + 150 {
            let now = start + second * SECOND;
            if second < TROUBLE && random.below(4) == 0 {
                let one = random.below(peers.len() as u64) as usize;
                health[one] = if random.below(3) == 0 { Health::default() } else { up(1 + random.below(200)) };
            }
            if second == TROUBLE {
                // At least one stays, so that there is a best one.
                health[0] = up(30);
            }
            let before = active(&book);
            let changed = book.update(now, |peer| health[peer.position()]);
            let after = active(&book);
            assert_eq!(changed, before != after, "seed {seed}, second {second}");
            let reachable = |peer: PeerIndex| health[peer.position()].reachable;
            let any = peers.iter().any(|peer| reachable(*peer));
            assert!(!any || reachable(after), "seed {seed}, second {second}: {after:?} is not reachable");
            if changed && reachable(before) {
                // Away from one that works: only after a hold, and so seldom.
                let rested = moved_at.is_none_or(|at| now - at >= RETURN_HOLD);
                let since_return = book.reachable_since.get(&after).is_some_and(|at| now - *at >= RETURN_HOLD);
                assert!(since_return, "seed {seed}, second {second}: too soon");
                assert!(rested || metrics[after.position()] < metrics[before.position()], "seed {seed}, {second}");
            }
            if changed {
                moved_at = Some(now);
            }
        }
        let chosen = active(&book);
        let best =
            peers.iter().filter(|peer| health[peer.position()].reachable).map(|peer| metrics[peer.position()]).min();
        assert_eq!(Some(metrics[chosen.position()]), best, "seed {seed}");
        let rtt = |peer: PeerIndex| health[peer.position()].rtt_us.unwrap_or(u64::MAX);
        let equals = peers
            .iter()
            .filter(|peer| health[peer.position()].reachable && metrics[peer.position()] == metrics[chosen.position()]);
        let nearest = equals.map(|peer| rtt(*peer)).min().unwrap();
        assert!(
            rtt(chosen) <= nearest + RTT_MARGIN_US.max(rtt(chosen) / 4),
            "seed {seed}: {} us where {nearest} us would do",
            rtt(chosen)
        );
    }
}
