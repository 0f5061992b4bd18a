//! This repository's node on each router.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Launch, Presence, Setup, Side, Tunnel, directory, version_of};
use crate::lab::{Lab, Site};
use crate::process::{Process, run};

/// Whether the binary is there.
pub(super) fn presence(ringlane: &Path) -> Presence {
    match version_of(ringlane) {
        Some(version) => Presence::Version(version),
        None => Presence::Absent(format!("{} is not built", ringlane.display())),
    }
}

/// What `ringlane init` says of the node it made.
struct Node {
    id: String,
    address: String,
}

/// Starts a node on each router, on this engine; see [`super::Contender::start`].
pub(super) fn start(lab: Lab, setup: &Setup, engine: &str) -> anyhow::Result<Tunnel> {
    let directory = directory()?;
    let interface = |site: &Site| format!("{}{}", lab.prefix(), site.letter);
    let file = |site: &Site| directory.path().join(interface(site)).with_extension("toml");
    let mut nodes = BTreeMap::new();
    for site in setup.sites() {
        nodes.insert(site.letter, init(&setup.ringlane, &file(site), &listen(site))?);
    }
    let mut sides = Vec::new();
    for site in setup.sites() {
        let mut configuration = fs::read_to_string(file(site)).context("the configuration init wrote")?;
        ensure!(configuration.contains("[dataplane]\n"), "the configuration init wrote has no [dataplane]");
        let settings = format!("[dataplane]\nmtu = {}\nengine = \"{engine}\"\n", setup.inner_mtu);
        configuration = configuration.replace("[dataplane]\n", &settings);
        for peer in setup.peers_of(site) {
            configuration += &format!(
                "\n[[peers]]\nname = \"{}\"\nid = \"{}\"\naddresses = [\"{}\"]\nroutes = {:?}\n",
                peer.letter,
                nodes[&peer.letter].id,
                listen(peer),
                peer.networks,
            );
        }
        fs::write(file(site), configuration).context("the configuration")?;
        let (binary, file) = (setup.ringlane.clone(), file(site));
        let launch: Launch = Box::new(move |lab| {
            Ok(vec![Process::start(lab.command(&site.router(), &binary).args(["up", "--config"]).arg(&file))?])
        });
        let address = nodes[&site.letter].address.clone();
        sides.push(Side::start(site, address, Some(interface(site)), &lab, launch)?);
    }
    Ok(Tunnel { sides, servants: Vec::new(), lab, directory: Some(directory) })
}

fn listen(site: &Site) -> String {
    format!("/ip4/{}/udp/8001/quic-v1", site.underlay)
}

/// Writes a configuration and a key.
fn init(binary: &Path, file: &Path, listen: &str) -> anyhow::Result<Node> {
    let printed = run(Command::new(binary).args(["init", "--json", "--listen", listen, "--config"]).arg(file))?;
    let printed: Value = serde_json::from_str(&printed).context("what init printed")?;
    let text = |key: &str| printed[key].as_str().map(str::to_owned).with_context(|| format!("init prints no {key}"));
    Ok(Node { id: text("id")?, address: text("builtin_ipv4")? })
}
