//! A Kubo node's RPC: whom it is connected to, and its bootstrap list.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::config::{RouterSettings, RouterUrl};
use ringlane_shared::wire::routing::{kubo_bootstrap, kubo_swarm_peers};

use super::http::Server;
use crate::swarm::Resolver;

const SWARM_PEERS: &str = "/api/v0/swarm/peers";
const BOOTSTRAP: &str = "/api/v0/bootstrap";

/// What it said.
#[derive(Debug)]
pub(crate) enum KuboAnswer {
    /// Those of its connections that are of peers of ours.
    Connected(Vec<(PeerId, Multiaddr)>),
    /// Its bootstrap list.
    Bootstrap(Vec<Multiaddr>),
}

/// The Kubo node that `HYPRSPACE_IPFS_API` names.
pub(crate) struct Kubo {
    server: Server,
    under_way: FuturesUnordered<BoxFuture<'static, KuboAnswer>>,
}

impl Kubo {
    pub(crate) fn new(at: SocketAddr, resolver: Resolver) -> Self {
        let url = RouterUrl { https: false, host: at.ip().to_string(), port: at.port(), path: String::new() };
        Self {
            server: Server::new(&RouterSettings { url, pin: None }, resolver, None),
            under_way: FuturesUnordered::new(),
        }
    }

    /// Asks both questions, unless they are being asked. `peers` are ours.
    pub(crate) fn ask(&mut self, peers: HashSet<PeerId>) {
        if !self.under_way.is_empty() {
            return;
        }
        let server = self.server.clone();
        self.under_way.push(Box::pin(async move {
            let body = post(&server, SWARM_PEERS).await;
            KuboAnswer::Connected(kubo_swarm_peers(&body, |peer| peers.contains(peer)))
        }));
        let server = self.server.clone();
        self.under_way
            .push(Box::pin(async move { KuboAnswer::Bootstrap(kubo_bootstrap(&post(&server, BOOTSTRAP).await)) }));
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<KuboAnswer> {
        match self.under_way.poll_next_unpin(cx) {
            Poll::Ready(Some(answer)) => Poll::Ready(answer),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

async fn post(server: &Server, path: &str) -> Vec<u8> {
    let answer = server.post(path).await;
    answer.inspect_err(|error| tracing::debug!(%error, path, "the IPFS node does not answer")).unwrap_or_default()
}
