//! The messages by which lanes are relayed, for all inputs.
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use ringlane_shared::id::{LaneIndex, PeerId, WorkerId};
use ringlane_shared::limits::{RELAY_ADDRESSES_MAX, RELAY_MESSAGE_BYTES_MAX};
use ringlane_shared::path::relay::{Load, RelayLoad, RelayView, ranked, replacement};
use ringlane_shared::wire::bind::{Bind, BindKind, BindToken, UnverifiedBind};
use ringlane_shared::wire::offer::LaneSet;
use ringlane_shared::wire::relay::{
    Allotment, AllotmentId, LENGTH_BYTES, RELAY_VERSION, RelayAddress, RelayError, RelayMessage, RelayRefusal,
    RelayedLane, message_bytes,
};

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical()),
    ];
    (ip, 1u16..).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

/// Workers that lanes are on, each with addresses.
fn allotment() -> impl Strategy<Value = Allotment> {
    let addresses = vec((0u8..64, address()), 1..RELAY_ADDRESSES_MAX + 1);
    let lanes = btree_set(0u8..64, 1..65);
    (any::<u64>(), 1u32.., any::<u64>(), addresses, lanes, any::<[u8; 16]>()).prop_map(
        |(id, lifetime_s, rate, addresses, lanes, token)| {
            let addresses: Vec<_> = addresses
                .into_iter()
                .map(|(worker, address)| RelayAddress { worker: WorkerId(worker), address })
                .collect();
            let lane = |(at, lane): (usize, u8)| RelayedLane {
                lane: LaneIndex::new(lane).unwrap(),
                worker: addresses[at % addresses.len()].worker,
                token: BindToken::new(token.map(|byte| byte.wrapping_add(lane))),
            };
            let lanes = lanes.into_iter().enumerate().map(lane).collect();
            Allotment { id: AllotmentId(id), lifetime_s, rate, addresses, lanes }
        },
    )
}

fn peer() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(|digest| {
        let bytes = [&[0x12, 0x20][..], &digest].concat();
        PeerId::from_bytes(&bytes).unwrap()
    })
}

fn message() -> impl Strategy<Value = RelayMessage> {
    prop_oneof![
        (peer(), 1u64..).prop_map(|(other, lanes)| RelayMessage::Allocate { other, lanes: LaneSet(lanes) }),
        allotment().prop_map(RelayMessage::Allotted),
        (peer(), allotment()).prop_map(|(other, allotment)| RelayMessage::Invite { other, allotment }),
        any::<u64>().prop_map(|lanes| RelayMessage::Accept(LaneSet(lanes))),
        any::<u64>().prop_map(|id| RelayMessage::Renew(AllotmentId(id))),
        (1u32..).prop_map(RelayMessage::Renewed),
        any::<u64>().prop_map(|id| RelayMessage::Release(AllotmentId(id))),
        prop_oneof![
            Just(RelayRefusal::Busy),
            Just(RelayRefusal::NotConfigured),
            Just(RelayRefusal::Unsupported),
            Just(RelayRefusal::NotServing),
            Just(RelayRefusal::OtherEnd),
            Just(RelayRefusal::Unknown),
            (7u8..).prop_map(RelayRefusal::Other),
        ]
        .prop_map(RelayMessage::Refused),
        Just(RelayMessage::AskLoad),
        any::<[u8; 2]>().prop_map(|[lanes, circuits]| {
            RelayMessage::Load(RelayLoad { lanes: Load(lanes), circuits: Load(circuits) })
        }),
    ]
}

