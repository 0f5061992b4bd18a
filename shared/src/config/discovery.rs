//! How peers are found beyond their own addresses: the DHT, its bootstrap list and delegated routers. The keys of
//! `[control]` in Ringlane's format, `bootstrapPeers` in Hyprspace's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use multiaddr::{Multiaddr, Protocol};

use super::error::Report;
use super::tree::{Item, Placed, Table};
use super::validate::{Format, PeerDraft};
use super::value::{self, Flaw};
use crate::host::{BeforePort, is_host};
use crate::id::PeerId;
use crate::limits::{
    ADDRESS_TEXT_BYTES_MAX, ADDRESSES_PER_PEER_MAX, BOOTSTRAP_CONTACTS_MAX, BOOTSTRAP_PEERS_MAX, DELEGATED_ROUTERS_MAX,
};

/// Hyprspace's bootstrap list, in its order (docs: "public").
pub const PUBLIC_BOOTSTRAP: [&str; 20] = [
    "/ip4/152.67.75.145/tcp/110/p2p/12D3KooWQWsHPUUeFhe4b6pyCaD1hBoj8j6Z7S7kTznRTh1p1eVt",
    "/ip4/152.67.75.145/udp/110/quic-v1/p2p/12D3KooWQWsHPUUeFhe4b6pyCaD1hBoj8j6Z7S7kTznRTh1p1eVt",
    "/ip4/152.67.75.145/tcp/995/p2p/QmbrAHuh4RYcyN9fWePCZMVmQjbaNXtyvrDCWz4VrchbXh",
    "/ip4/152.67.75.145/udp/995/quic-v1/p2p/QmbrAHuh4RYcyN9fWePCZMVmQjbaNXtyvrDCWz4VrchbXh",
    "/ip4/95.216.8.12/tcp/110/p2p/Qmd7QHZU8UjfYdwmjmq1SBh9pvER9AwHpfwQvnvNo3HBBo",
    "/ip4/95.216.8.12/udp/110/quic-v1/p2p/Qmd7QHZU8UjfYdwmjmq1SBh9pvER9AwHpfwQvnvNo3HBBo",
    "/ip4/95.216.8.12/tcp/995/p2p/QmYs4xNBby2fTs8RnzfXEk161KD4mftBfCiR8yXtgGPj4J",
    "/ip4/95.216.8.12/udp/995/quic-v1/p2p/QmYs4xNBby2fTs8RnzfXEk161KD4mftBfCiR8yXtgGPj4J",
    "/ip4/152.67.73.164/tcp/995/p2p/12D3KooWL84sAtq1QTYwb7gVbhSNX5ZUfVt4kgYKz8pdif1zpGUh",
    "/ip4/152.67.73.164/udp/995/quic-v1/p2p/12D3KooWL84sAtq1QTYwb7gVbhSNX5ZUfVt4kgYKz8pdif1zpGUh",
    "/ip4/37.27.11.202/udp/21/quic-v1/p2p/12D3KooWN31twBvdEcxz2jTv4tBfPe3mkNueBwDJFCN4xn7ZwFbi",
    "/ip4/37.27.11.202/udp/443/quic-v1/p2p/12D3KooWN31twBvdEcxz2jTv4tBfPe3mkNueBwDJFCN4xn7ZwFbi",
    "/ip4/37.27.11.202/udp/500/quic-v1/p2p/12D3KooWN31twBvdEcxz2jTv4tBfPe3mkNueBwDJFCN4xn7ZwFbi",
    "/ip4/37.27.11.202/udp/995/quic-v1/p2p/12D3KooWN31twBvdEcxz2jTv4tBfPe3mkNueBwDJFCN4xn7ZwFbi",
    "/dnsaddr/bootstrap.libp2p.io/p2p/12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmZa1sAxajnQjVM8WjWXoMbmPd7NsWhfKsPkErzpm9wGkp",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
];

/// The delegated router that Hyprspace's nodes ask.
pub const PUBLIC_ROUTER: &str = "https://p2p.privatevoid.net";

/// The word that stands for [`PUBLIC_BOOTSTRAP`] in `control.bootstrap`.
const PUBLIC: &str = "public";

/// What a node is in the DHT `/ipfs/kad/1.0.0`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DhtMode {
    /// It asks others, nobody asks it; as Hyprspace.
    #[default]
    Client,
    /// It also answers, to configured peers only: a network can be its own infrastructure.
    Server,
    /// It takes no part.
    Off,
}

const MODES: [(&str, DhtMode); 3] = [("client", DhtMode::Client), ("server", DhtMode::Server), ("off", DhtMode::Off)];

impl DhtMode {
    /// Its word in a configuration.
    pub fn name(self) -> &'static str {
        MODES.iter().find(|(_, mode)| *mode == self).map_or("", |(word, _)| word)
    }
}

