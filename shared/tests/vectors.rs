//! Known answers: if one of these changes, we no longer speak the protocol that `docs/protocol.md` states.
//!
//! None of the expected bytes was produced by this code. They were computed from the text of `docs/protocol.md` with
//! Python's `cryptography` 48 (`AESGCM`, `ChaCha20Poly1305`, `HKDF` and `HKDFExpand` with SHA-256), `hmac` and
//! `struct`; the comments give all inputs, so anybody can do it again.
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use ringlane_shared::id::{LaneId, LaneIndex};
use ringlane_shared::lane::keys::{KeyError, LaneKeys, Role, Suite};
use ringlane_shared::lane::seal::split;
use ringlane_shared::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};
use ringlane_shared::wire::frame::{FrameHeader, FramedPacket, Frames};
use ringlane_shared::wire::offer::{
    Answer, Candidate, CandidateKind, Features, LaneSet, LinkSecrets, Offer, OfferSecret, RefusalReason,
};
use ringlane_shared::wire::probe::{Probe, ProbeKind, Transaction, UnverifiedProbe};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

// --- records ------------------------------------------------------------------------------------------------------

/// Client to server the exporter gives 40 41 42 .., the other way 80 81 82 ..
fn export(output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), KeyError> {
    assert_eq!(label, b"EXPORTER-ringlane-lane-1");
    let first = match context {
        b"client to server" => 0x40,
        b"server to client" => 0x80,
        _ => return Err(KeyError),
    };
    for (byte, value) in output.iter_mut().zip(first..) {
        *byte = value;
    }
    Ok(())
}

/// 100.64.1.2:1024 to 100.64.3.4:53, UDP without payload.
const PACKET: &str = "4500001c000000004011000064400102644003040035003500080000";
/// Packet, no length, partial checksum.
const FRAME_HEADER: &str = "28";

/// What the client sends first and second in epoch 0 to the server's lane 0xabcdef: one frame, PACKET.
const RECORDS: [(Suite, [&str; 2]); 2] = [
    (
        Suite::Aes128Gcm,
        [
            "30abcdef00000000000000007d3baa212b75429566a32c0a4d8ce549ca5fda81\
             bc47064d6878dc34ba793aa6502bd8692e97327e318cc36ff7",
            "30abcdef0000000000000001d7ea45750744296c5f88f5419b2e0b5e7546cf46\
             e35ff3d5120549aad332b0b33fbcd7e6faad57d1018644b077",
        ],
    ),
    (
        Suite::ChaCha20Poly1305,
        [
            "30abcdef0000000000000000feba075c13e06d18a405553262040a147ac7630c\
             132deb20c3ad38f5e910f7fce80da75f923198e5aec1fe7505",
            "30abcdef0000000000000001155c723f564f5010849469a3fb3b4ea97868aaeb\
             12124ebc1607d9e4608008f3b3b98a7bb40154818cb02fd521",
        ],
    ),
];

#[test]
fn the_client_seals_the_known_records_and_the_server_opens_them() {
    let packet = bytes(PACKET);
    let header = FrameHeader::fit(FramedPacket::Partial, packet.len(), 1 + packet.len()).unwrap();
    assert_eq!(hex(header.as_bytes()), FRAME_HEADER);
    let frame = [header.as_bytes(), &packet].concat();

    let (clients, servers) = (LaneId::new(7).unwrap(), LaneId::new(0x00ab_cdef).unwrap());
    for (suite, expected) in RECORDS {
        let (mut sealer, _) = split(LaneKeys::derive(suite, Role::Client, export).unwrap(), servers, clients);
        let (_, mut opener) = split(LaneKeys::derive(suite, Role::Server, export).unwrap(), clients, servers);
        for expected in expected {
            let mut record = vec![0; frame.len() + RECORD_OVERHEAD_BYTES];
            record[RECORD_HEADER_BYTES..][..frame.len()].copy_from_slice(&frame);
            sealer.seal(&mut record, frame.len()).unwrap();
            assert_eq!(hex(&record), expected, "{suite:?}");
            let frames = opener.open(&mut record).unwrap();
            let read = Frames::new(frames).next().unwrap().unwrap();
            assert_eq!((&frames[read.payload], read.is_partial), (&packet[..], true));
        }
    }
}

