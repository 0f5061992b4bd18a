//! Questions to the name server.

use ringlane_shared::dns::{Transport, Zone, ZoneConfig};
use ringlane_shared::identity::parse_peer_id;
use ringlane_shared::limits::DNS_UDP_ANSWER_BYTES_MAX;

const OWN: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";
const PEER: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";

/// One message, over both transports. Accepted if it is answered with records: the header's count of answers is not 0.
pub fn dns(query: &[u8]) -> bool {
    let (Ok(own), Ok(peer)) = (parse_peer_id(OWN), parse_peer_id(PEER)) else { return false };
    let config = ZoneConfig { interface: "hs0", domain: "hyprspace", host_name: "gateway", own };
    let Ok(zone) = Zone::new(config, [("peerb", peer)]) else { return false };
    let over_udp = zone.answer(query, Transport::Udp);
    let over_tcp = zone.answer(query, Transport::Tcp);
    assert_eq!(over_udp.is_some(), over_tcp.is_some());
    let (Some(over_udp), Some(answer)) = (over_udp, over_tcp) else { return false };
    assert!(over_udp.len() <= usize::from(DNS_UDP_ANSWER_BYTES_MAX));
    for answer in [&over_udp, &answer] {
        assert_eq!(answer[..2], query[..2], "an answer has its question's id");
        assert_eq!(answer[2] & 0x80, 0x80, "an answer says that it is one");
        assert_eq!(zone.answer(answer, Transport::Udp), None, "an answer is not answered");
    }
    answer[6..8] != [0, 0]
}
