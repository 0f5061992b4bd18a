//! Single values: from the text a person wrote to the type that proves it well formed.

use std::net::IpAddr;

use ipnet::IpNet;
use multiaddr::{Multiaddr, Protocol};

use crate::id::PeerId;
use crate::identity;
use crate::limits::{ADDRESS_TEXT_BYTES_MAX, INTERFACE_NAME_BYTES_MAX, PEER_NAME_BYTES_MAX};

/// What is wrong with one value, and the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Flaw {
    pub(super) problem: String,
    pub(super) remedy: String,
    /// Well formed, but nothing this version can do: a file written for Hyprspace may contain it.
    pub(super) unsupported: bool,
}

impl Flaw {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into(), unsupported: false }
    }

    fn unsupported(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { unsupported: true, ..Self::new(problem, remedy) }
    }
}

/// A name the kernel accepts for an interface, and takes literally.
pub(super) fn interface_name(text: &str) -> Result<String, Flaw> {
    let problem = if text.is_empty() {
        "is empty"
    } else if text.len() > INTERFACE_NAME_BYTES_MAX {
        "is longer than the kernel allows"
    } else if text == "." || text == ".." {
        "is a directory's name"
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['/', ':', '%']) {
        "contains a character that interface names cannot have"
    } else {
        return Ok(text.to_owned());
    };
    let remedy = format!(
        "set interface to 1 to {INTERFACE_NAME_BYTES_MAX} letters, digits, '-', '_' or '.', for example \"ring0\""
    );
    Err(Flaw::new(problem, remedy))
}

/// A peer's name: anything that can be printed in one line; may be empty.
pub(super) fn peer_name(text: &str) -> Result<String, Flaw> {
    if text.len() > PEER_NAME_BYTES_MAX {
        return Err(Flaw::new("is too long", format!("keep it to {PEER_NAME_BYTES_MAX} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Flaw::new("contains control characters", "use printable characters only"));
    }
    Ok(text.to_owned())
}

pub(super) fn peer_id(text: &str) -> Result<PeerId, Flaw> {
    identity::parse_peer_id(text).map_err(|error| {
        Flaw::new(
            error.to_string(),
            "copy the id that `ringlane init` or `ringlane check` prints on that node (12D3KooW...)",
        )
    })
}

/// What to do with a prefix whose host bits are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HostBits {
    Refuse,
    Clear,
}

/// A network that can stand behind a peer, host bits cleared.
pub(super) fn prefix(text: &str, host_bits: HostBits) -> Result<IpNet, Flaw> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(prefix_flaw(text));
    };
    if net != net.trunc() && host_bits == HostBits::Refuse {
        return Err(Flaw::new("has host bits set", format!("write \"{}\"", net.trunc())));
    }
    let net = net.trunc();
    let address = net.addr();
    let reserved = match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() && net.prefix_len() >= 10 => Some("link-local"),
        IpAddr::V4(v4) if v4.is_link_local() && net.prefix_len() >= 16 => Some("link-local"),
        _ if address.is_loopback() && net.prefix_len() >= 8 => Some("loopback"),
        _ if address.is_multicast() && net.prefix_len() >= 4 => Some("multicast"),
        _ => None,
    };
    match reserved {
        Some(range) => Err(Flaw::new(format!("is in the {range} range, which is never routed to a peer"), "remove it")),
        None => Ok(net),
    }
}

/// Finds out what the writer may have meant.
fn prefix_flaw(text: &str) -> Flaw {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Flaw::new("has no prefix length", format!("write \"{}\"", IpNet::from(address)));
    }
    if let Some((address, length)) = text.split_once('/')
        && let Ok(address) = address.parse::<IpAddr>()
    {
        let longest = IpNet::from(address).prefix_len();
        if let Some(net) = length.parse().ok().and_then(|mask| IpNet::with_netmask(address, mask).ok()) {
            return Flaw::new("has a netmask instead of a prefix length", format!("write \"{}\"", net.trunc()));
        }
        return Flaw::new("has no valid prefix length after the '/'", format!("write one from 0 to {longest}"));
    }
    Flaw::new("is not an IP prefix", "write a network such as \"10.20.0.0/16\" or \"fd00:20::/64\"")
}

