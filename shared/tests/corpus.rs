//! Replays the committed fuzz corpus through the fuzz targets' own code.
//!
//! A seed whose name begins with `ok-` must be accepted and one with `bad-` refused, so that the corpus keeps reaching
//! what it was made to reach; the others must only cause no panic.

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/circuit.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod circuit;
#[path = "../fuzz/src/config.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod config;
#[path = "../fuzz/src/connect.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod connect;
#[path = "../fuzz/src/discovery.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod discovery;
#[path = "../fuzz/src/dns.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod dns;
#[path = "../fuzz/src/fragment.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod fragment;
#[path = "../fuzz/src/offload.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod offload;
#[path = "../fuzz/src/packets.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod packets;
#[path = "../fuzz/src/portmap.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod portmap;
#[path = "../fuzz/src/rekey.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod rekey;
#[path = "../fuzz/src/relay.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod relay;
#[path = "../fuzz/src/routing.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod routing;
#[path = "../fuzz/src/service.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod service;
#[path = "../fuzz/src/stun.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod stun;
#[path = "../fuzz/src/twin.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod twin;
#[path = "../fuzz/src/watched.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with other tests")]
mod watched;
#[path = "../fuzz/src/wire.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz targets")]
mod wire;

fn replay(target: &str, body: fn(&[u8]) -> bool) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let (mut accepted, mut refused) = (0, 0);
    for entry in fs::read_dir(&directory).expect("the corpus is committed") {
        let path = entry.expect("the directory can be read").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        let input = fs::read(&path).expect("the file can be read");
        let outcome = body(&input);
        *if outcome { &mut accepted } else { &mut refused } += 1;
        match name.split_once('-') {
            Some(("ok", _)) => assert!(outcome, "{target}/{name} is refused"),
            Some(("bad", _)) => assert!(!outcome, "{target}/{name} is accepted"),
            _ => {}
        }
    }
    assert!(accepted > 0 && refused > 0, "{target}: {accepted} accepted, {refused} refused");
}

#[test]
fn the_record_corpus_is_handled() {
    replay("record", wire::record);
}

#[test]
fn the_offer_corpus_is_handled() {
    replay("offer", wire::offer);
}

#[test]
fn the_packets_corpus_is_handled() {
    replay("packets", packets::packets);
}

#[test]
fn the_rekey_corpus_is_handled() {
    replay("rekey", rekey::rekey);
}

#[test]
fn the_relay_corpus_is_handled() {
    replay("relay", relay::relay);
}

#[test]
fn the_routing_corpus_is_handled() {
    replay("routing", routing::routing);
}

#[test]
fn the_toml_corpus_is_handled() {
    replay("config_toml", config::config_toml);
}

#[test]
fn the_json_corpus_is_handled() {
    replay("config_json", config::config_json);
}

#[test]
fn the_proxy_corpus_is_handled() {
    replay("connect", connect::connect);
}

#[test]
fn the_dns_corpus_is_handled() {
    replay("dns", dns::dns);
}

#[test]
fn the_fragment_corpus_is_handled() {
    replay("fragment", fragment::fragment);
}

#[test]
fn the_split_corpus_is_handled() {
    replay("split", offload::split);
}

#[test]
fn the_coalesce_corpus_is_handled() {
    replay("coalesce", offload::coalesce);
}

#[test]
fn the_service_corpus_is_handled() {
    replay("service", service::service);
}

#[test]
fn the_stun_corpus_is_handled() {
    replay("stun", stun::stun);
}

#[test]
fn the_peer_exchange_corpus_is_handled() {
    replay("pex", discovery::pex);
}

#[test]
fn the_signed_records_corpus_is_handled() {
    replay("peers", discovery::peers);
}

#[test]
fn the_mdns_corpus_is_handled() {
    replay("mdns", discovery::mdns);
}

#[test]
fn the_pcp_corpus_is_handled() {
    replay("pcp", portmap::pcp);
}

#[test]
fn the_upnp_corpus_is_handled() {
    replay("upnp", portmap::upnp);
}

#[test]
fn the_circuit_corpus_is_handled() {
    replay("circuit", circuit::circuit);
}
