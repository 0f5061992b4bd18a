//! `ringlane check`: validates a configuration and its key without starting anything.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use ringlane_shared::config::{
    ConfigError, DataplaneSettings, IdentitySettings, Problem, Switch, carrier_word, cipher_word,
};
use ringlane_shared::dns::{listen_address, zone_name};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::plane::Offload;
use serde::Serialize;
use serde_json::Value as Json;

use super::load::{self, Loaded};
use super::text::list as text_list;
use super::{print, print_json};
use crate::cli::ConfigArgs;

/// What a valid configuration says, with defaults filled in.
#[derive(Serialize)]
struct Summary<'a> {
    ok: bool,
    file: &'a Path,
    network: &'a str,
    interface: &'a str,
    id: String,
    builtin_ipv4: Ipv4Addr,
    builtin_ipv6: Ipv6Addr,
    key_file: Option<&'a Path>,
    listen: Vec<String>,
    mdns: bool,
    workers: u8,
    port: u16,
    mtu: u16,
    cores: &'a [u16],
    busy_poll_us: u32,
    tun_queue_packets: u32,
    offload: BTreeMap<&'static str, Json>,
    engine: &'static str,
    carrier: &'static str,
    cipher: &'static str,
    rekey_seconds: u64,
    rekey_records: u64,
    keep_alive_seconds: u16,
    rate_mbit: Option<u32>,
    fragments: bool,
    copy_dscp: bool,
    copy_ecn: bool,
    dns: Names,
    metrics: Option<SocketAddr>,
    peers: Vec<Peer<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Names {
    enabled: bool,
    zone: String,
    listen: SocketAddr,
    resolved: bool,
}

#[derive(Serialize)]
struct Peer<'a> {
    name: &'a str,
    id: String,
    builtin_ipv4: Ipv4Addr,
    builtin_ipv6: Ipv6Addr,
    addresses: Vec<String>,
    routes: Vec<String>,
    carrier: Option<&'static str>,
}

/// What is wrong with one that is refused.
#[derive(Serialize)]
struct Refusal<'a> {
    ok: bool,
    file: &'a Path,
    problems: &'a [Problem],
    omitted: usize,
}

