//! What a measurement costs: CPU time, memory, system calls, drops.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use rustix::param::clock_ticks_per_second;
use serde_json::{Value, json};

use super::Measurement;
use crate::contender::Tunnel;
use crate::metric::Metric;
use crate::process::run;

/// Readings at the beginning of a measurement.
pub(super) struct Meter<'a> {
    /// Where to ask for a node's counters; none if the tunnel is not ringlane's.
    ringlane: Option<&'a Path>,
    before: Reading,
}

/// What the counters say at one moment. All of them only grow.
#[derive(Debug, Default)]
struct Reading {
    /// CPU time in ticks.
    machine_ticks: u64,
    contender_ticks: u64,
    tun_drops: u64,
    socket_drops: u64,
    nodes: Vec<Value>,
}

impl<'a> Meter<'a> {
    /// Reads counters, and forgets earlier peaks of memory.
    pub(super) fn start(ringlane: Option<&'a Path>, tunnel: &Tunnel) -> anyhow::Result<Self> {
        for id in tunnel.sides.iter().flat_map(|side| side.process_ids()) {
            fs::write(format!("/proc/{id}/clear_refs"), "5").context("a process of the contender is gone")?;
        }
        let mut before = Reading::default();
        before.take_counters(ringlane, tunnel)?;
        before.take_times(tunnel)?;
        Ok(Self { ringlane, before })
    }

    /// Reads them again and adds what lies between to the measurement.
    pub(super) fn finish(self, tunnel: &Tunnel, measurement: &mut Measurement) -> anyhow::Result<()> {
        let mut after = Reading::default();
        after.take_times(tunnel)?;
        after.take_counters(self.ringlane, tunnel)?;
        let before = self.before;
        let figures = &mut measurement.figures;
        if let Some(bytes) = measurement.payload_bytes.filter(|&bytes| bytes > 0.0) {
            let ticks_to_seconds_per_gb = 1e9 / bytes / clock_ticks_per_second() as f64;
            let machine = after.machine_ticks.saturating_sub(before.machine_ticks);
            figures.insert(Metric::MachineCpuSecondsPerGb, machine as f64 * ticks_to_seconds_per_gb);
            if tunnel.has_processes() {
                let contender = after.contender_ticks.saturating_sub(before.contender_ticks);
                figures.insert(Metric::CpuSecondsPerGb, contender as f64 * ticks_to_seconds_per_gb);
            }
        }
        if tunnel.has_processes() {
            let resident = tunnel.sides.iter().map(|side| side.process_ids().map(peak_resident_bytes).sum::<u64>());
            figures.insert(Metric::RssPeakBytes, resident.max().unwrap_or(0) as f64);
            figures.insert(Metric::TunDrops, after.tun_drops.saturating_sub(before.tun_drops) as f64);
            figures.insert(Metric::SocketDrops, after.socket_drops.saturating_sub(before.socket_drops) as f64);
        }
        if self.ringlane.is_some() {
            let grown = |what: fn(&Value) -> f64| sum(&after.nodes, what) - sum(&before.nodes, what);
            let packets = grown(packets_of);
            if packets > 0.0 {
                figures.insert(Metric::EntersPerPacket, grown(enters_of) / packets);
            }
            figures.insert(Metric::NodeDrops, grown(drops_of));
            let nodes = json!({ "before": before.nodes, "after": after.nodes });
            measurement.raw.insert("ringlane".into(), nodes);
        }
        Ok(())
    }
}

impl Reading {
    /// CPU times. Nearest to the work, as taking the counters costs time itself.
    fn take_times(&mut self, tunnel: &Tunnel) -> anyhow::Result<()> {
        self.machine_ticks = machine_ticks(&fs::read_to_string("/proc/stat").context("/proc/stat")?)?;
        self.contender_ticks = 0;
        for id in tunnel.sides.iter().flat_map(|side| side.process_ids()) {
            let stat = fs::read_to_string(format!("/proc/{id}/stat"));
            self.contender_ticks += process_ticks(&stat.context("a process of the contender is gone")?)?;
        }
        Ok(())
    }

