//! This repository's node on each router.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Contender, Launch, Presence, Setup, Side, Tunnel, directory, version_of};
use crate::lab::{Lab, Site};
use crate::process::{Process, run};
use crate::underlay::{self, Underlay};

/// A way to configure the node.
pub(super) struct Variant {
    contender: Contender,
    /// What the name of its lab ends in: four characters.
    lab: &'static str,
    /// Lines of `[dataplane]`.
    dataplane: &'static str,
    /// MTU of the underlay in bytes, where it is not the scenario's.
    underlay_mtu: Option<u16>,
}

const VARIANTS: [Variant; 5] = {
    use Contender::{Ringlane, Ringlane1280, RinglaneEpoll, RinglaneQuic, RinglaneStream};
    [
        Variant { contender: Ringlane, lab: "ring", dataplane: "", underlay_mtu: None },
        Variant { contender: RinglaneQuic, lab: "rinq", dataplane: "carrier = \"quic\"\n", underlay_mtu: None },
        Variant { contender: RinglaneStream, lab: "rins", dataplane: "carrier = \"stream\"\n", underlay_mtu: None },
        Variant { contender: RinglaneEpoll, lab: "rine", dataplane: "engine = \"epoll\"\n", underlay_mtu: None },
        Variant { contender: Ringlane1280, lab: "rinf", dataplane: "", underlay_mtu: Some(1280) },
    ]
};

/// How that contender configures the node; none if it is another program.
pub(super) fn variant(contender: Contender) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.contender == contender)
}

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

/// Makes a lab and starts a node on each router; see [`Contender::start`].
pub(super) fn start(contender: Contender, setup: &Setup) -> anyhow::Result<Tunnel> {
    let variant = variant(contender).context("no variant of ringlane")?;
    let underlay = Underlay { mtu: variant.underlay_mtu.unwrap_or(setup.underlay.mtu), ..setup.underlay };
    let sites = underlay::sites_needed(setup.sites, &underlay);
    let lab = Lab::up(&format!("{}{}", setup.prefix, variant.lab), sites, false, &underlay)?;
    let mut lines = String::from("[dataplane]\n");
    if let Some(mtu) = setup.inner_mtu {
        lines += &format!("mtu = {mtu}\n");
    }
    lines += variant.dataplane;
    lines += &setup.node.dataplane;
    let directory = directory()?;
    let interface = |site: &Site| format!("{}{}", lab.prefix(), site.letter);
    let file = |site: &Site| directory.path().join(interface(site)).with_extension("toml");
    let mut nodes = BTreeMap::new();
    for site in setup.sites() {
        nodes.insert(site.letter, init(&setup.ringlane, &file(site), &listen(site, setup.node.roams))?);
    }
    let mut sides = Vec::new();
    for site in setup.sites() {
        let mut configuration = fs::read_to_string(file(site)).context("the configuration init wrote")?;
        ensure!(configuration.contains("[dataplane]\n"), "the configuration init wrote has no [dataplane]");
        configuration = configuration.replace("[dataplane]\n", &lines);
        for peer in setup.peers_of(site) {
            configuration += &format!(
                "\n[[peers]]\nname = \"{}\"\nid = \"{}\"\naddresses = [\"{}\"]\nroutes = {:?}\n",
                peer.letter,
                nodes[&peer.letter].id,
                listen(peer, false),
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

fn listen(site: &Site, anywhere: bool) -> String {
    format!("/ip4/{}/udp/8001/quic-v1", if anywhere { "0.0.0.0" } else { site.underlay })
}

/// Writes a configuration and a key.
fn init(binary: &Path, file: &Path, listen: &str) -> anyhow::Result<Node> {
    let printed = run(Command::new(binary).args(["init", "--json", "--listen", listen, "--config"]).arg(file))?;
    let printed: Value = serde_json::from_str(&printed).context("what init printed")?;
    let text = |key: &str| printed[key].as_str().map(str::to_owned).with_context(|| format!("init prints no {key}"));
    Ok(Node { id: text("id")?, address: text("builtin_ipv4")? })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_variant_has_a_lab_of_its_own() {
        let labs: BTreeSet<_> = VARIANTS.iter().map(|variant| variant.lab).collect();
        assert_eq!(labs.len(), VARIANTS.len());
        assert!(labs.iter().all(|lab| lab.len() == 4), "an interface's name has no room for more");
    }
}
