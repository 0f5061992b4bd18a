//! What of the underlay may be used, and through what: `control.scope`, `control.proxy`, and the certificate of `/wss`.

use std::fmt;
use std::path::PathBuf;

use super::DiscoverySettings;
use super::discovery::{DhtMode, RouterUrl};
use super::error::Report;
use super::tree::{Item, Place, Table};
use crate::host::BeforePort;
use crate::limits::{PROXY_CREDENTIAL_BYTES_MAX, PROXY_URL_BYTES_MAX};

/// With whom a node has anything to do on the underlay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scope {
    /// With any address.
    #[default]
    Any,
    /// With addresses of directly connected networks only.
    Lan,
}

const SCOPES: [(&str, Scope); 2] = [("any", Scope::Any), ("lan", Scope::Lan)];

impl Scope {
    /// Its word in a configuration.
    pub fn name(self) -> &'static str {
        SCOPES.iter().find(|(_, scope)| *scope == self).map_or("", |(word, _)| word)
    }
}

/// What of the underlay may be used, and through what.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WebSettings {
    /// With whom we have anything to do.
    pub scope: Scope,
    /// What all outgoing TCP connections go through; `None` for none.
    pub proxy: Option<ProxySettings>,
    /// What listeners of `/wss` show; `None` for a certificate made at the start, which nobody signed.
    pub certificate: Option<CertificateFiles>,
}

/// PEM files of a TLS server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    /// The certificate, and those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// An HTTP proxy that is asked to CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxySettings {
    /// A name or IP address; IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `user:password`, if the proxy asks for them. Never shown.
    pub credentials: Option<String>,
}

impl ProxySettings {
    /// Reads `http://[user:password@]host:port`; the error says what is wrong with it, and repeats nothing of it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > PROXY_URL_BYTES_MAX {
            return Err("is too long");
        }
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some(("https", _)) => return Err("asks for TLS to the proxy, which is not supported"),
            Some(_) => return Err("is not a proxy of a kind that is supported"),
            None => return Err("is not a URL"),
        };
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let credentials = user.map(credentials).transpose()?;
        if authority.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err("does not end in a port");
        }
        let url = RouterUrl::parse(&format!("http://{authority}")).filter(|url| url.path.is_empty());
        let url = url.ok_or("has no usable host")?;
        Ok(Self { host: url.host, port: url.port, credentials })
    }
}

/// Where it is; not who we are to it.
impl fmt::Display for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", BeforePort(&self.host), self.port)
    }
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProxySettings").field(&self.to_string()).finish()
    }
}

/// `user:password` from the URL's own writing, in which `%XX` stands for a byte.
fn credentials(text: &str) -> Result<String, &'static str> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let (user, password) = (percent_decoded(user)?, percent_decoded(password)?);
    let is_long = |part: &str| part.len() > PROXY_CREDENTIAL_BYTES_MAX;
    if user.is_empty() || user.contains(':') || is_long(&user) || is_long(&password) {
        return Err("has a user name or password that cannot be used");
    }
    let both = format!("{user}:{password}");
    if both.chars().any(char::is_control) { Err("has control characters in user name or password") } else { Ok(both) }
}

fn percent_decoded(text: &str) -> Result<String, &'static str> {
    const FLAW: &str = "has a user name or password with a '%' that no two hexadecimal digits follow";
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit().ok_or(FLAW)?, digit().ok_or(FLAW)?);
                (high << 4 | low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| "has a user name or password that is not UTF-8")
}

/// The keys of `[control]`, those of `discovery` read already: a node that keeps to its LAN looks for nobody elsewhere.
pub(super) fn control(table: &Table<'_>, discovery: &mut DiscoverySettings, report: &mut Report<'_>) -> WebSettings {
    let scope = table.get("scope").and_then(|item| item.word(&SCOPES, report)).unwrap_or_default();
    let proxy = table.get("proxy").and_then(|item| proxy(&item, report));
    let settings = WebSettings { scope, proxy, certificate: certificate(table, report) };
    if scope == Scope::Lan {
        lan(table, discovery, report);
    }
    settings
}