/// Reads an address to listen on: `/ip4` or `/ip6`, then `/udp/PORT/quic-v1` or `/tcp/PORT`, which `/ws`, `/wss` or
/// `/tls/ws` may follow. Port 0 lets the kernel choose.
pub(super) fn listen_address(text: &str) -> Result<Multiaddr, Flaw> {
    let example = "write one such as \"/ip4/0.0.0.0/udp/8001/quic-v1\" or \"/ip6/::/tcp/8001\"";
    let address = multiaddress(text, example)?;
    let parts: Vec<_> = address.iter().collect();
    match parts.as_slice() {
        [Protocol::Ip4(_) | Protocol::Ip6(_), _, _, Protocol::Sni(_), ..] => {
            Err(Flaw::new("names a host, which only the one who dials does", "write /tls/ws or /wss"))
        }
        [Protocol::Ip4(_) | Protocol::Ip6(_), transport @ ..] if is_transport(transport) => Ok(address.clone()),
        [Protocol::Ip4(_) | Protocol::Ip6(_), ..] => Err(unknown_transport(example)),
        _ => Err(Flaw::unsupported("does not begin with an IP address", example)),
    }
}

/// Reads an address to dial `peer` at: as for listening, or with a DNS name, and `/p2p/<id>` may follow; that is
/// checked and dropped. Without `peer`, the id is not checked.
pub(super) fn peer_address(text: &str, peer: Option<&PeerId>) -> Result<Multiaddr, Flaw> {
    let example = "write one such as \"/ip4/192.0.2.1/udp/8001/quic-v1\" or \"/dns/site-b.example/tcp/8001\"";
    let mut address = multiaddress(text, example)?;
    if let Some(Protocol::P2p(id)) = address.iter().last() {
        if peer.is_some_and(|peer| *peer != id) {
            return Err(Flaw::new(format!("belongs to another peer ({id})"), "correct the id after /p2p/, or drop it"));
        }
        address.pop();
    }
    let parts: Vec<_> = address.iter().collect();
    let (host, transport) = parts.split_first().ok_or_else(|| Flaw::new("is empty", example))?;
    match host {
        Protocol::Ip4(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() => {
            return Err(Flaw::new("cannot be dialled", "write the peer's own address"));
        }
        Protocol::Ip6(ip) if ip.is_unspecified() || ip.is_multicast() => {
            return Err(Flaw::new("cannot be dialled", "write the peer's own address"));
        }
        Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) => {}
        _ => return Err(Flaw::unsupported("does not begin with an IP address or a DNS name", example)),
    }
    match transport {
        [Protocol::Tcp(0) | Protocol::Udp(0), ..] => Err(Flaw::new("has port 0", "write the port the peer listens on")),
        _ if is_transport(transport) => Ok(address),
        _ => Err(unknown_transport(example)),
    }
}

fn multiaddress(text: &str, example: &str) -> Result<Multiaddr, Flaw> {
    if text.len() > ADDRESS_TEXT_BYTES_MAX {
        return Err(Flaw::new("is too long", example));
    }
    text.parse().map_err(|error: multiaddr::Error| Flaw::new(format!("is not a multiaddress ({error})"), example))
}

fn is_transport(parts: &[Protocol<'_>]) -> bool {
    match parts {
        [Protocol::Tcp(_)] | [Protocol::Udp(_), Protocol::QuicV1] => true,
        [Protocol::Tcp(_), web @ ..] => is_web(web),
        _ => false,
    }
}

/// Whether this is what makes a WebSocket of TCP. `/x-parity-ws/` with a path has the same protocols, and is not used.
fn is_web(parts: &[Protocol<'_>]) -> bool {
    match parts {
        [Protocol::Ws(path) | Protocol::Wss(path)]
        | [Protocol::Tls, Protocol::Ws(path)]
        | [Protocol::Tls, Protocol::Sni(_), Protocol::Ws(path)] => path == "/",
        _ => false,
    }
}

fn unknown_transport(example: &str) -> Flaw {
    Flaw::unsupported("must continue with /udp/PORT/quic-v1 or /tcp/PORT, which /ws or /wss may follow", example)
}

/// The known word that `text` most probably is, if it is close to any.
pub(super) fn closest<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let text = text.to_ascii_lowercase().replace('-', "_");
    let near = words.into_iter().map(|word| (edit_distance(&text, word), word)).min()?;
    (near.0 <= 1 + near.1.len() / 4).then_some(near.1)
}

/// Levenshtein's distance in bytes; anything long is far from everything.
fn edit_distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
