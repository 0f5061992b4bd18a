//! Asking HTTP servers where peers are: delegated routers, and a Kubo node's RPC.
//!
//! Servers see which peers we look for, so none is asked that the configuration does not name (or, with the public
//! bootstrap list, Hyprspace's own). The connections are ordinary ones of this host: a configured URL may lead anywhere,
//! private addresses included. Everything is polled by whoever owns it; nothing outlives it.

mod http;
mod kubo;
mod pin;

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::config::RouterSettings;
use ringlane_shared::limits::{DELEGATED_ROUTERS_MAX, ROUTING_REQUESTS_MAX, SEARCHES_MAX};
use ringlane_shared::wire::routing::{peer_addresses, peer_request};

use self::http::Server;
pub(crate) use self::kubo::{Kubo, KuboAnswer};
use crate::swarm::Resolver;
use crate::swarm::web::Proxy;

/// What a router may answer with; Hyprspace's order.
const ACCEPT: &str = "application/x-ndjson,application/json";

const _: () = assert!(ROUTING_REQUESTS_MAX >= SEARCHES_MAX * DELEGATED_ROUTERS_MAX);

/// The delegated routers of a node.
pub(crate) struct Routers {
    servers: Vec<Server>,
    under_way: FuturesUnordered<BoxFuture<'static, (PeerId, Vec<Multiaddr>)>>,
}

impl Routers {
    /// At most [`DELEGATED_ROUTERS_MAX`] are used.
    pub(crate) fn new(routers: &[RouterSettings], resolver: Resolver, proxy: Option<&Proxy>) -> Self {
        let servers = routers.iter().take(DELEGATED_ROUTERS_MAX);
        Self {
            servers: servers.map(|router| Server::new(router, resolver.clone(), proxy.cloned())).collect(),
            under_way: FuturesUnordered::new(),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Asks all of them for `peer`. Returns how many: each ends in one [`Self::poll`].
    pub(crate) fn search(&mut self, peer: PeerId) -> usize {
        let room = ROUTING_REQUESTS_MAX.saturating_sub(self.under_way.len());
        let asked = self.servers.iter().take(room);
        let count = asked.len();
        for server in asked {
            let server = server.clone();
            self.under_way.push(Box::pin(async move {
                let addresses = match server.get(&peer_request(&peer), ACCEPT).await {
                    Ok(body) => peer_addresses(&body, &peer),
                    Err(error) => {
                        tracing::debug!(%peer, router = %server.url(), %error, "a delegated router does not answer");
                        Vec::new()
                    }
                };
                (peer, addresses)
            }));
        }
        count
    }

    /// What one router answered of one peer; nothing if it failed. Cancel-safe.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(PeerId, Vec<Multiaddr>)> {
        match self.under_way.poll_next_unpin(cx) {
            Poll::Ready(Some(answer)) => Poll::Ready(answer),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
