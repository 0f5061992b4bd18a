//! The secrets that come out of an exchange of offers.
//!
//! ```text
//! prk             = HKDF-Extract(salt = "ringlane link 1", client's offer secret || server's offer secret)
//! token of lane k = HKDF-Expand(prk, "lane token" || k (8 bits), 20)
//! probe key       = HKDF-Expand(prk, "probe key", 32)
//! probe tag       = HKDF-Expand(prk, "probe tag client" or "probe tag server", by who sends, 8)
//! ```
//! All with SHA-256 (RFC 5869). The client is the node with the lower peer id.

use std::fmt;

use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

use super::offer::Offer;
use super::probe::{ProbeKey, ProbeTag};
use crate::id::LaneIndex;
use crate::lane::keys::Role;
use crate::limits::TOKEN_BYTES;

const SALT: &[u8] = b"ringlane link 1";

/// One side's 32 random bytes. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct OfferSecret(pub(super) Zeroizing<[u8; 32]>);

impl OfferSecret {
    /// Takes 32 bytes from the system's random number generator.
    pub fn new(random: [u8; 32]) -> Self {
        Self(Zeroizing::new(random))
    }
}

impl fmt::Debug for OfferSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfferSecret(..)")
    }
}

/// What both ends and nobody else can compute from one exchange of offers: lane tokens and the probe key.
///
/// HKDF-SHA256 (RFC 5869) over the client's secret followed by the server's.
pub struct LinkSecrets {
    prk: hkdf::Prk,
}

impl LinkSecrets {
    /// Derives the secrets of a link. The client is the node with the lower peer id.
    pub fn derive(client: &Offer, server: &Offer) -> Self {
        let mut secrets = Zeroizing::new([0; 64]);
        secrets[..32].copy_from_slice(client.secret.0.as_slice());
        secrets[32..].copy_from_slice(server.secret.0.as_slice());
        Self { prk: hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secrets.as_slice()) }
    }

    /// What the client's first datagrams name this lane by: their destination connection id.
    pub fn lane_token(&self, lane: LaneIndex) -> [u8; TOKEN_BYTES] {
        self.expand(&[b"lane token", &[lane.get()]])
    }

    /// The key of all probes of the link, both ways.
    pub fn probe_key(&self) -> ProbeKey {
        ProbeKey::new(&*Zeroizing::new(self.expand::<32>(&[b"probe key"])))
    }

    /// What probes from the end with this role name the link by.
    pub fn probe_tag(&self, sender: Role) -> ProbeTag {
        let sender: &[u8] = match sender {
            Role::Client => b"client",
            Role::Server => b"server",
        };
        ProbeTag(self.expand(&[b"probe tag ", sender]))
    }

    fn expand<const N: usize>(&self, info: &[&[u8]]) -> [u8; N] {
        const { assert!(N <= 255 * 32, "HKDF-SHA256 gives no more") };
        let mut output = [0; N];
        self.prk
            .expand(info, OutputBytes(N))
            .and_then(|okm| okm.fill(&mut output))
            .expect("the output is within what HKDF-SHA256 gives");
        output
    }
}

impl fmt::Debug for LinkSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkSecrets(..)")
    }
}

struct OutputBytes(usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LaneId;
    use crate::wire::offer::{Features, LaneSet, OfferSecret};

    fn offer(secret: u8) -> Offer {
        Offer {
            instance: [1; 16],
            secret: OfferSecret::new([secret; 32]),
            features: Features::default(),
            workers: 1,
            port: 8100,
            lane_id_base: LaneId::new(0).unwrap(),
            lanes: LaneSet(1),
            candidates: Vec::new(),
            extensions: Default::default(),
        }
    }

    #[test]
    fn link_secrets_depend_on_both_offers_on_the_roles_and_on_their_use() {
        let (ours, theirs) = (offer(2), offer(3));
        let lane = |index| LaneIndex::new(index).unwrap();
        let link = LinkSecrets::derive(&ours, &theirs);
        assert_eq!(link.lane_token(lane(0)), LinkSecrets::derive(&ours, &theirs).lane_token(lane(0)));
        for (client, server) in [(&theirs, &ours), (&ours, &ours), (&theirs, &theirs)] {
            assert_ne!(link.lane_token(lane(0)), LinkSecrets::derive(client, server).lane_token(lane(0)));
        }
        assert_ne!(link.lane_token(lane(0)), link.lane_token(lane(1)));
        assert_ne!(link.probe_tag(Role::Client), link.probe_tag(Role::Server));
    }
}
