//! Two ends of a lane that say everything there is to say to each other, in time or late, and ends that talk nonsense.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::id::LaneId;
use crate::lane::epoch::PSK_BYTES;
use crate::lane::keys::Suite;
use crate::lane::seal::{OpenError, Opener, Sealer, Sequence, split};
use crate::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};

const SECOND: Duration = Duration::from_secs(1);
const LIMITS: RekeyLimits = RekeyLimits { after: Duration::from_secs(160), records: 1000 };

fn secrets(role: Role, psk: u8) -> EpochSecrets {
    let id = LaneId::new(1).unwrap();
    EpochSecrets::new(Suite::Aes128Gcm, role, id, id, [psk; PSK_BYTES].into())
}

/// One end: its keys, what it has written, and what it was told besides keys.
struct End {
    rekey: Rekey,
    sealer: Sealer,
    opener: Opener,
    /// On its way to the other end.
    stream: VecDeque<u8>,
    said: Vec<&'static str>,
    newest_installed: u64,
}

impl End {
    fn new(role: Role, psk: u8, now: Instant) -> Self {
        let id = LaneId::new(1).unwrap();
        let keys = LaneKeys::derive(Suite::Aes128Gcm, role, |block, _, context| {
            block.fill(context[0]);
            Ok::<_, RekeyError>(())
        });
        let (sealer, opener) = split(keys.unwrap(), id, id);
        let rekey = Rekey::new(secrets(role, psk), LIMITS, 7, now);
        let mut end = Self { rekey, sealer, opener, stream: VecDeque::new(), said: Vec::new(), newest_installed: 0 };
        end.follow();
        end
    }

    /// Does what its state machine says.
    fn follow(&mut self) {
        while let Some(output) = self.rekey.poll_output() {
            match output {
                RekeyOutput::Open { epoch, key } => {
                    self.opener.install(epoch, key);
                    self.newest_installed = epoch;
                }
                RekeyOutput::Seal { epoch, key } => self.sealer.install(epoch, key),
                RekeyOutput::Settled { .. } => self.said.push("settled"),
                RekeyOutput::RetireBefore { epoch } => {
                    self.opener.retire_before(epoch);
                    self.said.push("retired");
                }
                RekeyOutput::Overdue => self.said.push("overdue"),
            }
        }
        self.stream.extend(self.rekey.unsent());
        self.rekey.handle_sent(self.rekey.unsent().len());
    }

    fn hear(&mut self, bytes: &[u8], now: Instant) -> Result<(), RekeyError> {
        let heard = self.rekey.handle_stream(bytes, now);
        self.follow();
        heard
    }

    fn tick(&mut self, now: Instant) {
        self.rekey.handle_timeout(self.sealer.wear(), now).unwrap();
        self.follow();
    }

    fn seal(&mut self) -> (Sequence, Vec<u8>) {
        let sequence = Sequence { epoch: self.sealer.epoch(), counter: self.sealer.sealed() };
        let mut record = vec![0; RECORD_OVERHEAD_BYTES + 8];
        record[RECORD_HEADER_BYTES..][..8].copy_from_slice(&sequence.counter.to_be_bytes());
        self.sealer.seal(&mut record, 8).unwrap();
        (sequence, record)
    }

    fn open(&mut self, record: &[u8]) -> Result<Sequence, OpenError> {
        let opened = self.opener.open(&mut record.to_vec()).map(|opened| opened.sequence);
        self.rekey.handle_record_of(self.opener.newest_epoch());
        self.follow();
        opened
    }

    fn message(&mut self) -> Vec<u8> {
        self.stream.drain(..).collect()
    }
}

/// A client and a server that have said hello.
fn pair(now: Instant) -> [End; 2] {
    let mut ends = [Role::Client, Role::Server].map(|role| End::new(role, 7, now));
    converse(&mut ends, now);
    ends
}

/// Passes on everything both have to say, until they have no more.
fn converse(ends: &mut [End; 2], now: Instant) {
    while ends.iter().any(|end| !end.stream.is_empty()) {
        for from in [0, 1] {
            let message = ends[from].message();
            ends[1 - from].hear(&message, now).unwrap();
        }
    }
}

