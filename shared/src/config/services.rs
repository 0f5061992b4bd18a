//! The services a node offers: what is behind each, and who may use it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::error::Report;
use super::tree::{Item, Placed, Table};
use super::validate::PeerDraft;
use super::value::Flaw;
use crate::id::PeerIndex;
use crate::identity::service_id;
use crate::limits::{ADDRESS_TEXT_BYTES_MAX, PEERS_MAX, SERVICE_NAME_BYTES_MAX, SERVICES_MAX};

/// The keys of `[services.NAME]`.
pub(super) const KEYS: [&str; 3] = ["target", "allow", "deny"];

/// A service this node offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSettings {
    /// Its name, at most [`SERVICE_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Its identifier, which no other service of this node has.
    pub id: [u8; 2],
    /// What is behind it.
    pub target: ServiceTarget,
    /// Who may use it; `None` for every configured peer.
    pub allow: Option<Vec<PeerIndex>>,
    /// Who may not, whatever [`Self::allow`] says.
    pub deny: Vec<PeerIndex>,
}

impl ServiceSettings {
    /// Whether a peer may use it.
    pub fn allows(&self, peer: PeerIndex) -> bool {
        !self.deny.contains(&peer) && self.allow.as_ref().is_none_or(|allowed| allowed.contains(&peer))
    }
}

/// Where connections to a service lead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceTarget {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl std::fmt::Display for ServiceTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => {
                let family = if address.is_ipv4() { "ip4" } else { "ip6" };
                write!(f, "/{family}/{}/tcp/{}", address.ip(), address.port())
            }
            Self::Unix(path) => write!(f, "/unix{}", path.display()),
        }
    }
}

/// What a file says of one service.
pub(super) struct ServiceDraft {
    name: Placed<String>,
    target: ServiceTarget,
    allow: Option<Vec<Placed<String>>>,
    deny: Vec<Placed<String>>,
}

/// Whether components after a target's port are an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    Refused,
    Ignored,
}

/// Reads `[services.NAME]` tables.
pub(super) fn from_toml(item: &Item<'_>, report: &mut Report<'_>) -> Vec<ServiceDraft> {
    read(item, report, |item, name, report| {
        let table = item.table(report)?;
        let target = required_target(&table, Rest::Refused, report)?;
        let allow = table.get("allow").and_then(|item| references(&item, report));
        let deny = table.get("deny").and_then(|item| references(&item, report)).unwrap_or_default();
        Some(ServiceDraft { name, target, allow, deny })
    })
}

/// Reads Hyprspace's `services`, whose `acl` may be absent and which may be the target itself, as before release 0.13.
pub(super) fn from_hyprspace(item: &Item<'_>, report: &mut Report<'_>) -> Vec<ServiceDraft> {
    read(item, report, |item, name, report| {
        if item.is_string() {
            let target = target(item, Rest::Ignored, report)?;
            return Some(ServiceDraft { name, target, allow: None, deny: Vec::new() });
        }
        let table = item.table(report)?;
        let target = required_target(&table, Rest::Ignored, report)?;
        let (mut allow, mut deny) = (None, Vec::new());
        if let Some(acl) = table.get("acl").and_then(|item| item.table(report)) {
            let list = |key, report: &mut Report<'_>| {
                acl.get(key).and_then(|item| references(&item, report)).unwrap_or_default()
            };
            let whitelist = list("whitelist", report);
            deny = list("blacklist", report);
            let is_enabled = acl.get("enableWhitelist").and_then(|item| item.boolean(report)).unwrap_or(false);
            if is_enabled {
                allow = Some(whitelist);
            } else if !whitelist.is_empty()
                && let Some(item) = acl.get("whitelist")
            {
                report.warn(&item.place(), "has no effect unless enableWhitelist is true");
            }
        }
        Some(ServiceDraft { name, target, allow, deny })
    })
}

fn read(
    item: &Item<'_>,
    report: &mut Report<'_>,
    service: impl Fn(&Item<'_>, Placed<String>, &mut Report<'_>) -> Option<ServiceDraft>,
) -> Vec<ServiceDraft> {
    let Some(table) = item.table(report) else { return Vec::new() };
    let count = table.items().count();
    if count > SERVICES_MAX {
        report.refuse(&item.place(), format!("has {count} services"), format!("keep it to {SERVICES_MAX}"));
        return Vec::new();
    }
    let mut services = Vec::new();
    for (name, item) in table.items() {
        if name.is_empty() || name.len() > SERVICE_NAME_BYTES_MAX || name.chars().any(|c| c.is_control() || c == '.') {
            let remedy = format!("name it with 1 to {SERVICE_NAME_BYTES_MAX} bytes, printable and without dots");
            report.refuse(&item.place(), "has a name that is no DNS label", remedy);
            continue;
        }
        services.extend(service(&item, Placed::new(name.to_owned(), item.place()), report));
    }
    services
}

fn required_target(table: &Table<'_>, rest: Rest, report: &mut Report<'_>) -> Option<ServiceTarget> {
    let Some(item) = table.get("target") else {
        report.refuse(&table.missing("target"), "is missing", "add what is behind the service, such as \"/tcp/8080\"");
        return None;
    };
    target(&item, rest, report)
}

