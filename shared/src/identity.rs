//! Ed25519 keys, peer ids and the addresses derived from them, bit for bit Hyprspace's.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use libp2p_identity::{KeyType, Keypair, PublicKey};
use multibase::Base;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::id::PeerId;
use crate::limits::{ADDRESS_TEXT_BYTES_MAX, KEY_FILE_BYTES_MAX};

/// A node's built-in IPv4 address, installed as /32: 100.64.1.2 with the peer id's bytes mixed into the last two
/// octets.
pub fn builtin_ipv4(peer: &PeerId) -> Ipv4Addr {
    let mut octets = [100, 64, 1, 2];
    for (position, byte) in peer.to_bytes().into_iter().enumerate() {
        octets[2 + position % 2] ^= byte;
    }
    Ipv4Addr::from(octets)
}

/// A node's built-in IPv6 address, installed as /128: a prefix that spells `hyprspace`, and the node identifier.
pub fn builtin_ipv6(peer: &PeerId) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..12].copy_from_slice(b"\xfd\x00hyprspace\x00");
    octets[12..].copy_from_slice(&node_identifier(peer));
    Ipv6Addr::from(octets)
}

/// Hyprspace's four-byte node identifier: `de ad be ef` with the peer id's bytes mixed in.
pub fn node_identifier(peer: &PeerId) -> [u8; 4] {
    let mut identifier = [0xde, 0xad, 0xbe, 0xef];
    for (position, byte) in peer.to_bytes().into_iter().enumerate() {
        identifier[position % 4] ^= byte;
    }
    identifier
}

/// Hyprspace's two-byte identifier of a service: `ff fe` with the name's bytes, each times its position, mixed in. A
/// weak hash: the first character never matters, so names that differ only there are one service.
pub fn service_id(name: &str) -> [u8; 2] {
    let mut id = [0xff, 0xfe];
    for (position, byte) in name.bytes().enumerate() {
        id[position % 2] ^= byte.wrapping_mul(position as u8);
    }
    id
}

/// The network of all services of all nodes: a prefix that spells `hyprspsv`.
pub fn service_network() -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from(service_octets([0; 4], [0; 2])), 80)
}

/// The network of one node's services.
pub fn services_of(peer: &PeerId) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from(service_octets(node_identifier(peer), [0; 2])), 112)
}

/// The address of a node's service; it answers on every TCP port.
pub fn service_address(peer: &PeerId, name: &str) -> Ipv6Addr {
    Ipv6Addr::from(service_octets(node_identifier(peer), service_id(name)))
}

/// The node and service identifiers in an address, if it is one of a service.
pub fn split_service_address(address: Ipv6Addr) -> Option<([u8; 4], [u8; 2])> {
    match address.octets() {
        [prefix @ .., n0, n1, n2, n3, s0, s1] if prefix == *SERVICE_PREFIX => Some(([n0, n1, n2, n3], [s0, s1])),
        _ => None,
    }
}

const SERVICE_PREFIX: &[u8; 10] = b"\xfd\x00hyprspsv";

fn service_octets(node: [u8; 4], service: [u8; 2]) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..10].copy_from_slice(SERVICE_PREFIX);
    octets[10..14].copy_from_slice(&node);
    octets[14..].copy_from_slice(&service);
    octets
}

/// The Ed25519 key pair that belongs to a 32-byte secret seed. Whoever draws the seed owns its randomness.
pub fn keypair_from_seed(seed: Zeroizing<[u8; 32]>) -> Result<Keypair, KeyError> {
    Keypair::ed25519_from_bytes(seed).map_err(|_| KeyError::Malformed)
}

/// A private key as text: base58btc multibase (`z23jh...`) of libp2p's `PrivateKey` protobuf, as Hyprspace writes it.
pub fn encode_private_key(keypair: &Keypair) -> Result<Zeroizing<String>, KeyError> {
    if keypair.key_type() != KeyType::Ed25519 {
        return Err(KeyError::NotEd25519 { key_type: keypair.key_type().to_string() });
    }
    let protobuf = Zeroizing::new(keypair.to_protobuf_encoding().map_err(|_| KeyError::Malformed)?);
    Ok(Zeroizing::new(multibase::encode(Base::Base58Btc, protobuf.as_slice())))
}

