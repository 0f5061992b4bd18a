//! `/ringlane/peers/1`: nodes pass on what others have signed of themselves.
//!
//! Each node keeps one stream to each connected peer and writes on it; it reads what the peer writes on the stream of
//! its own. Messages follow one another:
//!
//! ```text
//! length (16) | kind (8) | body                                     length: of kind and body; all numbers big-endian
//!
//! kind 0, summary   hash (128)                                      of the sender's whole digest
//! kind 1, digest    wanted (8) | { tag (64) | sequence (64) } ...   0 or 1; each peer the sender knows, 0 for no record
//! kind 2, records   { tag (64) | sequence (64) | length (16) | envelope } ...
//! ```
//! A tag is the first eight bytes of the SHA-256 of a peer id, and a summary the first sixteen of the SHA-256 of a
//! digest's entries, ordered by tag. An envelope is libp2p's signed envelope (its RFC 0002) around a record:
//!
//! ```text
//! version (8), 1 | id length (8) | peer id | sequence (64) | expires (64), unix s | count (8) | { length (16) | multiaddr } ...
//! ```
//! A newer record has a higher sequence number. Unknown kinds are an error: a node that has more to say offers another
//! protocol.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::{Buf, BufMut, Bytes};
use multiaddr::Multiaddr;
use thiserror::Error;

use crate::id::PeerId;
use crate::limits::{
    PEER_ID_BYTES_MAX, PEERS_MAX, PEERS_MESSAGE_BYTES_MAX, RECORD_ADDRESS_BYTES_MAX, RECORD_ADDRESSES_MAX,
    SIGNED_RECORD_BYTES_MAX,
};

/// The protocol's name.
pub const PROTOCOL: &str = "/ringlane/peers/1";
/// What an envelope's signature is bound to.
pub const ENVELOPE_DOMAIN: &str = "ringlane-peer-record";
/// What an envelope says is in it.
pub const ENVELOPE_TYPE: &[u8] = b"/ringlane/peer-record/1";
/// For how long a record is good.
pub const RECORD_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Bytes of the length before a message.
pub const LENGTH_BYTES: usize = 2;

const VERSION: u8 = 1;
const ENTRY_BYTES: usize = 16;

/// A message or record makes no sense: the peer is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PeersError {
    /// It ends too early, or goes on too long.
    #[error("a part of it is missing or too much")]
    Length,
    /// A kind, version or flag that is not known.
    #[error("it is of an unknown kind")]
    Unknown,
    /// It has more entries or addresses than are allowed.
    #[error("it has too many entries")]
    TooMany,
    /// A peer id or address that is none.
    #[error("it has a peer id or address that is none")]
    Invalid,
}

/// Names a peer in a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tag(pub u64);

impl Tag {
    /// The tag of a peer.
    pub fn of(peer: &PeerId) -> Self {
        let hash = digest(&SHA256, &peer.to_bytes());
        Self(hash.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first)))
    }
}

/// Which record of which peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RecordVersion {
    /// Whose.
    pub tag: Tag,
    /// Which; 0 is none.
    pub sequence: u64,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeersMessage {
    /// The hash of what the sender has: whoever has something else answers with a digest.
    Summary([u8; 16]),
    /// What the sender has.
    Digest {
        /// Whether the sender wants the receiver's digest, if that has something newer.
        wanted: bool,
        /// At most [`PEERS_MAX`] and one.
        entries: Vec<RecordVersion>,
    },
    /// Records, each as its subject signed it.
    Records(Vec<(RecordVersion, Bytes)>),
}

impl PeersMessage {
    /// Reads a message without its length.
    pub fn parse(mut message: Bytes) -> Result<Self, PeersError> {
        if message.len() > PEERS_MESSAGE_BYTES_MAX {
            return Err(PeersError::Length);
        }
        match message.try_get_u8().map_err(|_| PeersError::Length)? {
            0 => Ok(Self::Summary(<[u8; 16]>::try_from(message.as_ref()).map_err(|_| PeersError::Length)?)),
            1 => {
                let wanted = match message.try_get_u8().map_err(|_| PeersError::Length)? {
                    0 => false,
                    1 => true,
                    _ => return Err(PeersError::Unknown),
                };
                let mut entries = Vec::with_capacity(message.len() / ENTRY_BYTES);
                while message.has_remaining() {
                    entries.push(version(&mut message)?);
                }
                if entries.len() > PEERS_MAX + 1 {
                    Err(PeersError::TooMany)
                } else {
                    Ok(Self::Digest { wanted, entries })
                }
            }
            2 => {
                let mut records = Vec::new();
                while message.has_remaining() {
                    let version = version(&mut message)?;
                    let bytes = usize::from(message.try_get_u16().map_err(|_| PeersError::Length)?);
                    if bytes > message.len() || bytes > SIGNED_RECORD_BYTES_MAX {
                        return Err(PeersError::Length);
                    }
                    records.push((version, message.split_to(bytes)));
                }
                Ok(Self::Records(records))
            }
            _ => Err(PeersError::Unknown),
        }
    }

