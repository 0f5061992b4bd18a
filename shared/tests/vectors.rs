//! Known answers: if one of these changes, we no longer speak the protocol that `docs/protocol.md` states.
//!
//! None of the expected bytes was produced by this code. They were computed from the text of `docs/protocol.md` with
//! Python's `cryptography` 48 (`AESGCM`, `ChaCha20Poly1305`, `X25519PrivateKey`, `HKDF` and `HKDFExpand` with SHA-256),
//! `hashlib`, `hmac` and `struct`, Noise from the text of its specification, revision 34; the comments give all inputs, so anybody can do it again.
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use std::time::Duration;

use ringlane_shared::id::{LaneId, LaneIndex};
use ringlane_shared::lane::epoch::{EpochSecrets, PSK_BYTES, Randomness};
use ringlane_shared::lane::keys::{KeyError, LaneKeys, Role, Suite};
use ringlane_shared::lane::seal::split;
use ringlane_shared::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};
use ringlane_shared::path::candidate::OwnCandidate;
use ringlane_shared::stun::nat::Mapping;
use ringlane_shared::wire::frame::{FrameHeader, FramedPacket, Frames};
use ringlane_shared::wire::offer::{
    Answer, Candidate, CandidateKind, Extensions, Features, LaneSet, LinkSecrets, Offer, OfferSecret, Punch,
    RefusalReason,
};
use ringlane_shared::wire::probe::{Probe, ProbeKind, Transaction, UnverifiedProbe};
use ringlane_shared::wire::rekey::RekeyMessage;

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
        b"client to server aes-128-gcm" | b"client to server aes-256-gcm" | b"client to server chacha20-poly1305" => {
            0x40
        }
        b"server to client aes-128-gcm" | b"server to client aes-256-gcm" | b"server to client chacha20-poly1305" => {
            0x80
        }
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
const RECORDS: [(Suite, [&str; 2]); 3] = [
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
        Suite::Aes256Gcm,
        [
            "30abcdef0000000000000000846d09051b9490a609c1683605e21c0a0d48ae12\
             133ea40e3b7ac3b8abb3a9de39b40919a41368e4c8d18479e5",
            "30abcdef0000000000000001a352a6ce16e7f967e2ad09ddf06b4b4956e71205\
             bd1796f397d0f1bd1db48d88e13093d37fcd604142101af4c2",
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
            let frames = opener.open(&mut record).unwrap().frames;
            let read = Frames::new(frames).next().unwrap().unwrap();
            assert_eq!((&frames[read.payload], read.is_partial), (&packet[..], true));
        }
    }
}

// --- later epochs -------------------------------------------------------------------------------------------------

/// What one rekeying puts on the wire, and the first record of each end in the new epoch: one frame, PACKET.
struct KnownEpoch {
    init: &'static str,
    reply: &'static str,
    to_server: &'static str,
    to_client: &'static str,
}