/// Reads what [`encode_private_key`] writes, in any multibase and with white space around it.
pub fn decode_private_key(text: &str) -> Result<Keypair, KeyError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    if text.len() > KEY_FILE_BYTES_MAX {
        return Err(KeyError::Malformed);
    }
    let (_, protobuf) = multibase::decode(text).map_err(|_| KeyError::NotMultibase)?;
    decode_protobuf(&Zeroizing::new(protobuf))
}

/// The two bytes a protobuf `PrivateKey` starts with are the tag of its key type, and the type.
fn decode_protobuf(protobuf: &[u8]) -> Result<Keypair, KeyError> {
    let key_type = match protobuf {
        [0x08, 0, ..] => "RSA",
        [0x08, 1, ..] => {
            return Keypair::from_protobuf_encoding(&without_redundant_half(protobuf)).map_err(|_| KeyError::Malformed);
        }
        [0x08, 2, ..] => "Secp256k1",
        [0x08, 3, ..] => "ECDSA",
        _ => return Err(KeyError::Malformed),
    };
    Err(KeyError::NotEd25519 { key_type: key_type.to_owned() })
}

/// Old libp2p wrote the public half twice; Hyprspace still reads such keys.
fn without_redundant_half(protobuf: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(protobuf.to_vec());
    if key.len() == 4 + 96 && key[..4] == [0x08, 1, 0x12, 96] && key[36..68] == key[68..] {
        key.truncate(4 + 64);
        key[3] = 64;
    }
    key
}

/// Reads a peer id: base58 (`12D3KooW...`, `Qm...`) or the text of a CID with codec libp2p-key (`k51...`, `bafz...`).
pub fn parse_peer_id(text: &str) -> Result<PeerId, PeerIdError> {
    if text.len() > ADDRESS_TEXT_BYTES_MAX {
        return Err(PeerIdError::NotPeerId);
    }
    let peer = if text.starts_with('1') || text.starts_with("Qm") {
        text.parse().map_err(|_| PeerIdError::NotPeerId)?
    } else {
        let (_, cid) = multibase::decode(text).map_err(|_| PeerIdError::NotPeerId)?;
        match cid.as_slice() {
            [1, 0x72, multihash @ ..] => PeerId::from_bytes(multihash).map_err(|_| PeerIdError::NotPeerId)?,
            [1, ..] => return Err(PeerIdError::CidCodec),
            _ => return Err(PeerIdError::NotPeerId),
        }
    };
    match inlined_key(&peer) {
        Some(protobuf) if key_of_protobuf(protobuf.as_slice()) == InlinedKey::Broken => Err(PeerIdError::BrokenKey),
        _ => Ok(peer),
    }
}

/// Whether a peer id is that of an Ed25519 key, the only kind a lane can authenticate.
pub fn is_ed25519(peer: &PeerId) -> bool {
    inlined_key(peer).is_some_and(|protobuf| key_of_protobuf(&protobuf) == InlinedKey::Ed25519)
}

/// The public key protobuf a peer id carries in itself: an identity multihash, `00 <length> <protobuf>`.
fn inlined_key(peer: &PeerId) -> Option<Vec<u8>> {
    match peer.to_bytes().as_slice() {
        [0, _, protobuf @ ..] => Some(protobuf.to_vec()),
        _ => None,
    }
}

#[derive(PartialEq, Eq)]
enum InlinedKey {
    Ed25519,
    Other,
    Broken,
}

fn key_of_protobuf(protobuf: &[u8]) -> InlinedKey {
    match protobuf {
        [0x08, 1, ..] if PublicKey::try_decode_protobuf(protobuf).is_ok() => InlinedKey::Ed25519,
        [0x08, 0 | 2 | 3, ..] => InlinedKey::Other,
        _ => InlinedKey::Broken,
    }
}

/// Why a text is not our private key: whoever wrote it is at fault. Never contains any of the text.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// There is nothing but white space.
    #[error("the private key is empty")]
    Empty,
    /// Its first character names no multibase, or the rest is not in that base.
    #[error("the private key is not multibase text (such as z23jh...)")]
    NotMultibase,
    /// A libp2p key of another type.
    #[error("the private key is of type {key_type}; only Ed25519 is supported")]
    NotEd25519 {
        /// Which type.
        key_type: String,
    },
    /// Not a `PrivateKey` protobuf, truncated, or its halves do not belong together.
    #[error("the private key is damaged: it is not a libp2p Ed25519 private key")]
    Malformed,
}

