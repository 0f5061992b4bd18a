use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

const MS: Nanos = 1_000_000;
const MTU: u32 = 1420;
/// How long a byte takes at 100 Mbit/s.
const BYTE: Nanos = 80;

fn config(cells: usize) -> FqConfig {
    let (packet_bytes, codel) = (MTU as usize, CodelConfig::new(MTU, u64::from(MTU) * BYTE));
    FqConfig { packet_bytes, pool_bytes: cells * (MTU as usize).next_multiple_of(64), quantum_bytes: MTU, codel }
}

fn label(flow: u32) -> Label {
    Label { peer: PeerIndex(flow as u16), flow_hash: hash_of(flow), is_partial: flow.is_multiple_of(2) }
}

/// Hashes of small numbers that fall into different buckets.
fn hash_of(flow: u32) -> u32 {
    let mut taken = std::collections::BTreeSet::new();
    (0..).filter(|hash| taken.insert(bucket(*hash))).nth(flow as usize).unwrap()
}

/// Writes an IPv4 header of that ECN field, and a number behind it.
fn write(number: u32, ecn: u8) -> impl FnOnce(&mut [u8]) {
    move |packet| {
        packet.fill(0);
        packet[..2].copy_from_slice(&[0x45, ecn]);
        packet[20..24].copy_from_slice(&number.to_be_bytes());
    }
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[20..24].try_into().unwrap())
}

/// The next packet: its flow's peer, its number, its length and its ECN field.
fn next(fq: &mut Fq, now: Nanos, fates: &mut Vec<Fate>) -> Option<(u32, u32, usize, u8)> {
    next_of(fq, now, |_| true, fates)
}

fn next_of(
    fq: &mut Fq,
    now: Nanos,
    may_leave: impl FnMut(&Label) -> bool,
    fates: &mut Vec<Fate>,
) -> Option<(u32, u32, usize, u8)> {
    let leaving = fq.next(now, may_leave, |fate| fates.push(fate))?;
    let packet = fq.packet(&leaving);
    let found = (leaving.label.peer.position() as u32, number_of(packet), packet.len(), packet[1]);
    fq.release(leaving);
    Some(found)
}

/// Packets (since when, number, bytes, ECN field), deficit and CoDel of a flow.
type TwinFlow = (VecDeque<(Nanos, u32, u32, u8)>, i64, Codel);

/// The same with lists that grow, packets that are values, and the RFC's words in the RFC's order.
struct Twin {
    cells: usize,
    flows: BTreeMap<u32, TwinFlow>,
    new: VecDeque<u32>,
    old: VecDeque<u32>,
    held: [VecDeque<u32>; 2],
    fates: Vec<Fate>,
}

