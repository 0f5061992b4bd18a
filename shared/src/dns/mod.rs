//! The names of a network: which there are, and the answer to every question about them. No socket, no clock.
//!
//! ```text
//! <node>.<zone>              the node's built-in addresses          <zone>:  <interface>.<domain>.
//! <service>.<node>.<zone>    the IPv6 address of its service                 <domain>. for the interface "hyprspace"
//! ```
//!
//! A node is written as its peer id (base58 or CID) or by name: the host's own name stands for this node, and before any
//! peer of that name. All names are aliases of those with the CID in base 36. They are those of Hyprspace; unlike there, the
//! type asked for is honoured, case does not matter (but in services, of whose spelling their address is made), what does
//! not exist is said not to, and addresses have names.
//!
//! All is static: made from the configuration alone, so names survive peers being offline.

mod answer;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hickory_proto::ProtoError;
use hickory_proto::rr::Name;
use multibase::Base;
use thiserror::Error;

pub use self::answer::Transport;

use crate::id::PeerId;
use crate::identity::{builtin_ipv4, builtin_ipv6, parse_peer_id};

/// The interface whose networks' names have no label for it.
const UNNAMED_INTERFACE: &str = "hyprspace";

/// Where the reverse zones of built-in addresses begin: 100.64.0.0/16 and fd00:6879:7072:7370::/64.
const REVERSE_ZONES: [&str; 2] = ["64.100.in-addr.arpa.", "0.7.3.7.2.7.0.7.9.7.8.6.0.0.d.f.ip6.arpa."];

/// Where the name server of an interface listens, as Hyprspace derives it: an address of the loopback network and a port
/// that the interface's name is mixed into.
pub fn listen_address(interface: &str) -> SocketAddr {
    let (mut octets, mut port) = ([127, 80, 1, 53], 5380);
    for (position, byte) in interface.bytes().enumerate() {
        octets[position % 3 + 1] ^= byte;
        port = (port + u16::from(byte)) % 40_000 + 5_000;
    }
    SocketAddr::new(Ipv4Addr::from(octets).into(), port)
}

/// What a zone is made from.
#[derive(Clone, Copy, Debug)]
pub struct ZoneConfig<'a> {
    /// The TUN interface.
    pub interface: &'a str,
    /// `dns.domain`.
    pub domain: &'a str,
    /// The host's name, which stands for this node; may be empty.
    pub host_name: &'a str,
    /// This node.
    pub own: PeerId,
}

/// Why a network has no names: interface and domain are at fault.
#[derive(Debug, Error)]
#[error("{zone:?} cannot be the end of a name: {source}")]
pub struct ZoneError {
    zone: String,
    source: ProtoError,
}

/// One node as DNS knows it.
#[derive(Clone, Debug)]
struct Node {
    id: PeerId,
    /// The CID in base 36: the label its own name begins with.
    cid: String,
    /// The name it is found by from its addresses.
    preferred: Name,
}

/// The names of one network. Owner: control; never changes.
#[derive(Clone, Debug)]
pub struct Zone {
    origin: Name,
    reverse: Vec<Name>,
    /// This node, then its peers.
    nodes: Vec<Node>,
    positions: BTreeMap<PeerId, usize>,
    /// What is written for a node, in lower case.
    labels: BTreeMap<Vec<u8>, usize>,
    /// Names of addresses.
    addresses: BTreeMap<Name, usize>,
    unusable: Vec<String>,
}