/// Why a text is not a peer id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PeerIdError {
    /// Neither base58 of a multihash nor a CID.
    #[error("is not a peer id")]
    NotPeerId,
    /// A CID of something that is not a key.
    #[error("is a CID, but not that of a libp2p key")]
    CidCodec,
    /// The public key it is made of does not exist: one or more characters are wrong.
    #[error("is not a peer id: the public key in it is damaged")]
    BrokenKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_A: &str =
        "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC";
    const KEY_B: &str =
        "z23jhTbwi6M5cGWn1GeC7eXV2TbJpFhgmtVpsUjKshKKrSCy2seByS6da3epoBtEsMc8HA5oToay8RVG2w9nACHdt5WUge";
    const ID_A: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";
    const ID_B: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";
    const ID_RSA: &str = "QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn addresses_are_those_of_hyprspace() {
        let vectors = [
            (ID_A, "0f26ea70", "100.64.132.22", "fd00:6879:7072:7370:6163:6500:f26:ea70"),
            (ID_B, "b497d158", "100.64.4.143", "fd00:6879:7072:7370:6163:6500:b497:d158"),
            (
                "12D3KooW9twh1frMEkJ1ypnsH8bWcPgesfJCYM3MoXnKmEDdtP73",
                "1aad7fff",
                "100.64.4.18",
                "fd00:6879:7072:7370:6163:6500:1aad:7fff",
            ),
            (ID_RSA, "a35bd89a", "100.64.26.129", "fd00:6879:7072:7370:6163:6500:a35b:d89a"),
        ];
        for (id, identifier, ipv4, ipv6) in vectors {
            let peer = parse_peer_id(id).unwrap();
            assert_eq!(hex(&node_identifier(&peer)), identifier);
            assert_eq!(builtin_ipv4(&peer).to_string(), ipv4);
            assert_eq!(builtin_ipv6(&peer).to_string(), ipv6);
        }
        assert_eq!(
            hex(&parse_peer_id(ID_A).unwrap().to_bytes()),
            "002408011220c54934ddb79776e4f2130081ae1bf0ea2f4d488acee336cbc6770efd55910161"
        );
    }

    #[test]
    fn services_have_the_identifiers_and_addresses_of_hyprspace() {
        let vectors = [
            ("", "fffe"),
            ("a", "fffe"),
            ("ab", "ff9c"),
            ("ba", "ff9f"),
            ("http", "17da"),
            ("xttp", "17da"),
            ("https", "dbda"),
            ("ssh", "2f8d"),
            ("www", "1189"),
            ("example", "a3dd"),
            ("www-local", "9382"),
            ("gameserver", "6d71"),
            ("deny", "23f0"),
            ("svc", "3988"),
        ];
        for (name, id) in vectors {
            assert_eq!(hex(&service_id(name)), id, "{name}");
        }
        // Positions count modulo 256.
        assert_eq!(service_id(&"b".repeat(257)), service_id(&"b".repeat(256)));
        let peer = parse_peer_id(ID_B).unwrap();
        let address = service_address(&peer, "example");
        assert_eq!(address.to_string(), "fd00:6879:7072:7370:7376:b497:d158:a3dd");
        assert_eq!(service_network().to_string(), "fd00:6879:7072:7370:7376::/80");
        assert_eq!(services_of(&peer).to_string(), "fd00:6879:7072:7370:7376:b497:d158:0/112");
        assert!(service_network().contains(&address) && services_of(&peer).contains(&address));
        assert_eq!(split_service_address(address), Some((node_identifier(&peer), service_id("example"))));
        assert_eq!(split_service_address(builtin_ipv6(&peer)), None);
    }

    #[test]
    fn hyprspace_keys_are_read_and_written_back_unchanged() {
        for (text, id) in [(KEY_A, ID_A), (KEY_B, ID_B)] {
            let keypair = decode_private_key(text).unwrap();
            assert_eq!(keypair.public().to_peer_id().to_string(), id);
            assert_eq!(encode_private_key(&keypair).unwrap().as_str(), text);
        }
        let protobuf = decode_private_key(KEY_A).unwrap().to_protobuf_encoding().unwrap();
        assert_eq!(protobuf.len(), 68);
        assert_eq!(hex(&protobuf[..4]), "08011240");
        assert_eq!(hex(&protobuf[36..]), "c54934ddb79776e4f2130081ae1bf0ea2f4d488acee336cbc6770efd55910161");
    }

    #[test]
    fn a_key_is_read_in_any_base_with_white_space_and_with_the_public_half_twice() {
        let keypair = decode_private_key(KEY_A).unwrap();
        let protobuf = keypair.to_protobuf_encoding().unwrap();
        for base in [Base::Base16Lower, Base::Base32Lower, Base::Base64, Base::Base64UrlPad] {
            let text = format!("\n\t {} \r\n", multibase::encode(base, &protobuf));
            assert_eq!(decode_private_key(&text).unwrap().public(), keypair.public());
        }
        let mut doubled = [&protobuf[..], &protobuf[36..]].concat();
        doubled[3] = 96;
        assert_eq!(
            decode_private_key(&multibase::encode(Base::Base58Btc, &doubled)).unwrap().public(),
            keypair.public()
        );
    }

    #[test]
    fn a_text_that_is_not_our_key_is_refused_saying_why() {
        let protobuf = decode_private_key(KEY_A).unwrap().to_protobuf_encoding().unwrap();
        let encode = |bytes: &[u8]| multibase::encode(Base::Base58Btc, bytes);
        let mut wrong_half = protobuf.clone();
        wrong_half[40] ^= 1;
        let cases = [
            (" \n".to_owned(), KeyError::Empty),
            ("?nonsense".to_owned(), KeyError::NotMultibase),
            ("z0OIl".to_owned(), KeyError::NotMultibase),
            (encode(&protobuf[..67]), KeyError::Malformed),
            (encode(&wrong_half), KeyError::Malformed),
            (encode(b""), KeyError::Malformed),
            (encode(&[8, 0, 18, 1, 0]), KeyError::NotEd25519 { key_type: "RSA".to_owned() }),
            (encode(&[8, 2, 18, 1, 0]), KeyError::NotEd25519 { key_type: "Secp256k1".to_owned() }),
            (encode(&[8, 3, 18, 1, 0]), KeyError::NotEd25519 { key_type: "ECDSA".to_owned() }),
        ];
        for (text, error) in cases {
            assert_eq!(decode_private_key(&text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_key_every_time() {
        let seed = Zeroizing::new([7; 32]);
        let keypair = keypair_from_seed(seed.clone()).unwrap();
        assert_eq!(keypair.public(), keypair_from_seed(seed).unwrap().public());
        assert_ne!(keypair.public(), keypair_from_seed(Zeroizing::new([8; 32])).unwrap().public());
    }

    #[test]
    fn peer_ids_are_read_as_base58_and_as_cid() {
        let vectors = [
            (ID_A, "k51qzi5uqu5dl3ltvga8v4lfks12np6tetprha6va60q6okkujw46kptfju1cx"),
            (ID_B, "k51qzi5uqu5dkxtt5jitjh0pdwwdjaq2d6omasr3ust9yokfv3fbpfxgbwdran"),
            (ID_RSA, "k2k4r8o88nyynfk9tmx2tpwny7avwnrvol1luo7l2ceonyntbdy2f1ic"),
        ];
        for (base58, cid) in vectors {
            assert_eq!(parse_peer_id(base58).unwrap(), parse_peer_id(cid).unwrap());
            assert_eq!(parse_peer_id(cid).unwrap().to_string(), base58);
        }
        assert!(is_ed25519(&parse_peer_id(ID_A).unwrap()));
        assert!(!is_ed25519(&parse_peer_id(ID_RSA).unwrap()));
    }

    #[test]
    fn a_damaged_peer_id_is_refused() {
        let mut other_codec = vec![1, 0x70];
        other_codec.extend(parse_peer_id(ID_A).unwrap().to_bytes());
        let other_codec = multibase::encode(Base::Base32Lower, other_codec);
        let cases = [
            ("", PeerIdError::NotPeerId),
            ("12D3KooW", PeerIdError::NotPeerId),
            ("site-b", PeerIdError::NotPeerId),
            (&ID_A[..ID_A.len() - 1], PeerIdError::NotPeerId),
            ("12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtR0", PeerIdError::NotPeerId),
            (&other_codec, PeerIdError::CidCodec),
        ];
        for (text, error) in cases {
            assert_eq!(parse_peer_id(text), Err(error), "{text}");
        }
        let mut not_on_the_curve = parse_peer_id(ID_A).unwrap().to_bytes();
        not_on_the_curve[6..].fill(0);
        not_on_the_curve[6] = 2;
        let text = PeerId::from_bytes(&not_on_the_curve).unwrap().to_base58();
        assert_eq!(parse_peer_id(&text), Err(PeerIdError::BrokenKey));
    }
}
