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

use crate::admin::netcheck::StunServerStatus;

/// Between two looks at a name.
const AGAIN: Duration = Duration::from_secs(1800);
/// The same when it could not be looked up.
const RETRY: Duration = Duration::from_secs(30);
/// How long a lookup may take.
const LIMIT: Duration = Duration::from_secs(10);

type LookUp = BoxFuture<'static, (usize, Result<Vec<SocketAddr>, String>)>;

pub(super) struct Names {
    servers: Vec<StunServer>,
    addresses: Vec<Vec<SocketAddr>>,
    /// Why each could not be looked up the last time.
    problems: Vec<Option<String>>,
    due: Vec<Instant>,
    /// One for each server at most.
    under_way: BTreeSet<usize>,
    look_ups: FuturesUnordered<LookUp>,
}

impl Names {
    pub(super) fn new(servers: &[StunServer], now: Instant) -> Self {
        Self {
            addresses: vec![Vec::new(); servers.len()],
            problems: vec![None; servers.len()],
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
                    self.due[position] = Instant::now() + if found.is_ok() { AGAIN } else { RETRY };
                    // What a name was last known to stand for is better than nothing.
                    let found = match found {
                        Ok(found) => found,
                        Err(problem) => {
                            self.problems[position] = Some(problem);
                            continue;
                        }
                    };
                    self.problems[position] = None;
                    if self.addresses[position] != found {
                        self.addresses[position] = found;
                        return;
                    }
                }
                () = again => {}
            }
        }
    }

    /// Where the servers are, and which of them is there.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (u16, SocketAddr)> {
        let of_servers = (0..).zip(&self.addresses);
        of_servers.flat_map(|(server, addresses)| addresses.iter().map(move |address| (server, *address)))
    }

    /// What became of each name.
    pub(super) fn status(&self) -> impl Iterator<Item = StunServerStatus> {
        let of_servers = self.servers.iter().zip(&self.addresses).zip(&self.problems);
        of_servers.map(|((server, addresses), problem)| StunServerStatus {
            server: server.to_string(),
            addresses: addresses.clone(),
            problem: problem.clone(),
        })
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

/// Where a server is, or why that is not known.
pub(crate) async fn look_up(server: &StunServer) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(LIMIT, tokio::net::lookup_host((server.host.as_str(), server.port))).await;
    let problem = match found {
        Ok(Ok(found)) => {
            let mut found: Vec<_> = found.collect();
            // A resolver that turns them about tells nothing new.
            found.sort_unstable();
            found.dedup();
            found.truncate(STUN_ADDRESSES_PER_SERVER_MAX);
            return Ok(found);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    debug!(server = %server, problem, "a STUN server's name cannot be looked up");
    Err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_nobody_knows_is_told_from_one_that_stands_for_an_address() {
        // The resolver is asked for neither.
        let servers = ["[::1]:3478", "127.0.0.1:3479"].map(|server| StunServer::parse(server).unwrap());
        let mut names = Names::new(&servers, Instant::now());
        while names.addresses().count() < 2 {
            names.next().await;
        }
        assert!(names.status().all(|server| server.addresses.len() == 1 && server.problem.is_none()));
        names.problems[0] = Some("nobody knows it".to_owned());
        let told: Vec<_> = names.status().map(|server| (server.server, server.problem)).collect();
        assert_eq!(
            told,
            [("[::1]:3478".to_owned(), Some("nobody knows it".to_owned())), ("127.0.0.1:3479".to_owned(), None)]
        );
    }
}