/// How peers are found beyond their own addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DiscoverySettings {
    /// What we are in the DHT.
    pub dht: DhtMode,
    /// DHT nodes that are no peers, by which we come into the DHT; each ends in `/p2p/<id>`. At most
    /// [`BOOTSTRAP_CONTACTS_MAX`]. Without any, only configured peers are ever dialled.
    pub bootstrap: Vec<Multiaddr>,
    /// Whom to ask over HTTP for peers that are not found; at most [`DELEGATED_ROUTERS_MAX`].
    pub delegated_routers: Vec<RouterSettings>,
    /// A file with the key of a private libp2p network.
    pub swarm_key: Option<PathBuf>,
}

/// One delegated router.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouterSettings {
    /// Where it is.
    pub url: RouterUrl,
    /// SHA-256 of its certificate's public key (the DER of SubjectPublicKeyInfo). When given it is *all* that is asked
    /// of the certificate: one that signed itself will do.
    pub pin: Option<[u8; 32]>,
}

/// `http://` or `https://`, host, port and path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouterUrl {
    /// Whether TLS protects it.
    pub https: bool,
    /// A name or IP address; IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Empty, or beginning with `/` and not ending in it.
    pub path: String,
}

impl RouterUrl {
    /// Reads a URL without user, query or fragment.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > ADDRESS_TEXT_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let (https, rest) = match text.split_once("://")? {
            ("https", rest) => (true, rest),
            ("http", rest) => (false, rest),
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (ip, port) = v6.split_once(']')?;
                ip.parse::<std::net::Ipv6Addr>().ok()?;
                (ip, port)
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0)?,
            None if port.is_empty() => {
                if https {
                    443
                } else {
                    80
                }
            }
            None => return None,
        };
        if !is_host(host) || path.contains(['?', '#']) {
            return None;
        }
        Some(Self { https, host: host.to_owned(), port, path: path.trim_end_matches('/').to_owned() })
    }
}

impl std::fmt::Display for RouterUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let default = if self.https { 443 } else { 80 };
        let port = if self.port == default { String::new() } else { format!(":{}", self.port) };
        write!(f, "{scheme}://{}{port}{}", BeforePort(&self.host), self.path)
    }
}

/// The keys of `[control]`, `peers` read already.
pub(super) fn control(table: &Table<'_>, peers: &mut [PeerDraft], report: &mut Report<'_>) -> DiscoverySettings {
    let mut settings = DiscoverySettings::default();
    if let Some(mode) = table.get("dht").and_then(|item| item.word(&MODES, report)) {
        settings.dht = mode;
    }
    if let Some(item) = table.get("bootstrap") {
        bootstrap(&item, Format::Toml, peers, &mut settings, report);
    }
    if let Some(item) = table.get("delegated_routers") {
        let items = item.list(DELEGATED_ROUTERS_MAX, report).unwrap_or_default();
        settings.delegated_routers = items.iter().filter_map(|item| router(item, report)).collect();
    }
    if let Some(item) = table.get("swarm_key")
        && let Some(text) = item.string(report)
    {
        if text.is_empty() || text.contains('\0') {
            report.refuse(&item.place(), "is not a file name", "write the path of the swarm key, or remove the key");
        }
        settings.swarm_key = Some(super::beside(report.file(), text));
    }
    settings
}

/// What no `bootstrapPeers` means in Hyprspace's format.
pub(super) fn public() -> DiscoverySettings {
    let mut settings = DiscoverySettings::default();
    add_public(&mut settings);
    settings
}

fn add_public(settings: &mut DiscoverySettings) {
    for address in PUBLIC_BOOTSTRAP.iter().filter_map(|text| text.parse().ok()) {
        if !settings.bootstrap.contains(&address) {
            settings.bootstrap.push(address);
        }
    }
    if let Some(url) = RouterUrl::parse(PUBLIC_ROUTER) {
        settings.delegated_routers = vec![RouterSettings { url, pin: None }];
    }
}

/// Reads a bootstrap list. Entries that end in a configured peer's id become addresses of that peer.
pub(super) fn bootstrap(
    item: &Item<'_>,
    format: Format,
    peers: &mut [PeerDraft],
    settings: &mut DiscoverySettings,
    report: &mut Report<'_>,
) {
    let positions: BTreeMap<PeerId, usize> =
        peers.iter().enumerate().filter_map(|(position, peer)| Some((peer.id.as_ref()?.value, position))).collect();
    for item in item.list(BOOTSTRAP_PEERS_MAX, report).unwrap_or_default() {
        let Some(text) = item.string(report) else { continue };
        if text == PUBLIC && format == Format::Toml {
            add_public(settings);
            continue;
        }
        let Some((id, address)) = accept(&item, contact(text), format, report) else { continue };
        let is_indirect = matches!(address.iter().next(), Some(Protocol::Dnsaddr(_)));
        let Some(peer) = positions.get(&id).filter(|_| !is_indirect).map(|position| &mut peers[*position]) else {
            if settings.bootstrap.contains(&address) {
                continue;
            }
            if settings.bootstrap.len() == BOOTSTRAP_CONTACTS_MAX {
                let remedy = format!("keep it to {BOOTSTRAP_CONTACTS_MAX} that are no peers");
                report.refuse(&item.place(), "is one bootstrap address too many", remedy);
                return;
            }
            settings.bootstrap.push(address);
            continue;
        };
        if let Some(address) = accept(&item, value::peer_address(text, Some(&id)), format, report)
            && peer.addresses.iter().all(|known| known.value != address)
        {
            if peer.addresses.len() == ADDRESSES_PER_PEER_MAX {
                let remedy = format!("keep it to {ADDRESSES_PER_PEER_MAX} for each peer");
                report.refuse(&item.place(), "is one address too many for this peer", remedy);
                continue;
            }
            peer.addresses.push(Placed::new(address, item.place()));
        }
    }
}