fn relay() -> impl Strategy<Value = RelayView> {
    // Few figures, so that many are equal, and others, so that none need be.
    let rtt_us = prop_oneof![Just(20_000), Just(40_000), 0..100_000u64, 0..4_000_000u64];
    let load = prop_oneof![Just(0u8), Just(128), Just(254), Just(255), any::<u8>()];
    let (rtt_us, load) = (option::weighted(0.8, rtt_us), option::weighted(0.8, load));
    (option::weighted(0.2, 0..3u16), 0..3u32, rtt_us, load).prop_map(|(preferred, refusals, rtt_us, load)| RelayView {
        preferred,
        refusals,
        rtt: rtt_us.map(Duration::from_micros),
        load: load.map(Load),
    })
}

/// Counted distance, and what of 256 parts is left.
fn far_and_left(view: &RelayView) -> (u64, u64) {
    let rtt_us = view.rtt.map_or(2_000_000, |rtt| rtt.as_micros() as u64).min(2_000_000);
    (rtt_us + 10_000, 256 - view.load.map_or(32, |load| u64::from(load.0)))
}

/// Whether a relay is better than another: the rule, one sentence after the other.
fn is_better(one: &RelayView, other: &RelayView) -> bool {
    match [one, other].map(|relay| relay.load == Some(Load(255))) {
        [true, false] => return false,
        [false, true] => return true,
        _ => {}
    }
    match (one.preferred, other.preferred) {
        (Some(_), None) => return true,
        (None, Some(_)) => return false,
        (Some(one), Some(other)) if one != other => return one < other,
        _ => {}
    }
    if one.refusals != other.refusals {
        return one.refusals < other.refusals;
    }
    let ((one_far, one_left), (other_far, other_left)) = (far_and_left(one), far_and_left(other));
    one_far * other_left < other_far * one_left
}

fn slowly_ranked(relays: &[RelayView]) -> Vec<usize> {
    let mut left: Vec<usize> = (0..relays.len()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let is_best = |at: &&usize| left.iter().all(|other| !is_better(&relays[*other], &relays[**at]));
        let best = *left.iter().find(is_best).unwrap();
        left.retain(|at| *at != best);
        order.push(best);
    }
    order
}

fn is_much_better(new: &RelayView, old: &RelayView) -> bool {
    let ((new_far, new_left), (old_far, old_left)) = (far_and_left(new), far_and_left(old));
    // Both sides times both remainders. 20 ms are those of an idle relay.
    let (new_cost, old_cost) = (new_far * 256 * old_left, old_far * 256 * new_left);
    2 * new_cost <= old_cost && new_cost + 20_000 * new_left * old_left <= old_cost
}

