//! Of two relays that are equally far the one is taken that has less to do.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::kinds::{Kind, Pair};
use super::udp_relay::Relayed;
use crate::lab::{Namespace, Site};
use crate::node::{LANE_PORT, Node, Status, name_of};

/// What R and S forward at most, which is less than what is sent.
const RATE_MBIT: i64 = 5;
/// How much of it has to be taken.
const LOADED_PERCENT: u64 = 85;
/// How long it may take until that is measured.
const FILLED_WITHIN: Duration = Duration::from_secs(90);

/// More datagrams than a relay forwards, whoever takes them, until it is dropped.
struct Flood(Arc<AtomicBool>);

impl Flood {
    fn start(sockets: Vec<(UdpSocket, SocketAddr)>) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stopped);
        thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for (socket, to) in &sockets {
                    // Nobody listens there, which the host may say.
                    let _ = socket.send_to(&[0; 1000], to);
                }
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

/// The sockets that a node's lanes to a peer had, made again now that it has ended, and where those led.
fn sockets_of(status: &Status, peer: Site, router: &Namespace) -> Vec<(UdpSocket, SocketAddr)> {
    let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array()).cloned().unwrap_or_default();
    let ends = |lane: &serde_json::Value| -> Option<[SocketAddr; 2]> {
        Some([lane["local"].as_str()?.parse().ok()?, lane["remote"].as_str()?.parse().ok()?])
    };
    let bind = |local| router.enter(|| UdpSocket::bind(local).expect("who had it has ended"));
    lanes.iter().filter_map(ends).map(|[local, remote]| (bind(local), remote)).collect()
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
    let up = Relayed::up_with(pair, |setup| setup.set("relay", "rate_mbit", RATE_MBIT));
    let Some((mut relayed, mut setups)) = up else { return };
    let loaded = relayed.wait_lanes();
    let idle = if loaded == Site::R { Site::S } else { Site::R };
    let host = relayed.nat.lab().host(Site::A);
    let socket = host.enter(|| UdpSocket::bind((Site::A.host_v4(), 0)).expect("the host's address is its own"));
    let by_link = Flood::start(vec![(socket, (Site::B.host_v4(), 9).into())]);
    let began = Instant::now();
    let own = |relayed: &mut Relayed| lanes_percent(&relayed.third(loaded).status().part("relay")["load"]);
    while own(&mut relayed).is_none_or(|percent| percent < LOADED_PERCENT) {
        assert!(began.elapsed() < FILLED_WITHIN, "{:?}", own(&mut relayed));
        thread::sleep(Duration::from_millis(200));
    }
    eprintln!("{loaded:?} is loaded after {:?}", began.elapsed());
    let before = relayed.ends.each_ref().map(Node::status);
    // Both at once, so that neither tells the relay that the other is gone.
    relayed.ends.iter().for_each(|node| node.signal(Signal::TERM));
    relayed.ends.iter_mut().for_each(|node| _ = node.wait_ended());
    drop(by_link);
    // The relay goes on forwarding between where they were, and they begin anew at other ports.
    let router = |site| relayed.nat.lab().router(site);
    let taken = sockets_of(&before[1], Site::A, &router(Site::B));
    let kept_up = Flood::start(sockets_of(&before[0], Site::B, &router(Site::A)));
    setups.each(|setup| match setup.site {
        Site::A | Site::B => setup.set("dataplane", "port", i64::from(LANE_PORT) + 100),
        _ => {}
    });
    // The client of a link asks first, and is the one with the smaller id: it knows both loads before there is a link.
    let is_b_client = setups.of(Site::B).id < setups.of(Site::A).id;
    let (client, server) = if is_b_client { (Site::B, Site::A) } else { (Site::A, Site::B) };
    let place = |site| usize::from(site == Site::B);
    relayed.ends[place(client)].up_again(setups.of(client));
    let status = relayed.ends[place(client)].wait_until("the loads of both relays", |status| {
        matches!([loaded, idle].map(|relay| told_of(status, relay)), [Some(loaded), Some(idle)] if loaded > idle)
    });
    let told = [loaded, idle].map(|relay| told_of(&status, relay));
    relayed.ends[place(server)].up_again(setups.of(server));
    assert_eq!(relayed.wait_lanes(), idle, "{told:?}");
    eprintln!("lanes go by {idle:?}; {loaded:?} and {idle:?} said that so much of them is taken: {told:?}");
    let still = own(&mut relayed);
    assert!(still >= Some(LOADED_PERCENT / 2), "{still:?}");
    drop((kept_up, taken));
    // More than a ping is more than the rate.
    relayed.nat.lab().host(Site::A).ping(Site::B.host()[0]);
}