// --- offers and link secrets --------------------------------------------------------------------------------------

/// Length, version, kind, instance f0..ff, secret 00..1f, features, workers, port, lane id base, lanes, two candidates.
const OFFER: &str = "006b0101f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff\
                     000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
                     00000001021fa40102030000000000000003\
                     020000000000000000000000ffff0ac900011fa4\
                     0120010db80000000000000000000000029c40";

fn client_offer() -> Offer {
    Offer {
        instance: std::array::from_fn(|at| 0xf0 + at as u8),
        secret: OfferSecret::new(std::array::from_fn(|at| at as u8)),
        features: Features::AES,
        workers: 2,
        port: 8100,
        lane_id_base: LaneId::new(0x01_02_03).unwrap(),
        lanes: LaneSet(0b11),
        candidates: vec![
            Candidate { kind: CandidateKind::Host, ip: "10.201.0.1".parse().unwrap(), port: 8100 },
            Candidate { kind: CandidateKind::ServerReflexive, ip: "2001:db8::2".parse().unwrap(), port: 40000 },
        ],
    }
}

/// As the client's, but for the secret 80..9f. The link's secrets depend on nothing else.
fn link() -> LinkSecrets {
    let secret = OfferSecret::new(std::array::from_fn(|at| 0x80 + at as u8));
    LinkSecrets::derive(&client_offer(), &Offer { secret, ..client_offer() })
}

#[test]
fn an_offer_and_a_refusal_are_the_known_messages() {
    assert_eq!(hex(&client_offer().to_message().unwrap()), OFFER);
    assert_eq!(Offer::parse(&bytes(OFFER)[2..]), Ok(client_offer()));
    assert_eq!(hex(&Answer::Refused(RefusalReason::NotConfigured).to_message().unwrap()), "0003010202");
}

#[test]
fn link_secrets_are_the_known_ones() {
    let lane = |index| LaneIndex::new(index).unwrap();
    assert_eq!(hex(&link().lane_token(lane(0))), "5a28e12874d3f86531a22f4fae775e27f594b881");
    assert_eq!(hex(&link().lane_token(lane(63))), "70bdfeeb4c04b12443fa17f4199cf672a7bd3523");
    assert_eq!(hex(&link().probe_tag(Role::Client).0), "f587730cffdf22ee");
    assert_eq!(hex(&link().probe_tag(Role::Server).0), "133c9d5040a53cf1");
}

// --- probes -------------------------------------------------------------------------------------------------------

/// The probe key of the link is 8f27952953521c232d2582bd630541f268f4cc3ba1e9d58b5fad809c70ab1cb7.
const REQUEST: &str = "20f587730cffdf22ee010102030405060708\
                       000000000000000000000000000000000000bec53b6f3354f0e4922972f4ccd77493";
const REPLY: &str = "21133c9d5040a53cf1010102030405060708\
                     00000000000000000000ffffc00002011fa571ef2d0b834207adec97764102b5f540";

#[test]
fn a_request_and_its_reply_are_the_known_datagrams() {
    let link = link();
    let request = Probe {
        tag: link.probe_tag(Role::Client),
        lane: LaneIndex::new(1).unwrap(),
        transaction: Transaction(0x0102_0304_0506_0708),
        kind: ProbeKind::Request,
    };
    let reply = request.reply(link.probe_tag(Role::Server), "192.0.2.1:8101".parse().unwrap());
    for (probe, expected) in [(request, REQUEST), (reply, REPLY)] {
        assert_eq!(hex(&link.probe_key().seal(&probe)), expected);
        let datagram = bytes(expected);
        assert_eq!(link.probe_key().verify(&UnverifiedProbe::parse(&datagram).unwrap()), Ok(probe));
    }
}