fn target(item: &Item<'_>, rest: Rest, report: &mut Report<'_>) -> Option<ServiceTarget> {
    parse_target(item.string(report)?, rest)
        .map_err(|flaw| report.refuse(&item.place(), flaw.problem, flaw.remedy))
        .ok()
}

/// Reads `[/ip4/A | /ip6/A]/tcp/PORT`, the address being this host's own by default, or `/unix/PATH`.
fn parse_target(text: &str, rest: Rest) -> Result<ServiceTarget, Flaw> {
    let flaw = |problem: &str| Flaw {
        problem: problem.to_owned(),
        remedy: "write \"/tcp/PORT\", \"/ip4/ADDRESS/tcp/PORT\", \"/ip6/ADDRESS/tcp/PORT\" or \"/unix/PATH\""
            .to_owned(),
        unsupported: false,
    };
    if text.len() > ADDRESS_TEXT_BYTES_MAX || text.contains('\0') {
        return Err(flaw("is too long, or not text"));
    }
    if let Some(path) = text.strip_prefix("/unix/") {
        let path = path.trim_start_matches('/');
        let is_path = !path.is_empty() && !path.ends_with('/');
        return if is_path { Ok(ServiceTarget::Unix(format!("/{path}").into())) } else { Err(flaw("names no socket")) };
    }
    let parts: Vec<&str> = text.split('/').collect();
    let (ip, parts) = match parts.as_slice() {
        ["", "ip4", ip, parts @ ..] => (ip.parse().map(IpAddr::V4), parts),
        ["", "ip6", ip, parts @ ..] => (ip.parse().map(IpAddr::V6), parts),
        ["", parts @ ..] => (Ok(Ipv4Addr::LOCALHOST.into()), parts),
        _ => return Err(flaw("is not a multiaddress")),
    };
    let ip = ip.map_err(|_| flaw("has no valid IP address"))?;
    match parts {
        ["tcp", port, others @ ..] if others.is_empty() || rest == Rest::Ignored => match port.parse() {
            Ok(port) if port != 0 => Ok(ServiceTarget::Tcp(SocketAddr::new(ip, port))),
            _ => Err(flaw("has no valid port")),
        },
        ["tcp", ..] => Err(flaw("goes on after the port")),
        [other, ..] => Err(flaw(&format!("is a target of an unsupported kind: {other:?}"))),
        [] => Err(flaw("names no port")),
    }
}

fn references(item: &Item<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<String>>> {
    let items = item.list(PEERS_MAX, report)?;
    let reference = |item: &Item<'_>| Some(Placed::new(item.string(report)?.to_owned(), item.place()));
    Some(items.iter().filter_map(reference).collect())
}

/// Finds who is meant by each reference, and services that cannot be told apart.
pub(super) fn settle(drafts: Vec<ServiceDraft>, peers: &[PeerDraft], report: &mut Report<'_>) -> Vec<ServiceSettings> {
    let mut ids: BTreeMap<[u8; 2], Placed<String>> = BTreeMap::new();
    let mut services = Vec::new();
    for ServiceDraft { name, target, allow, deny } in drafts {
        let id = service_id(&name.value);
        if let Some(first) = ids.get(&id) {
            report.refuse(
                &name.place,
                format!(
                    "has the same service identifier, {:02x}{:02x}, as {:?}: both would have one address",
                    id[0], id[1], first.value
                ),
                "rename one of the two; the first character of a name does not count",
            );
            continue;
        }
        let mut all = |list: Vec<Placed<String>>| list.iter().filter_map(|peer| find(peer, peers, report)).collect();
        let (allow, deny) = (allow.map(&mut all), all(deny));
        services.push(ServiceSettings { name: name.value.clone(), id, target, allow, deny });
        ids.insert(id, name);
    }
    services
}

/// The peer meant by `@name`, or by the beginning of an id.
fn find(reference: &Placed<String>, peers: &[PeerDraft], report: &mut Report<'_>) -> Option<PeerIndex> {
    let positions = peers.iter().zip(0..);
    let found: Vec<PeerIndex> = match reference.value.strip_prefix('@') {
        // The first of several with one name, as in Hyprspace.
        Some(name) => positions
            .filter(|(peer, _)| peer.name.as_ref().map_or("", |name| &name.value) == name)
            .map(|(_, position)| PeerIndex(position))
            .take(1)
            .collect(),
        None if reference.value.is_empty() => Vec::new(),
        None => positions
            .filter(|(peer, _)| peer.id.as_ref().is_some_and(|id| id.value.to_string().starts_with(&reference.value)))
            .map(|(_, position)| PeerIndex(position))
            .collect(),
    };
    let remedy = "write \"@\" and the name of a configured peer, or the beginning of its id";
    match found.as_slice() {
        [peer] => return Some(*peer),
        [] => report.refuse(&reference.place, "is no configured peer", remedy),
        _ => report.refuse(&reference.place, "is the beginning of several peers' ids", "write more of the id"),
    }
    None
}
