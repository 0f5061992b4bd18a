//! Ports that nobody can name, through modelled translators: an end with a fan behind one that is symmetric, an end that
//! tries ports behind one that lets in answers only.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ringlane_shared::limits::{FAN_ROUNDS, FAN_SOCKETS_MAX, GUESSES_MAX};
use ringlane_shared::path::birthday::{FAN_AFTER, Fan, GUESSES_AFTER, Guess, Guesser};
use ringlane_shared::path::candidate::Pair;
use ringlane_shared::wire::probe::Transaction;

use crate::translator::{Dependence, Kind, Network, Ports, Random, Translator, address};

/// Each takes a thousand datagrams through slow models.
const SEEDS: u64 = 60;
const GUESSING: usize = 0;
const FANNING: usize = 1;
const PORT: u16 = 8100;
const FIRST_OF_FAN: u16 = 30_000;

struct Outcome {
    /// Milliseconds from the exchange until the guessing end has its answer.
    took: Option<u64>,
    sent: [usize; 2],
}

fn run(seed: u64, ports: Ports, mapping: Dependence, ahead: u64) -> Outcome {
    let mut random = Random(seed);
    let mut network = Network::default();
    let cone = Kind {
        mapping: Dependence::Nothing,
        ports: Ports::Preserved,
        filtering: Dependence::AddressAndPort,
        hairpin: false,
        expiry: 60_000,
    };
    let symmetric = Kind { mapping, ports, ..cone };
    let outside = [1, 2].map(|host| address(203, 0, 113, host));
    let own = [1, 2].map(|realm| address(10, 0, realm, 2));
    for (at, kind) in [cone, symmetric].into_iter().enumerate() {
        network.translators.insert(at + 1, Translator::new(kind, outside[at], 0, &mut random));
        network.hosts.insert((at + 1, own[at]), at);
    }
    let server = SocketAddr::new(address(198, 51, 100, 1), 3478);
    network.hosts.insert((0, server.ip()), 2);
    let seen = |at: usize, port, network: &mut Network, random: &mut Random| {
        let (_, from, _) = network.carry(at + 1, SocketAddr::new(own[at], port), server, 0, random).unwrap();
        from
    };
    let cone_at = seen(GUESSING, PORT, &mut network, &mut random);
    let fan_at = seen(FANNING, PORT, &mut network, &mut random);
    // Others count on.
    for other in 0..ahead {
        seen(FANNING, 50_000 + other as u16, &mut network, &mut random);
    }

    let start = Instant::now();
    let delta = if ports == Ports::Sequential { 1 } else { 0 };
    let guess = Guess { seen: fan_at, delta, stride: 1, is_random: true };
    let mut guesser = Guesser::new(own[GUESSING], guess, Transaction(1), random.next(), start + GUESSES_AFTER);
    let mut fan = Fan::new(&[cone_at], FAN_SOCKETS_MAX, Transaction(2), start + FAN_AFTER);
    let mut sent = [0; 2];
    let mut now = start;
    while let Some(at) = guesser.poll_timeout().into_iter().chain(fan.poll_timeout()).min() {
        now = at.max(now);
        let ms = (now - start).as_millis() as u64;
        while let Some((socket, to)) = fan.poll_transmit(now) {
            sent[FANNING] += 1;
            let from = SocketAddr::new(own[FANNING], FIRST_OF_FAN + socket as u16);
            network.carry(FANNING + 1, from, to, ms, &mut random);
        }
        while let Some((pair, transaction)) = guesser.poll_transmit(now) {
            sent[GUESSING] += 1;
            let from = SocketAddr::new(pair.local, PORT);
            let carried = network.carry(GUESSING + 1, from, pair.remote, ms, &mut random);
            let Some((FANNING, from, to)) = carried else { continue };
            // The reply goes back by the socket that the request came to.
            let Some((GUESSING, from, to)) = network.carry(FANNING + 1, to, from, ms, &mut random) else { continue };
            let pair = Pair { local: to.ip(), remote: from };
            assert!(guesser.is_answer(pair, transaction), "who answers was asked");
            return Outcome { took: Some(ms), sent };
        }
    }
    Outcome { took: None, sent }
}

#[test]
fn a_port_that_nobody_can_name_is_found_nearly_always_and_soon_where_it_is_counted() {
    let mut missed = 0;
    for seed in 0..SEEDS {
        let any = [Dependence::Address, Dependence::AddressAndPort][(seed % 2) as usize];
        for (ports, ahead) in [(Ports::Random, 0), (Ports::Sequential, seed * 4 % 230)] {
            let Outcome { took, sent } = run(seed, ports, any, ahead);
            assert!(sent[GUESSING] <= GUESSES_MAX as usize && sent[FANNING] <= FAN_SOCKETS_MAX * FAN_ROUNDS);
            match (ports, took) {
                (Ports::Sequential, took) => {
                    assert!(took.is_some_and(|took| took < 2500), "{took:?}: RINGLANE_SEED={seed}, {ahead} ahead");
                }
                (_, None) => missed += 1,
                (_, Some(_)) => {}
            }
        }
    }
    assert!(missed <= 2, "{missed} of {SEEDS} runs found none");
}

#[test]
fn an_end_that_is_not_there_costs_no_more_than_the_bounds_say() {
    let nobody = SocketAddr::new(IpAddr::from([203, 0, 113, 9]), 40_000);
    let guess = Guess { seen: nobody, delta: 1, stride: 1, is_random: true };
    let start = Instant::now();
    let mut guesser = Guesser::new(address(10, 0, 0, 1), guess, Transaction(1), 77, start);
    let end = start + Duration::from_secs(3600);
    let count = std::iter::from_fn(|| guesser.poll_transmit(end)).count();
    assert_eq!((count, guesser.poll_timeout()), (GUESSES_MAX as usize, None));
}
