//! Why a peer is not connected, in words for the operator: the last thing that went wrong, until it has been put right.

use std::collections::BTreeMap;

use libp2p::swarm::DialError;
use libp2p::{Multiaddr, PeerId};

use super::address;

const THROWN_OUT: &str = "it ends our connections at once; does its configuration list this node's id?";

/// At most one text per configured peer. The first of an outage is logged.
#[derive(Default)]
pub(super) struct Problems(BTreeMap<PeerId, String>);

impl Problems {
    pub(super) fn of(&self, peer: &PeerId) -> Option<&str> {
        self.0.get(peer).map(String::as_str)
    }

    /// The peer has spoken on a connection.
    pub(super) fn clear(&mut self, peer: &PeerId) {
        if self.is_thrown_out_by(peer) {
            tracing::info!(%peer, "the peer takes our connections now");
        }
        self.0.remove(peer);
    }

    pub(super) fn is_thrown_out_by(&self, peer: &PeerId) -> bool {
        self.of(peer) == Some(THROWN_OUT)
    }

    fn set(&mut self, peer: PeerId, problem: String) {
        match self.0.insert(peer, problem.clone()) {
            None => tracing::info!(%peer, problem, "the peer cannot be reached; trying on"),
            Some(last) if last != problem => tracing::debug!(%peer, problem, "the peer cannot be reached"),
            Some(_) => {}
        }
    }

    /// No address of the peer led to it.
    pub(super) fn handle_dial_error(&mut self, peer: PeerId, error: &DialError) {
        let problem = match error {
            DialError::WrongPeerId { obtained, address } => {
                let address = bare(address, &peer);
                format!("{address}: node {obtained} answers there; is the peer's id or address wrong?")
            }
            DialError::LocalPeerId { address } => {
                format!("{}: this node itself answers there; correct the peer's address", bare(address, &peer))
            }
            DialError::Transport(errors) => {
                let Some((address, error)) = errors.first() else { return };
                let others = match errors.len() - 1 {
                    0 => String::new(),
                    1 => "; one other address failed too".to_owned(),
                    others => format!("; {others} other addresses failed too"),
                };
                format!("{}: {}{others}", bare(address, &peer), innermost(error))
            }
            DialError::Aborted | DialError::DialPeerConditionFalse(_) | DialError::NoAddresses => return,
            error => error.to_string(),
        };
        self.set(peer, problem);
    }

    /// A name in the peer's configured addresses was not found.
    pub(super) fn handle_name_error(&mut self, peer: PeerId, address: &Multiaddr, error: &str) {
        // Logged where it was found out.
        self.0.insert(peer, format!("{address}: the name cannot be looked up: {error}"));
    }

    /// The peer has ended its only connection right after it was made.
    pub(super) fn handle_thrown_out(&mut self, peer: PeerId) {
        self.set(peer, THROWN_OUT.to_owned());
    }
}

fn bare(address: &Multiaddr, peer: &PeerId) -> Multiaddr {
    address::without_peer(address, peer).unwrap_or_else(|_| address.clone())
}

/// The text of the error at the bottom: those above it name the library's layers.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::io;

    use libp2p::core::transport::TransportError;

    use super::*;

    #[test]
    fn an_operator_reads_the_address_and_the_reason_until_the_peer_speaks() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let address: Multiaddr = "/ip4/192.0.2.1/tcp/8001".parse().unwrap();
        let full = address.clone().with_p2p(peer).unwrap();
        let mut problems = Problems::default();
        assert_eq!(problems.of(&peer), None);
        let refused = || TransportError::Other(io::ErrorKind::ConnectionRefused.into());
        problems.handle_dial_error(peer, &DialError::Transport(vec![(full.clone(), refused()), (full, refused())]));
        assert_eq!(
            problems.of(&peer),
            Some("/ip4/192.0.2.1/tcp/8001: connection refused; one other address failed too")
        );
        problems.handle_dial_error(peer, &DialError::WrongPeerId { obtained: other, address });
        assert!(problems.of(&peer).is_some_and(|text| text.contains(&other.to_string())));
        assert_eq!(problems.of(&other), None);
        problems.clear(&peer);
        assert_eq!(problems.of(&peer), None);
    }
}
