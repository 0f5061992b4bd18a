//! Of two relays that are equally far the one is taken that has less to do.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::kinds::{Kind, Pair};
use super::udp_relay::Relayed;
use crate::lab::{Namespace, Site};
use crate::node::{Status, name_of};

/// What R and S forward at most, which is less than what is sent.
const RATE_MBIT: i64 = 5;
/// How much of it has to be taken.
const LOADED_PERCENT: u64 = 85;
/// How long it may take until that is measured.
const FILLED_WITHIN: Duration = Duration::from_secs(90);

/// More datagrams to a host of B's than a relay forwards, whoever takes them, until it is dropped.
struct Flood(Arc<AtomicBool>);

impl Flood {
    fn start(from: &Namespace) -> Self {
        let socket = from.enter(|| UdpSocket::bind((Site::A.host_v4(), 0)).expect("the host's address is its own"));
        let stopped = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stopped);
        thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                // Nobody listens there, which the host may say.
                let _ = socket.send_to(&[0; 1000], (Site::B.host_v4(), 9));
                thread::sleep(Duration::from_micros(300));
            }
        });
        Self(stopped)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn lanes_percent(load: &serde_json::Value) -> Option<u64> {
    load["lanes_percent"].as_u64()
}

/// What a relay has said of itself, as another node's status has it.
fn told_of(status: &Status, relay: Site) -> Option<u64> {
    let relays = status.part("relay")["relays"].as_array().cloned().unwrap_or_default();
    let relay = relays.into_iter().find(|known| known["name"] == name_of(relay).as_str())?;
    lanes_percent(&relay["load"])
}

#[test]
fn lanes_of_a_new_link_go_by_the_relay_that_has_less_to_do() {
    let pair = Pair::Apart(Kind::Symmetric, Kind::Symmetric);
    let Some((mut relayed, setups)) = Relayed::up_with(pair, |setup| setup.set("relay", "rate_mbit", RATE_MBIT)) else {
        return;
    };
    let loaded = relayed.wait_lanes();
    let idle = if loaded == Site::R { Site::S } else { Site::R };
    let flood = Flood::start(&relayed.nat.lab().host(Site::A));
    let began = Instant::now();
    let own = |relayed: &mut Relayed| lanes_percent(&relayed.third(loaded).status().part("relay")["load"]);
    while own(&mut relayed).is_none_or(|percent| percent < LOADED_PERCENT) {
        assert!(began.elapsed() < FILLED_WITHIN, "{:?}", own(&mut relayed));
        thread::sleep(Duration::from_millis(200));
    }
    eprintln!("{loaded:?} is loaded after {:?}", began.elapsed());
    for node in &mut relayed.ends {
        node.terminate();
    }
    drop(flood);
    relayed.ends = setups.ends_up();
    assert_eq!(relayed.wait_lanes(), idle);
    let status = relayed.ends[0].status();
    let told = [loaded, idle].map(|relay| told_of(&status, relay));
    eprintln!("lanes go by {idle:?}; {loaded:?} and {idle:?} said that so much of them is taken: {told:?}");
    assert!(told[0] > told[1] && told[1].is_some(), "{told:?}");
    // More than a ping is more than the rate.
    relayed.nat.lab().host(Site::A).ping(Site::B.host()[0]);
}
