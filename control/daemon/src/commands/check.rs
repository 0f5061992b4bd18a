//! `ringlane check`: validates a configuration and its key without starting anything.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use ringlane_shared::config::{
    ConfigError, DataplaneSettings, IdentitySettings, Problem, Scope, Switch, carrier_word, cipher_word,
};
use ringlane_shared::dns::{listen_address, zone_name};
use ringlane_shared::id::PeerIndex;
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6, service_address};
use ringlane_shared::plane::Offload;
use serde::Serialize;
use serde_json::Value as Json;

use super::load::{self, Loaded};
use super::{print, print_json, text};
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
    dht: &'static str,
    bootstrap: Vec<String>,
    delegated_routers: Vec<String>,
    swarm_key: Option<&'a Path>,
    filter_private_addresses: bool,
    scope: &'static str,
    proxy: Option<String>,
    tls_certificate: Option<&'a Path>,
    tls_key: Option<&'a Path>,
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
    port_mapping: bool,
    punch: bool,
    stun_servers: Vec<String>,
    relay: Relay,
    peers: Vec<Peer<'a>>,
    services: Vec<Service<'a>>,
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
struct Relay {
    serve: &'static str,
    preferred: Vec<String>,
    max: u8,
    rate_mbit: u32,
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

#[derive(Serialize)]
struct Service<'a> {
    name: &'a str,
    address: Ipv6Addr,
    target: String,
    allow: Option<Vec<String>>,
    deny: Vec<String>,
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
    let ids = |peers: &[PeerIndex]| {
        let configured = peers.iter().filter_map(|peer| settings.peers.get(usize::from(peer.0)));
        configured.map(|peer| peer.id.to_string()).collect()
    };
    let services = settings.services.iter().map(|service| Service {
        name: &service.name,
        address: service_address(peer_id, &service.name),
        target: service.target.to_string(),
        allow: service.allow.as_deref().map(ids),
        deny: ids(&service.deny),
    });
    let (dataplane, discovery, relay) = (&settings.dataplane, &settings.control.discovery, &settings.relay);
    let tls = settings.control.web.certificate.as_ref();
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
        dht: discovery.dht.name(),
        bootstrap: texts(&discovery.bootstrap),
        delegated_routers: discovery.delegated_routers.iter().map(|router| router.url.to_string()).collect(),
        swarm_key: discovery.swarm_key.as_deref(),
        filter_private_addresses: settings.control.filter_private_addresses,
        scope: settings.control.web.scope.name(),
        proxy: settings.control.web.proxy.as_ref().map(ToString::to_string),
        tls_certificate: tls.map(|files| files.certificate.as_path()),
        tls_key: tls.map(|files| files.key.as_path()),
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
        port_mapping: settings.nat.port_mapping,
        punch: settings.nat.punch,
        stun_servers: settings.nat.stun_servers.iter().map(ToString::to_string).collect(),
        relay: Relay {
            serve: relay.serve.name(),
            preferred: relay.preferred.iter().map(ToString::to_string).collect(),
            max: relay.max,
            rate_mbit: relay.rate_mbit,
        },
        peers: peers.collect(),
        services: services.collect(),
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
    let mut out = String::new();
    let mut line = |label: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{label:<12}{value}");
    };
    line("valid", summary.file.display().to_string());
    line("id", summary.id.clone());
    line("addresses", format!("{} {}", summary.builtin_ipv4, summary.builtin_ipv6));
    line("key", summary.key_file.map_or("in the configuration".to_owned(), |path| path.display().to_string()));
    line("interface", format!("{}, MTU {}", summary.interface, summary.mtu));
    let last_port = u32::from(summary.port) + u32::from(summary.workers) - 1;
    line("workers", format!("{}, UDP ports {} to {last_port}", summary.workers, summary.port));
    if !summary.cores.is_empty() {
        line("cores", text::list(summary.cores));
    }
    if summary.busy_poll_us > 0 {
        line("busy poll", format!("{} us", summary.busy_poll_us));
    }
    line("tun queue", format!("{} packets for each worker", summary.tun_queue_packets));
    let off: Vec<_> = summary.offload.iter().filter(|(_, value)| **value == false).map(|(key, _)| key).collect();
    if !off.is_empty() {
        line("not used", text::list(&off));
    }
    line("engine", summary.engine.to_owned());
    line("carrier", summary.carrier.to_owned());
    line("cipher", summary.cipher.to_owned());
    line("rekey", format!("after {} s or {} records", summary.rekey_seconds, summary.rekey_records));
    line("keep alive", format!("every {} s", summary.keep_alive_seconds));
    if let Some(rate) = summary.rate_mbit {
        line("rate", format!("{rate} Mbit/s"));
    }
    let on = |is_on| if is_on { "on" } else { "off" };
    line("fragments", on(summary.fragments).to_owned());
    let copied = [("dscp", summary.copy_dscp), ("ecn", summary.copy_ecn)];
    let copied: Vec<_> = copied.into_iter().filter(|(_, is_copied)| *is_copied).map(|(field, _)| field).collect();
    line("copied", if copied.is_empty() { "nothing".to_owned() } else { text::list(&copied) });
    for address in &summary.listen {
        line("listen", address.clone());
    }
    line("mdns", on(summary.mdns).to_owned());
    line("dht", summary.dht.to_owned());
    line(
        "bootstrap",
        match summary.bootstrap.len() {
            0 => "none: only configured peers are dialled".to_owned(),
            1 => "1 address of a node that is no peer".to_owned(),
            count => format!("{count} addresses of nodes that are no peers"),
        },
    );
    summary.delegated_routers.iter().for_each(|url| line("router", url.clone()));
    summary.swarm_key.iter().for_each(|file| line("swarm key", format!("{}: libp2p uses TCP only", file.display())));
    if summary.filter_private_addresses {
        line("filter", "no private addresses of peers".to_owned());
    }
    if summary.scope != Scope::default().name() {
        line("scope", format!("{}: directly connected networks only", summary.scope));
    }
    summary.proxy.iter().for_each(|proxy| line("proxy", format!("{proxy}, for TCP")));
    summary.tls_certificate.iter().for_each(|file| line("certificate", file.display().to_string()));
    let names = &summary.dns;
    let told = if names.resolved { ", systemd-resolved is told" } else { "" };
    line("names", if names.enabled { format!("{} at {}{told}", names.zone, names.listen) } else { "off".to_owned() });
    line("nat", format!("port mapping {}, punching {}", on(summary.port_mapping), on(summary.punch)));
    summary.stun_servers.iter().for_each(|server| line("stun", server.clone()));
    let relay = &summary.relay;
    let forwarded = format!("up to {} Mbit/s", relay.rate_mbit);
    line("relay", format!("serves: {}, {forwarded}; reachable through {} at once", relay.serve, relay.max));
    if !relay.preferred.is_empty() {
        line("  preferred", names_of(&relay.preferred, &summary.peers));
    }
    summary.metrics.iter().for_each(|address| line("metrics", format!("http://{address}/metrics")));
    for peer in &summary.peers {
        line("peer", if peer.name.is_empty() { peer.id.clone() } else { format!("{} ({})", peer.id, peer.name) });
        line("  addresses", format!("{} {}", peer.builtin_ipv4, peer.builtin_ipv6));
        peer.addresses.iter().for_each(|address| line("  dial", address.clone()));
        peer.routes.iter().for_each(|route| line("  route", route.clone()));
        peer.carrier.iter().for_each(|carrier| line("  carrier", (*carrier).to_owned()));
    }
    for service in &summary.services {
        line("service", format!("{} -> {}", service.name, service.target));
        line("  address", service.address.to_string());
        let allowed = match service.allow.as_deref() {
            None => "every peer".to_owned(),
            Some([]) => "nobody".to_owned(),
            Some(ids) => names_of(ids, &summary.peers),
        };
        line("  allow", allowed);
        if !service.deny.is_empty() {
            line("  deny", names_of(&service.deny, &summary.peers));
        }
    }
    for warning in summary.warnings {
        line("warning", warning.clone());
    }
    out
}

/// The peers' names, or the ids of those that have none.
fn names_of(ids: &[String], peers: &[Peer<'_>]) -> String {
    let name_of = |id: &String| peers.iter().find(|peer| peer.id == *id).map_or("", |peer| peer.name);
    text::list(&ids.iter().map(|id| text::name_or_id(name_of(id), id)).collect::<Vec<_>>())
}
