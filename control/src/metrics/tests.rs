use std::collections::BTreeSet;

use serde_json::{Value as Json, from_value, json};

use super::*;

const DOCUMENTATION: &str = include_str!("../../../docs/metrics.md");

/// A node in whose status every figure is there and has a value of its own.
fn scrape() -> Scrape {
    let mut next = 100;
    let mut number = || {
        next += 1;
        next
    };
    let mut numbers = |keys: &[&str]| -> Json { keys.iter().map(|key| ((*key).to_owned(), json!(number()))).collect() };
    let merge = |mut base: Json, more: Json| {
        if let (Json::Object(base), Json::Object(more)) = (&mut base, more) {
            base.extend(more);
        }
        base
    };
    let lane = merge(
        json!({ "index": 3, "worker": 1, "local": "192.0.2.1:8101", "remote": "[2001:db8::2]:8103", "state": "up",
            "carrier": "quic", "cipher": "aes-128-gcm", "rtt_us": 1500, "mtu_bytes": 1452 }),
        numbers(&["epoch", "rekeys", "rekeys_failed", "moves", "echoes_sent", "echoes_answered", "age_s"]),
    );
    let traffic = numbers(&[
        "packets_sent",
        "packets_received",
        "bytes_sent",
        "bytes_received",
        "records_sent",
        "records_received",
        "quic_datagrams_sent",
        "quic_datagrams_received",
        "stream_packets_sent",
        "stream_packets_received",
        "last_handshake_unix_s",
    ]);
    let site_b = json!({ "name": "site \"b\"", "id": "12D3KooWBob", "addresses": [], "routes": [], "state": "direct",
        "carrier": "quic", "lanes": [lane], "rtt_us": 1500, "mtu_bytes": 1420, "drops": { "replayed": 7 } });
    let nobody = json!({ "name": "", "id": "12D3KooWNobody", "addresses": [], "routes": [], "state": "offline",
        "carrier": null, "lanes": [], "rtt_us": null, "mtu_bytes": null, "drops": {},
        "obstacle": { "code": "udp_blocked", "text": "no UDP leaves this network: no packets pass" } });
    let idle = numbers(&[
        "packets_sent",
        "packets_received",
        "bytes_sent",
        "bytes_received",
        "records_sent",
        "records_received",
    ]);
    let nobody = merge(merge(nobody, idle), json!({ "last_handshake_unix_s": null }));
    let worker = merge(
        json!({ "worker": 1, "engine": "epoll", "offloads": { "udp_gso": "on" },
            "egress": { "state": "queueing", "queued_packets": 21, "queued_bytes": 22, "marked": 23 } }),
        numbers(&[
            "turns",
            "enters",
            "sleeps",
            "handed_over",
            "tun_buffer_shortages",
            "udp_buffer_shortages",
            "super_segments_read",
            "super_segments_written",
            "tun_writes",
            "trains_sent",
            "trains_received",
            "trains_resent",
        ]),
    );
    let service = merge(
        json!({ "name": "www", "id": "a3dd", "address": "fd00::1", "target": "/unix/run/x.sock",
            "refused": { "not_allowed": 18 } }),
        numbers(&["connections", "accepted"]),
    );
    let host = |local: &str, asked: u8, mapping: &str, is_translated: Option<bool>| {
        json!({ "local": local, "scope": "internet", "servers_asked": asked, "servers_answered": asked,
            "is_silent": false, "is_translated": is_translated, "mapping": mapping, "is_mapping_certain": true,
            "filtering": "unknown", "keeps_ports": null, "port_step": null, "rtt_us": 2500, "ports": [],
            "is_udp_blocked": false })
    };
    let status = json!({
        "version": "1.2.3",
        "node": { "id": "12D3KooWAlice", "addresses": [], "interface": "ring0", "mtu_bytes": 1420, "workers": 2,
            "uptime_s": 60, "listen": ["/ip4/192.0.2.1/tcp/8001"], "generation": 9 },
        "tun": { "queue_packets": 500, "dropped": 34 },
        "peers": [merge(site_b, traffic), nobody],
        "movement": numbers(&["records_passed_on", "records_ignored", "paths_seen", "paths_refused", "paths_tried"]),
        "gate": { "not_configured": 14 },
        "mappings": { "enabled": true, "gateways": [{
            "gateway": "192.168.1.1", "interface": "eth0", "local": "192.168.1.2", "state": "settled", "method": "pcp",
            "external": "203.0.113.1", "private": false, "restarts": 0, "strange_answers": 0,
            "mappings": [{ "protocol": "udp", "port": 8100, "workers": [0], "control": false,
                "external": "203.0.113.1:8100", "offered": true, "method": "pcp", "lifetime_seconds": 7200,
                "expires_in_seconds": 7000, "renewals": 0, "problem": null }],
        }] },
        "nat": {
            "hosts": [
                host("192.168.1.2", 2, "address_and_port_dependent", Some(true)),
                host("10.0.0.1", 0, "unknown", None),
            ],
            "candidates": [],
            "control": [],
            "stun": numbers(&["requests_sent", "answers_received", "refusals_received", "unasked_received",
                "mappings_changed", "requests_answered", "requests_of_strangers", "requests_too_often",
                "requests_malformed"]),
        },
        "relay": merge(
            json!({ "serves": true, "public": false, "load": { "lanes_percent": 25, "circuits_percent": 0 },
                "relays": [{ "name": "r", "id": "12D3KooWBob", "reserved": true,
                    "load": { "lanes_percent": 50, "circuits_percent": 100 } }],
                "relayed": [], "reservations": [], "circuits": [],
                "forwarding": merge(
                    json!({ "allotments": [] }),
                    numbers(&["allotments_given", "allotments_refused", "lanes_begun", "ends_moved", "datagrams", "bytes",
                        "datagrams_over_rate"]),
                ) }),
            numbers(&["reservations_given", "circuits_ended", "circuit_bytes", "requests_refused"]),
        ),
        "discovery": {
            "mdns": numbers(&["queries_sent", "announcements_sent", "packets_heard", "packets_malformed",
                "packets_ignored", "addresses"]),
            "pex": numbers(&["answers_received", "answers_sent", "requests_refused", "bad_lines", "addresses"]),
            "records": numbers(&["held", "learnt", "ignored", "forged", "messages_sent", "bytes_sent",
                "messages_received", "bytes_received"]),
        },
        "services": merge(
            json!({ "offered": [service], "refused": { "not_reached": 15 }, "refused_to_peers": { "silent": 16 },
                "packets_dropped": { "no_room": 17 } }),
            numbers(&["connections_to_peers", "accepted_by_peers", "asking", "streams_of_peers"]),
        ),
        "drops": { "no_route": 12 },
        "listener_drops": { "unknown_token": 13 },
        "workers": [worker],
    });
    let connection = json!({ "id": "12D3KooWBob", "name": "site-b", "remote": "/ip4/192.0.2.2/tcp/8001",
        "direction": "inbound", "transport": "tcp", "rtt_us": 3500, "age_s": 1 });
    Scrape {
        status: from_value(status).unwrap(),
        connections: vec![from_value(connection.clone()).unwrap(), from_value(connection).unwrap()],
        process: ProcessFigures { threads: 4, ..ProcessFigures::default() },
    }
}

