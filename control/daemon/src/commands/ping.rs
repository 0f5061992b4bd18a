//! `ringlane ping`: which way packets take to a peer, again and again, until it is a direct one.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use ringlane_control::admin::ping::{PingPath, PingStatus};
use ringlane_control::admin::{AdminCommand, request};
use serde::Serialize;

use super::text;
use crate::cli::PingArgs;

/// Questions, where neither their number nor an end is asked for.
const COUNT: u64 = 10;
/// There were answers, but none by a direct path, which was asked for.
const NOT_DIRECT: u8 = 3;

pub(crate) fn run(args: &PingArgs) -> anyhow::Result<ExitCode> {
    let socket = text::socket_of(&args.node.interface)?;
    let stops_when_direct = args.until_direct || args.count.is_none();
    let count = args.count.or((!args.until_direct).then_some(COUNT)).unwrap_or(u64::MAX);
    let interval = Duration::from_millis(args.interval_ms);
    let (mut has_answered, mut is_direct) = (false, false);
    for sequence in 1..=count {
        let started = Instant::now();
        let command = AdminCommand::Ping { peer: args.peer.clone(), timeout_ms: args.timeout_ms };
        let status: PingStatus = request(&socket, command)?;
        has_answered |= status.answered;
        is_direct = status.direct;
        let is_last = sequence == count || (stops_when_direct && is_direct);
        let text = match args.node.output.json {
            true => serde_json::to_string(&Answer { sequence, status: &status })? + "\n",
            false => for_people(sequence, &status, args.timeout_ms, is_last),
        };
        if !print(&text)? || is_last {
            break;
        }
        thread::sleep(interval.saturating_sub(started.elapsed()));
    }
    Ok(match (has_answered, is_direct || !args.until_direct) {
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(NOT_DIRECT),
        (true, true) => ExitCode::SUCCESS,
    })
}

/// One line of `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    sequence: u64,
    #[serde(flatten)]
    status: &'a PingStatus,
}

/// Whether anybody still reads.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write to the standard output"),
    }
}

/// A line for each path; at the end, why it is no direct one.
fn for_people(sequence: u64, status: &PingStatus, timeout_ms: u64, is_last: bool) -> String {
    let mut out = String::new();
    let peer = text::name_or_id(&status.peer.name, &status.peer.id);
    for path in &status.paths {
        let answer = match path.rtt_us {
            Some(_) => format!("answers in {}", text::rtt(path.rtt_us)),
            None => format!("does not answer within {timeout_ms} ms"),
        };
        let _ = writeln!(
            out,
            "{sequence}: {peer} {answer} {}{}",
            text::printable(&way(path)),
            text::loss(path.loss_percent)
        );
    }
    if status.paths.is_empty() {
        let _ = writeln!(out, "{sequence}: no path leads to {peer}");
    }
    if let (true, Some(obstacle)) = (is_last, &status.obstacle) {
        let _ = writeln!(out, "no direct lane: {}", text::printable(&obstacle.text));
    }
    out
}

fn way(path: &PingPath) -> String {
    let mut way = String::new();
    if let (Some(lane), Some(worker), Some(local), Some(remote)) = (path.lane, path.worker, path.local, path.remote) {
        let _ = write!(way, "on lane {lane} (worker {worker}), {local} -> {remote}");
    } else {
        way.push_str("by a stream");
        if let Some(transport) = &path.transport {
            let _ = write!(way, " over {transport}");
        }
        if let Some(connection) = &path.connection {
            let _ = write!(way, ", {connection}");
        }
    }
    way.push_str(match path.kind.as_str() {
        "lan" => ", in the local network",
        "direct_v6" => ", direct by IPv6",
        "direct_v4" => ", direct by IPv4",
        "mapped" => ", direct to a mapped port",
        "translated" => ", direct through a NAT",
        "udp_relay" => ", forwarded by a UDP relay",
        "stream" => ", from node to node",
        "relayed_stream" => ", relayed",
        _ => "",
    });
    if let Some(relay) = &path.relay {
        let _ = write!(way, " by {}", text::name_or_id(&relay.name, &relay.id));
    }
    if path.carrier == ringlane_control::admin::status::Carrier::Quic {
        way.push_str(", in QUIC datagrams");
    }
    way
}

