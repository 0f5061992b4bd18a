//! What lies between the sites, and how it is made so.
//!
//! Delay and loss must hit real packets. On the sender's own interface they would hit super-segments, which are cut
//! only after the queue discipline: one loss in a hundred would lose 45 segments in a row. So netem sits on the bridge
//! of a lab with three sites, behind interfaces that have cut; and the emulator's interfaces know no super-segments.

use std::process::Command;

use anyhow::Context;

use crate::lab::{Lab, SITES};
use crate::process::{Process, run, wait_for};

/// What lies between the sites.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Underlay {
    /// MTU in bytes of everything but the tunnel: 1500 or 9000.
    pub(crate) mtu: u16,
    /// Whether real packets cross every link: senders cut super-segments, receivers merge them again. Otherwise veth
    /// passes them whole.
    pub(crate) cut: bool,
    /// Delay, loss and the like; none for a plain veth.
    pub(crate) link: Option<Link>,
}

/// A link that does not pass all packets at once and in order.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Link {
    pub(crate) spec: LinkSpec,
    pub(crate) by: Disturber,
}

/// Who disturbs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disturber {
    /// The kernel.
    Netem,
    /// A process of ours, for kernels without netem; joins two sites only.
    Emulator,
}

/// What a link does to packets, in each direction by itself.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct LinkSpec {
    /// One way, in milliseconds.
    pub(crate) delay_ms: f64,
    /// At most this much more or less, in milliseconds: packets may overtake others.
    pub(crate) jitter_ms: f64,
    /// Share of packets that are lost, 0 to 1.
    pub(crate) loss: f64,
    /// Share of packets that overtake others, 0 to 1.
    pub(crate) reorder: f64,
    /// Bits per second; none for as fast as it goes.
    pub(crate) rate: Option<u64>,
    /// Same seed, same fate of the n-th packet.
    pub(crate) seed: u64,
}

impl Underlay {
    /// A veth with an MTU of 1500 bytes that cuts nothing.
    pub(crate) const PLAIN: Self = Self { mtu: 1500, cut: false, link: None };
}

impl Disturber {
    /// As it is called in result files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Netem => "netem",
            Self::Emulator => "emulator",
        }
    }
}

/// Whether this kernel can disturb links by itself. Makes a namespace for the trial, and removes it.
pub(crate) fn has_netem() -> bool {
    let namespace = format!("rlpnetem{}", std::process::id());
    let ip = |line: &str| run(Command::new("ip").args(line.split(' ')));
    let tried = ip(&format!("netns add {namespace}"))
        .and_then(|_| ip(&format!("netns exec {namespace} tc qdisc add dev lo root netem delay 1ms")));
    let _ = ip(&format!("netns delete {namespace}"));
    tried.is_ok()
}

/// How many sites a lab must have so that packets between `sites` of them can be disturbed.
pub(crate) fn sites_needed(sites: usize, underlay: &Underlay) -> usize {
    match underlay.link {
        Some(Link { by: Disturber::Netem, .. }) => SITES.len(),
        _ => sites,
    }
}

/// Makes a lab's links like that. With `routed`, routes between the sites lead over them.
pub(crate) fn shape(lab: &mut Lab, underlay: &Underlay, routed: bool) -> anyhow::Result<()> {
    if let Some(Link { spec, by: Disturber::Emulator }) = &underlay.link {
        emulate(lab, spec, underlay.mtu, routed)?;
    }
    for (namespace, device) in lab.devices() {
        let emulated = device == "underlay" && lab.emulator.is_some();
        if !emulated {
            lab.run(&namespace, &format!("ip link set {device} mtu {}", underlay.mtu))?;
            if underlay.cut {
                lab.run(&namespace, &CUT.replace("DEVICE", &device))?;
            }
        }
        if let Some(Link { spec, by: Disturber::Netem }) = &underlay.link {
            let on_underlay = device == "underlay" || device.starts_with("port-");
            if on_underlay && !underlay.cut {
                lab.run(&namespace, &CUT.replace("DEVICE", &device))?;
            }
            if device.starts_with("port-") {
                lab.run(&namespace, &format!("ethtool -K {device} gro off"))?;
                lab.run(&namespace, &format!("tc qdisc add dev {device} root netem {}", spec.netem()))?;
            }
        }
    }
    Ok(())
}