    fn take_counters(&mut self, ringlane: Option<&Path>, tunnel: &Tunnel) -> anyhow::Result<()> {
        for side in &tunnel.sides {
            let Some(interface) = &side.interface else { continue };
            let router = side.site.router();
            let link = tunnel.lab.run(&router, &format!("ip -statistics -json link show dev {interface}"))?;
            let link: Value = serde_json::from_str(&link).context("what ip printed")?;
            self.tun_drops += link[0]["stats64"]["tx"]["dropped"].as_u64().unwrap_or(0);
            self.socket_drops += socket_drops(&tunnel.lab.run(&router, "cat /proc/net/snmp")?);
            if let Some(ringlane) = ringlane {
                let status = run(Command::new(ringlane).args(["status", "--json", "--interface", interface]))?;
                self.nodes.push(serde_json::from_str(&status).context("what ringlane status printed")?);
            }
        }
        Ok(())
    }
}

/// Ticks in which the machine did something: everything but idle, waiting for I/O, and what its own host took away.
fn machine_ticks(stat: &str) -> anyhow::Result<u64> {
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat has no sum")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, interrupt, soft_interrupt, ..] = ticks[..] else {
        anyhow::bail!("/proc/stat has too few columns");
    };
    Ok(user + nice + system + interrupt + soft_interrupt)
}

/// User and system time of a process, its threads included.
fn process_ticks(stat: &str) -> anyhow::Result<u64> {
    // Its name, in parentheses, may contain anything.
    let (_, columns) = stat.rsplit_once(')').context("a process's stat has no name")?;
    let mut columns = columns.split_whitespace().skip(11).map_while(|word| word.parse::<u64>().ok());
    let (user, system) = columns.next().zip(columns.next()).context("a process's stat has too few columns")?;
    Ok(user + system)
}

/// The largest resident set a process had since it was reset; 0 if it is gone.
fn peak_resident_bytes(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    peak.map_or(0, |kib: u64| kib * 1024)
}

/// UDP datagrams of a namespace that found their socket's buffer full.
fn socket_drops(snmp: &str) -> u64 {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Udp:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find_map(|(name, value)| (name == "RcvbufErrors").then(|| value.parse().ok())?).unwrap_or(0)
}

fn sum(nodes: &[Value], what: fn(&Value) -> f64) -> f64 {
    nodes.iter().map(what).sum()
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn packets_of(status: &Value) -> f64 {
    let count = |peer: &Value, key: &str| peer[key].as_f64().unwrap_or(0.0);
    each(&status["peers"]).map(|peer| count(peer, "packets_sent") + count(peer, "packets_received")).sum()
}

fn enters_of(status: &Value) -> f64 {
    each(&status["workers"]).filter_map(|worker| worker["enters"].as_f64()).sum()
}

fn drops_of(status: &Value) -> f64 {
    let drops = each(&status["peers"]).map(|peer| &peer["drops"]).chain([&status["drops"]]);
    drops.filter_map(Value::as_object).flat_map(|reasons| reasons.values().filter_map(Value::as_f64)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "1234 (a) (b 9) R 1 2 3 4 5 6 7 8 9 10 700 42 0 0 20 0 5 0 100";
        assert_eq!(process_ticks(stat).unwrap(), 742);
        assert!(process_ticks("1234 (a) R 1 2").is_err());
    }

    #[test]
    fn idle_waiting_and_stolen_time_is_not_work() {
        assert_eq!(machine_ticks("cpu  1 2 4 1000 2000 8 16 4000 0 0\ncpu0 9 9 9 9 9 9 9").unwrap(), 31);
        assert!(machine_ticks("intr 5").is_err());
    }

    #[test]
    fn full_socket_buffers_are_found_by_their_column() {
        let snmp = "Tcp: A B\nTcp: 1 2\nUdp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 10 20 30 40\n";
        assert_eq!(socket_drops(snmp), 30);
        assert_eq!(socket_drops("Tcp: A\nTcp: 1\n"), 0);
    }

    #[test]
    fn counters_of_all_peers_and_workers_are_added_up() {
        let status = json!({
            "peers": [
                {"packets_sent": 5, "packets_received": 7, "drops": {"replayed": 3}},
                {"packets_sent": 1, "packets_received": 1, "drops": {}},
            ],
            "drops": {"no_route": 2, "unknown_lane": 4},
            "workers": [{"enters": 10}, {"enters": 20}],
        });
        assert_eq!((packets_of(&status), enters_of(&status), drops_of(&status)), (14.0, 30.0, 9.0));
        assert_eq!(drops_of(&Value::Null), 0.0);
    }
}
