//! Nebula: one process per router, known to each other by certificates of an authority made for the run.
//!
//! Settings beyond those that make it a site-to-site tunnel:
//! - `cipher: aes`: AES-256-GCM, the faster one where the processor has AES instructions, and the default.
//! - `routines: 2`: a TUN queue, a socket and a thread pair per core of the machine the targets are for. It is the only
//!   setting with which one process uses several cores for more than one tunnel.
//! - `listen.read_buffer`, `write_buffer`: the 10 MiB its example configuration suggests against loss on fast links.
//! - `listen.batch: 64`, `tun.tx_queue: 500`: the defaults. Ten times the queue ends the drops at the TUN, and brings no
//!   more throughput but more latency; larger batches bring nothing.
//! - No conntrack or firewall beyond "allow all", which cannot be switched off. Rules must say `local_cidr: any` in both
//!   directions, or they are for the routers' own addresses only.
//!
//! 1.12 is the first release with offloads. 1.10 and 1.11 move one packet per call at the TUN, so look at the version
//! before comparing figures. Tried with 1.10.3.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use super::{Launch, Presence, Setup, Side, Tunnel, directory, version_of};
use crate::lab::{Lab, Site};
use crate::process::{Process, run};

const PORT: u16 = 4242;

/// Whether it and the tool for its certificates are there.
pub(super) fn presence() -> Presence {
    match (version_of("nebula".as_ref()), version_of("nebula-cert".as_ref())) {
        (None, _) => Presence::Absent("nebula is not installed".into()),
        (_, None) => Presence::Absent("nebula-cert is not installed".into()),
        (Some(version), Some(_)) => Presence::Version(format!("nebula {}", version.trim_start_matches("Version: "))),
    }
}

/// Starts it on each router; see [`super::Contender::start`].
pub(super) fn start(lab: Lab, setup: &Setup) -> anyhow::Result<Tunnel> {
    let directory = directory()?;
    certify(directory.path(), setup.sites())?;
    let mut sides = Vec::new();
    for site in setup.sites() {
        let interface = format!("{}{}", lab.prefix(), site.letter);
        let file = file(directory.path(), site, "yml");
        // Every JSON document is a YAML document.
        let configuration = configuration(directory.path(), site, &interface, setup).to_string();
        fs::write(&file, configuration).context("the configuration")?;
        let launch: Launch = Box::new(move |lab| {
            Ok(vec![Process::start(lab.command(&site.router(), "nebula").arg("-config").arg(&file))?])
        });
        sides.push(Side::start(site, site.tunnel.into(), Some(interface), &lab, launch)?);
    }
    Ok(Tunnel { sides, servants: Vec::new(), lab, directory: Some(directory) })
}

/// Makes an authority, and a key and a certificate per router that name the networks behind it.
fn certify(directory: &Path, sites: &[Site]) -> anyhow::Result<()> {
    let tool = |arguments: &[&str]| run(Command::new("nebula-cert").args(arguments).current_dir(directory));
    tool(&["ca", "-name", "ringlane-perf", "-duration", "24h"])?;
    for site in sites {
        // A router without an IPv6 address of its own may not stand for an IPv6 network.
        let addresses = format!("{}/24,{}/64", site.tunnel, tunnel_ipv6(site));
        let name = site.letter.to_string();
        tool(&["sign", "-name", &name, "-networks", &addresses, "-unsafe-networks", &site.networks.join(",")])?;
    }
    Ok(())
}

fn configuration(directory: &Path, site: &Site, interface: &str, setup: &Setup) -> Value {
    let mut endpoints = serde_json::Map::new();
    let mut routes = Vec::new();
    for peer in setup.peers_of(site) {
        for (network, gateway) in peer.networks.into_iter().zip([peer.tunnel, &tunnel_ipv6(peer)]) {
            endpoints.insert(gateway.into(), json!([format!("{}:{PORT}", peer.underlay)]));
            routes.push(json!({ "route": network, "via": gateway }));
        }
    }
    let anything = json!([{ "port": "any", "proto": "any", "host": "any", "local_cidr": "any" }]);
    json!({
        "pki": { "ca": directory.join("ca.crt"), "cert": file(directory, site, "crt"), "key": file(directory, site, "key") },
        "static_host_map": endpoints,
        "lighthouse": { "am_lighthouse": false, "hosts": [] },
        "listen": {
            "host": site.underlay, "port": PORT, "batch": 64, "read_buffer": 10 << 20, "write_buffer": 10 << 20,
        },
        "routines": 2,
        "cipher": "aes",
        "tun": { "dev": interface, "mtu": setup.inner_mtu(), "tx_queue": 500, "unsafe_routes": routes },
        "firewall": { "outbound": anything, "inbound": anything },
        "logging": { "level": "info" },
    })
}

/// The router's IPv6 address in the tunnel: as its IPv4 address ends.
fn tunnel_ipv6(site: &Site) -> String {
    format!("fd00:202::{}", site.tunnel.rsplit('.').next().unwrap_or_default())
}

/// A router's file of one kind.
fn file(directory: &Path, site: &Site, extension: &str) -> PathBuf {
    directory.join(site.letter.to_string()).with_extension(extension)
}