fn epochs(ends: &[End; 2]) -> [u64; 2] {
    ends.each_ref().map(|end| end.sealer.epoch())
}

fn message(message: RekeyMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(&mut bytes);
    bytes
}

#[test]
fn time_has_the_client_begin_and_the_server_ask_if_the_client_does_not() {
    let start = Instant::now();
    let mut ends = pair(start);
    let [client_at, server_at] = ends.each_ref().map(|end| end.rekey.poll_timeout().unwrap() - start);
    assert!(140 * SECOND <= client_at && client_at <= 150 * SECOND, "{client_at:?}");
    assert!(150 * SECOND <= server_at && server_at <= 160 * SECOND, "{server_at:?}");

    ends[0].tick(start + client_at - SECOND);
    assert!(ends[0].stream.is_empty());
    ends[0].tick(start + client_at);
    converse(&mut ends, start + client_at);
    assert_eq!(epochs(&ends), [1, 1]);

    let now = start + 400 * SECOND;
    ends[1].tick(now);
    ends[1].tick(now + SECOND);
    assert_eq!(ends[1].stream.len(), 11, "one ask");
    converse(&mut ends, now);
    assert_eq!(epochs(&ends), [2, 2]);
    assert!(ends.iter().all(|end| end.said.iter().filter(|said| **said == "settled").count() == 2));
}

#[test]
fn lanes_that_came_up_together_do_not_rekey_together() {
    let now = Instant::now();
    let due = |jitter| Rekey::new(secrets(Role::Client, 7), LIMITS, jitter, now).poll_timeout().unwrap();
    let times: BTreeSet<_> = (0..64).map(due).collect();
    assert!(times.len() > 60 && *times.last().unwrap() - *times.first().unwrap() > 5 * SECOND);
}

#[test]
fn a_worn_key_is_replaced_whichever_end_wore_it() {
    for worn in [0, 1] {
        let now = Instant::now();
        let mut ends = pair(now);
        ends[worn].sealer.skip(LIMITS.records - 1);
        ends[worn].tick(now);
        assert!(!ends[worn].rekey.is_due(ends[worn].sealer.wear()) && ends[worn].stream.is_empty());
        ends[worn].seal();
        assert!(ends[worn].rekey.is_due(ends[worn].sealer.wear()));
        ends[worn].tick(now);
        assert!(!ends[worn].rekey.is_due(ends[worn].sealer.wear()), "it has begun");
        converse(&mut ends, now);
        assert_eq!(epochs(&ends), [1, 1]);
        assert_eq!(ends[worn].sealer.wear(), 0);
    }
}

#[test]
fn an_ask_that_crosses_with_the_init_it_asks_for_is_counted_and_makes_no_second_epoch() {
    let start = Instant::now();
    let mut ends = pair(start);
    let now = start + 160 * SECOND;
    ends.iter_mut().for_each(|end| end.tick(now));
    converse(&mut ends, now);
    assert_eq!((epochs(&ends), ends[0].rekey.crossed()), ([1, 1], 1));
    assert!(ends.iter().all(|end| end.said == ["settled"]));
}

#[test]
fn the_server_seals_with_new_keys_at_the_first_record_even_if_the_done_is_late() {
    let now = Instant::now() + 160 * SECOND;
    let mut ends = pair(now - 160 * SECOND);
    ends[0].tick(now);
    let init = ends[0].message();
    ends[1].hear(&init, now).unwrap();
    assert_eq!(epochs(&ends), [0, 0], "the client does not have the reply yet");
    let reply = ends[1].message();
    ends[0].hear(&reply, now).unwrap();
    assert_eq!(epochs(&ends), [1, 0]);
    let (sequence, record) = ends[0].seal();
    assert_eq!(ends[1].open(&record), Ok(sequence));
    assert_eq!(epochs(&ends), [1, 1]);
    converse(&mut ends, now);
    assert!(ends.iter().all(|end| end.said == ["settled"]));
}

