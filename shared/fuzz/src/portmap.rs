//! What a gateway answers who asks it for port mappings.

use std::net::Ipv4Addr;

use ringlane_shared::limits::{PCP_BYTES_MAX, UPNP_PATH_BYTES_MAX, UPNP_SERVICES_MAX};
use ringlane_shared::wire::pcp::{Answer, parse};
use ringlane_shared::wire::upnp::{Location, parse_action_answer, parse_description, parse_search_answer};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

/// A datagram from a gateway's port 5351.
pub fn pcp(datagram: &[u8]) -> bool {
    let Ok(answer) = parse(datagram) else { return false };
    assert!(datagram.len() <= PCP_BYTES_MAX);
    match answer {
        Answer::PcpMapped { outcome: Ok(grant), .. } => assert!(grant.port > 0 || grant.lifetime == 0),
        Answer::NatPmpMapped { outcome: Ok((port, lifetime)), internal, .. } => {
            assert!(internal.is_some() && (port > 0 || lifetime == 0));
        }
        _ => {}
    }
    true
}

/// An answer to a search, a description, or an answer to an action.
pub fn upnp(bytes: &[u8]) -> bool {
    let base = Location { port: 5000, path: "/root.xml".to_owned() };
    let found = parse_search_answer(bytes, GATEWAY);
    if let Ok(location) = &found {
        check(location);
    }
    let services = parse_description(bytes, &base, GATEWAY);
    if let Ok(services) = &services {
        assert!((1..=UPNP_SERVICES_MAX).contains(&services.len()));
        services.iter().for_each(|service| check(&service.control));
    }
    found.is_ok() || services.is_ok() || parse_action_answer(bytes).is_ok()
}

/// Fit for a request line.
fn check(location: &Location) {
    assert!(location.port > 0 && location.path.starts_with('/') && location.path.len() <= UPNP_PATH_BYTES_MAX);
    assert!(location.path.bytes().all(|byte| byte.is_ascii_graphic()));
}