proptest! {
    #[test]
    fn relays_are_ranked_as_the_rule_says(relays in vec(relay(), 0..8)) {
        prop_assert_eq!(ranked((0..).zip(relays.iter().copied())), slowly_ranked(&relays));
    }

    #[test]
    fn a_relay_is_replaced_as_the_rule_says_and_by_one_that_would_be_asked_before_it(
        in_use in vec(relay(), 0..4), others in vec(relay(), 0..4),
    ) {
        let found = replacement(in_use.iter().zip(in_use.iter().copied()), others.iter().zip(others.iter().copied()));
        let may_go = |old: &&RelayView| old.preferred.is_none() && old.rtt.is_some();
        let may_come = |new: &&RelayView| new.load != Some(Load(255)) && new.rtt.is_some();
        let mut pairs = in_use.iter().filter(may_go).flat_map(|old| {
            others.iter().filter(may_come).map(move |new| (old, new))
        });
        prop_assert_eq!(found.is_some(), pairs.any(|(old, new)| is_much_better(new, old)));
        if let Some((old, new)) = found {
            prop_assert!(may_go(&old) && may_come(&new) && is_much_better(new, old));
            // And not back.
            prop_assert!(replacement([((), *new)], [((), *old)]).is_none());
        }
    }

    #[test]
    fn relay_messages_read_back_as_written_with_whatever_extensions(
        message in message(),
        extensions in vec((any::<u8>(), vec(any::<u8>(), 0..40)), 0..3),
    ) {
        let mut bytes = message.to_message().unwrap().to_vec();
        prop_assert_eq!(message_bytes([bytes[0], bytes[1]]), Ok(bytes.len() - LENGTH_BYTES));
        for (kind, value) in extensions {
            bytes.push(kind);
            bytes.extend((value.len() as u16).to_be_bytes());
            bytes.extend(value);
        }
        prop_assert_eq!(RelayMessage::parse(&bytes[LENGTH_BYTES..]), Ok(message));
    }

    #[test]
    fn a_cut_relay_message_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.to_message().unwrap();
        let cut = cut.index(bytes.len() - LENGTH_BYTES);
        prop_assert!(RelayMessage::parse(&bytes[LENGTH_BYTES..][..cut]).is_err());
    }

    #[test]
    fn what_is_accepted_says_exactly_what_its_bytes_say(
        message in message(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = message.to_message().unwrap().to_vec();
        let at = LENGTH_BYTES + at.index(bytes.len() - LENGTH_BYTES);
        bytes[at] = byte;
        if let Ok(read) = RelayMessage::parse(&bytes[LENGTH_BYTES..]) {
            let again = read.to_message().unwrap();
            prop_assert!(bytes[LENGTH_BYTES..].starts_with(&again[LENGTH_BYTES..]));
        }
    }

    #[test]
    fn binds_of_any_token_read_back_as_written(
        token in any::<[u8; 16]>(), number in any::<u64>(), observed in address(), proof in 1u64.., kind in 0..4,
    ) {
        let keys = BindToken::new(token).keys();
        let (request, challenge) = (BindKind::Request { proof }, BindKind::Challenge { proof });
        let kind = [request, challenge, BindKind::Waiting { observed }, BindKind::Open { observed }][kind as usize];
        let datagram = keys.seal(&Bind { number, kind });
        let unverified = UnverifiedBind::parse(&datagram).unwrap();
        prop_assert_eq!((unverified.name(), keys.verify(&unverified)), (keys.name(), Ok(Bind { number, kind })));
    }
}

/// Computed by an independent implementation; `docs/protocol.md` states them.
#[test]
fn binds_are_as_the_protocol_states_them() {
    let keys = BindToken::new(std::array::from_fn(|at| at as u8)).keys();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&keys.name().0), "19de927ce008e142");
    let request = Bind { number: 1, kind: BindKind::Request { proof: 0 } };
    let expected = "2819de927ce008e1420000000000000001000000000000000000000000000000000000\
                    14775aed6e9ec27db5b6bf9cfcc844f9";
    assert_eq!(hex(&keys.seal(&request)), expected);
    let proof = 0x0102_0304_0506_0708;
    let challenge = Bind { number: 1, kind: BindKind::Challenge { proof } };
    let expected = "2b19de927ce008e1420000000000000001010203040506070800000000000000000000\
                    c2585a3c59d4d2c346d039c5dca4b6bd";
    assert_eq!(hex(&keys.seal(&challenge)), expected);
    let proven = Bind { number: 2, kind: BindKind::Request { proof } };
    let expected = "2819de927ce008e1420000000000000002010203040506070800000000000000000000\
                    7be63208cbb6725d2c669a2b6b87825f";
    assert_eq!(hex(&keys.seal(&proven)), expected);
    let open = Bind { number: 1, kind: BindKind::Open { observed: "192.0.2.1:8100".parse().unwrap() } };
    let expected = "2a19de927ce008e142000000000000000100000000000000000000ffffc00002011fa4\
                    ad95badfd9ca80e10ccafe206c0295b2";
    assert_eq!(hex(&keys.seal(&open)), expected);
}

