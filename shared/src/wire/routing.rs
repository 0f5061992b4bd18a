//! JSON that HTTP servers answer: delegated routers (the IPFS specification "Delegated Routing V1 HTTP API", `GET
//! /routing/v1/peers/{id}`) and Kubo's RPC. Servers are trusted no more than any stranger: what does not fit is left
//! out, and everything is bounded.

use multiaddr::Multiaddr;
use serde::Deserialize;

use crate::config::bootstrap_address;
use crate::id::PeerId;
use crate::identity::parse_peer_id;
use crate::limits::{ADDRESS_TEXT_BYTES_MAX, ROUTING_ADDRESSES_MAX, ROUTING_ANSWER_BYTES_MAX};

/// The query that Hyprspace's library sends along: which of a peer's protocols we would hear of.
const QUERY: &str = "filter-protocols=unknown,transport-bitswap";
/// The `libp2p-key` codec of a version 1 CID.
const CID_V1_LIBP2P_KEY: [u8; 2] = [0x01, 0x72];

/// What to ask a delegated router for `peer`: path and query, to be put behind the base URL's path.
pub fn peer_request(peer: &PeerId) -> String {
    let cid = [&CID_V1_LIBP2P_KEY[..], &peer.to_bytes()].concat();
    format!("/routing/v1/peers/{}?{QUERY}", multibase::encode(multibase::Base::Base32Lower, cid))
}

/// A record, or a list of them: `application/json` is one list, `application/x-ndjson` a record per line.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(rename = "Addrs")]
    addresses: Option<Vec<String>>,
    #[serde(rename = "Peers")]
    peers: Option<Vec<Answer>>,
}

/// The addresses that a router's answer gives for `peer`, each once and without `/p2p/`, at most
/// [`ROUTING_ADDRESSES_MAX`]. Records of other peers are left out, and all that follows the first malformed one.
pub fn peer_addresses(body: &[u8], peer: &PeerId) -> Vec<Multiaddr> {
    let mut found = Vec::new();
    if body.len() > ROUTING_ANSWER_BYTES_MAX {
        return found;
    }
    for answer in serde_json::Deserializer::from_slice(body).into_iter::<Answer>().map_while(Result::ok) {
        for record in answer.peers.iter().flatten().chain([&answer]) {
            if record.id.as_deref().and_then(|id| parse_peer_id(id).ok()) == Some(*peer) {
                record.addresses.iter().flatten().for_each(|text| learn(&mut found, text, peer));
            }
        }
    }
    found
}

fn learn(found: &mut Vec<Multiaddr>, text: &str, peer: &PeerId) {
    if found.len() == ROUTING_ADDRESSES_MAX || text.len() > ADDRESS_TEXT_BYTES_MAX {
        return;
    }
    let Ok(mut address) = text.parse::<Multiaddr>() else { return };
    if let Some(multiaddr::Protocol::P2p(named)) = address.iter().last() {
        if named != *peer {
            return;
        }
        address.pop();
    }
    if !address.is_empty() && !found.contains(&address) {
        found.push(address);
    }
}

#[derive(Deserialize)]
struct SwarmPeers {
    #[serde(rename = "Peers")]
    peers: Option<Vec<SwarmPeer>>,
}

#[derive(Deserialize)]
struct SwarmPeer {
    #[serde(rename = "Addr")]
    address: String,
    #[serde(rename = "Peer")]
    peer: String,
}

/// Those of Kubo's connections (`/api/v0/swarm/peers`) that are `wanted`, with the address; at most
/// [`ROUTING_ADDRESSES_MAX`].
pub fn kubo_swarm_peers(body: &[u8], wanted: impl Fn(&PeerId) -> bool) -> Vec<(PeerId, Multiaddr)> {
    let Some(SwarmPeers { peers: Some(peers) }) = bounded(body) else { return Vec::new() };
    let peer = |SwarmPeer { address, peer }: SwarmPeer| {
        let id = parse_peer_id(&peer).ok().filter(&wanted)?;
        let mut found = Vec::new();
        learn(&mut found, &address, &id);
        Some((id, found.pop()?))
    };
    peers.into_iter().filter_map(peer).take(ROUTING_ADDRESSES_MAX).collect()
}