#[cfg(test)]
mod tests {
    use ringlane_control::admin::obstacle::ObstacleStatus;
    use ringlane_control::admin::relay::RelayNode;
    use ringlane_control::admin::status::Carrier;

    use super::*;

    fn lane(lane: u8, kind: &str, rtt_us: Option<u64>) -> PingPath {
        PingPath {
            carrier: Carrier::Lane,
            kind: kind.to_owned(),
            lane: Some(lane),
            worker: Some(lane),
            local: Some(([10, 201, 0, 1], 8100 + u16::from(lane)).into()),
            remote: Some(([10, 201, 0, 2], 8100 + u16::from(lane)).into()),
            connection: None,
            transport: None,
            relay: None,
            rtt_us,
            loss_percent: None,
        }
    }

    fn node(name: &str) -> RelayNode {
        RelayNode { name: name.to_owned(), id: "12D3KooWBob".to_owned() }
    }

    fn relayed() -> PingStatus {
        let path = PingPath {
            carrier: Carrier::Stream,
            kind: "relayed_stream".to_owned(),
            lane: None,
            worker: None,
            local: None,
            remote: None,
            connection: Some("/ip4/5.10.0.2/tcp/8001".to_owned()),
            transport: Some("tcp".to_owned()),
            relay: Some(node("site\x1b[31m-r")),
            rtt_us: Some(25_000),
            loss_percent: None,
        };
        let obstacle = ObstacleStatus { code: "udp_blocked".to_owned(), text: "no UDP leaves this network".to_owned() };
        PingStatus {
            peer: node("site\u{9b}-b"),
            answered: true,
            direct: false,
            rtt_us: Some(25_000),
            paths: vec![path],
            obstacle: Some(obstacle),
        }
    }

    #[test]
    fn each_path_has_a_line_and_the_last_says_why_it_is_not_direct() {
        let line = "1: site\u{fffd}-b answers in 25.0 ms by a stream over tcp, /ip4/5.10.0.2/tcp/8001, relayed by \
                    site\u{fffd}[31m-r\n";
        assert_eq!(for_people(1, &relayed(), 1000, false), line);
        let last = for_people(1, &relayed(), 1000, true);
        assert_eq!(last, format!("{line}no direct lane: no UDP leaves this network\n"));
        let direct = PingStatus {
            direct: true,
            paths: vec![
                PingPath { loss_percent: Some(0), ..lane(0, "lan", Some(350)) },
                PingPath { loss_percent: Some(7), ..lane(1, "translated", None) },
            ],
            obstacle: None,
            peer: node(""),
            ..relayed()
        };
        assert_eq!(
            for_people(7, &direct, 1000, true),
            "7: 12D3KooWBob answers in 350 us on lane 0 (worker 0), 10.201.0.1:8100 -> 10.201.0.2:8100, in the local network\n\
             7: 12D3KooWBob does not answer within 1000 ms on lane 1 (worker 1), 10.201.0.1:8101 -> 10.201.0.2:8101, direct \
             through a NAT, loses 7 %\n"
        );
        let nowhere = PingStatus { paths: Vec::new(), answered: false, obstacle: None, ..relayed() };
        assert_eq!(for_people(2, &nowhere, 1000, false), "2: no path leads to site\u{fffd}-b\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let answer = serde_json::to_string(&Answer { sequence: 3, status: &relayed() }).unwrap();
        assert!(answer.starts_with(r#"{"sequence":3,"name":"site"#) && !answer.contains('\n'), "{answer}");
        assert!(answer.contains(r#""answered":true,"direct":false,"rtt_us":25000,"paths":[{"carrier":"stream""#));
    }
}