#[test]
fn old_keys_open_for_a_grace_period_after_both_have_left_them() {
    let start = Instant::now();
    let mut ends = pair(start);
    let (sequence, late) = ends[0].seal();
    let (_, later) = ends[0].seal();
    let now = start + 160 * SECOND;
    ends[0].tick(now);
    converse(&mut ends, now);
    let retire_at = ends[1].rekey.poll_timeout().unwrap();
    assert_eq!(retire_at, now + EPOCH_GRACE);
    ends[1].tick(retire_at - Duration::from_millis(1));
    assert_eq!(ends[1].open(&late), Ok(sequence));
    ends[1].tick(retire_at);
    assert_eq!(ends[1].said, ["settled", "retired"]);
    assert_eq!(ends[1].open(&later), Err(OpenError::UnknownEpoch));
    let (sequence, record) = ends[0].seal();
    assert_eq!(ends[1].open(&record), Ok(sequence));
}

#[test]
fn a_silent_peer_makes_a_rekeying_overdue_once_and_the_old_keys_go_on() {
    let start = Instant::now();
    let now = start + 160 * SECOND;
    for silent in [0, 1] {
        let mut ends = pair(start);
        let waiting = 1 - silent;
        ends[waiting].tick(now);
        assert_eq!(ends[waiting].rekey.poll_timeout(), Some(now + REKEY_PERIOD));
        ends[waiting].tick(now + REKEY_PERIOD);
        assert_eq!((&ends[waiting].said[..], ends[waiting].rekey.poll_timeout()), (&["overdue"][..], None));
        let (sequence, record) = ends[silent].seal();
        assert_eq!(ends[waiting].open(&record), Ok(sequence));
        // Late is not never.
        converse(&mut ends, now + 60 * SECOND);
        assert_eq!(epochs(&ends), [1, 1]);
        assert_eq!(ends[waiting].said, ["overdue", "settled"]);
    }
}

#[test]
fn what_is_said_twice_or_out_of_turn_ends_the_lane() {
    let start = Instant::now();
    let now = start + 160 * SECOND;
    let noise = [9; NOISE_MESSAGE_BYTES];
    let out_of_turn = Err(RekeyError::OutOfTurn);

    // The init of an epoch that stands, again.
    let mut ends = pair(start);
    ends[0].tick(now);
    let init: Vec<_> = ends[0].stream.iter().copied().collect();
    converse(&mut ends, now);
    assert_eq!(ends[1].hear(&init, now), out_of_turn);

    // One more before the epoch stands, at once and after the reply.
    let mut ends = pair(start);
    ends[0].tick(now);
    let init = ends[0].message();
    assert_eq!(ends[1].hear(&[&init[..], &init].concat(), now), out_of_turn);

    // To the client and the server, whatever they have no use for, before and during a rekeying.
    for is_under_way in [false, true] {
        for (end, wrong) in [
            (0, RekeyMessage::Hello),
            (0, RekeyMessage::Ask { epoch: 0 }),
            (0, RekeyMessage::Ask { epoch: 2 }),
            (0, RekeyMessage::Ask { epoch: u64::MAX }),
            (0, RekeyMessage::Init { epoch: 1, noise }),
            (0, RekeyMessage::Reply { epoch: 2, noise }),
            (0, RekeyMessage::Done { epoch: 0 }),
            (0, RekeyMessage::Done { epoch: 1 }),
            (1, RekeyMessage::Hello),
            (1, RekeyMessage::Ask { epoch: 1 }),
            (1, RekeyMessage::Init { epoch: 0, noise }),
            (1, RekeyMessage::Init { epoch: 2, noise }),
            (1, RekeyMessage::Reply { epoch: 1, noise }),
            (1, RekeyMessage::Done { epoch: 0 }),
            (1, RekeyMessage::Done { epoch: 1 }),
        ] {
            let mut ends = pair(start);
            if is_under_way {
                ends[end].tick(now);
            }
            assert_eq!(ends[end].hear(&message(wrong), now), out_of_turn, "{end} {wrong:?}");
        }
    }
    let mut ends = pair(start);
    assert_eq!(ends[0].hear(&message(RekeyMessage::Reply { epoch: 1, noise }), now), out_of_turn);
    let mut server = End::new(Role::Server, 7, start);
    assert_eq!(server.hear(&message(RekeyMessage::Init { epoch: 1, noise }), now), out_of_turn, "before hello");
}