/// Senders cut, and receivers merge: veths with GRO go through NAPI, as the driver of a network card does.
const CUT: &str = "ethtool -K DEVICE tso off gso off tx-udp-segmentation off gro on";

/// Replaces the veth between two sites by the emulator's interfaces.
fn emulate(lab: &mut Lab, spec: &LinkSpec, mtu: u16, routed: bool) -> anyhow::Result<()> {
    let interfaces = ["emulated-a", "emulated-b"];
    let mut command = lab.tool("router-a", "emulate")?;
    command.arg("--interfaces").arg(interfaces.join(",")).args(["--seed", &spec.seed.to_string()]);
    for (option, value) in [
        ("--delay-ms", spec.delay_ms),
        ("--jitter-ms", spec.jitter_ms),
        ("--loss-percent", spec.loss * 100.0),
        ("--reorder-percent", spec.reorder * 100.0),
    ] {
        command.arg(option).arg(value.to_string());
    }
    if let Some(rate) = spec.rate {
        command.arg("--rate-mbit").arg((rate as f64 / 1e6).to_string());
    }
    let emulator = Process::start(&mut command)?;
    wait_for("the emulator", || emulator.log().contains("ready").then_some(()))
        .with_context(|| format!("the emulator says: {}", emulator.log()))?;
    lab.emulator = Some(emulator);
    // With one end of the veth pair goes the other.
    lab.run("router-a", "ip link delete underlay")?;
    lab.run("router-a", &format!("ip link set {} netns {}", interfaces[1], lab.namespace("router-b")))?;
    for (number, (site, interface)) in SITES.iter().zip(interfaces).enumerate() {
        let router = site.router();
        lab.run(&router, &format!("ip link set {interface} name underlay mtu {mtu}"))?;
        lab.run(&router, "ip link set underlay up")?;
        lab.run(&router, &format!("ip address add {}/24 dev underlay", site.underlay))?;
        lab.run(&router, &format!("ip address add fd01:201::{}/64 dev underlay nodad", number + 1))?;
    }
    for (site, other) in [(&SITES[0], &SITES[1]), (&SITES[1], &SITES[0])] {
        for network in other.networks.into_iter().filter(|_| routed) {
            lab.run(&site.router(), &format!("ip route add {network} dev underlay"))?;
        }
    }
    Ok(())
}

impl LinkSpec {
    fn netem(&self) -> String {
        let Self { delay_ms, jitter_ms, loss, reorder, rate, .. } = self;
        // At a bottleneck the limit is its queue: a megabyte, as the emulator's.
        let limit = if rate.is_some() { 700 } else { 100_000 };
        let mut words = format!("limit {limit} delay {delay_ms}ms");
        if *jitter_ms > 0.0 {
            words += &format!(" {jitter_ms}ms");
        }
        words += &format!(" loss {}%", loss * 100.0);
        if *reorder > 0.0 {
            words += &format!(" reorder {}%", reorder * 100.0);
        }
        if let Some(rate) = rate {
            words += &format!(" rate {rate}bit");
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: LinkSpec = LinkSpec { delay_ms: 10.0, jitter_ms: 0.0, loss: 0.0, reorder: 0.0, rate: None, seed: 1 };

    #[test]
    fn netem_is_told_what_it_understands() {
        assert_eq!(FAR.netem(), "limit 100000 delay 10ms loss 0%");
        let all = LinkSpec { jitter_ms: 1.5, loss: 0.02, reorder: 0.05, rate: Some(1_000_000), ..FAR };
        assert_eq!(all.netem(), "limit 700 delay 10ms 1.5ms loss 2% reorder 5% rate 1000000bit");
    }

    #[test]
    fn netem_needs_the_bridge_of_three_sites() {
        let link = |by| Underlay { link: Some(Link { spec: FAR, by }), ..Underlay::PLAIN };
        assert_eq!(sites_needed(2, &link(Disturber::Netem)), 3);
        assert_eq!(sites_needed(2, &link(Disturber::Emulator)), 2);
        assert_eq!(sites_needed(2, &Underlay::PLAIN), 2);
    }
}