    /// Bytes on the wire, with the length.
    pub fn wire_bytes(&self) -> usize {
        let body = match self {
            Self::Summary(hash) => hash.len(),
            Self::Digest { entries, .. } => 1 + entries.len() * ENTRY_BYTES,
            Self::Records(records) => records.iter().map(|(_, envelope)| record_bytes(envelope)).sum(),
        };
        LENGTH_BYTES + 1 + body
    }

    /// The wire bytes, with the length. Who makes messages keeps to the bounds.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = self.wire_bytes();
        debug_assert!(bytes <= LENGTH_BYTES + PEERS_MESSAGE_BYTES_MAX);
        let mut wire = Vec::with_capacity(bytes);
        wire.put_u16((bytes - LENGTH_BYTES) as u16);
        match self {
            Self::Summary(hash) => {
                wire.put_u8(0);
                wire.put_slice(hash);
            }
            Self::Digest { wanted, entries } => {
                wire.put_u8(1);
                wire.put_u8(u8::from(*wanted));
                entries.iter().for_each(|entry| put_version(&mut wire, *entry));
            }
            Self::Records(records) => {
                wire.put_u8(2);
                for (version, envelope) in records {
                    put_version(&mut wire, *version);
                    wire.put_u16(envelope.len() as u16);
                    wire.put_slice(envelope);
                }
            }
        }
        wire
    }
}

/// Bytes that a record takes in a message.
pub fn record_bytes(envelope: &[u8]) -> usize {
    ENTRY_BYTES + 2 + envelope.len()
}

/// The hash of what a node has, from its digest ordered by tag.
pub fn summary(entries: impl IntoIterator<Item = RecordVersion>) -> [u8; 16] {
    let mut bytes = Vec::new();
    entries.into_iter().for_each(|entry| put_version(&mut bytes, entry));
    digest(&SHA256, &bytes).as_ref().first_chunk().copied().unwrap_or_default()
}

fn version(message: &mut Bytes) -> Result<RecordVersion, PeersError> {
    let tag = Tag(message.try_get_u64().map_err(|_| PeersError::Length)?);
    let sequence = message.try_get_u64().map_err(|_| PeersError::Length)?;
    Ok(RecordVersion { tag, sequence })
}

fn put_version(wire: &mut Vec<u8>, version: RecordVersion) {
    wire.put_u64(version.tag.0);
    wire.put_u64(version.sequence);
}

/// What a node says of itself, and signs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRecord {
    /// Who.
    pub peer: PeerId,
    /// Higher than that of any record it made before: unix time in milliseconds, or one more than the last.
    pub sequence: u64,
    /// Until when it is good, in seconds since 1970.
    pub expires_unix_s: u64,
    /// Where it can be reached, without `/p2p/`; at most [`RECORD_ADDRESSES_MAX`].
    pub addresses: Vec<Multiaddr>,
}

