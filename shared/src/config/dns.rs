//! `[dns]`: names of the network's nodes.

use std::net::SocketAddr;

use super::error::Report;
use super::tree::{Item, Table};
use crate::limits::DNS_DOMAIN_BYTES_MAX;

/// What names end in, as in Hyprspace.
pub const DEFAULT_DOMAIN: &str = "hyprspace";

/// The name server's settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsSettings {
    /// Whether there is one. It costs a node two sockets.
    pub enabled: bool,
    /// What names end in, behind the interface's: labels of letters, digits, hyphens and underscores, in lower case, at
    /// most [`DNS_DOMAIN_BYTES_MAX`] bytes, without the final dot.
    pub domain: String,
    /// Whether systemd-resolved, where it runs, is told to ask us.
    pub resolved: bool,
    /// Where to listen; if not said, where Hyprspace does ([`crate::dns::listen_address`]).
    pub listen: Option<SocketAddr>,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self { enabled: true, domain: DEFAULT_DOMAIN.to_owned(), resolved: true, listen: None }
    }
}

/// Reads the table, whose keys are known.
pub(super) fn read(table: &Table<'_>, report: &mut Report<'_>) -> DnsSettings {
    let mut settings = DnsSettings::default();
    for (key, target) in [("enabled", &mut settings.enabled), ("resolved", &mut settings.resolved)] {
        if let Some(value) = table.get(key).and_then(|item| item.boolean(report)) {
            *target = value;
        }
    }
    if let Some(domain) = table.get("domain").and_then(|item| domain(&item, report)) {
        settings.domain = domain;
    }
    settings.listen = table.get("listen").and_then(|item| socket_address(&item, "127.0.0.53:5353", report));
    settings
}

/// A domain, in lower case and without the final dot.
pub(super) fn domain(item: &Item<'_>, report: &mut Report<'_>) -> Option<String> {
    let text = item.string(report)?;
    let bare = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(known)
    };
    let problem = if bare.len() > DNS_DOMAIN_BYTES_MAX {
        "is too long"
    } else if !bare.split('.').all(is_label) {
        "is not a domain"
    } else {
        return Some(bare.to_ascii_lowercase());
    };
    let remedy = format!(
        "write one such as \"{DEFAULT_DOMAIN}\" or \"vpn.example.org\", of at most {DNS_DOMAIN_BYTES_MAX} bytes"
    );
    report.refuse(&item.place(), problem, remedy);
    None
}

/// An IP address with a port, which is not 0.
pub(super) fn socket_address(item: &Item<'_>, example: &str, report: &mut Report<'_>) -> Option<SocketAddr> {
    let address = item.string(report)?.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    if address.is_none() {
        let remedy = format!("write one such as \"{example}\", or \"[::1]:{}\"", &example[example.len() - 4..]);
        report.refuse(&item.place(), "is not an IP address with a port", remedy);
    }
    address
}
