//! How each disturbance is done to the lab, from outside: signals, `ip`, `nft`, `tc`.

use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;

use super::plan::{Disturbance, Kind};
use super::traffic::Traffic;
use super::watch::Watch;
use crate::contender::Tunnel;
use crate::lab::SITES;
use crate::process::{ensure_not_interrupted, wait_at_most};

/// Between two looks at whether nodes live and whether it is time.
const LOOK: Duration = Duration::from_millis(20);

/// How long a node may take to end when it is asked to at the end of a soak.
const END_PATIENCE: Duration = Duration::from_secs(15);

/// Lanes that an address translator knows: workers of a node.
const NAT_PORTS: u32 = 16;
const LANE_PORT: u32 = 8100;

/// The nodes, and what has become of the underlay between them.
pub(super) struct Ground {
    pub(super) tunnel: Tunnel,
    pub(super) watch: Watch,
    /// Last byte of each router's underlay address.
    addresses: Vec<u32>,
    mtu: u32,
    /// What went wrong by itself.
    pub(super) findings: Vec<String>,
}

impl Ground {
    pub(super) fn new(tunnel: Tunnel, watch: Watch) -> anyhow::Result<Self> {
        let addresses = (1..).take(tunnel.sides.len()).collect();
        let ground = Self { tunnel, watch, addresses, mtu: 1500, findings: Vec::new() };
        for side in &ground.tunnel.sides {
            // Else a router's second address goes with the first.
            ground.run(&side.site.router(), "sysctl -q -w net.ipv4.conf.all.promote_secondaries=1")?;
            // A sender looks every two seconds whether the way is open again, and does not give up for minutes. A kernel
            // that does not know the first lets streams wait as long again as they were held up.
            let host = side.site.host_namespace();
            ground.run(&host, "sysctl -q -w net.ipv4.tcp_retries2=255")?;
            let _ = ground.run(&host, "sysctl -q -w net.ipv4.tcp_rto_max_ms=2000");
        }
        // Chance hits trains, merged again, at the other routers, and single datagrams here.
        let last = ground.tunnel.sides.last().context("a tunnel has sides")?.site.router();
        ground.run(&last, "ethtool -K underlay gro off")?;
        Ok(ground)
    }

    fn run(&self, namespace: &str, line: &str) -> anyhow::Result<()> {
        self.tunnel.lab.run(namespace, line).map(drop)
    }

