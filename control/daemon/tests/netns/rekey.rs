//! Lanes get new keys under full load, and nobody who uses the link can tell: nothing is lost, comes twice or overtakes.
//!
//! The nodes rekey every 256 records, some hundred thousand times as often as they would otherwise, so that an epoch's
//! border is never far from any packet.

use std::collections::BTreeMap;
use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::datagrams::Load;
use crate::lab::{Lab, Site, wait_for};
use crate::node::{Node, Setup, mesh};
use crate::traffic::tcp_both_ways;

/// Epochs that a lane must have gone through under load, with the suite that most links have, and with the others: what
/// suites have of their own is done with in the first few.
const EPOCHS: u64 = 2000;
const EPOCHS_OF_OTHERS: u64 = 300;
/// Drops that a rekeying at fault would cause.
const KEY_DROPS: [&str; 4] = ["unknown_epoch", "unauthentic", "replayed", "epoch_exhausted"];

/// Two nodes, direct, whose settings `change` has seen to.
fn two_with(lab: &Lab, workers: u8, change: impl Fn(&mut Setup)) -> [Node; 2] {
    let mut setups = mesh(lab, [(Site::A, workers), (Site::B, workers)]);
    setups.iter_mut().for_each(|setup| {
        change(setup);
        setup.write();
    });
    let mut nodes = setups.each_ref().map(Node::up);
    for (node, peer) in nodes.iter_mut().zip([Site::B, Site::A]) {
        node.wait_direct(&[peer], usize::from(workers));
    }
    nodes
}

fn key_drops(node: &Node) -> BTreeMap<String, u64> {
    let mut drops = node.status().drops();
    drops.retain(|reason, _| KEY_DROPS.contains(&reason.as_str()));
    drops
}

/// The epoch of the only lane, as the node's status has it.
fn epoch(node: &Node, peer: Site) -> u64 {
    node.status().peer(peer).and_then(|peer| peer["lanes"][0]["epoch"].as_u64()).unwrap_or_default()
}

/// Says so when it is dropped.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn rekeys_unnoticed_under_load(ciphers: [&str; 2], agreed: &str, epochs: u64) {
    let Some(lab) = Lab::up(2) else { return };
    let ciphers = BTreeMap::from([('a', ciphers[0]), ('b', ciphers[1])]);
    let nodes = two_with(&lab, 1, |setup| {
        setup.set("dataplane", "rekey_records", 256);
        setup.set("dataplane", "cipher", ciphers[&setup.site.letter()]);
    });
    let [a, b] = [Site::A, Site::B].map(|site| lab.host(site));
    let address = Site::B.host_v4().into();

    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        // Both directions of TCP fill the link, with every byte compared; few enough datagrams are under way at a time that
        // no queue can be full of them.
        let bulk = scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                tcp_both_ways(&a, &b, address, 2, 20_000_000);
            }
        });
        let paced = [(&a, &b, address), (&b, &a, Site::A.host_v4().into())].map(|(client, server, address)| {
            let enough = &enough;
            scope.spawn(move || {
                let load = Load::lossless(4, 2000, 32);
                while !enough.load(Ordering::Relaxed) {
                    assert_eq!(load.run(client, server, address), load.all_in_order());
                }
            })
        });
        // The flows end with the wait, also when it fails.
        let _ended = Ended(&enough);
        let is_over = || bulk.is_finished() || paced.iter().any(|paced| paced.is_finished());
        for wanted in (0..=epochs).step_by(100) {
            wait_for(&format!("epoch {wanted}"), || (epoch(&nodes[0], Site::B) >= wanted || is_over()).then_some(()));
        }
    });

    for (node, peer) in nodes.iter().zip([Site::B, Site::A]) {
        let status = node.status();
        let lane = &status.peer(peer).expect("the peer is configured")["lanes"][0];
        assert_eq!(lane["cipher"], agreed);
        assert!(lane["epoch"].as_u64() >= Some(epochs) && lane["rekeys_failed"] == 0, "{lane:?}");
        assert_eq!(key_drops(node), BTreeMap::new());
        assert_eq!(node.log().matches("lane up").count(), 1, "no lane was made anew");
    }
}

/// Whether the tests run once more on an engine by name: keys are made and used above it, so less of them will do.
fn engine_is_chosen() -> bool {
    env::var_os("RINGLANE_TEST_ENGINE").is_some()
}

#[test]
fn thousands_of_epochs_of_aes_128_gcm_pass_unnoticed_under_full_load() {
    let epochs = if engine_is_chosen() { EPOCHS_OF_OTHERS } else { EPOCHS };
    rekeys_unnoticed_under_load(["auto", "aes-128-gcm"], "aes-128-gcm", epochs);
}

#[test]
fn hundreds_of_epochs_of_aes_256_gcm_pass_unnoticed_under_full_load() {
    if !engine_is_chosen() {
        rekeys_unnoticed_under_load(["aes-256-gcm", "auto"], "aes-256-gcm", EPOCHS_OF_OTHERS);
    }
}

#[test]
fn hundreds_of_epochs_of_chacha20_poly1305_pass_unnoticed_under_full_load() {
    if !engine_is_chosen() {
        rekeys_unnoticed_under_load(["aes-128-gcm", "aes-256-gcm"], "chacha20-poly1305", EPOCHS_OF_OTHERS);
    }
}

#[test]
fn an_idle_link_gets_new_keys_every_second_and_stays_as_it_is() {
    let Some(lab) = Lab::up(2) else { return };
    let mut nodes = two_with(&lab, 2, |setup| setup.set("dataplane", "rekey_seconds", 1));
    let peers = [Site::B, Site::A];
    for (node, peer) in nodes.iter_mut().zip(peers) {
        node.wait_until("five epochs on each lane", |status| {
            let lanes = status.peer(peer).and_then(|peer| peer["lanes"].as_array());
            lanes.is_some_and(|lanes| lanes.len() == 2 && lanes.iter().all(|lane| lane["epoch"].as_u64() >= Some(5)))
        });
    }
    for address in Site::B.host() {
        lab.host(Site::A).ping(address);
    }
    for (node, peer) in nodes.iter().zip(peers) {
        let status = node.status();
        assert_eq!((status.sum("rekeys_failed"), key_drops(node)), (0, BTreeMap::new()));
        assert_eq!(status.state(peer), "direct");
        // Some twenty datagrams for each rekeying; what answers each other for ever would be many thousands.
        assert!(status.sum("trains_received") < 2000, "{status:?}");
        assert_eq!(node.log().matches("lane up").count(), 2, "no lane was made anew");
    }
}
