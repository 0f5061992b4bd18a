//! Who is measured, and how each joins the sites.

mod hyprspace;
mod nebula;
mod null;
mod ringlane;
mod tailscale;
mod wireguard;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::lab::{Lab, SITES, Site};
use crate::process::{Process, run, wait_at_most};
use crate::underlay::{self, Underlay};

/// How long a contender may take until packets cross.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// One way to get packets from site to site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(crate) enum Contender {
    /// The bare underlay, routed: what the machine can do without a tunnel.
    Bare,
    /// A tunnel of our own without cryptography: what a tunnel can reach.
    Null,
    /// This repository's node.
    Ringlane,
    /// The same without io_uring.
    RinglaneEpoll,
    /// The Go implementation of WireGuard.
    WireguardGo,
    /// The Rust implementation of WireGuard.
    Boringtun,
    /// WireGuard between nodes that a coordination server introduces.
    Tailscale,
    /// Noise with certificates; AES-GCM.
    Nebula,
    /// A mesh over libp2p streams.
    Hyprspace,
}

/// Whether a contender can be measured here.
pub(crate) enum Presence {
    /// It is there, and says this of itself.
    Version(String),
    /// This is missing.
    Absent(String),
}

/// What a contender is to be set up in.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// What the names of its lab, and of interfaces whose names must be unique on the machine, begin with. At most
    /// 8 letters and digits.
    pub(crate) prefix: String,
    /// The ringlane binary.
    pub(crate) ringlane: PathBuf,
    /// How many sites: 2 or 3. With three, site a has both others as its peers.
    pub(crate) sites: usize,
    /// What lies between them.
    pub(crate) underlay: Underlay,
    /// MTU of the tunnel, in bytes.
    pub(crate) inner_mtu: u16,
}

/// A contender at work. Fields end in this order: processes before the namespaces they live in, and those before the
/// files they use.
pub(crate) struct Tunnel {
    /// In the order of [`SITES`].
    pub(crate) sides: Vec<Side>,
    /// What else it needs: a coordination server, for example. Not measured, not restarted.
    #[allow(dead_code, reason = "held until the tunnel goes")]
    pub(crate) servants: Vec<Process>,
    pub(crate) lab: Lab,
    /// Keys and configurations.
    #[allow(dead_code, reason = "held until the tunnel goes")]
    pub(crate) directory: Option<TempDir>,
}

/// Starts the processes of one side, and does what must be done anew whenever they are: the interface's addresses and
/// routes, for example. Need not wait for the other side.
pub(crate) type Launch = Box<dyn Fn(&Lab) -> anyhow::Result<Vec<Process>>>;

/// One router of a tunnel.
pub(crate) struct Side {
    pub(crate) site: &'static Site,
    /// The address other routers reach this one at *through the tunnel*.
    pub(crate) address: String,
    /// The tunnel's interface on this router; none where there is no tunnel.
    pub(crate) interface: Option<String>,
    launch: Launch,
    processes: Vec<Process>,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bare => "bare",
            Self::Null => "null",
            Self::Ringlane => "ringlane",
            Self::RinglaneEpoll => "ringlane-epoll",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Tailscale => "tailscale",
            Self::Nebula => "nebula",
            Self::Hyprspace => "hyprspace",
        })
    }
}

impl Contender {
    /// Those named, or all; the bare underlay always is among them, for the ratios.
    pub(crate) fn chosen(named: &[Self]) -> Vec<Self> {
        let all = Self::value_variants();
        all.iter().copied().filter(|each| named.is_empty() || *each == Self::Bare || named.contains(each)).collect()
    }

    /// Whether it is a node of ours, whose status says what it did.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ringlane | Self::RinglaneEpoll)
    }

    /// Whom `--quick` measures if nobody is named.
    pub(crate) const QUICK: [Self; 5] = [Self::Bare, Self::Null, Self::Ringlane, Self::WireguardGo, Self::Tailscale];

    /// Asks its binaries for their versions.
    pub(crate) fn presence(self, ringlane: &Path) -> Presence {
        match self {
            Self::Bare => Presence::Version("routed, no tunnel".into()),
            Self::Null => Presence::Version("ringlane-perf, no cryptography".into()),
            Self::Ringlane | Self::RinglaneEpoll => ringlane::presence(ringlane),
            Self::WireguardGo => wireguard::WIREGUARD_GO.presence(),
            Self::Boringtun => wireguard::BORINGTUN.presence(),
            Self::Tailscale => tailscale::presence(),
            Self::Nebula => nebula::presence(),
            Self::Hyprspace => hyprspace::presence(),
        }
    }

    /// Why it cannot be set up like that although it is present.
    pub(crate) fn obstacle(self, setup: &Setup) -> Option<&'static str> {
        match self {
            Self::Null if setup.sites > 2 => Some("joins two sites only"),
            Self::Hyprspace if setup.inner_mtu != hyprspace::MTU_BYTES => Some("has one inner MTU only, 1420"),
            Self::Bare | Self::Null | Self::Ringlane | Self::RinglaneEpoll => None,
            Self::WireguardGo | Self::Boringtun | Self::Tailscale | Self::Nebula | Self::Hyprspace => None,
        }
    }

    /// Makes its lab and joins the sites; returns when packets cross.
    pub(crate) fn start(self, setup: &Setup) -> anyhow::Result<Tunnel> {
        let sites = underlay::sites_needed(setup.sites, &setup.underlay);
        let lab = |name: &str, routed| Lab::up(&format!("{}{name}", setup.prefix), sites, routed, &setup.underlay);
        let mut tunnel = match self {
            Self::Bare => start_bare(lab("bare", true)?, setup)?,
            Self::Null => null::start(lab("null", false)?, setup)?,
            Self::Ringlane => ringlane::start(lab("ring", false)?, setup, "auto")?,
            Self::RinglaneEpoll => ringlane::start(lab("epol", false)?, setup, "epoll")?,
            Self::WireguardGo => wireguard::WIREGUARD_GO.start(lab("wggo", false)?, setup)?,
            Self::Boringtun => wireguard::BORINGTUN.start(lab("btun", false)?, setup)?,
            Self::Tailscale => tailscale::start(lab("tail", false)?, setup)?,
            Self::Nebula => nebula::start(lab("nebu", false)?, setup)?,
            Self::Hyprspace => hyprspace::start(lab("hypr", false)?, setup)?,
        };
        tunnel.wait_until_packets_cross(START_PATIENCE)?;
        Ok(tunnel)
    }
}

