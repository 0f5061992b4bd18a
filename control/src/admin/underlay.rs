//! What `status` says of what a node uses of the underlay, and through what.

use ipnet::IpNet;
use ringlane_shared::config::{Scope, WebSettings};
use serde::{Deserialize, Serialize};

/// What of the underlay is used.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UnderlayStatus {
    /// `any`, or `lan`: then only `networks` are dialled and accepted.
    pub scope: String,
    /// The networks this host is directly connected to, if the scope is `lan`.
    pub networks: Vec<IpNet>,
    /// The proxy that outgoing TCP connections go through, without user name and password.
    pub proxy: Option<String>,
}

impl UnderlayStatus {
    /// What these settings, and these networks of the host, come to.
    pub(crate) fn new(settings: &WebSettings, networks: Vec<IpNet>) -> Self {
        Self {
            scope: settings.scope.name().to_owned(),
            networks: if settings.scope == Scope::Lan { networks } else { Vec::new() },
            proxy: settings.proxy.as_ref().map(ToString::to_string),
        }
    }
}