impl Zone {
    /// The zone of a network; `peers` are the configured names, which may be empty, and ids. Of two peers of one name the
    /// later has it.
    pub fn new<'a>(
        config: ZoneConfig<'_>,
        peers: impl IntoIterator<Item = (&'a str, PeerId)>,
    ) -> Result<Self, ZoneError> {
        let zone = zone_name(config.interface, config.domain);
        let failed = |source| ZoneError { zone: zone.clone(), source };
        let labels = zone.strip_suffix('.').unwrap_or(&zone).split('.');
        let origin = Name::from_labels(labels.map(str::as_bytes)).map_err(failed)?.to_lowercase();
        let reverse = REVERSE_ZONES.map(Name::from_ascii).into_iter().collect::<Result<_, _>>().map_err(failed)?;
        let mut this = Self {
            origin,
            reverse,
            nodes: Vec::new(),
            positions: BTreeMap::new(),
            labels: BTreeMap::new(),
            addresses: BTreeMap::new(),
            unusable: Vec::new(),
        };
        let peers: Vec<(&str, PeerId)> = peers.into_iter().collect();
        this.add(config.own).map_err(failed)?;
        for (_, id) in &peers {
            this.add(*id).map_err(failed)?;
        }
        for (name, id) in peers {
            this.name(name, &id);
        }
        // A host name may be that of the host in some domain.
        let host = config.host_name.split('.').next().unwrap_or_default();
        this.name(host, &config.own);
        Ok(this)
    }

    /// What all names end in, with the final dot.
    pub fn origin(&self) -> String {
        self.origin.to_ascii()
    }

    /// Configured names that no question can contain: too long for DNS, or with a dot inside.
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }

    fn add(&mut self, id: PeerId) -> Result<(), ProtoError> {
        let cid = multibase::encode(Base::Base36Lower, [&[1, 0x72], &id.to_bytes()[..]].concat());
        let preferred = self.origin.prepend_label(cid.as_str())?;
        let position = self.nodes.len();
        // Whoever holds these labels is meant by them, not a peer of such a name.
        self.labels.insert(cid.clone().into_bytes(), position);
        self.labels.insert(id.to_base58().to_ascii_lowercase().into_bytes(), position);
        self.positions.insert(id, position);
        for address in [IpAddr::from(builtin_ipv4(&id)), builtin_ipv6(&id).into()] {
            self.addresses.insert(Name::from(address), position);
        }
        self.nodes.push(Node { id, cid, preferred });
        Ok(())
    }

    fn name(&mut self, name: &str, id: &PeerId) {
        let Some(position) = self.positions.get(id).copied() else { return };
        if name.is_empty() {
            return;
        }
        let label = name.to_lowercase().into_bytes();
        let preferred = self.origin.prepend_label(label.as_slice());
        let (false, Ok(preferred)) = (label.contains(&b'.'), preferred) else {
            self.unusable.push(name.to_owned());
            return;
        };
        if self.is_id(&label) {
            return;
        }
        if let Some(before) = self.labels.insert(label, position)
            && let (true, Some(before)) = (before != position, self.nodes.get_mut(before))
        {
            // It has lost that name.
            if let Ok(own) = self.origin.prepend_label(before.cid.as_str()) {
                before.preferred = own;
            }
        }
        if let Some(node) = self.nodes.get_mut(position) {
            node.preferred = preferred;
        }
    }

    /// Whether this label is how a known node's id is written, in lower case.
    fn is_id(&self, label: &[u8]) -> bool {
        let node = self.labels.get(label).and_then(|position| self.nodes.get(*position));
        node.is_some_and(|node| {
            node.cid.as_bytes() == label || node.id.to_base58().to_ascii_lowercase().as_bytes() == label
        })
    }

    /// The node that a label stands for.
    fn node(&self, label: &[u8]) -> Option<&Node> {
        let text = str::from_utf8(label).ok()?;
        // An id may also be written in another base; one that is not known may be somebody's name.
        let by_id = parse_peer_id(text).ok().and_then(|id| self.positions.get(&id));
        let position = by_id.or_else(|| self.labels.get(text.to_lowercase().as_bytes()))?;
        self.nodes.get(*position)
    }
}

/// What the names of a network end in, with the final dot.
pub fn zone_name(interface: &str, domain: &str) -> String {
    if interface == UNNAMED_INTERFACE { format!("{domain}.") } else { format!("{interface}.{domain}.") }
}
