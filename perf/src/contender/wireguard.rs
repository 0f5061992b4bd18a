//! Userspace implementations of WireGuard: one process per router, configured by `wg`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::{Launch, Presence, Setup, Side, Tunnel, directory, version_of};
use crate::lab::{Lab, Site};
use crate::process::{Process, run, wait_for};

/// One implementation.
pub(super) struct Implementation {
    program: &'static str,
    arguments: &'static [&'static str],
}

pub(super) const WIREGUARD_GO: Implementation =
    Implementation { program: "wireguard-go", arguments: &["--foreground"] };
pub(super) const BORINGTUN: Implementation =
    Implementation { program: "boringtun-cli", arguments: &["--foreground", "--disable-drop-privileges"] };

impl Implementation {
    /// Whether it and `wg` are there.
    pub(super) fn presence(&self) -> Presence {
        match (version_of(self.program.as_ref()), version_of("wg".as_ref())) {
            (None, _) => Presence::Absent(format!("{} is not installed", self.program)),
            (_, None) => Presence::Absent("wg is not installed".into()),
            (Some(version), Some(_)) => Presence::Version(version),
        }
    }

    /// Starts it on each router; see [`super::Contender::start`].
    pub(super) fn start(&self, lab: Lab, setup: &Setup) -> anyhow::Result<Tunnel> {
        let directory = directory()?;
        let key_file = |site: &Site| directory.path().join(format!("{}.key", site.letter));
        let mut public_keys = BTreeMap::new();
        for site in setup.sites() {
            public_keys.insert(site.letter, make_key(&key_file(site))?);
        }
        let mut sides = Vec::new();
        for site in setup.sites() {
            // Their sockets lie in one directory for all namespaces, so interface names are unique on the machine.
            let interface = format!("{}{}", lab.prefix(), site.letter);
            let key_file = key_file(site).display().to_string();
            let mut lines = vec![format!("wg set {interface} private-key {key_file} listen-port 51820")];
            let mut routes = Vec::new();
            for peer in setup.peers_of(site) {
                let [ipv4, ipv6] = peer.networks;
                lines.push(format!(
                    "wg set {interface} peer {} endpoint {}:51820 allowed-ips {}/32,{ipv4},{ipv6}",
                    public_keys[&peer.letter], peer.underlay, peer.tunnel,
                ));
                for destination in [peer.tunnel, ipv4, ipv6] {
                    routes.push(format!("ip route add {destination} dev {interface}"));
                }
            }
            lines.push(format!("ip address add {}/32 dev {interface}", site.tunnel));
            lines.push(format!("ip link set {interface} mtu {} up", setup.inner_mtu()));
            lines.extend(routes);
            let (program, arguments, name) = (self.program, self.arguments, interface.clone());
            let launch: Launch = Box::new(move |lab| {
                let router = site.router();
                let process = Process::start(lab.command(&router, program).args(arguments).arg(&name))?;
                wait_for("the tunnel's interface", || lab.run(&router, &format!("wg show {name}")).ok())?;
                lines.iter().try_for_each(|line| lab.run(&router, line).map(drop))?;
                Ok(vec![process])
            });
            sides.push(Side::start(site, site.tunnel.into(), Some(interface), &lab, launch)?);
        }
        Ok(Tunnel { sides, servants: Vec::new(), lab, directory: Some(directory) })
    }
}

/// Writes a private key and returns its public key.
fn make_key(file: &Path) -> anyhow::Result<String> {
    fs::write(file, run(Command::new("wg").arg("genkey"))?).context("a private key")?;
    let key = File::open(file).context("a private key")?;
    let public = Command::new("wg").arg("pubkey").stdin(key).stderr(Stdio::null()).output().context("wg pubkey")?;
    Ok(String::from_utf8(public.stdout).context("a public key")?.trim().to_owned())
}
