//! Who is measured, and how each joins the sites.

mod hyprspace;
mod nebula;
mod null;
mod ringlane;
mod tailscale;
mod wireguard;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
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

/// MTU of every tunnel unless the scenario is about MTUs.
pub(crate) const INNER_MTU_BYTES: u16 = 1420;

/// One way to get packets from site to site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(crate) enum Contender {
    /// The bare underlay, routed: what the machine can do without a tunnel.
    Bare,
    /// A tunnel of our own without cryptography: what a tunnel can reach.
    Null,
    /// This repository's node.
    Ringlane,
    /// The same with QUIC datagrams as its carrier.
    RinglaneQuic,
    /// The same with libp2p's streams as its carrier.
    RinglaneStream,
    /// The same without io_uring.
    RinglaneEpoll,
    /// The same over an underlay of 1280 bytes, so that packets travel in fragments.
    #[value(name = "ringlane-1280")]
    Ringlane1280,
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
    /// MTU of the tunnel, in bytes; none for the default of ringlane, which others get too.
    pub(crate) inner_mtu: Option<u16>,
    /// What ringlane's nodes are told besides.
    pub(crate) node: NodeSettings,
}

/// What a ringlane node is told beyond what every contender is.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeSettings {
    /// Further lines of `[dataplane]`.
    pub(crate) dataplane: String,
    /// Whether it listens on all addresses it may ever have; else on that of its site alone.
    pub(crate) roams: bool,
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
            Self::RinglaneQuic => "ringlane-quic",
            Self::RinglaneStream => "ringlane-stream",
            Self::RinglaneEpoll => "ringlane-epoll",
            Self::Ringlane1280 => "ringlane-1280",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Tailscale => "tailscale",
            Self::Nebula => "nebula",
            Self::Hyprspace => "hyprspace",
        })
    }
}

impl Contender {
    /// Those named, or all but the variants of ringlane; the bare underlay always is among them, for the ratios.
    pub(crate) fn chosen(named: &[Self]) -> Vec<Self> {
        let wanted = |each: Self| match named {
            [] => each == Self::Ringlane || !each.is_ringlane(),
            named => each == Self::Bare || named.contains(&each),
        };
        Self::value_variants().iter().copied().filter(|each| wanted(*each)).collect()
    }

    /// Whether it is this repository's node, however it is configured.
    pub(crate) fn is_ringlane(self) -> bool {
        ringlane::variant(self).is_some()
    }

    /// Whom `--quick` measures if nobody is named.
    pub(crate) const QUICK: [Self; 5] = [Self::Bare, Self::Null, Self::Ringlane, Self::WireguardGo, Self::Tailscale];

    /// Asks its binaries for their versions.
    pub(crate) fn presence(self, ringlane: &Path) -> Presence {
        match self {
            Self::Bare => Presence::Version("routed, no tunnel".into()),
            Self::Null => Presence::Version("ringlane-perf, no cryptography".into()),
            Self::Ringlane | Self::RinglaneQuic | Self::RinglaneStream | Self::RinglaneEpoll | Self::Ringlane1280 => {
                ringlane::presence(ringlane)
            }
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
            Self::Hyprspace if setup.inner_mtu() != hyprspace::MTU_BYTES => Some("has one inner MTU only, 1420"),
            Self::Ringlane1280 if setup.underlay.mtu != Underlay::PLAIN.mtu => Some("is for underlays of 1500 bytes"),
            _ => None,
        }
    }

    /// Makes its lab and joins the sites; returns when packets cross.
    pub(crate) fn start(self, setup: &Setup) -> anyhow::Result<Tunnel> {
        let sites = underlay::sites_needed(setup.sites, &setup.underlay);
        let lab = |name: &str, routed| Lab::up(&format!("{}{name}", setup.prefix), sites, routed, &setup.underlay);
        let mut tunnel = match self {
            Self::Bare => start_bare(lab("bare", true)?, setup)?,
            Self::Null => null::start(lab("null", false)?, setup)?,
            Self::Ringlane | Self::RinglaneQuic | Self::RinglaneStream | Self::RinglaneEpoll | Self::Ringlane1280 => {
                ringlane::start(self, setup)?
            }
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
    /// MTU of the tunnel, in bytes.
    pub(crate) fn inner_mtu(&self) -> u16 {
        self.inner_mtu.unwrap_or(INNER_MTU_BYTES)
    }

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

    /// Sends its processes a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.processes.iter().try_for_each(|process| process.signal(signal))
    }

    /// How one of its processes has ended, if one has.
    pub(crate) fn death(&mut self) -> Option<ExitStatus> {
        self.processes.iter_mut().find_map(Process::ended)
    }

    /// All that its processes have said so far.
    pub(crate) fn whole_log(&self) -> String {
        self.processes.iter().map(Process::whole_log).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_of_ringlane_are_measured_only_if_named() {
        let all = Contender::chosen(&[]);
        assert!(all.contains(&Contender::Ringlane) && all.contains(&Contender::Hyprspace));
        assert!(!all.contains(&Contender::RinglaneQuic) && !all.contains(&Contender::Ringlane1280));
        let named = Contender::chosen(&[Contender::RinglaneEpoll]);
        assert_eq!(named, [Contender::Bare, Contender::RinglaneEpoll], "the bare underlay always is");
    }

    #[test]
    fn contenders_are_called_in_results_as_on_the_command_line() {
        for contender in Contender::value_variants() {
            let name = contender.to_possible_value().expect("none is hidden");
            assert_eq!(contender.to_string(), name.get_name());
        }
    }
}