impl PeerRecord {
    /// Reads what was signed.
    pub fn parse(mut record: &[u8]) -> Result<Self, PeersError> {
        let short = |_| PeersError::Length;
        if record.try_get_u8().map_err(short)? != VERSION {
            return Err(PeersError::Unknown);
        }
        let id_bytes = usize::from(record.try_get_u8().map_err(short)?);
        let (id, rest) = record.split_at_checked(id_bytes).ok_or(PeersError::Length)?;
        let peer = PeerId::from_bytes(id).map_err(|_| PeersError::Invalid)?;
        record = rest;
        let sequence = record.try_get_u64().map_err(short)?;
        let expires_unix_s = record.try_get_u64().map_err(short)?;
        let count = usize::from(record.try_get_u8().map_err(short)?);
        if count > RECORD_ADDRESSES_MAX {
            return Err(PeersError::TooMany);
        }
        let mut addresses = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = usize::from(record.try_get_u16().map_err(short)?);
            let (address, rest) = record.split_at_checked(bytes).ok_or(PeersError::Length)?;
            if bytes == 0 || bytes > RECORD_ADDRESS_BYTES_MAX {
                return Err(PeersError::Length);
            }
            addresses.push(Multiaddr::try_from(address.to_vec()).map_err(|_| PeersError::Invalid)?);
            record = rest;
        }
        if record.is_empty() { Ok(Self { peer, sequence, expires_unix_s, addresses }) } else { Err(PeersError::Length) }
    }

    /// What is to be signed. Addresses beyond the bounds are left out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut record = vec![VERSION];
        let id = self.peer.to_bytes();
        debug_assert!(id.len() <= PEER_ID_BYTES_MAX);
        record.put_u8(id.len() as u8);
        record.put_slice(&id);
        record.put_u64(self.sequence);
        record.put_u64(self.expires_unix_s);
        let fits = |address: &&Multiaddr| (1..=RECORD_ADDRESS_BYTES_MAX).contains(&address.len());
        let addresses: Vec<_> = self.addresses.iter().filter(fits).take(RECORD_ADDRESSES_MAX).collect();
        record.put_u8(addresses.len() as u8);
        for address in addresses {
            record.put_u16(address.len() as u16);
            record.put_slice(address.as_ref());
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PeerRecord {
        PeerRecord {
            peer: "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN".parse().unwrap(),
            sequence: 0x0102_0304_0506_0708,
            expires_unix_s: 1_800_000_000,
            addresses: vec![
                "/ip4/192.0.2.1/tcp/8001".parse().unwrap(),
                "/ip6/2001:db8::1/udp/8001/quic-v1".parse().unwrap(),
            ],
        }
    }

    #[test]
    fn a_record_reads_back_as_written_and_no_part_of_it_does() {
        let whole = record().to_bytes();
        assert_eq!(PeerRecord::parse(&whole), Ok(record()));
        for end in 0..whole.len() {
            assert!(PeerRecord::parse(&whole[..end]).is_err(), "{end}");
        }
        assert_eq!(PeerRecord::parse(&[&whole[..], &[0]].concat()), Err(PeersError::Length));
        assert_eq!(PeerRecord::parse(&[&[2], &whole[1..]].concat()), Err(PeersError::Unknown));
    }

    #[test]
    fn a_record_of_too_many_addresses_is_cut_by_its_writer_and_refused_by_its_reader() {
        let addresses = (1..40).map(|port| format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()).collect();
        let bytes = PeerRecord { addresses, ..record() }.to_bytes();
        assert_eq!(PeerRecord::parse(&bytes).unwrap().addresses.len(), RECORD_ADDRESSES_MAX);
        let mut bytes = PeerRecord { addresses: Vec::new(), ..record() }.to_bytes();
        *bytes.last_mut().unwrap() = 17;
        assert_eq!(PeerRecord::parse(&bytes), Err(PeersError::TooMany));
    }

    #[test]
    fn messages_read_back_as_written_and_their_size_is_known_before() {
        let version = RecordVersion { tag: Tag::of(&record().peer), sequence: 7 };
        let messages = [
            PeersMessage::Summary([7; 16]),
            PeersMessage::Digest { wanted: true, entries: vec![version; PEERS_MAX + 1] },
            PeersMessage::Digest { wanted: false, entries: Vec::new() },
            PeersMessage::Records(vec![(version, vec![1, 2, 3].into()), (version, Bytes::new())]),
        ];
        for message in messages {
            let wire = message.to_bytes();
            assert_eq!(wire.len(), message.wire_bytes());
            assert_eq!(usize::from(u16::from_be_bytes([wire[0], wire[1]])), wire.len() - LENGTH_BYTES);
            assert_eq!(PeersMessage::parse(wire[LENGTH_BYTES..].to_vec().into()), Ok(message));
        }
    }

    #[test]
    fn messages_of_other_shapes_are_refused() {
        let parse = |bytes: &[u8]| PeersMessage::parse(Bytes::copy_from_slice(bytes)).unwrap_err();
        assert_eq!(parse(&[]), PeersError::Length);
        assert_eq!(parse(&[3]), PeersError::Unknown);
        assert_eq!(parse(&[0; 16]), PeersError::Length);
        assert_eq!(parse(&[1, 2]), PeersError::Unknown);
        assert_eq!(parse(&[&[1, 0][..], &[0; 15]].concat()), PeersError::Length);
        assert_eq!(parse(&[&[2][..], &[0; 16], &[0, 1]].concat()), PeersError::Length);
        assert_eq!(parse(&[&[1, 0][..], &[0; 16 * (PEERS_MAX + 2)]].concat()), PeersError::TooMany);
        assert_eq!(parse(&vec![0; PEERS_MESSAGE_BYTES_MAX + 1]), PeersError::Length);
    }

    #[test]
    fn a_summary_depends_on_every_entry() {
        let entry = |tag, sequence| RecordVersion { tag: Tag(tag), sequence };
        let all = [summary([]), summary([entry(1, 1)]), summary([entry(1, 2)]), summary([entry(1, 1), entry(2, 0)])];
        assert!((1..all.len()).all(|n| !all[..n].contains(&all[n])));
    }
}