impl Tunnel {
    /// Waits until host-a has an answer from every other site's host; what the contender says goes into the error.
    pub(crate) fn wait_until_packets_cross(&mut self, limit: Duration) -> anyhow::Result<()> {
        for far in SITES[1..self.sides.len()].iter().map(|site| site.host) {
            // It ends with the first answer, and early if a router says that there is no way.
            let ping = format!("ping -n -q -i 0.02 -c 1 -w 1 {far}");
            let crossed = wait_at_most(limit, &format!("{far} to answer"), || self.lab.run("host-a", &ping).ok());
            crossed.map_err(|error| error.context(self.logs()))?;
        }
        Ok(())
    }

    /// Ends both sides in an orderly way and starts them again; does not wait until packets cross.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        for side in &mut self.sides {
            side.stop(Signal::TERM);
        }
        self.sides.iter_mut().try_for_each(|side| side.start_again(&self.lab))
    }

    /// Whether it has processes of its own; otherwise the kernel does the work.
    pub(crate) fn has_processes(&self) -> bool {
        self.sides.iter().any(|side| !side.processes.is_empty())
    }

    /// Which of its processes have ended by themselves, and how.
    pub(crate) fn deaths(&mut self) -> String {
        let mut deaths = String::new();
        for side in &mut self.sides {
            for status in side.processes.iter_mut().filter_map(Process::ended) {
                deaths += &format!("; a process of router-{} ended with {status}", side.site.letter);
            }
        }
        deaths
    }

    /// The end of what each process has said.
    fn logs(&mut self) -> String {
        let mut logs = String::new();
        for side in &mut self.sides {
            for process in &mut side.processes {
                logs += &format!("\nrouter-{} says: {}", side.site.letter, process.log());
            }
        }
        for process in &mut self.servants {
            logs += &format!("\na servant says: {}", process.log());
        }
        format!("packets do not cross{logs}")
    }
}

impl Setup {
    /// The sites there are.
    pub(crate) fn sites(&self) -> &'static [Site] {
        &SITES[..self.sites]
    }

    /// Whom a site has as its peers: site a all others, the others site a.
    pub(crate) fn peers_of(&self, site: &Site) -> impl Iterator<Item = &'static Site> + use<> {
        let is_hub = site.letter == SITES[0].letter;
        self.sites().iter().filter(move |other| (other.letter == SITES[0].letter) != is_hub)
    }
}

impl Side {
    /// Launches a side for the first time.
    pub(crate) fn start(
        site: &'static Site,
        address: String,
        interface: Option<String>,
        lab: &Lab,
        launch: Launch,
    ) -> anyhow::Result<Self> {
        let processes = launch(lab)?;
        Ok(Self { site, address, interface, launch, processes })
    }

    /// Its processes' ids, for their CPU time and memory; none where the kernel does the work.
    pub(crate) fn process_ids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(Process::id)
    }

    /// Ends its processes by this signal and waits until they are gone.
    pub(crate) fn stop(&mut self, signal: Signal) {
        for process in self.processes.drain(..) {
            process.end(signal);
        }
    }

    /// Starts what [`Self::stop`] has ended.
    pub(crate) fn start_again(&mut self, lab: &Lab) -> anyhow::Result<()> {
        self.processes = (self.launch)(lab)?;
        Ok(())
    }
}

fn start_bare(lab: Lab, setup: &Setup) -> anyhow::Result<Tunnel> {
    let sides = setup.sites().iter().map(|site| {
        let nothing: Launch = Box::new(|_| Ok(Vec::new()));
        Side::start(site, site.underlay.into(), None, &lab, nothing)
    });
    Ok(Tunnel { sides: sides.collect::<anyhow::Result<_>>()?, servants: Vec::new(), lab, directory: None })
}

/// A directory for keys and configurations that goes with the tunnel.
fn directory() -> anyhow::Result<TempDir> {
    tempfile::tempdir().context("a temporary directory")
}

/// First line of what `--version` prints.
fn version_of(program: &Path) -> Option<String> {
    let printed = run(Command::new(program).arg("--version")).ok()?;
    printed.lines().next().map(str::to_owned)
}
