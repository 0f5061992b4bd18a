//! `[nat]`: how the node finds out what NATs do to it, and what it asks of them.

use std::net::{IpAddr, Ipv6Addr};

use super::error::Report;
use super::tree::Table;
use crate::host::{BeforePort, is_host};
use crate::limits::{ADDRESS_TEXT_BYTES_MAX, STUN_SERVERS_MAX};

/// The settings about NATs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NatSettings {
    /// Whom to ask beside peers what our lane ports look like; at most [`STUN_SERVERS_MAX`].
    pub stun_servers: Vec<StunServer>,
    /// Whether routers are asked for port mappings. If not, none of them sees a packet of ours because of it.
    pub port_mapping: bool,
    /// Whether peers are told where our lane ports are seen from outside, and ports are tried that nobody can name.
    pub punch: bool,
}

impl Default for NatSettings {
    fn default() -> Self {
        Self { stun_servers: Vec::new(), port_mapping: true, punch: true }
    }
}

/// A STUN server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StunServer {
    /// A name or IP address; IPv6 without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

impl StunServer {
    /// Reads `host:port`; an IPv6 address stands in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > ADDRESS_TEXT_BYTES_MAX {
            return None;
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port: &u16| *port != 0)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => {
                host.parse::<Ipv6Addr>().ok()?;
                host
            }
            None => Some(host).filter(|host| is_host(host) && !host.contains(':'))?,
        };
        let is_dialable = host.parse::<IpAddr>().map_or(true, |ip| !ip.is_unspecified() && !ip.is_multicast());
        is_dialable.then(|| Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for StunServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", BeforePort(&self.host), self.port)
    }
}

/// Reads the table, whose keys are known.
pub(super) fn read(table: &Table<'_>, report: &mut Report<'_>) -> NatSettings {
    let mut settings = NatSettings::default();
    if let Some(port_mapping) = table.get("port_mapping").and_then(|item| item.boolean(report)) {
        settings.port_mapping = port_mapping;
    }
    if let Some(punch) = table.get("punch").and_then(|item| item.boolean(report)) {
        settings.punch = punch;
    }
    let items = table.get("stun_servers").and_then(|item| item.list(STUN_SERVERS_MAX, report)).unwrap_or_default();
    for item in items {
        let Some(text) = item.string(report) else { continue };
        match StunServer::parse(text) {
            Some(server) if !settings.stun_servers.contains(&server) => settings.stun_servers.push(server),
            Some(_) => report.refuse(&item.place(), "is listed twice", "remove one of them"),
            None => {
                let remedy = "write one such as \"stun.example:3478\" or \"[2001:db8::1]:3478\"";
                report.refuse(&item.place(), "is not a host and a UDP port", remedy);
            }
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stun_server_is_a_host_and_a_port() {
        for good in ["stun.example:3478", "192.0.2.1:19302", "[2001:db8::1]:3478"] {
            assert_eq!(StunServer::parse(good).unwrap().to_string(), good);
        }
        let long = format!("{}:1", "a".repeat(2000));
        let bad = [
            "stun.example",
            ":3478",
            "h:0",
            "h:99999",
            "2001:db8::1:3478",
            "[::1:1",
            "a b:1",
            "stun:h:1",
            "0.0.0.0:1",
            &long,
        ];
        for bad in bad {
            assert_eq!(StunServer::parse(bad), None, "{bad}");
        }
    }
}