impl Twin {
    fn new(cells: usize) -> Self {
        Self {
            cells,
            flows: BTreeMap::new(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            held: Default::default(),
            fates: Vec::new(),
        }
    }

    fn packets(&self) -> usize {
        self.flows.values().map(|flow| flow.0.len()).sum()
    }

    fn bytes(&self) -> u32 {
        self.flows.values().flat_map(|flow| &flow.0).map(|packet| packet.2).sum()
    }

    fn is_listed(&self, flow: u32) -> bool {
        [&self.new, &self.old, &self.held[0], &self.held[1]].into_iter().any(|list| list.contains(&flow))
    }

    fn queue(&mut self, now: Nanos, flow: u32, number: u32, bytes: u32, ecn: u8) {
        if self.packets() == self.cells {
            let most = self.flows.values().map(|flow| flow.0.len()).max().unwrap();
            // Of flows that have as much the one in the last bucket, as the real one finds it.
            let fattest = self.flows.iter().filter(|(_, flow)| flow.0.len() == most);
            let fattest = *fattest.max_by_key(|(flow, _)| bucket(hash_of(**flow))).unwrap().0;
            for _ in 0..most.div_ceil(2).min(64) {
                self.flows.get_mut(&fattest).unwrap().0.pop_front();
                self.fates.push(Fate::Dropped(label(fattest).peer, DropReason::EgressFull));
            }
        }
        if !self.is_listed(flow) {
            self.new.push_back(flow);
            self.flows.entry(flow).or_default().1 = i64::from(MTU);
        }
        self.flows.entry(flow).or_default().0.push_back((now, number, bytes, ecn));
    }

    fn next(&mut self, now: Nanos, blocked: Option<u32>) -> Option<(u32, u32, usize, u8)> {
        loop {
            let is_new = !self.new.is_empty();
            let number = *self.new.front().or(self.old.front())?;
            let list = if is_new { &mut self.new } else { &mut self.old };
            let flow = self.flows.get_mut(&number).unwrap();
            if flow.1 <= 0 {
                flow.1 += i64::from(MTU);
                list.pop_front();
                self.old.push_back(number);
                continue;
            }
            if blocked == Some(number) && !flow.0.is_empty() {
                list.pop_front();
                self.held[usize::from(!is_new)].push_back(number);
                continue;
            }
            loop {
                let flow = self.flows.get_mut(&number).unwrap();
                let queued = flow.0.iter().map(|packet| packet.2).sum();
                let Some((since, packet, bytes, mut ecn)) = flow.0.pop_front() else { break };
                if flow.2.hits(&config(1).codel, now, since, queued) {
                    if ecn == 0 {
                        self.fates.push(Fate::Dropped(label(number).peer, DropReason::EgressDelayed));
                        continue;
                    }
                    ecn = 3;
                    self.fates.push(Fate::Marked);
                }
                flow.1 -= i64::from(bytes);
                return Some((number, packet, bytes as usize, ecn));
            }
            self.flows.get_mut(&number).unwrap().2.ran_empty();
            let list = if is_new { &mut self.new } else { &mut self.old };
            list.pop_front();
            if is_new && !self.old.is_empty() {
                self.old.push_back(number);
            }
        }
    }

    fn reconsider(&mut self) {
        let [new, old] = &mut self.held;
        self.new.append(new);
        self.old.append(old);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Queue { flow: u32, bytes: u32, ecn: u8 },
    Next { blocked: Option<u32> },
    Wait(Nanos),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flow = 0..6u32;
    let step = prop_oneof![
        5 => (flow.clone(), 24..=MTU, prop_oneof![Just(0u8), Just(2)])
            .prop_map(|(flow, bytes, ecn)| Step::Queue { flow, bytes, ecn }),
        4 => proptest::option::weighted(0.3, flow).prop_map(|blocked| Step::Next { blocked }),
        1 => (0..40u64).prop_map(|millis| Step::Wait(millis * MS)),
    ];
    proptest::collection::vec(step, 1..600)
}

proptest! {
    #[test]
    fn what_leaves_and_what_is_lost_is_what_the_rfc_says(steps in steps(), cells in 1usize..60) {
        let (mut fq, mut twin) = (Fq::new(config(cells)), Twin::new(cells));
        let (mut now, mut fates) = (1000 * MS, Vec::new());
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Queue { flow, bytes, ecn } => {
                    fq.queue(now, label(flow), bytes as usize, write(number, ecn), |fate| fates.push(fate));
                    twin.queue(now, flow, number, bytes, ecn);
                }
                Step::Next { blocked } => {
                    fq.reconsider();
                    twin.reconsider();
                    let may_leave = |label: &Label| blocked.is_none_or(|flow| hash_of(flow) != label.flow_hash);
                    let left = next_of(&mut fq, now, may_leave, &mut fates);
                    prop_assert_eq!(left, twin.next(now, blocked));
                }
                Step::Wait(time) => now += time,
            }
            prop_assert_eq!((fq.queued_packets() as usize, fq.queued_bytes()), (twin.packets(), twin.bytes()));
            prop_assert!(fq.queued_packets() as usize <= cells);
            prop_assert_eq!(&fates, &twin.fates);
        }
    }
}