#[derive(Deserialize)]
struct Bootstrap {
    #[serde(rename = "Peers")]
    peers: Option<Vec<String>>,
}

/// Kubo's bootstrap list (`/api/v0/bootstrap`): addresses that end in a peer id; at most [`ROUTING_ADDRESSES_MAX`].
pub fn kubo_bootstrap(body: &[u8]) -> Vec<Multiaddr> {
    let Some(Bootstrap { peers: Some(peers) }) = bounded(body) else { return Vec::new() };
    let addresses = peers.iter().filter_map(|text| bootstrap_address(text)).map(|(_, address)| address);
    addresses.take(ROUTING_ADDRESSES_MAX).collect()
}

fn bounded<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Option<T> {
    if body.len() > ROUTING_ANSWER_BYTES_MAX { None } else { serde_json::from_slice(body).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";
    const OTHER: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";

    fn addresses(body: &str) -> Vec<String> {
        let found = peer_addresses(body.as_bytes(), &PEER.parse().unwrap());
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_peer_is_asked_for_by_its_cid_in_base_32() {
        let request = peer_request(&PEER.parse().unwrap());
        let cid = request.strip_prefix("/routing/v1/peers/").unwrap().split('?').next().unwrap();
        assert_eq!(parse_peer_id(cid).unwrap().to_string(), PEER);
        assert!(cid.starts_with("bafzaaj"), "{cid}");
    }

    #[test]
    fn both_content_types_are_read_and_only_the_peers_own_records_count() {
        let record = |id: &str, port: u16| {
            format!(r#"{{"Schema":"peer","ID":"{id}","Addrs":["/ip4/192.0.2.1/tcp/{port}","x"],"Protocols":[]}}"#)
        };
        let (a, b, other) = (record(PEER, 1), record(PEER, 2), record(OTHER, 3));
        let expected = ["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/2"];
        assert_eq!(addresses(&format!(r#"{{"Peers":[{a},{other},{b}]}}"#)), expected);
        assert_eq!(addresses(&format!("{a}\n{other}\n{b}\n")), expected);
        assert_eq!(addresses(&format!("{a}\n{{\n{b}\n")), expected[..1], "nothing behind what is broken");
    }

    #[test]
    fn an_address_names_this_peer_or_none_and_there_are_never_too_many() {
        let with = |list: &str| addresses(&format!(r#"{{"ID":"{PEER}","Addrs":{list}}}"#));
        let list = format!(r#"["/ip4/192.0.2.1/tcp/1/p2p/{PEER}","/ip4/192.0.2.1/tcp/2/p2p/{OTHER}"]"#);
        assert_eq!(with(&list), ["/ip4/192.0.2.1/tcp/1"]);
        let many: Vec<_> = (1..1000).map(|port| format!("\"/ip4/192.0.2.1/tcp/{port}\"")).collect();
        assert_eq!(with(&format!("[{}]", many.join(","))).len(), ROUTING_ADDRESSES_MAX);
        assert!(with("null").is_empty());
        let deep = "[".repeat(1000);
        assert!(addresses(&format!(r#"{{"Peers":{deep}"#)).is_empty());
    }

    #[test]
    fn kubo_says_whom_it_is_connected_to_and_how_it_starts() {
        let body = format!(
            r#"{{"Peers":[{{"Addr":"/ip4/192.0.2.1/tcp/1","Peer":"{PEER}"}},{{"Addr":"/ip4/192.0.2.2/tcp/1","Peer":"{OTHER}"}}]}}"#
        );
        let peers = kubo_swarm_peers(body.as_bytes(), |peer| peer.to_string() == OTHER);
        assert_eq!(peers, [(OTHER.parse().unwrap(), "/ip4/192.0.2.2/tcp/1".parse().unwrap())]);
        let body = format!(r#"{{"Peers":["/dnsaddr/b.example/p2p/{PEER}","nonsense","/ip4/192.0.2.1/tcp/1"]}}"#);
        assert_eq!(kubo_bootstrap(body.as_bytes()).len(), 1);
        assert!(kubo_bootstrap(b"{").is_empty() && kubo_swarm_peers(b"[]", |_| true).is_empty());
    }
}