/// Epochs 1 and 2 of a lane whose records carry 0xabcdef to the server and 7 to the client, and whose exporter gives
/// c0 c1 .. df. In epoch n each byte of the client's ephemeral key is 10 + n, of the server's 20 + n (hexadecimal). The
/// psk of epoch 2 is d29316e1d1d176bf8ce0314a6a4abbb1114cb26794b716ad3f837a1ee8e3cfe8 for each suite.
const EPOCHS: [(Suite, [KnownEpoch; 2]); 3] = [
    (
        Suite::Aes128Gcm,
        [
            KnownEpoch {
                init: "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13\
                 3c81946d17a59564269f57e38a82184a",
                reply: "7d34a4815fa6b982535e60af3bd9b49556816080f1641ff81d2b7c8ae8268a44\
                 29cea7f70ecaa0bb0c9bd2204ab683ef",
                to_server: "31abcdef0000000000000000a4beb0763550c1a68215cec9cfa2f73f8b94c30d\
                 6b41c3dcf86daced1b505870f4160614f33a22e36ae33e0374",
                to_client: "310000070000000000000000b2e8638d41ee28e6bbcf40122e57c6ef855774e1\
                 a7f60875049393aea8a4dfa44fa6ea5e68baa899b1e242d176",
            },
            KnownEpoch {
                init: "052a50773ac8d91773f2dc9662e12f0defe915e415b8a1c8e20a5a3d6ab2b843\
                 5a8d095277132ac92c7479a8644693a6",
                reply: "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20\
                 b561174573cfb638137676ebe486699a",
                to_server: "32abcdef0000000000000000d44859feea546a5da4ba18ab011b1be510f95961\
                 661cdd55ad37f48a1279a9ac15c65a46cd0f733c8b3339820a",
                to_client: "320000070000000000000000c9f0897bbc94eb355752a6c0b2495173db8ccc2b\
                 5051ed5cf3f56944e530a07a70e650589d366ce13ebcda0714",
            },
        ],
    ),
    (
        Suite::Aes256Gcm,
        [
            KnownEpoch {
                init: "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13\
                 a138892c23f0981a06e14f6030450b8d",
                reply: "7d34a4815fa6b982535e60af3bd9b49556816080f1641ff81d2b7c8ae8268a44\
                 39deaa9d5ef72783c83ad2614d9d8555",
                to_server: "31abcdef00000000000000001106e2df71a36862fde3ccaa2a310985007a44a6\
                 3fd59a544bff7267f6f6e37da3de8619f56e46ef9ff30327b6",
                to_client: "310000070000000000000000b20cc2613dda510919d436e4ca7dbf442566a5a9\
                 dc10e2cd9b72531f308b60790b1c3b51639955b5375b5e8141",
            },
            KnownEpoch {
                init: "052a50773ac8d91773f2dc9662e12f0defe915e415b8a1c8e20a5a3d6ab2b843\
                 1652d29b7f457580eab1f3839216d588",
                reply: "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20\
                 35f553a4c66e02d7571dd15f3dd1d1a8",
                to_server: "32abcdef0000000000000000ea0883f9d0b0682dabe3666946289624d1db331c\
                 9813e43095260f82d3995cb38ba3e20db6c2c9831ad8e01f69",
                to_client: "320000070000000000000000d74c313f681e2664d047cb71fce050bf4dfc40e1\
                 2b7a24cda16f269c82eb88ed30aa450b19085f1022be323786",
            },
        ],
    ),
    (
        Suite::ChaCha20Poly1305,
        [
            KnownEpoch {
                init: "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13\
                 881e47081ae6d1e9a193a01d2e7dd709",
                reply: "7d34a4815fa6b982535e60af3bd9b49556816080f1641ff81d2b7c8ae8268a44\
                 20e02f59cdbd38558b49c0a285399d3b",
                to_server: "31abcdef000000000000000081adcd59afcd4092c0ff02bfb59d1607a20123a2\
                 350bc48d5d6483c0e6bb23e33223ea0cb535e87e603cb61c64",
                to_client: "310000070000000000000000ebb1e57ce3658f5f862a9c236dd6796f135cee2c\
                 3e72f55fcce7a7f10a8299e867b5648afd0f693a034b608b85",
            },
            KnownEpoch {
                init: "052a50773ac8d91773f2dc9662e12f0defe915e415b8a1c8e20a5a3d6ab2b843\
                 f41057869c8fea282ba7fcf2c2ebc5ad",
                reply: "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20\
                 46d849bdd7221f69381e556784ff27d4",
                to_server: "32abcdef00000000000000002b70017c177099e8a946bbc4b239746127d7e23c\
                 f10187730185e8787b79e18bed38bd31ff339db2197e079af9",
                to_client: "320000070000000000000000367767d26f4985139dd1e8109ffd14f9c444203a\
                 210cf048457f8816f7d711f281b6c619b6492011da81742785",
            },
        ],
    ),
];

