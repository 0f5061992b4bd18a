//! The admin socket: how `ringlane status` and its siblings talk to a running node.
//!
//! One unix socket per node, `/run/ringlane/<interface>.sock`, mode 0660. A client sends one line of JSON and gets one
//! line of JSON back; then the connection ends. Both lines are bounded.
//!
//! ```text
//! -> {"version":1,"command":"status"}
//! <- {"version":1,"result":{..}}            the struct of `status` that belongs to the command
//! <- {"version":1,"error":"unknown command"}
//! ```
//!
//! | Module | What it is |
//! |---|---|
//! | [`status`] | what the answers contain: the stable schema |
//! | [`AdminServer`] | the control thread's end |
//! | [`request`] | the command line's end, blocking |

mod client;
pub mod discovery;
pub mod mappings;
pub mod nat;
pub mod netcheck;
pub mod obstacle;
pub mod ping;
pub mod relay;
mod server;
pub mod status;
pub mod udp_relay;
pub mod underlay;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::client::{ClientError, request};
pub use self::server::{AdminError, AdminReply, AdminRequest, AdminServer};

/// The version of the protocol and of every schema in [`status`].
///
/// Fields may be added without a new number; none changes its meaning or goes away.
pub const PROTOCOL_VERSION: u32 = 1;

/// What a client may ask for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminCommand {
    /// The node and its peers: [`status::NodeStatus`].
    Status,
    /// All libp2p connections: a list of [`status::ConnectionStatus`].
    Peers,
    /// All inner prefixes: a list of [`status::RouteStatus`].
    Routes,
    /// What Prometheus reads: a string in OpenMetrics' text format.
    Metrics,
    /// Route a network to a peer, until the node ends: answered with `null`.
    RouteAdd {
        /// The network; host bits do not count.
        net: String,
        /// `@name`, a name, or the beginning of an id.
        peer: String,
        /// 0 unless said. A route that is there gets this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metric: Option<u32>,
    },
    /// Route a network no longer: answered with `null`.
    RouteDel {
        /// The network; host bits do not count.
        net: String,
        /// Whose route; all to this network unless said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
    },
    /// What lies between this node and everybody else: [`netcheck::NetcheckStatus`].
    Netcheck,
    /// Ask a peer whether it is there, on every path that packets take: [`ping::PingStatus`], when all have answered or time is
    /// up.
    Ping {
        /// `@name`, a name, the beginning of an id, or a built-in address.
        peer: String,
        /// How long to wait for answers, within bounds.
        timeout_ms: u64,
    },
    /// End the node: answered with `null`, then the node takes its interface down and removes its socket last.
    Stop,
}

/// Where the node that runs `interface` listens, or `None` if that cannot be an interface's name.
pub fn socket_path(interface: &str) -> Option<PathBuf> {
    let named = !interface.is_empty() && interface.len() <= 15 && !interface.contains(['/', '\0']);
    (named && interface != "." && interface != "..")
        .then(|| PathBuf::from("/run/ringlane").join(format!("{interface}.sock")))
}

#[derive(Debug, Serialize, Deserialize)]
struct RequestLine {
    version: u32,
    command: AdminCommand,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_named_after_the_interface_and_never_leaves_its_directory() {
        assert_eq!(socket_path("ring0"), Some(PathBuf::from("/run/ringlane/ring0.sock")));
        for not_a_name in ["", ".", "..", "../x", "a/b", "sixteen-bytes-16"] {
            assert_eq!(socket_path(not_a_name), None, "{not_a_name}");
        }
    }

    #[test]
    fn a_request_line_looks_as_documented() {
        let line = RequestLine { version: PROTOCOL_VERSION, command: AdminCommand::Status };
        assert_eq!(serde_json::to_string(&line).unwrap(), r#"{"version":1,"command":"status"}"#);
        let command = AdminCommand::RouteAdd { net: "10.0.0.0/8".into(), peer: "@b".into(), metric: None };
        let line = serde_json::to_string(&RequestLine { version: PROTOCOL_VERSION, command }).unwrap();
        assert_eq!(line, r#"{"version":1,"command":{"route_add":{"net":"10.0.0.0/8","peer":"@b"}}}"#);
        assert!(serde_json::from_str::<RequestLine>(&line).is_ok());
        let command = AdminCommand::Ping { peer: "site-b".into(), timeout_ms: 1000 };
        let line = serde_json::to_string(&RequestLine { version: PROTOCOL_VERSION, command }).unwrap();
        assert_eq!(line, r#"{"version":1,"command":{"ping":{"peer":"site-b","timeout_ms":1000}}}"#);
    }
}