    /// Waits; watches the nodes meanwhile, and starts those that have died.
    pub(super) fn pause_until(&mut self, end: Instant) -> anyhow::Result<()> {
        loop {
            ensure_not_interrupted()?;
            self.watch.sample(&self.tunnel.sides);
            let dead = self.tunnel.sides.iter_mut().enumerate();
            let dead: Vec<_> = dead.filter_map(|(position, side)| Some((position, side.death()?))).collect();
            for (position, status) in dead {
                let letter = SITES[position].letter;
                self.findings.push(format!("the node of router-{letter} ended by itself with {status}"));
                self.stop(position);
                self.start(position)?;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn pause(&mut self, hold: Duration) -> anyhow::Result<()> {
        self.pause_until(Instant::now() + hold)
    }

    /// Carries out one disturbance, to its end.
    pub(super) fn disturb(&mut self, disturbance: &Disturbance, traffic: &Traffic) -> anyhow::Result<()> {
        let Disturbance { kind, amount, .. } = disturbance;
        let hold = Duration::from_millis(disturbance.hold_ms);
        let hit: Vec<usize> = positions(&disturbance.sites);
        let routers: Vec<String> = hit.iter().map(|&position| SITES[position].router()).collect();
        match kind {
            Kind::Restart => {
                for &position in &hit {
                    let side = &self.tunnel.sides[position];
                    self.watch.collect_counters(position, side);
                    self.stop(position);
                }
                self.pause(hold)?;
                hit.iter().try_for_each(|&position| self.start(position))
            }
            Kind::Roam => self.roam(&hit, *amount, hold),
            Kind::Nat => routers.iter().try_for_each(|router| self.translate(router, *amount)),
            Kind::Rekey => {
                let burst = traffic.burst(hold)?;
                self.pause(hold)?;
                // One that panicked has said so.
                let _ = burst.join();
                Ok(())
            }
            Kind::Loss => {
                let lose = format!("meta protocol ip numgen random mod 100 < {amount} drop");
                self.while_dropping(&routers, &lose, hold)
            }
            Kind::Blackout => self.while_dropping(&routers, "drop", hold),
            Kind::Reorder => self.while_reordering(&routers, *amount, hold),
            Kind::Mtu => {
                self.mtu = *amount;
                for (namespace, device) in self.tunnel.lab.devices() {
                    if device == "underlay" || device.starts_with("port-") {
                        self.run(&namespace, &format!("ip link set {device} mtu {amount}"))?;
                    }
                }
                Ok(())
            }
            Kind::BlackHole => {
                let set = |ground: &Self, mtu: u32| {
                    routers.iter().try_for_each(|router| ground.run(router, &format!("ip link set underlay mtu {mtu}")))
                };
                set(self, *amount)?;
                self.pause(hold)?;
                set(self, self.mtu)
            }
            Kind::Down => {
                let set = |ground: &Self, state: &str| {
                    routers.iter().try_for_each(|router| ground.run(router, &format!("ip link set underlay {state}")))
                };
                set(self, "down")?;
                self.pause(hold)?;
                set(self, "up")
            }
            Kind::Suspend => {
                self.signal(&hit, Signal::STOP)?;
                let held = self.pause(hold);
                // In any case: one that is stopped cannot be asked to end.
                self.signal(&hit, Signal::CONT)?;
                held
            }
        }
    }

    fn signal(&self, hit: &[usize], signal: Signal) -> anyhow::Result<()> {
        hit.iter().try_for_each(|&position| self.tunnel.sides[position].signal(signal))
    }

    /// Kills a node, if it still lives, and takes its log.
    fn stop(&mut self, position: usize) {
        let side = &mut self.tunnel.sides[position];
        self.watch.collect_log(position, &side.whole_log());
        side.stop(Signal::KILL);
    }

    fn start(&mut self, position: usize) -> anyhow::Result<()> {
        self.watch.note_start(position);
        self.tunnel.sides[position].start_again(&self.tunnel.lab)
    }

    /// Asks all nodes to end; one that does not, or not with success, is a finding.
    pub(super) fn end_nodes(&mut self) -> anyhow::Result<()> {
        // Of all, before the first one ends: others end their lanes to it then.
        for (position, side) in self.tunnel.sides.iter().enumerate() {
            self.watch.collect_counters(position, side);
        }
        for position in 0..self.tunnel.sides.len() {
            let side = &mut self.tunnel.sides[position];
            side.signal(Signal::TERM)?;
            let letter = side.site.letter;
            match wait_at_most(END_PATIENCE, "a node to end", || side.death()) {
                Ok(status) if status.success() => {}
                Ok(status) => {
                    self.findings.push(format!("asked to end, the node of router-{letter} did with {status}"))
                }
                Err(error) => self.findings.push(format!("the node of router-{letter}: {error:#}")),
            }
            self.stop(position);
        }
        Ok(())
    }

    /// New addresses first, then the old ones go.
    fn roam(&mut self, hit: &[usize], first: u32, hold: Duration) -> anyhow::Result<()> {
        let prefix = |last: u32| format!("10.201.0.{last}/24 dev underlay");
        let mut old = Vec::new();
        for (&position, wanted) in hit.iter().zip(first..) {
            // Where it is now, or another one: the next that is free.
            let new = (wanted..).find(|last| !self.addresses.contains(last)).unwrap_or(wanted);
            self.run(&SITES[position].router(), &format!("ip address add {}", prefix(new)))?;
            old.push((position, std::mem::replace(&mut self.addresses[position], new)));
        }
        self.pause(hold)?;
        old.iter().try_for_each(|&(position, last)| {
            self.run(&SITES[position].router(), &format!("ip address delete {}", prefix(last)))
        })
    }

    /// From now on lanes leave by other ports, and what comes for the ports they had does not arrive. Without the
    /// kernel's connection tracking, which would keep old translations: headers are rewritten, here and there.
    fn translate(&self, router: &str, port: u32) -> anyhow::Result<()> {
        let map = |from: u32, to: u32| {
            let pairs: Vec<_> = (0..NAT_PORTS).map(|lane| format!("{} : {}", from + lane, to + lane)).collect();
            pairs.join(", ")
        };
        let (out, back) = (map(LANE_PORT, port), map(port, LANE_PORT));
        let lanes = format!("{LANE_PORT}-{}", LANE_PORT + NAT_PORTS - 1);
        let commands = [
            "add table ip soak-nat".to_owned(),
            "delete table ip soak-nat".to_owned(),
            "add table ip soak-nat".to_owned(),
            "add chain ip soak-nat out { type filter hook postrouting priority 100 ; }".to_owned(),
            format!("add rule ip soak-nat out oifname underlay udp sport set udp sport map {{ {out} }}"),
            "add chain ip soak-nat in { type filter hook prerouting priority -300 ; }".to_owned(),
            format!("add rule ip soak-nat in iifname underlay udp dport {lanes} drop"),
            format!("add rule ip soak-nat in iifname underlay udp dport set udp dport map {{ {back} }}"),
        ];
        self.run(router, &format!("nft {}", commands.join(" ; ")))
    }

    /// What comes to routers meets this rule.
    fn while_dropping(&mut self, routers: &[String], rule: &str, hold: Duration) -> anyhow::Result<()> {
        for router in routers {
            let chain = "add chain netdev soak-drop in { type filter hook ingress device underlay priority 0 ; }";
            let rule = format!("add rule netdev soak-drop in {rule}");
            self.run(router, &format!("nft add table netdev soak-drop ; {chain} ; {rule}"))?;
        }
        self.pause(hold)?;
        routers.iter().try_for_each(|router| self.run(router, "nft delete table netdev soak-drop"))
    }

    /// Chance sends trains into a slow class, and the others overtake them.
    fn while_reordering(&mut self, routers: &[String], percent: u32, hold: Duration) -> anyhow::Result<()> {
        for router in routers {
            for line in [
                "tc qdisc add dev underlay root handle 1: htb default 1".to_owned(),
                "tc class add dev underlay parent 1: classid 1:1 htb rate 10gbit quantum 60000".to_owned(),
                "tc class add dev underlay parent 1: classid 1:2 htb rate 10mbit quantum 60000".to_owned(),
                "tc qdisc add dev underlay parent 1:2 bfifo limit 60000".to_owned(),
                format!(
                    "nft add table ip soak-late ; \
                     add chain ip soak-late out {{ type filter hook postrouting priority 100 ; }} ; \
                     add rule ip soak-late out oifname underlay numgen random mod 100 < {percent} meta priority set 1:2"
                ),
            ] {
                self.run(router, &line)?;
            }
        }
        self.pause(hold)?;
        routers.iter().try_for_each(|router| {
            self.run(router, "nft delete table ip soak-late")?;
            self.run(router, "tc qdisc delete dev underlay root")
        })
    }
}

/// Where the sites of those letters are in the lab's order.
fn positions(letters: &str) -> Vec<usize> {
    letters.chars().filter_map(|letter| SITES.iter().position(|site| site.letter == letter)).collect()
}
