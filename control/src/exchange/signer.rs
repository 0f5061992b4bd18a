//! libp2p's signed envelopes around the records of `/ringlane/peers/1`.

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::core::SignedEnvelope;
use libp2p::identity::Keypair;
use ringlane_shared::wire::peers::{ENVELOPE_DOMAIN, ENVELOPE_TYPE, PeerRecord};

use super::gossip::Notary;

/// Signs with a node's own key.
pub struct Signer(Keypair);

impl Signer {
    /// One with this key.
    pub fn new(keypair: Keypair) -> Self {
        Self(keypair)
    }
}

impl Notary for Signer {
    fn sign(&self, record: &PeerRecord) -> Option<Bytes> {
        let signed = SignedEnvelope::new(&self.0, ENVELOPE_DOMAIN.into(), ENVELOPE_TYPE.into(), record.to_bytes());
        signed.ok().map(|envelope| envelope.into_protobuf_encoding().into())
    }

    fn open(&self, envelope: &[u8]) -> Option<PeerRecord> {
        let envelope = SignedEnvelope::from_protobuf_encoding(envelope).ok()?;
        let (record, key) = envelope.payload_and_signing_key(ENVELOPE_DOMAIN.into(), ENVELOPE_TYPE).ok()?;
        let record = PeerRecord::parse(record).ok()?;
        (PeerId::from_public_key(key) == record.peer).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_subject_itself_can_sign_its_record_and_no_bit_of_it_can_be_changed() {
        let keypair = Keypair::generate_ed25519();
        let record = PeerRecord {
            peer: keypair.public().to_peer_id(),
            sequence: 7,
            expires_unix_s: 8,
            addresses: vec!["/ip4/192.0.2.1/tcp/8001".parse().unwrap()],
        };
        let (subject, other) = (Signer::new(keypair), Signer::new(Keypair::generate_ed25519()));
        let envelope = subject.sign(&record).unwrap();
        assert_eq!(other.open(&envelope), Some(record.clone()));
        assert_eq!(subject.open(&other.sign(&record).unwrap()), None);
        for at in 0..envelope.len() {
            let mut changed = envelope.to_vec();
            changed[at] ^= 1;
            assert!(other.open(&changed).is_none_or(|read| read == record), "{at}");
        }
        assert_eq!(other.open(&[]), None);
    }
}
