//! Who is measured, and how each joins the two sites.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use clap::ValueEnum;
use tempfile::TempDir;

use crate::lab::{Lab, Process, run, wait_for};

/// Inner MTU of every tunnel.
const MTU_BYTES: u16 = 1420;

/// One way to get packets from site to site.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Contender {
    /// The bare underlay, routed: what the machine can do without a tunnel.
    Bare,
    /// This repository's node.
    Ringlane,
    /// The Go implementation of WireGuard.
    WireguardGo,
    /// The Rust implementation of WireGuard.
    Boringtun,
}

/// Whether a contender can be measured here.
pub(crate) enum Presence {
    /// It is there, and says this of itself.
    Version(String),
    /// This is missing.
    Absent(String),
}

/// A contender at work. Fields end in this order: processes before the namespaces they live in.
pub(crate) struct Tunnel {
    _processes: Vec<Process>,
    pub(crate) lab: Lab,
    _directory: Option<TempDir>,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bare => "bare",
            Self::Ringlane => "ringlane",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
        })
    }
}

impl Contender {
    /// Those named, or all; the bare underlay always is among them, for the ratios.
    pub(crate) fn chosen(named: &[Self]) -> Vec<Self> {
        let all = Self::value_variants();
        all.iter().copied().filter(|each| named.is_empty() || *each == Self::Bare || named.contains(each)).collect()
    }

    /// Asks its binaries for their versions.
    pub(crate) fn presence(self, ringlane: &Path) -> Presence {
        let wireguard = |program: &str| match (version_of(program.as_ref()), version_of("wg".as_ref())) {
            (None, _) => Presence::Absent(format!("{program} is not installed")),
            (_, None) => Presence::Absent("wg is not installed".into()),
            (Some(version), Some(_)) => Presence::Version(version),
        };
        match self {
            Self::Bare => Presence::Version("veth, routed".into()),
            Self::Ringlane => match version_of(ringlane) {
                Some(version) => Presence::Version(version),
                None => Presence::Absent(format!("{} is not built", ringlane.display())),
            },
            Self::WireguardGo => wireguard("wireguard-go"),
            Self::Boringtun => wireguard("boringtun-cli"),
        }
    }

    /// Makes its lab and joins the sites; returns when packets cross.
    pub(crate) fn start(self, ringlane: &Path) -> anyhow::Result<Tunnel> {
        let tunnel = match self {
            Self::Bare => Tunnel { _processes: Vec::new(), lab: Lab::up("rlpbare", true)?, _directory: None },
            Self::Ringlane => start_ringlane(Lab::up("rlpring", false)?, ringlane)?,
            Self::WireguardGo => start_wireguard(Lab::up("rlpwggo", false)?, "wireguard-go", &["--foreground"])?,
            Self::Boringtun => {
                let arguments = ["--foreground", "--disable-drop-privileges"];
                start_wireguard(Lab::up("rlpbtun", false)?, "boringtun-cli", &arguments)?
            }
        };
        wait_for("host-b to answer host-a", || tunnel.lab.run("host-a", "ping -n -c 1 -W 1 10.20.0.2").ok())?;
        Ok(tunnel)
    }
}

/// First line of what `--version` prints.
fn version_of(program: &Path) -> Option<String> {
    let printed = run(Command::new(program).arg("--version")).ok()?;
    printed.lines().next().map(str::to_owned)
}

/// One end of a tunnel in the lab.
struct End {
    letter: char,
    address: &'static str,
    networks: [&'static str; 2],
}

const ENDS: [End; 2] = [
    End { letter: 'a', address: "10.201.0.1", networks: ["10.10.0.0/16", "fd00:10::/64"] },
    End { letter: 'b', address: "10.201.0.2", networks: ["10.20.0.0/16", "fd00:20::/64"] },
];

impl End {
    fn router(&self) -> String {
        format!("router-{}", self.letter)
    }
}

/// Each end with the other.
fn pairs() -> [(&'static End, &'static End); 2] {
    [(&ENDS[0], &ENDS[1]), (&ENDS[1], &ENDS[0])]
}

fn start_ringlane(lab: Lab, ringlane: &Path) -> anyhow::Result<Tunnel> {
    let directory = tempfile::tempdir().context("a temporary directory")?;
    let file = |end: &End| directory.path().join(format!("rlpring{}.toml", end.letter));
    let mut ids = Vec::new();
    for end in &ENDS {
        let listen = format!("/ip4/{}/udp/8001/quic-v1", end.address);
        let entry =
            run(Command::new(ringlane).args(["init", "--json", "--listen", &listen, "--config"]).arg(file(end)))?;
        let entry: serde_json::Value = serde_json::from_str(&entry).context("what init printed")?;
        ids.push(entry["id"].as_str().context("init prints the node's id")?.to_owned());
    }
    let mut processes = Vec::new();
    for ((end, other), id) in pairs().into_iter().zip(ids.iter().rev()) {
        let mut configuration = fs::read_to_string(file(end)).context("the configuration init wrote")?;
        configuration += &format!(
            "\n[[peers]]\nname = \"{}\"\nid = \"{id}\"\naddresses = [\"/ip4/{}/udp/8001/quic-v1\"]\nroutes = {:?}\n",
            other.letter, other.address, other.networks,
        );
        fs::write(file(end), configuration).context("the configuration")?;
        processes.push(Process::start(lab.command(&end.router(), ringlane).args(["up", "--config"]).arg(file(end)))?);
    }
    Ok(Tunnel { _processes: processes, lab, _directory: Some(directory) })
}

fn start_wireguard(lab: Lab, program: &str, arguments: &[&str]) -> anyhow::Result<Tunnel> {
    let directory = tempfile::tempdir().context("a temporary directory")?;
    let key_file = |end: &End| directory.path().join(format!("{}.key", end.letter));
    let mut public_keys = Vec::new();
    for end in &ENDS {
        fs::write(key_file(end), run(Command::new("wg").arg("genkey"))?).context("a private key")?;
        let key = fs::File::open(key_file(end)).context("a private key")?;
        let public = Command::new("wg").arg("pubkey").stdin(key).output().context("wg pubkey")?;
        public_keys.push(String::from_utf8(public.stdout).context("a public key")?.trim().to_owned());
    }
    let mut processes = Vec::new();
    for ((end, other), public_key) in pairs().into_iter().zip(public_keys.iter().rev()) {
        // Their sockets lie in one directory for all namespaces, so interface names are unique on the machine.
        let interface = format!("{}{}", if program == "wireguard-go" { "rlpwggo" } else { "rlpbtun" }, end.letter);
        let router = end.router();
        let mut command = lab.command(&router, program);
        processes.push(Process::start(command.args(arguments).arg(&interface))?);
        wait_for("the tunnel's interface", || lab.run(&router, &format!("wg show {interface}")).ok())?;
        let key_file = key_file(end);
        let peer = format!(
            "wg set {interface} private-key {} listen-port 51820 peer {public_key} endpoint {}:51820 allowed-ips {}",
            key_file.display(),
            other.address,
            other.networks.join(","),
        );
        lab.run(&router, &peer)?;
        lab.run(&router, &format!("ip link set {interface} mtu {MTU_BYTES} up"))?;
        for network in other.networks {
            lab.run(&router, &format!("ip route add {network} dev {interface}"))?;
        }
    }
    Ok(Tunnel { _processes: processes, lab, _directory: Some(directory) })
}
