//! What Hyprspace's `status`, `peers` and `route show` print, from a Ringlane node's answers.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use ringlane_control::admin::status::{ConnectionStatus, NodeStatus, RouteStatus};

use crate::commands::text::printable;

/// Between the addresses of a path by way of a relay.
const CIRCUIT: &str = "/p2p-circuit";

/// The answer to `status`. On a terminal, addresses by way of a relay are grey.
pub(super) fn status(node: &NodeStatus, connections: &[ConnectionStatus], terminal: bool) -> String {
    let connected = node.peers.iter().filter(|peer| of(connections, &peer.id).next().is_some()).count();
    let mut text = format!(
        "PeerID: {}\nSwarm peers: {}\nConnected VPN nodes: {connected}/{}\n",
        node.node.id,
        connections.len(),
        node.peers.len(),
    );
    for peer in &node.peers {
        for connection in of(connections, &peer.id) {
            let latency = duration(Duration::from_micros(connection.rtt_us.unwrap_or(0)));
            item(&mut text, &format!("@{} ({latency}) {}", printable(&peer.name), remote(connection)), terminal);
        }
    }
    text.push_str("Addresses:\n");
    for address in node.node.listen.iter().collect::<BTreeSet<_>>() {
        item(&mut text, address, terminal);
    }
    text
}

/// The connections to a peer.
fn of<'c>(connections: &'c [ConnectionStatus], id: &'c str) -> impl Iterator<Item = &'c ConnectionStatus> {
    connections.iter().filter(move |connection| connection.id == id)
}

/// A line that ends in an address.
fn item(text: &mut String, line: &str, terminal: bool) {
    let is_grey = terminal && (line.ends_with(CIRCUIT) || line.contains("/p2p-circuit/p2p/"));
    // Writing to a string cannot fail.
    let _ = if is_grey { writeln!(text, "    \x1b[90m{line}\x1b[0m") } else { writeln!(text, "    {line}") };
}

/// The answer to `peers`.
pub(super) fn peers(connections: &[ConnectionStatus]) -> String {
    connections.iter().map(|connection| remote(connection) + "\n").collect()
}

