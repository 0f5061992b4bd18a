//! Environment variables that Hyprspace's units set, and that mean the same here.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// What the environment says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Environment {
    /// `HYPRSPACE_SWARM_KEY`: the file with the key of a private libp2p network. Goes before `control.swarm_key`.
    pub swarm_key: Option<PathBuf>,
    /// `HYPRSPACE_IPFS_API`: the multiaddress of a Kubo node's RPC.
    pub ipfs_api: Option<String>,
}

impl Environment {
    /// Reads a process's environment by `variable`. Empty variables count as absent.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        Self {
            swarm_key: set("HYPRSPACE_SWARM_KEY").map(PathBuf::from),
            ipfs_api: set("HYPRSPACE_IPFS_API").map(|value| value.to_string_lossy().into_owned()),
        }
    }
}

/// Where `/ip4/A/tcp/P` (or `/ip6`) leads; other addresses mean nothing to us.
pub(crate) fn kubo_address(text: &str) -> Option<SocketAddr> {
    let address: Multiaddr = text.parse().ok()?;
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match (parts.next(), parts.next()) {
        (Some(Protocol::Tcp(port)), None | Some(Protocol::Http)) if port != 0 => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_no_variable() {
        let read = Environment::read(|name| Some(if name == "HYPRSPACE_IPFS_API" { "/ip4/…" } else { "" }.into()));
        assert_eq!(read, Environment { swarm_key: None, ipfs_api: Some("/ip4/…".into()) });
    }

    #[test]
    fn a_kubo_node_is_where_its_multiaddress_says() {
        assert_eq!(kubo_address("/ip4/127.0.0.1/tcp/5001"), "127.0.0.1:5001".parse().ok());
        assert_eq!(kubo_address("/ip6/::1/tcp/5001/http"), "[::1]:5001".parse().ok());
        for bad in ["127.0.0.1:5001", "/ip4/127.0.0.1/udp/5001", "/dns4/a/tcp/1", "/ip4/127.0.0.1/tcp/0"] {
            assert_eq!(kubo_address(bad), None, "{bad}");
        }
    }
}