/// What becomes of flows that each offer `packets` of `bytes` every `pause`, over 100 Mbit/s, in `seconds`: for each its
/// bytes and the longest that one of its packets stood.
fn over_100_mbit(offers: &[(u32, u32, Nanos)], seconds: u64) -> Vec<(u64, Nanos)> {
    let mut fq = Fq::new(config(2000));
    let (mut now, end) = (1000 * MS, (1000 + 1000 * seconds) * MS);
    let mut due = vec![now; offers.len()];
    let mut done = vec![(0, 0); offers.len()];
    let mut sent = vec![Vec::new(); offers.len()];
    let mut last = vec![None; offers.len()];
    while now < end {
        for (flow, (packets, bytes, pause)) in (0..).zip(offers) {
            let at = flow as usize;
            while due[at] <= now {
                for _ in 0..*packets {
                    let number = sent[at].len() as u32;
                    sent[at].push(due[at]);
                    fq.queue(due[at], label(flow), *bytes as usize, write(number, 0), |_| ());
                }
                due[at] += pause;
            }
        }
        let Some((flow, number, bytes, _)) = next(&mut fq, now, &mut Vec::new()) else {
            now = due.iter().copied().min().unwrap().max(now + 1);
            continue;
        };
        let at = flow as usize;
        assert!(last[at] < Some(number), "flow {flow}: {number} after {:?}", last[at]);
        last[at] = Some(number);
        now += bytes as u64 * BYTE;
        done[at].0 += bytes as u64;
        done[at].1 = done[at].1.max(now - sent[at][number as usize]);
    }
    done
}

#[test]
fn a_ping_beside_a_flood_waits_for_a_packet_or_two() {
    // 64 KiB bursts of 200 Mbit/s, two of them, and 84 bytes every 10 ms.
    let flood = (46, MTU, 5 * MS / 2);
    let done = over_100_mbit(&[flood, flood, (1, 84, 10 * MS)], 3);
    assert_eq!(done[2].0, 84 * 300, "no ping is lost");
    assert!(done[2].1 < MS / 2, "a ping took {} us", done[2].1 / 1000);
    assert!(done[0].0 + done[1].0 > 36_000_000, "and the link is used: {done:?}");
}

#[test]
fn flows_get_the_same_number_of_bytes_whatever_their_packets() {
    let done =
        over_100_mbit(&[(46, MTU, MS), (2, MTU, MS / 10), (10, 300, MS / 10), (3, 90, MS / 50), (1, 700, MS / 40)], 4);
    let fair = done.iter().map(|(bytes, _)| bytes).sum::<u64>() / done.len() as u64;
    for (flow, (bytes, _)) in done.iter().enumerate() {
        assert!(bytes.abs_diff(fair) < fair / 10, "flow {flow}: {bytes} of {fair}: {done:?}");
    }
}

#[test]
fn when_the_pool_is_full_the_fattest_flow_pays() {
    let mut fq = Fq::new(config(100));
    let mut fates = Vec::new();
    for number in 0..500 {
        fq.queue(MS, label(0), 100, write(number, 0), |fate| fates.push(fate));
        if number % 50 == 0 {
            fq.queue(MS, label(1), 1400, write(number, 0), |fate| fates.push(fate));
        }
        assert!(fq.queued_packets() <= 100);
    }
    assert!(fates.iter().all(|fate| *fate == Fate::Dropped(PeerIndex(0), DropReason::EgressFull)));
    assert_eq!(fates.len() + fq.queued_packets() as usize, 510);
    let left: Vec<_> = std::iter::from_fn(|| next(&mut fq, MS, &mut fates)).collect();
    assert_eq!(left.iter().filter(|(flow, ..)| *flow == 1).count(), 10);
    assert_eq!(left.iter().map(|(flow, number, ..)| (*flow, *number)).max(), Some((1, 450)));
    assert!(left.iter().any(|(flow, number, ..)| (*flow, *number) == (0, 499)), "the newest stays");
    assert_eq!((fq.queued_packets(), fq.queued_bytes()), (0, 0));
}

#[test]
fn a_packet_that_fits_no_cell_is_dropped_alone() {
    let mut fq = Fq::new(config(4));
    let mut fates = Vec::new();
    fq.queue(MS, label(3), 1473, |_| unreachable!("there is no room"), |fate| fates.push(fate));
    assert_eq!((fates, fq.queued_packets()), (vec![Fate::Dropped(PeerIndex(3), DropReason::TooBig)], 0));
}

#[test]
fn flows_of_one_worker_and_of_one_lane_spread_over_the_buckets() {
    for step in [1, 64, 1 << 16, 1 << 22] {
        let buckets: std::collections::BTreeSet<_> = (0..256u32).map(|flow| bucket(flow.wrapping_mul(step))).collect();
        assert!(buckets.len() >= 128, "{step}: {}", buckets.len());
        assert!(buckets.iter().all(|bucket| (*bucket as usize) < EGRESS_FLOWS));
    }
}