#[test]
fn an_end_with_another_psk_and_a_forged_message_end_the_lane() {
    let start = Instant::now();
    let now = start + 160 * SECOND;
    let unauthentic = Err(RekeyError::Epoch(EpochError::Unauthentic));
    let [mut client, _] = pair(start);
    let mut stranger = End::new(Role::Server, 8, start);
    stranger.hear(&message(RekeyMessage::Hello), now).unwrap();
    client.tick(now);
    assert_eq!(stranger.hear(&client.message(), now), unauthentic);
    assert_eq!(stranger.opener.newest_epoch(), 0);
    let reply = message(RekeyMessage::Reply { epoch: 1, noise: [9; NOISE_MESSAGE_BYTES] });
    assert_eq!(client.hear(&reply, now), unauthentic);
    assert_eq!(client.sealer.epoch(), 0);
}

/// Rekeyings that one end begins as soon as it may, over and over for so long; how many, and when the other end has had
/// enough if it is not limited.
fn rekey_without_end(begins: usize, seconds: u64, is_limited: bool) -> (u64, Option<Duration>) {
    let start = Instant::now();
    let mut ends = pair(start);
    for ms in 0..1000 * seconds {
        let now = start + Duration::from_millis(ms);
        for _ in 0..if ms == 0 { 3000 } else { 1 } {
            if !is_limited {
                ends[begins].rekey.ours = Bucket::new(1, 1, now);
                ends[begins].rekey.is_delayed = false;
            }
            ends[begins].rekey.handle_timeout(LIMITS.records, now).unwrap();
            ends[begins].follow();
            while ends.iter().any(|end| !end.stream.is_empty()) {
                for from in [0, 1] {
                    let message = ends[from].message();
                    match ends[1 - from].hear(&message, now) {
                        Ok(()) => {}
                        Err(RekeyError::TooOften) if from == begins => return (epochs(&ends)[0], Some(now - start)),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }
    (epochs(&ends)[0], None)
}

#[test]
fn a_peer_that_has_us_rekey_for_ever_is_left_and_one_that_keeps_to_the_limit_never() {
    for begins in [0, 1] {
        let (rekeyed, left) = rekey_without_end(begins, 10, true);
        let most = u64::from(REKEYS_BEGUN_BURST + 10 * REKEYS_BEGUN_PER_SECOND);
        assert!((most - 2..=most + 1).contains(&rekeyed) && left.is_none(), "{rekeyed} {left:?}");
        let (rekeyed, left) = rekey_without_end(begins, 10, false);
        assert_eq!((rekeyed, left), (REKEYS_BURST_MAX.into(), Some(Duration::ZERO)));
    }
}

#[test]
fn a_rekeying_that_has_to_wait_begins_when_it_may() {
    let now = Instant::now();
    let mut ends = pair(now);
    while ends[0].rekey.ours.take(now) {}
    ends[0].sealer.skip(LIMITS.records);
    ends[0].tick(now);
    assert!(ends[0].stream.is_empty() && !ends[0].rekey.is_due(ends[0].sealer.wear()), "nobody is to come back for it");
    let next = ends[0].rekey.poll_timeout().unwrap();
    assert_eq!(next, now + SECOND / REKEYS_BEGUN_PER_SECOND);
    ends[0].tick(next);
    converse(&mut ends, next);
    assert_eq!(epochs(&ends), [1, 1]);
    ends[0].sealer.skip(LIMITS.records);
    assert!(ends[0].rekey.is_due(ends[0].sealer.wear()));
}

/// A generator whose draws a failing case can repeat.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) as usize) % bound
    }
}

/// Two ends that seal, rekey when they like and hear each other's stream in pieces, while records arrive in any order, some
/// twice: the slow twin remembers which were sent and which were opened. Returns how many epochs there were.
fn chaos(seed: u64, steps: usize) -> u64 {
    let mut draws = Draws(seed);
    let start = Instant::now();
    let mut ends = pair(start);
    let mut on_the_way: [Vec<(Sequence, Vec<u8>)>; 2] = [Vec::new(), Vec::new()];
    let mut opened = [BTreeSet::new(), BTreeSet::new()];
    let mut last_sealed = [None, None];
    let mut sealed = [0_usize; 2];
    let arrive =
        |ends: &mut [End; 2], to: usize, (sequence, record): &(Sequence, Vec<u8>), opened: &mut [BTreeSet<_>]| {
            let expected = if opened[to].insert(*sequence) { Ok(*sequence) } else { Err(OpenError::Replayed) };
            assert_eq!(ends[to].open(record), expected, "seed {seed}");
        };
    for step in 0..steps {
        let now = start + Duration::from_millis(step as u64);
        let from = draws.below(2);
        let to = 1 - from;
        match draws.below(8) {
            0..3 => {
                let record = ends[from].seal();
                assert!(last_sealed[from] < Some(record.0), "seed {seed}: {:?} again", record.0);
                last_sealed[from] = Some(record.0);
                sealed[from] += 1;
                on_the_way[from].push(record);
            }
            3..5 if !on_the_way[from].is_empty() => {
                let position = draws.below(on_the_way[from].len());
                let record = if draws.below(4) == 0 {
                    on_the_way[from][position].clone()
                } else {
                    on_the_way[from].swap_remove(position)
                };
                arrive(&mut ends, to, &record, &mut opened);
            }
            5 => {
                // Worn, as far as the state machine is told.
                ends[from].rekey.handle_timeout(LIMITS.records, now).unwrap();
                ends[from].follow();
            }
            _ => {
                // A path that is not absurd: nothing is three whole rekeyings late.
                let newest = ends[to].newest_installed;
                let (late, others) = on_the_way[from].drain(..).partition(|(sequence, _)| sequence.epoch + 3 <= newest);
                on_the_way[from] = others;
                late.iter().for_each(|record: &(Sequence, Vec<u8>)| arrive(&mut ends, to, record, &mut opened));
                let bytes = (1 + draws.below(120)).min(ends[from].stream.len());
                let piece: Vec<u8> = ends[from].stream.drain(..bytes).collect();
                ends[to].hear(&piece, now).unwrap();
            }
        }
        let [client, server] = epochs(&ends);
        assert!(client == server || client == server + 1, "seed {seed}: {client} {server}");
    }
    for from in [0, 1] {
        let rest = std::mem::take(&mut on_the_way[from]);
        rest.iter().for_each(|record| arrive(&mut ends, 1 - from, record, &mut opened));
        assert_eq!(opened[1 - from].len(), sealed[from], "seed {seed}: each record was opened once");
    }
    epochs(&ends)[0]
}

#[test]
fn thousands_of_epochs_pass_and_every_record_is_opened_exactly_once() {
    let epochs = chaos(1, 200_000);
    assert!(epochs > 2000, "{epochs}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_opened_exactly_once_whatever_the_order(seed: u64) {
        chaos(seed, 600);
    }

    #[test]
    fn garbage_of_any_shape_ends_the_lane_or_is_waited_out(
        role in prop_oneof![Just(Role::Client), Just(Role::Server)],
        pieces in prop::collection::vec(prop::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..200), 0..8),
        is_under_way: bool,
    ) {
        let now = Instant::now();
        let mut end = End::new(role, 7, now);
        if is_under_way {
            end.rekey.handle_timeout(LIMITS.records, now).unwrap();
        }
        for piece in pieces {
            if end.hear(&piece, now).is_err() {
                break;
            }
        }
        prop_assert_eq!((end.sealer.epoch(), end.newest_installed), (0, 0), "nobody makes keys without the psk");
        prop_assert!(end.stream.len() < 300);
    }
}