/// Validates the file; the answer is yes (0) or no (1).
pub(crate) fn run(arguments: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let json = arguments.output.json;
    match load::try_load(&arguments.config) {
        Ok(loaded) => {
            let summary = summarise(&loaded);
            if json {
                print_json(&summary)?
            } else {
                print(&describe(&summary))?
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(ConfigError { file, problems, omitted }) if json => {
            print_json(&Refusal { ok: false, file: &file, problems: &problems, omitted })?;
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

fn summarise(Loaded { settings, peer_id, .. }: &Loaded) -> Summary<'_> {
    let texts = |items: &[multiaddr::Multiaddr]| items.iter().map(ToString::to_string).collect();
    let peers = settings.peers.iter().map(|peer| Peer {
        name: &peer.name,
        id: peer.id.to_string(),
        builtin_ipv4: builtin_ipv4(&peer.id),
        builtin_ipv6: builtin_ipv6(&peer.id),
        addresses: texts(&peer.addresses),
        routes: peer.routes.iter().map(ToString::to_string).collect(),
        carrier: peer.carrier.map(carrier_word),
    });
    let dataplane = &settings.dataplane;
    Summary {
        ok: true,
        file: &settings.file,
        network: &settings.network,
        interface: &settings.interface,
        id: peer_id.to_string(),
        builtin_ipv4: builtin_ipv4(peer_id),
        builtin_ipv6: builtin_ipv6(peer_id),
        key_file: match &settings.identity {
            IdentitySettings::KeyFile(path) => Some(path),
            IdentitySettings::Inline(_) => None,
        },
        listen: texts(&settings.control.listen),
        mdns: settings.control.mdns,
        workers: load::workers(settings),
        port: dataplane.port,
        mtu: dataplane.mtu,
        cores: &dataplane.cores,
        busy_poll_us: dataplane.busy_poll_us,
        tun_queue_packets: dataplane.tun_queue_packets,
        offload: offload_keys(dataplane),
        engine: dataplane.engine.name(),
        carrier: carrier_word(dataplane.carrier),
        cipher: cipher_word(dataplane.cipher),
        rekey_seconds: dataplane.rekey.after.as_secs(),
        rekey_records: dataplane.rekey.records,
        keep_alive_seconds: dataplane.keep_alive_seconds,
        rate_mbit: dataplane.rate_mbit,
        fragments: dataplane.fragments,
        copy_dscp: dataplane.outer_marks.copies_dscp,
        copy_ecn: dataplane.outer_marks.copies_ecn,
        dns: Names {
            enabled: settings.dns.enabled,
            zone: zone_name(&settings.interface, &settings.dns.domain),
            listen: settings.dns.listen.unwrap_or_else(|| listen_address(&settings.interface)),
            resolved: settings.dns.resolved,
        },
        metrics: settings.metrics.listen,
        peers: peers.collect(),
        warnings: &settings.warnings,
    }
}

/// `[dataplane.offload]` with every key written out.
fn offload_keys(settings: &DataplaneSettings) -> BTreeMap<&'static str, Json> {
    let value = |offload| match settings.udp_sentinel {
        Switch::Auto if offload == Offload::UdpSentinel && settings.offloads.has(Offload::UdpGso) => "auto".into(),
        _ => settings.offloads.has(offload).into(),
    };
    Offload::ALL.map(|offload| (offload.name(), value(offload))).into()
}

fn describe(summary: &Summary<'_>) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label:<12}{value}");
    };
    line("valid", summary.file.display().to_string());
    line("id", summary.id.clone());
    line("addresses", format!("{} {}", summary.builtin_ipv4, summary.builtin_ipv6));
    line("key", summary.key_file.map_or("in the configuration".to_owned(), |path| path.display().to_string()));
    line("interface", format!("{}, MTU {}", summary.interface, summary.mtu));
    let last_port = u32::from(summary.port) + u32::from(summary.workers) - 1;
    line("workers", format!("{}, UDP ports {} to {last_port}", summary.workers, summary.port));
    if !summary.cores.is_empty() {
        line("cores", text_list(summary.cores));
    }
    if summary.busy_poll_us > 0 {
        line("busy poll", format!("{} us", summary.busy_poll_us));
    }
    line("tun queue", format!("{} packets for each worker", summary.tun_queue_packets));
    let off: Vec<_> = summary.offload.iter().filter(|(_, value)| **value == false).map(|(key, _)| key).collect();
    if !off.is_empty() {
        line("not used", text_list(&off));
    }
    line("engine", summary.engine.to_owned());
    line("carrier", summary.carrier.to_owned());
    line("cipher", summary.cipher.to_owned());
    line("rekey", format!("after {} s or {} records", summary.rekey_seconds, summary.rekey_records));
    line("keep alive", format!("every {} s", summary.keep_alive_seconds));
    if let Some(rate) = summary.rate_mbit {
        line("rate", format!("{rate} Mbit/s"));
    }
    line("fragments", if summary.fragments { "on" } else { "off" }.to_owned());
    let copied = [("dscp", summary.copy_dscp), ("ecn", summary.copy_ecn)];
    let copied: Vec<_> = copied.into_iter().filter(|(_, is_copied)| *is_copied).map(|(field, _)| field).collect();
    line("copied", if copied.is_empty() { "nothing".to_owned() } else { text_list(&copied) });
    for address in &summary.listen {
        line("listen", address.clone());
    }
    line("mdns", if summary.mdns { "on" } else { "off" }.to_owned());
    let names = &summary.dns;
    let told = if names.resolved { ", systemd-resolved is told" } else { "" };
    line("names", if names.enabled { format!("{} at {}{told}", names.zone, names.listen) } else { "off".to_owned() });
    summary.metrics.iter().for_each(|address| line("metrics", format!("http://{address}/metrics")));
    for peer in &summary.peers {
        line("peer", if peer.name.is_empty() { peer.id.clone() } else { format!("{} ({})", peer.id, peer.name) });
        line("  addresses", format!("{} {}", peer.builtin_ipv4, peer.builtin_ipv6));
        peer.addresses.iter().for_each(|address| line("  dial", address.clone()));
        peer.routes.iter().for_each(|route| line("  route", route.clone()));
        peer.carrier.iter().for_each(|carrier| line("  carrier", (*carrier).to_owned()));
    }
    for warning in summary.warnings {
        line("warning", warning.clone());
    }
    text
}