fn proxy(item: &Item<'_>, report: &mut Report<'_>) -> Option<ProxySettings> {
    let parsed = ProxySettings::parse(item.string(report)?);
    let refuse = |flaw| {
        let remedy = "write \"http://proxy.example:3128\" or \"http://user:password@proxy.example:3128\"";
        report.refuse(&Place { value: None, ..item.place() }, flaw, remedy);
    };
    parsed.map_err(refuse).ok()
}

fn certificate(table: &Table<'_>, report: &mut Report<'_>) -> Option<CertificateFiles> {
    let mut file = |key| {
        let item = table.get(key)?;
        let text = item.string(report)?;
        if text.is_empty() || text.contains('\0') {
            report.refuse(&item.place(), "is not a file name", "write the path of a PEM file, or remove the key");
        }
        Some((super::beside(report.file(), text), item.place()))
    };
    match (file("tls_certificate"), file("tls_key")) {
        (Some((certificate, _)), Some((key, _))) => Some(CertificateFiles { certificate, key }),
        (Some((_, place)), None) if table.get("tls_key").is_none() => {
            report.refuse(&place, "has no key", "add tls_key, or remove tls_certificate");
            None
        }
        (None, Some((_, place))) if table.get("tls_certificate").is_none() => {
            report.refuse(&place, "has no certificate", "add tls_certificate, or remove tls_key");
            None
        }
        _ => None,
    }
}

/// What leads beyond the LAN by its nature must not be asked for; what is on unless it is switched off, is off.
fn lan(table: &Table<'_>, discovery: &mut DiscoverySettings, report: &mut Report<'_>) {
    let has_list = |key: &str| match key {
        "bootstrap" => !discovery.bootstrap.is_empty(),
        _ => !discovery.delegated_routers.is_empty(),
    };
    for key in ["bootstrap", "delegated_routers"] {
        if let Some(item) = table.get(key).filter(|_| has_list(key)) {
            refuse_beyond_lan(&item, key, report);
        }
    }
    if let Some(item) = table.get("dht").filter(|_| discovery.dht != DhtMode::Off) {
        refuse_beyond_lan(&item, "dht", report);
    }
    if let Some(item) = table.get("proxy") {
        let place = Place { value: None, ..item.place() };
        let remedy = "remove proxy, or set scope = \"any\"";
        report.refuse(&place, "leads beyond the LAN, and control.scope is \"lan\"", remedy);
    }
    discovery.dht = DhtMode::Off;
}

/// Says that what a key names cannot be reached in a scope of the LAN.
pub(super) fn refuse_beyond_lan(item: &Item<'_>, key: &str, report: &mut Report<'_>) {
    let remedy = format!("remove {key}, or set scope = \"any\"");
    report.refuse(&item.place(), "leads beyond the LAN, and control.scope is \"lan\"", remedy);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_url_says_where_it_is_and_who_we_are_and_shows_only_the_former() {
        let parsed = ProxySettings::parse("http://me:p%40ss%3a%20word@proxy.example:3128").unwrap();
        assert_eq!((parsed.host.as_str(), parsed.port), ("proxy.example", 3128));
        assert_eq!(parsed.credentials.as_deref(), Some("me:p@ss: word"));
        assert_eq!(parsed.to_string(), "http://proxy.example:3128");
        assert!(!format!("{parsed:?}").contains("word"));
        let v6 = ProxySettings::parse("http://[2001:db8::1]:80/").unwrap();
        assert_eq!((v6.host.as_str(), v6.credentials.as_ref()), ("2001:db8::1", None));
        assert_eq!(v6.to_string(), "http://[2001:db8::1]:80");
        for bad in [
            "proxy.example:3128",
            "http://proxy.example",
            "https://proxy.example:443",
            "socks5://proxy.example:1080",
            "http://proxy.example:3128/path",
            "http://:3128",
            "http://a b:3128",
            "http://proxy.example:0",
            "http://:password@proxy.example:3128",
            "http://a%3ab:c@proxy.example:3128",
            "http://a%0d:c@proxy.example:3128",
            "http://a%zz:c@proxy.example:3128",
            "http://a%f:c@proxy.example:3128",
            "http://a%ff:c@proxy.example:3128",
        ] {
            assert!(ProxySettings::parse(bad).is_err(), "{bad}");
        }
    }
}