/// The answer to `route show`: IPv4 first, each in ascending order.
pub(super) fn routes(routes: &[RouteStatus], connections: &[ConnectionStatus]) -> String {
    let mut routes: Vec<_> = routes.iter().collect();
    // Stable: of several routers for one network the order is the node's.
    routes.sort_by_key(|route| (route.prefix.addr().is_ipv6(), route.prefix));
    let mut text = String::new();
    for RouteStatus { prefix, peer, .. } in routes {
        let of_peer: Vec<_> = of(connections, &peer.id).collect();
        let direct = of_peer.iter().any(|connection| !connection.remote.contains(CIRCUIT));
        let relay = of_peer.first().filter(|_| !direct).and_then(|connection| relay_of(&connection.remote));
        let name = if peer.name.is_empty() { String::new() } else { format!("@{} ", printable(&peer.name)) };
        let target = match relay {
            Some(relay) => format!("/p2p/{relay}{CIRCUIT}/p2p/{}", peer.id),
            None => format!("/p2p/{}", peer.id),
        };
        let connected = if of_peer.is_empty() { "" } else { " connected" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{prefix} via {name}{target}{connected}");
    }
    text
}

/// The remote's whole address: `/ip4/10.55.0.2/tcp/8001/p2p/12D3KooW...`.
fn remote(connection: &ConnectionStatus) -> String {
    let suffix = format!("/p2p/{}", connection.id);
    format!("{}{suffix}", connection.remote.strip_suffix(&suffix).unwrap_or(&connection.remote))
}

/// The relay of `.../p2p/<relay>/p2p-circuit...`.
fn relay_of(remote: &str) -> Option<&str> {
    remote.split_once(CIRCUIT)?.0.rsplit_once("/p2p/").map(|(_, relay)| relay)
}

/// As Go writes durations: `0s`, `365.516µs`, `2.134757ms`, `1.2s`, `1m2.5s`, `1h0m0s`.
fn duration(duration: Duration) -> String {
    let (seconds, nanoseconds) = (duration.as_secs(), duration.subsec_nanos());
    match (seconds, nanoseconds) {
        (0, 0) => "0s".to_owned(),
        (0, 0..1_000) => format!("{nanoseconds}ns"),
        (0, 1_000..1_000_000) => decimal(nanoseconds.into(), 3) + "µs",
        (0, _) => decimal(nanoseconds.into(), 6) + "ms",
        _ => {
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = decimal(seconds % 60 * 1_000_000_000 + u64::from(nanoseconds), 9);
            match (hours, minutes) {
                (0, 0) => format!("{rest}s"),
                (0, _) => format!("{minutes}m{rest}s"),
                _ => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

/// `value` with its last `places` digits behind the point, without zeros at the end.
fn decimal(value: u64, places: u32) -> String {
    let unit = 10_u64.pow(places);
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let digits = format!("{fraction:0width$}", width = places as usize);
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    const A: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";
    const B: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";
    const C: &str = "12D3KooW9twh1frMEkJ1ypnsH8bWcPgesfJCYM3MoXnKmEDdtP73";

    fn connection(id: &str, remote: &str, rtt_us: Option<u64>) -> ConnectionStatus {
        from_value(json!({
            "id": id, "name": "", "remote": remote, "direction": "inbound", "transport": "tcp", "rtt_us": rtt_us, "age_s": 1,
        }))
        .unwrap()
    }

    fn peer(name: &str, id: &str) -> Value {
        json!({
            "name": name, "id": id, "addresses": [], "routes": [], "state": "offline", "carrier": null, "lanes": [],
            "rtt_us": null, "mtu_bytes": null, "packets_sent": 0, "packets_received": 0, "bytes_sent": 0,
            "bytes_received": 0, "records_sent": 0, "records_received": 0, "last_handshake_unix_s": null, "drops": {},
        })
    }

    fn node(peers: &[Value], listen: &[&str]) -> NodeStatus {
        from_value(json!({
            "version": "0.1.0",
            "node": {
                "id": A, "addresses": [], "interface": "gr0", "mtu_bytes": 1420, "workers": 1, "uptime_s": 1,
                "listen": listen, "generation": 1,
            },
            "peers": peers, "drops": {}, "workers": [],
        }))
        .unwrap()
    }

    fn route(prefix: &str, name: &str, id: &str) -> RouteStatus {
        from_value(json!({
            "prefix": prefix, "peer": { "name": name, "id": id }, "builtin": true, "installed": true, "carrier": null,
        }))
        .unwrap()
    }

    #[test]
    fn status_is_what_hyprspace_prints_of_the_same_network() {
        let connections = [
            connection(B, "/ip4/10.55.0.2/tcp/34566", Some(1_227)),
            connection(B, &format!("/ip4/10.55.0.2/tcp/8001/p2p/{B}"), Some(1_227)),
        ];
        let listen = [
            "/ip4/127.0.0.1/tcp/8001",
            "/ip4/10.55.0.1/udp/8001/quic-v1",
            "/ip4/10.55.0.1/tcp/8001",
            "/ip6/::1/tcp/8001",
        ];
        assert_eq!(
            status(&node(&[peer("peerB", B)], &listen), &connections, false),
            "\
PeerID: 12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN
Swarm peers: 2
Connected VPN nodes: 1/1
    @peerB (1.227ms) /ip4/10.55.0.2/tcp/34566/p2p/12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46
    @peerB (1.227ms) /ip4/10.55.0.2/tcp/8001/p2p/12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46
Addresses:
    /ip4/10.55.0.1/tcp/8001
    /ip4/10.55.0.1/udp/8001/quic-v1
    /ip4/127.0.0.1/tcp/8001
    /ip6/::1/tcp/8001
"
        );
    }

    #[test]
    fn strangers_count_as_swarm_peers_only_and_relayed_addresses_are_grey_on_terminals() {
        let relayed = format!("/ip4/192.0.2.1/tcp/1/p2p/{C}/p2p-circuit");
        let connections = [connection(B, &relayed, None), connection(C, "/ip4/192.0.2.1/tcp/1", Some(1))];
        let node = node(&[peer("", A), peer("\x1bb", B)], &[&relayed]);
        assert_eq!(
            status(&node, &connections, true),
            format!(
                "PeerID: {A}\nSwarm peers: 2\nConnected VPN nodes: 1/2\n    \
                 \x1b[90m@\u{fffd}b (0s) {relayed}/p2p/{B}\x1b[0m\nAddresses:\n    \x1b[90m{relayed}\x1b[0m\n"
            )
        );
        assert!(!status(&node, &connections, false).contains('\x1b'));
    }

    #[test]
    fn peers_are_all_connections_with_whole_addresses() {
        let connections = [
            connection(B, "/ip4/10.55.0.2/udp/8001/quic-v1", None),
            connection(C, &format!("/ip4/10.55.0.2/tcp/8001/p2p/{B}/p2p-circuit/p2p/{C}"), None),
        ];
        assert_eq!(
            peers(&connections),
            format!("/ip4/10.55.0.2/udp/8001/quic-v1/p2p/{B}\n/ip4/10.55.0.2/tcp/8001/p2p/{B}/p2p-circuit/p2p/{C}\n")
        );
        assert_eq!(peers(&[]), "");
    }

    #[test]
    fn routes_are_what_hyprspace_prints_of_the_same_network() {
        let table = [
            route("fd00:6879:7072:7370:6163:6500:b497:d158/128", "peerB", B),
            route("100.64.4.143/32", "peerB", B),
            route("10.77.0.0/16", "", C),
            route("10.77.1.0/24", "peerB", B),
            route("10.0.0.0/8", "", A),
        ];
        let relayed = format!("/ip4/192.0.2.1/tcp/1/p2p/{A}/p2p-circuit");
        let connections = [
            connection(B, &relayed, None),
            connection(B, "/ip4/10.55.0.2/tcp/8001", None),
            connection(C, &relayed, None),
        ];
        assert_eq!(
            routes(&table, &connections),
            format!(
                "\
10.0.0.0/8 via /p2p/{A}
10.77.0.0/16 via /p2p/{A}/p2p-circuit/p2p/{C} connected
10.77.1.0/24 via @peerB /p2p/{B} connected
100.64.4.143/32 via @peerB /p2p/{B} connected
fd00:6879:7072:7370:6163:6500:b497:d158/128 via @peerB /p2p/{B} connected
"
            )
        );
    }

    #[test]
    fn durations_are_written_as_by_go() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (999, "999ns"),
            (1_000, "1µs"),
            (365_516, "365.516µs"),
            (1_774_811, "1.774811ms"),
            (2_100_000, "2.1ms"),
            (10_000_000, "10ms"),
            (1_200_000_000, "1.2s"),
            (61_000_000_001, "1m1.000000001s"),
            (3_600_000_000_000, "1h0m0s"),
            (90_061_500_000_000, "25h1m1.5s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanoseconds)), text);
        }
    }
}