fn served() -> String {
    let mut text = String::new();
    expose(scrape(), &mut text).unwrap();
    text
}

#[test]
fn what_is_served_is_what_is_documented() {
    assert!(DOCUMENTATION.contains(&documentation()), "docs/metrics.md should have this table:\n{}", documentation());
    let text = served();
    let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: Vec<(&str, &str)> = typed.filter_map(|line| line.split_once(' ')).collect();
    let known: Vec<(&str, &str)> = families().map(|family| (family.name, family.kind.name())).collect();
    assert_eq!(served, known);
}

#[test]
fn names_follow_the_conventions_and_no_two_are_alike() {
    let mut names = BTreeSet::new();
    for family in families() {
        assert!(names.insert(family.name), "{} is there twice", family.name);
        assert!(["ringlane_", "process_"].iter().any(|prefix| family.name.starts_with(prefix)), "{}", family.name);
        let has_total = family.name.ends_with("_total");
        assert!(!has_total, "{}: the encoder adds it", family.name);
        assert!(!family.help.ends_with('.'), "{}: the encoder adds a full stop", family.name);
        for unit in ["_ms", "_us", "_mtu", "_rtt", "_kb"] {
            assert!(!family.name.ends_with(unit), "{} has no base unit", family.name);
        }
    }
}