fn allotted(change: impl FnOnce(&mut Allotment)) -> Result<(), RelayError> {
    let address = RelayAddress { worker: WorkerId(1), address: "192.0.2.1:8101".parse().unwrap() };
    let lane = |lane| RelayedLane {
        lane: LaneIndex::new(lane).unwrap(),
        worker: WorkerId(1),
        token: BindToken::new([lane; 16]),
    };
    let mut allotment = Allotment {
        id: AllotmentId(1),
        lifetime_s: 60,
        rate: 0,
        addresses: vec![address],
        lanes: vec![lane(0), lane(63)],
    };
    change(&mut allotment);
    RelayMessage::Allotted(allotment).to_message().map(drop)
}

#[test]
fn an_allotment_that_nobody_could_use_is_not_sent() {
    assert_eq!(allotted(|_| ()), Ok(()));
    assert_eq!(allotted(|allotment| allotment.lifetime_s = 0), Err(RelayError::Lifetime));
    assert_eq!(allotted(|allotment| allotment.addresses.clear()), Err(RelayError::Count("addresses")));
    let many = |allotment: &mut Allotment| {
        allotment.addresses = std::iter::repeat_n(allotment.addresses[0], RELAY_ADDRESSES_MAX + 1).collect();
    };
    assert_eq!(allotted(many), Err(RelayError::Count("addresses")));
    assert_eq!(allotted(|allotment| allotment.lanes.clear()), Err(RelayError::Count("lanes")));
    assert_eq!(allotted(|allotment| allotment.lanes.reverse()), Err(RelayError::Count("lanes")));
    let twice = |allotment: &mut Allotment| allotment.lanes[1].lane = allotment.lanes[0].lane;
    assert_eq!(allotted(twice), Err(RelayError::Count("lanes")));
    assert_eq!(allotted(|allotment| allotment.addresses[0].address.set_port(0)), Err(RelayError::Port));
    assert_eq!(allotted(|allotment| allotment.lanes[1].worker = WorkerId(2)), Err(RelayError::Unreachable(63)));
    assert_eq!(allotted(|allotment| allotment.addresses[0].worker = WorkerId(64)), Err(RelayError::Number(64)));
}

#[test]
fn only_the_exact_form_is_a_relay_message() {
    let refused = [RELAY_VERSION, 8, 1];
    assert_eq!(RelayMessage::parse(&refused), Ok(RelayMessage::Refused(RelayRefusal::Busy)));
    assert_eq!(RelayMessage::parse(&[2, 8, 1]), Err(RelayError::Version(2)));
    for kind in [0, 11, 255] {
        assert_eq!(RelayMessage::parse(&[RELAY_VERSION, kind, 1]), Err(RelayError::Kind(kind)));
    }
    let load = RelayLoad { lanes: Load(40), circuits: Load::FULL };
    assert_eq!(RelayMessage::parse(&[RELAY_VERSION, 9]), Ok(RelayMessage::AskLoad));
    assert_eq!(RelayMessage::parse(&[RELAY_VERSION, 10, 40, 255]), Ok(RelayMessage::Load(load)));
    assert_eq!(RelayMessage::parse(&[RELAY_VERSION, 10, 40]), Err(RelayError::Truncated));
    assert_eq!(RelayMessage::parse(&[RELAY_VERSION, 8, 1, 0]), Err(RelayError::Truncated));
    let long = vec![0; RELAY_MESSAGE_BYTES_MAX + 1];
    assert_eq!(RelayMessage::parse(&long), Err(RelayError::TooLong(long.len())));
    assert_eq!(message_bytes([0xff, 0xff]), Err(RelayError::TooLong(0xffff)));
    assert_eq!(RelayMessage::parse(&[RELAY_VERSION, 6, 0, 0, 0, 0]), Err(RelayError::Lifetime));
    let no_peer = [&[RELAY_VERSION, 1, 3, 1, 2, 3][..], &[0xff; 8]].concat();
    assert_eq!(RelayMessage::parse(&no_peer), Err(RelayError::PeerId));
    let long_peer = [&[RELAY_VERSION, 1, 65][..], &[0; 80]].concat();
    assert_eq!(RelayMessage::parse(&long_peer), Err(RelayError::PeerId));
}