#[test]
fn both_ends_make_the_known_messages_and_records_of_later_epochs() {
    let frame = [bytes(FRAME_HEADER), bytes(PACKET)].concat();
    let (clients, servers) = (LaneId::new(7).unwrap(), LaneId::new(0x00ab_cdef).unwrap());
    for (suite, known) in EPOCHS {
        let psk = || std::array::from_fn::<u8, PSK_BYTES, _>(|at| 0xc0 + at as u8).into();
        let mut client = EpochSecrets::new(suite, Role::Client, servers, clients, psk());
        let mut server = EpochSecrets::new(suite, Role::Server, clients, servers, psk());
        let (mut client_sealer, _) = split(LaneKeys::derive(suite, Role::Client, export).unwrap(), servers, clients);
        let (mut server_sealer, _) = split(LaneKeys::derive(suite, Role::Server, export).unwrap(), clients, servers);
        for (epoch, known) in (1..).zip(known) {
            let fixed = |first: u8| Randomness::DangerFixed([first + epoch as u8; 32]);
            let (handshake, init) = client.initiate(epoch, fixed(0x10)).unwrap();
            let (server_keys, reply) = server.respond(epoch, &init, fixed(0x20)).unwrap();
            let client_keys = client.finish(epoch, handshake, &reply).unwrap();
            assert_eq!((hex(&init), hex(&reply)), (known.init.into(), known.reply.into()), "{suite:?} {epoch}");
            client_sealer.install(epoch, client_keys.into_directions().0);
            server_sealer.install(epoch, server_keys.into_directions().0);
            for (sealer, expected) in [(&mut client_sealer, known.to_server), (&mut server_sealer, known.to_client)] {
                let mut record = vec![0; frame.len() + RECORD_OVERHEAD_BYTES];
                sealer.seal_from(&frame, &mut record).unwrap();
                assert_eq!(hex(&record), expected, "{suite:?} {epoch}");
            }
        }
    }
}

#[test]
fn rekey_messages_are_the_known_ones() {
    let noise: [u8; 48] = bytes(EPOCHS[0].1[0].init).try_into().unwrap();
    let init = RekeyMessage::Init { epoch: 1, noise };
    for (message, expected) in [
        (RekeyMessage::Hello, "000000".to_owned()),
        (RekeyMessage::Ask { epoch: 1 }, "0100080000000000000001".to_owned()),
        (init, format!("0200380000000000000001{}", EPOCHS[0].1[0].init)),
        (RekeyMessage::Reply { epoch: 1, noise }, format!("0300380000000000000001{}", EPOCHS[0].1[0].init)),
        (RekeyMessage::Done { epoch: 0x0102_0304_0506_0708 }, "0400080102030405060708".to_owned()),
    ] {
        let mut written = Vec::new();
        message.write(&mut written);
        assert_eq!(hex(&written), expected);
        assert_eq!(RekeyMessage::parse(&written), Ok(Some((message, written.len()))));
    }
}

// --- offers and link secrets --------------------------------------------------------------------------------------

/// Length, version, kind, instance f0..ff, secret 00..1f, features, workers, port, lane id base, lanes, two candidates.
const OFFER: &str = "006b0101f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff\
                     000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
                     00000001021fa40102030000000000000003\
                     020000000000000000000000ffff0ac900011fa4\
                     0120010db80000000000000000000000029c40";

/// Worker 1 is mapped to 203.0.113.7:40001; the mapping depends on address and port, the next port is one below, birthday
/// probing, 40 ms of delay.
const EXTENSIONS: &str = "010014010300000000000000000000ffffcb0071079c41\
                          0200060301ffff0028";

fn client_offer() -> Offer {
    Offer {
        instance: std::array::from_fn(|at| 0xf0 + at as u8),
        secret: OfferSecret::new(std::array::from_fn(|at| at as u8)),
        features: Features::AES_128_GCM,
        workers: 2,
        port: 8100,
        lane_id_base: LaneId::new(0x01_02_03).unwrap(),
        lanes: LaneSet(0b11),
        candidates: vec![
            Candidate { kind: CandidateKind::Host, ip: "10.201.0.1".parse().unwrap(), port: 8100 },
            Candidate { kind: CandidateKind::ServerReflexive, ip: "2001:db8::2".parse().unwrap(), port: 40000 },
        ],
        extensions: Extensions::default(),
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
    let mut extended = client_offer();
    extended.extensions.candidates =
        vec![OwnCandidate { worker: 1, kind: CandidateKind::Mapped, address: "203.0.113.7:40001".parse().unwrap() }];
    extended.extensions.punch = Punch {
        mapping: Mapping::AddressAndPortDependent,
        port_delta: -1,
        birthday: true,
        start_delay: Duration::from_millis(40),
    };
    let message = OFFER.replacen("006b", "008b", 1) + EXTENSIONS;
    assert_eq!(hex(&extended.to_message().unwrap()), message);
    assert_eq!(Offer::parse(&bytes(&message)[2..]), Ok(extended));
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