#[test]
fn figures_have_their_labels_and_base_units() {
    let text = served();
    for line in [
        r#"ringlane_node_info{version="1.2.3",id="12D3KooWAlice",interface="ring0"} 1"#,
        "ringlane_uptime_seconds 60",
        r#"ringlane_connections{transport="tcp",direction="inbound"} 2"#,
        r#"ringlane_dropped_packets_total{reason="no_route"} 12"#,
        r#"ringlane_gate_refused_total{reason="not_configured"} 14"#,
        r#"ringlane_services_refused_total{reason="not_reached"} 15"#,
        r#"ringlane_services_refused_to_peers_total{reason="silent"} 16"#,
        r#"ringlane_services_dropped_packets_total{reason="no_room"} 17"#,
        r#"ringlane_service_refused_connections_total{service="www",reason="not_allowed"} 18"#,
        r#"ringlane_peers{state="direct"} 1"#,
        r#"ringlane_peers{state="relayed"} 0"#,
        r#"ringlane_peer_up{peer="12D3KooWBob",name="site \"b\""} 1"#,
        r#"ringlane_peer_up{peer="12D3KooWNobody",name=""} 0"#,
        r#"ringlane_peer_carrier{peer="12D3KooWBob",name="site \"b\"",carrier="quic"} 1"#,
        r#"ringlane_peer_rtt_seconds{peer="12D3KooWBob",name="site \"b\""} 0.0015"#,
        r#"ringlane_peer_dropped_packets_total{peer="12D3KooWBob",name="site \"b\"",reason="replayed"} 7"#,
        r#"ringlane_lane_rtt_seconds{peer="12D3KooWBob",name="site \"b\"",lane="3",worker="1"} 0.0015"#,
        r#"ringlane_egress_queueing{worker="1"} 1"#,
        r#"ringlane_offload{worker="1",offload="udp_gso",state="on"} 1"#,
        r#"ringlane_nat_info{address="192.168.1.2",mapping="address_and_port_dependent",filtering="unknown"} 1"#,
        r#"ringlane_nat_translated{address="192.168.1.2"} 1"#,
        r#"ringlane_udp_blocked{address="192.168.1.2"} 0"#,
        r#"ringlane_gateways{method="pcp"} 1"#,
        r#"ringlane_relay_rtt_seconds{peer="12D3KooWBob",name="r"} 0.0035"#,
        r#"ringlane_relay_load_ratio{by="lanes"} 0.25"#,
        r#"ringlane_relay_peer_load_ratio{peer="12D3KooWBob",name="r",by="circuits"} 1.0"#,
        r#"ringlane_peer_obstacle{peer="12D3KooWNobody",name="",code="udp_blocked"} 1"#,
        "process_threads 4",
    ] {
        assert!(text.lines().any(|served| served == line), "{line} is missing in\n{text}");
    }
    // What is not known is left out.
    assert!(!text.contains("10.0.0.1"), "nobody was asked from there");
    assert!(!text.contains(r#"ringlane_peer_rtt_seconds{peer="12D3KooWNobody"#));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn every_counter_of_the_status_is_served_once_with_its_own_value() {
    let text = served();
    let values =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit(' ').next()?.parse().ok());
    let values: Vec<u64> = values.collect();
    // As many as `scrape` drew; each value there is once.
    let drawn = 7 + 11 + 6 + 12 + 2 + 5 + 9 + 7 + 4 + 19 + 4;
    let times = |drawn: &u64| values.iter().filter(|value| *value == drawn).count();
    let others: Vec<u64> = (101..101 + drawn).filter(|drawn| times(drawn) != 1).collect();
    assert!(others.is_empty(), "{others:?} are missing, or there twice, in\n{text}");
}

#[test]
fn of_very_many_lanes_the_first_are_served_one_by_one_and_all_are_counted() {
    let mut scrape = scrape();
    let lane = scrape.status.peers[0].lanes[0].clone();
    scrape.status.peers[0].lanes = vec![lane; ringlane_shared::limits::METRICS_LANES_MAX + 5];
    let mut text = String::new();
    expose(scrape, &mut text).unwrap();
    let served = text.lines().filter(|line| line.starts_with("ringlane_lane_up{")).count();
    assert_eq!(served, ringlane_shared::limits::METRICS_LANES_MAX);
    assert!(text.contains("ringlane_peer_lanes{peer=\"12D3KooWBob\",name=\"site \\\"b\\\"\"} 4101\n"));
}