/// Reads one bootstrap address as it stands in a list: whom it belongs to, and the whole of it.
pub fn bootstrap_address(text: &str) -> Option<(PeerId, Multiaddr)> {
    contact(text).ok()
}

fn contact(text: &str) -> Result<(PeerId, Multiaddr), Flaw> {
    let flaw = |problem: &str| Flaw {
        problem: problem.to_owned(),
        remedy: "write one such as \"/ip4/192.0.2.1/tcp/8001/p2p/12D3KooW...\"".to_owned(),
        unsupported: false,
    };
    if text.len() > ADDRESS_TEXT_BYTES_MAX {
        return Err(flaw("is too long"));
    }
    let address: Multiaddr = text.parse().map_err(|_| flaw("is not a multiaddress"))?;
    let parts: Vec<_> = address.iter().collect();
    let Some(Protocol::P2p(id)) = parts.last() else {
        return Err(flaw("does not end in /p2p/ and a peer id"));
    };
    if !matches!(parts.as_slice(), [Protocol::Dnsaddr(_), Protocol::P2p(_)]) {
        value::peer_address(text, None)?;
    }
    Ok((*id, address.clone()))
}

/// A flaw is reported; what a file for Hyprspace asks for and this version cannot do is left out with a warning.
fn accept<T>(item: &Item<'_>, parsed: Result<T, Flaw>, format: Format, report: &mut Report<'_>) -> Option<T> {
    match parsed {
        Ok(value) => return Some(value),
        Err(flaw) if flaw.unsupported && format == Format::Hyprspace => {
            report.warn(&item.place(), format!("is not used by this version: it {}", flaw.problem));
        }
        Err(flaw) => report.refuse(&item.place(), flaw.problem, flaw.remedy),
    }
    None
}

fn router(item: &Item<'_>, report: &mut Report<'_>) -> Option<RouterSettings> {
    let table = item.table(report)?;
    super::toml::known_keys_only(&table, "control.delegated_routers", report);
    let Some(item) = table.get("url") else {
        report.refuse(&table.missing("url"), "is missing", "add the router's URL, or remove the entry");
        return None;
    };
    let url = RouterUrl::parse(item.string(report)?);
    if url.is_none() {
        let remedy = "write one such as \"https://router.example\", without user, query or fragment";
        report.refuse(&item.place(), "is not an http or https URL", remedy);
    }
    let mut pin = None;
    if let Some(item) = table.get("pin") {
        pin = parse_pin(item.string(report)?);
        if pin.is_none() {
            let remedy = "write \"sha256/\" and the base64 of the 32-byte hash of the certificate's public key";
            report.refuse(&item.place(), "is not a pin", remedy);
        } else if url.as_ref().is_some_and(|url| !url.https) {
            report.refuse(&item.place(), "means nothing without https", "write an https URL, or remove the pin");
        }
    }
    Some(RouterSettings { url: url?, pin })
}

fn parse_pin(text: &str) -> Option<[u8; 32]> {
    let base64 = text.strip_prefix("sha256/").filter(|base64| base64.len() == 44)?;
    multibase::Base::Base64Pad.decode(base64).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_url_says_where_to_connect_and_what_to_ask_for() {
        let url = |text: &str| {
            RouterUrl::parse(text).map(|url| (url.https, url.host.clone(), url.port, url.path.clone(), url.to_string()))
        };
        let expected = |https, host: &str, port, path: &str, text: &str| {
            Some((https, host.to_owned(), port, path.to_owned(), text.to_owned()))
        };
        assert_eq!(url("https://r.example"), expected(true, "r.example", 443, "", "https://r.example"));
        assert_eq!(url("http://r.example:80/a/b/"), expected(false, "r.example", 80, "/a/b", "http://r.example/a/b"));
        assert_eq!(
            url("http://[2001:db8::1]:8080"),
            expected(false, "2001:db8::1", 8080, "", "http://[2001:db8::1]:8080")
        );
        for bad in [
            "r.example",
            "ftp://r.example",
            "https://",
            "https://a b",
            "https://u@h",
            "https://h:0",
            "https://h/?q",
            "https://[::1",
            "https://h:99999",
        ] {
            assert_eq!(url(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_public_list_is_whole_and_usable() {
        let settings = public();
        assert_eq!(settings.bootstrap.len(), PUBLIC_BOOTSTRAP.len());
        assert!(PUBLIC_BOOTSTRAP.iter().all(|text| bootstrap_address(text).is_some()));
        assert_eq!(settings.delegated_routers.len(), 1);
    }
}
