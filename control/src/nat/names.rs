//! The configured STUN servers' names, looked up by the system's resolver when the node starts, when the network is another,
//! and every half hour.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use ringlane_shared::config::StunServer;
use ringlane_shared::limits::STUN_ADDRESSES_PER_SERVER_MAX;
use tokio::time::{sleep_until, timeout};
use tracing::debug;

/// Between two looks at a name.
const AGAIN: Duration = Duration::from_secs(1800);
/// The same when it could not be looked up.
const RETRY: Duration = Duration::from_secs(30);
/// How long a lookup may take.
const LIMIT: Duration = Duration::from_secs(10);

type LookUp = BoxFuture<'static, (usize, Option<Vec<SocketAddr>>)>;

pub(super) struct Names {
    servers: Vec<StunServer>,
    addresses: Vec<Vec<SocketAddr>>,
    due: Vec<Instant>,
    /// One for each server at most.
    under_way: BTreeSet<usize>,
    look_ups: FuturesUnordered<LookUp>,
}

impl Names {
    pub(super) fn new(servers: &[StunServer], now: Instant) -> Self {
        Self {
            addresses: vec![Vec::new(); servers.len()],
            due: vec![now; servers.len()],
            servers: servers.to_vec(),
            under_way: BTreeSet::new(),
            look_ups: FuturesUnordered::new(),
        }
    }

    pub(super) fn look_up_again(&mut self, now: Instant) {
        self.due.fill(now);
    }

    /// Comes back when a server has other addresses than before. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) {
        loop {
            let now = Instant::now();
            self.begin(now);
            let idle = |(position, _): &(usize, &Instant)| !self.under_way.contains(position);
            let due = self.due.iter().enumerate().filter(idle).map(|(_, due)| *due).min();
            let again = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((position, found)) = self.look_ups.next() => {
                    self.under_way.remove(&position);
                    self.due[position] = Instant::now() + if found.is_some() { AGAIN } else { RETRY };
                    // What a name was last known to stand for is better than nothing.
                    let Some(found) = found else { continue };
                    if self.addresses[position] != found {
                        self.addresses[position] = found;
                        return;
                    }
                }
                () = again => {}
            }
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().flatten().copied()
    }

    fn begin(&mut self, now: Instant) {
        for (position, server) in self.servers.iter().enumerate() {
            if self.due[position] <= now && self.under_way.insert(position) {
                let server = server.clone();
                self.look_ups.push(Box::pin(async move { (position, look_up(&server).await) }));
            }
        }
    }
}

async fn look_up(server: &StunServer) -> Option<Vec<SocketAddr>> {
    let found = timeout(LIMIT, tokio::net::lookup_host((server.host.as_str(), server.port))).await;
    let error = match found {
        Ok(Ok(found)) => {
            let mut found: Vec<_> = found.collect();
            // A resolver that turns them about tells nothing new.
            found.sort_unstable();
            found.dedup();
            found.truncate(STUN_ADDRESSES_PER_SERVER_MAX);
            return Some(found);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    debug!(server = %server, error, "a STUN server's name cannot be looked up");
    None
}
