//! Hyprspace's format, read unchanged.
//!
//! As Hyprspace does, unknown keys are ignored, null counts as absent and host bits of a network are cleared. What
//! Hyprspace accepts and then fails on (our own id among the peers, a peer twice, a network twice at one peer) is refused, and what
//! this version cannot do yet is a warning.

use std::path::Path;

use multiaddr::Multiaddr;

use super::error::Report;
use super::tree::{self, Item, Node, Placed, Table};
use super::validate::{self, Draft, Format, PeerDraft};
use super::value::{self, Flaw, HostBits};
use super::{ConfigError, IdentitySettings, RouteSettings, Settings, discovery, dns, routes, services};
use crate::identity;
use crate::limits::{LISTEN_ADDRESSES_MAX, PEERS_MAX, ROUTES_PER_PEER_MAX};

const KNOWN_KEYS: [&str; 7] =
    ["privateKey", "listenAddresses", "bootstrapPeers", "peers", "services", "filterPrivateAddresses", "domain"];

/// Reads a Hyprspace JSON configuration. `file` is where the text came from: messages name it, and its stem is the
/// network's and the interface's name.
pub fn parse_hyprspace(text: &str, file: &Path) -> Result<Settings, ConfigError> {
    let mut report = Report::new(file, text);
    if super::is_too_long(text, &mut report) {
        return Err(report.into_error());
    }
    let Some(root) = tree::parse_json(text, &mut report) else {
        return Err(report.into_error());
    };
    let draft = read(&root, &mut report);
    draft.settle(report)
}

fn read(root: &Node, report: &mut Report<'_>) -> Draft {
    let mut draft = Draft::new(Format::Hyprspace, report);
    let Some(root) = Item::root(root).table(report) else {
        return draft;
    };
    draft.identity = private_key(&root, report);
    if let Some(item) = root.get("listenAddresses") {
        draft.listen = listen_addresses(&item, report);
    }
    if let Some(filter) = root.get("filterPrivateAddresses").and_then(|item| item.boolean(report)) {
        draft.filter_private_addresses = filter;
    }
    // There is no key that could resolve a collision, so none is made.
    draft.port.value = validate::free_lane_port(draft.listen.iter().map(|address| &address.value));
    if let Some(item) = root.get("peers") {
        let items = item.list(PEERS_MAX, report).unwrap_or_default();
        draft.peers = items.iter().filter_map(|item| peer(item, report)).collect();
    }
    match root.get("bootstrapPeers") {
        Some(item) => {
            discovery::bootstrap(&item, Format::Hyprspace, &mut draft.peers, &mut draft.discovery, report);
        }
        None => draft.discovery = discovery::public(),
    }
    if let Some(item) = root.get("services") {
        draft.services = services::from_hyprspace(&item, report);
    }
    if let Some(item) = root.get("domain")
        && item.string(report).is_some_and(|text| !text.is_empty())
        && let Some(domain) = dns::domain(&item, report)
    {
        draft.dns.domain = domain;
    }
    warn_of_unknown_keys(&root, &KNOWN_KEYS, report);
    draft
}

fn private_key(root: &Table<'_>, report: &mut Report<'_>) -> Option<IdentitySettings> {
    let remedy = "copy the privateKey of the Hyprspace configuration as it is (z23jh...)";
    let Some(item) = root.get("privateKey").map(Item::secret) else {
        report.refuse(&root.missing("privateKey"), "is missing", remedy);
        return None;
    };
    match identity::decode_private_key(item.string(report)?) {
        Ok(keypair) => Some(IdentitySettings::Inline(keypair)),
        Err(error) => {
            report.refuse(&item.place(), error.to_string(), remedy);
            None
        }
    }
}

/// The addresses this version can listen on, each once.
fn listen_addresses(item: &Item<'_>, report: &mut Report<'_>) -> Vec<Placed<Multiaddr>> {
    let items = item.list(LISTEN_ADDRESSES_MAX, report).unwrap_or_default();
    let mut addresses: Vec<Placed<Multiaddr>> = Vec::new();
    for item in &items {
        if let Some(address) = accept(item, value::listen_address, report)
            && addresses.iter().all(|known| known.value != address.value)
        {
            addresses.push(address);
        }
    }
    addresses
}

fn peer(item: &Item<'_>, report: &mut Report<'_>) -> Option<PeerDraft> {
    let table = item.table(report)?;
    warn_of_unknown_keys(&table, &["id", "name", "routes"], report);
    let name = table.get("name").and_then(|item| accept(&item, value::peer_name, report));
    let id = match table.get("id") {
        Some(item) => accept(&item, value::peer_id, report),
        None => {
            report.refuse(&table.missing("id"), "is missing", "add the peer's id (12D3KooW...)");
            None
        }
    };
    let items = table.get("routes").and_then(|item| item.list(ROUTES_PER_PEER_MAX, report)).unwrap_or_default();
    let routes = items.iter().filter_map(|item| route(item, report)).collect();
    Some(PeerDraft { name, id, addresses: Vec::new(), routes, carrier: None })
}

fn route(item: &Item<'_>, report: &mut Report<'_>) -> Option<Placed<RouteSettings>> {
    let table = item.table(report)?;
    warn_of_unknown_keys(&table, &["net", "metric"], report);
    let Some(net) = table.get("net") else {
        report.refuse(&table.missing("net"), "is missing", "add the network, for example \"10.20.0.0/16\"");
        return None;
    };
    let mut route = accept(&net, |text| value::prefix(text, HostBits::Clear).map(RouteSettings::from), report)?;
    route.value.metric = routes::metric(&table, report);
    Some(route)
}

/// The parsed text of `item`; a flaw is reported, and what this version cannot do is left out with a warning.
fn accept<'n, T>(
    item: &Item<'n>,
    parse: impl Fn(&'n str) -> Result<T, Flaw>,
    report: &mut Report<'_>,
) -> Option<Placed<T>> {
    match parse(item.string(report)?) {
        Ok(value) => return Some(Placed::new(value, item.place())),
        Err(flaw) if flaw.unsupported => {
            report.warn(&item.place(), format!("is not used by this version: it {}", flaw.problem));
        }
        Err(flaw) => report.refuse(&item.place(), flaw.problem, flaw.remedy),
    }
    None
}

fn warn_of_unknown_keys(table: &Table<'_>, known: &[&str], report: &mut Report<'_>) {
    for (_, item) in table.items().filter(|(key, _)| !known.contains(key)) {
        report.warn(&item.secret().place(), "is not a known key and is ignored, as Hyprspace does");
    }
}
