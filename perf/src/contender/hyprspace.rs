//! Hyprspace: a libp2p node on each router; packets cross on libp2p streams.
//!
//! It has no settings for speed. Each node listens on QUIC and TCP as in the configuration its `init` writes, and knows
//! the others as bootstrap peers, so that it neither asks the internet nor waits for multicast discovery. Its inner MTU is
//! always 1420.
//!
//! Tried with 0.15.0 built from its source: no package registry has that version in a form that builds (see
//! `scripts/peers`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use super::{Launch, Presence, Setup, Side, Tunnel, directory};
use crate::lab::{Lab, Site};
use crate::process::{Process, run, wait_for};

/// The only inner MTU it has, in bytes.
pub(super) const MTU_BYTES: u16 = 1420;

const PORT: u16 = 8001;

/// Whether it is there.
pub(super) fn presence() -> Presence {
    match run(Command::new("hyprspace").arg("version")) {
        Ok(printed) => Presence::Version(printed.lines().next().unwrap_or("hyprspace").trim().to_owned()),
        Err(_) => Presence::Absent("hyprspace is not installed".into()),
    }
}

/// Starts it on each router; see [`super::Contender::start`].
pub(super) fn start(lab: Lab, setup: &Setup) -> anyhow::Result<Tunnel> {
    let directory = directory()?;
    // Its control sockets lie in one directory for all namespaces, so interface names are unique on the machine.
    let interface = |site: &Site| format!("{}{}", lab.prefix(), site.letter);
    let file = |site: &Site| directory.path().join(interface(site)).with_extension("json");
    let mut identities = BTreeMap::new();
    for site in setup.sites() {
        identities.insert(site.letter, init(&file(site))?);
    }
    let mut sides = Vec::new();
    for site in setup.sites() {
        let peers: Vec<_> = setup.peers_of(site).map(|peer| (peer, identities[&peer.letter].id.as_str())).collect();
        let configuration = configuration(site, &identities[&site.letter].private_key, &peers);
        fs::write(file(site), configuration.to_string()).context("the configuration")?;
        let (name, file): (_, PathBuf) = (interface(site), file(site));
        let launch: Launch = Box::new(move |lab| {
            let mut command = lab.command(&site.router(), "hyprspace");
            // It would tell the machine's resolver of an interface that is in another namespace.
            command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
            Ok(vec![Process::start(command.args(["up", "-i", &name, "-c"]).arg(&file))?])
        });
        let mut side = Side::start(site, String::new(), Some(interface(site)), &lab, launch)?;
        let found = wait_for("hyprspace's address", || address_of(&lab, &site.router(), &interface(site)));
        side.address = found.with_context(|| side.processes[0].log())?;
        sides.push(side);
    }
    Ok(Tunnel { sides, servants: Vec::new(), lab, directory: Some(directory) })
}

struct Identity {
    private_key: Value,
    id: String,
}

/// Has it make a configuration, for the key in it and the id that it prints.
fn init(file: &Path) -> anyhow::Result<Identity> {
    let printed = run(Command::new("hyprspace").args(["init", "-c"]).arg(file))?;
    let id = printed.lines().find_map(|line| line.trim().strip_prefix("\"id\": \"")?.strip_suffix('"'));
    let id = id.with_context(|| format!("init prints no id but: {printed}"))?.to_owned();
    let written = fs::read_to_string(file).context("the configuration init wrote")?;
    let mut written: Value = serde_json::from_str(&written).context("the configuration init wrote")?;
    Ok(Identity { private_key: written["privateKey"].take(), id })
}

fn configuration(site: &Site, private_key: &Value, peers: &[(&Site, &str)]) -> Value {
    let listen = |site: &Site| {
        [format!("/ip4/{}/udp/{PORT}/quic-v1", site.underlay), format!("/ip4/{}/tcp/{PORT}", site.underlay)]
    };
    let bootstrap = peers.iter().flat_map(|(peer, id)| listen(peer).map(|address| format!("{address}/p2p/{id}")));
    let entries = peers.iter().map(|(peer, id)| {
        let routes: Vec<_> = peer.networks.iter().map(|network| json!({ "net": network })).collect();
        json!({ "name": format!("site-{}", peer.letter), "id": id, "routes": routes })
    });
    json!({
        "privateKey": private_key,
        "listenAddresses": listen(site),
        "bootstrapPeers": bootstrap.collect::<Vec<_>>(),
        "peers": entries.collect::<Vec<_>>(),
    })
}

/// The IPv4 address it derives from its key, once the interface has it.
fn address_of(lab: &Lab, router: &str, interface: &str) -> Option<String> {
    let printed = lab.run(router, &format!("ip -json -4 address show dev {interface}")).ok()?;
    let links: Value = serde_json::from_str(&printed).ok()?;
    Some(links[0]["addr_info"][0]["local"].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::SITES;

    #[test]
    fn a_site_bootstraps_from_its_peer_and_routes_both_of_its_networks_to_it() {
        let found = configuration(&SITES[0], &json!("zKey"), &[(&SITES[1], "12D3KooB")]);
        let expected = json!({
            "privateKey": "zKey",
            "listenAddresses": ["/ip4/10.201.0.1/udp/8001/quic-v1", "/ip4/10.201.0.1/tcp/8001"],
            "bootstrapPeers": [
                "/ip4/10.201.0.2/udp/8001/quic-v1/p2p/12D3KooB", "/ip4/10.201.0.2/tcp/8001/p2p/12D3KooB",
            ],
            "peers": [{
                "name": "site-b", "id": "12D3KooB",
                "routes": [{ "net": "10.20.0.0/16" }, { "net": "fd00:20::/64" }],
            }],
        });
        assert_eq!(found, expected);
    }
}
