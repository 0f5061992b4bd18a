//! A tunnel of ours with every offload and no cryptography: what a tunnel can reach on this machine.

use anyhow::Context;

use super::{Launch, Setup, Side, Tunnel};
use crate::lab::Lab;
use crate::process::{Process, wait_for};

const PORT: u16 = 7000;

/// Starts it on both routers; see [`super::Contender::start`].
pub(super) fn start(lab: Lab, setup: &Setup) -> anyhow::Result<Tunnel> {
    let mut sides = Vec::new();
    for site in setup.sites() {
        let interface = format!("{}{}", lab.prefix(), site.letter);
        let peer = setup.peers_of(site).next().context("a site without a peer")?;
        let mtu = setup.inner_mtu().to_string();
        let mut lines = vec![format!("ip address add {}/32 dev {interface}", site.tunnel)];
        lines.push(format!("ip link set {interface} mtu {mtu} up"));
        for destination in [&[peer.tunnel], &peer.networks[..]].concat() {
            lines.push(format!("ip route add {destination} dev {interface}"));
        }
        let name = interface.clone();
        let launch: Launch = Box::new(move |lab| {
            let router = site.router();
            let mut command = lab.tool(&router, "null-tunnel")?;
            command.args(["--interface", &name, "--mtu", &mtu]);
            command.arg("--local").arg(format!("{}:{PORT}", site.underlay));
            command.arg("--remote").arg(format!("{}:{PORT}", peer.underlay));
            let process = Process::start(&mut command)?;
            wait_for("the tunnel's interface", || process.log().contains("ready").then_some(()))
                .with_context(|| format!("the null tunnel says: {}", process.log()))?;
            lines.iter().try_for_each(|line| lab.run(&router, line).map(drop))?;
            Ok(vec![process])
        });
        sides.push(Side::start(site, site.tunnel.into(), Some(interface), &lab, launch)?);
    }
    Ok(Tunnel { sides, servants: Vec::new(), lab, directory: None })
}
