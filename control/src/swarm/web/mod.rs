//! libp2p for networks that let nothing pass but the web: WebSockets, with TLS outside or without, and HTTP proxies.
//!
//! ```text
//! /ws     TCP > WebSocket > [swarm key >] TLS or Noise > yamux
//! /wss    TCP > TLS > WebSocket > [swarm key >] TLS or Noise > yamux
//! ```
//!
//! The library's own WebSocket transport is not used: it takes messages of 256 MiB from whoever has not yet said who he is,
//! trusts public authorities only, and forgets the name that an address was looked up from, by which servers tell sites
//! apart.

mod certificate;
mod proxy;
mod stream;
mod tls;
mod transport;

use std::io;

use ringlane_shared::config::{Scope, WebSettings};
use thiserror::Error;

pub use proxy::Proxy;
pub(super) use transport::WebTransport;

use super::names::Resolver;

/// What of the underlay a node uses, and through what. The default: everything, directly, with a certificate made at the
/// start.
#[derive(Clone, Default)]
pub struct Web {
    /// What outgoing TCP goes through.
    pub proxy: Option<Proxy>,
    /// Whether only directly connected networks are dialled and accepted.
    pub is_lan_only: bool,
    pub(super) tls: tls::OuterTls,
}

/// Why `/wss` cannot be listened on.
#[derive(Debug, Error)]
pub enum WebError {
    /// A file cannot be read, or is not PEM.
    #[error("control.{key}: {file}: {error}")]
    File {
        /// `tls_certificate` or `tls_key`.
        key: &'static str,
        /// Its name.
        file: String,
        /// What is wrong with it.
        error: String,
    },
    /// Certificate and key do not fit together, or TLS does not take them.
    #[error("control.tls_certificate and control.tls_key cannot be used: {0}")]
    Certificate(String),
}

impl Web {
    /// Reads the files that the settings name.
    pub fn new(settings: &WebSettings, resolver: Resolver) -> Result<Self, WebError> {
        Ok(Self {
            proxy: settings.proxy.clone().map(|proxy| Proxy::new(proxy, resolver)),
            is_lan_only: settings.scope == Scope::Lan,
            tls: tls::OuterTls::new(settings.certificate.as_ref())?,
        })
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}
