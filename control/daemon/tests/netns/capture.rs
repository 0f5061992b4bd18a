//! What the underlay shows of us: nothing.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, ConnectionId, Endpoint, EndpointConfig};

use crate::lab::{Lab, PATIENCE, Site};
use crate::node::{CONTROL_PORT, LANE_PORT, Node, mesh, name_of};
use crate::traffic::{receiver, sender, udp_flows, uninterrupted};
use crate::wire::{Capture, Datagram, expect_silence};

const MARKER: &[u8] = b"nobody-on-the-underlay-may-read-this";

#[test]
fn nothing_of_packets_or_names_is_readable_on_the_underlay() {
    let Some(lab) = Lab::up(3) else { return };
    // From before the first packet: the names could leak while the nodes find each other.
    let underlay = Capture::start(&lab.underlay());
    let setups = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);

    let inside = Capture::start(&lab.host(Site::B));
    udp_flows(&lab.host(Site::A), &lab.host(Site::B), Site::B.host_v6().into(), 2, 4);
    for address in Site::B.host() {
        let receiver = receiver(&lab.host(Site::B), address);
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let target = receiver.local_addr().unwrap();
        let sender = lab.host(Site::A).enter(|| sender(target));
        sender.send(&MARKER.repeat(20)).unwrap();
        uninterrupted(|| receiver.recv(&mut [0; 2048])).unwrap();
    }
    let (underlay, inside) = (underlay.stop(), inside.stop());

    let v4 = [Site::A.host_v4().octets(), Site::B.host_v4().octets()].concat();
    let v6 = [Site::A.host_v6().octets(), Site::B.host_v6().octets()].concat();
    for secret in [MARKER, &v4, &v6] {
        assert!(shows(&inside, secret), "the check itself works: behind the router this is readable");
    }
    let records = underlay.iter().filter_map(|packet| Datagram::parse(packet)).filter(Datagram::is_record).count();
    assert!(records > 0, "the traffic crossed the captured wire");
    let names = [name_of(Site::A), name_of(Site::B), setups[0].id.clone(), setups[1].id.clone()];
    let interfaces = setups.each_ref().map(|setup| setup.interface.clone());
    let mut secrets: Vec<&[u8]> = vec![MARKER, &v4, &v6, b"ringlane-test"];
    secrets.extend(names.iter().chain(&interfaces).map(String::as_bytes));
    for secret in secrets {
        assert!(!shows(&underlay, secret), "readable on the underlay: {}", String::from_utf8_lossy(secret));
    }
}

fn shows(packets: &[Vec<u8>], secret: &[u8]) -> bool {
    packets.iter().any(|packet| packet.windows(secret.len()).any(|window| window == secret))
}

#[test]
fn a_scanner_hears_nothing_from_a_lane_port() {
    let Some(lab) = Lab::up(3) else { return };
    let setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B], 1);
    let at = |port| SocketAddr::from(SocketAddrV4::new(Site::A.underlay(), port));
    let probe = |port| lab.router(Site::C).enter(|| sender(at(port)));

    let initial = quic_initial(at(LANE_PORT));
    let mut unknown_version = initial.clone();
    unknown_version[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    // Any other QUIC server answers both: libp2p's port proves that the probes are well-formed and get there.
    for (what, datagram) in [("an Initial", &initial), ("an unknown version", &unknown_version)] {
        let socket = probe(CONTROL_PORT);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(datagram).unwrap();
        let answer = uninterrupted(|| socket.recv(&mut [0; 2048]));
        assert!(answer.is_ok(), "libp2p's port does not answer {what}: {answer:?}");
    }

    expect_silence(&probe(LANE_PORT), &initial, "an Initial with a token that was not offered");
    expect_silence(&probe(LANE_PORT), &unknown_version, "an unknown QUIC version");
    let mut short_header = [0x5a; 100];
    short_header[0] = 0x40;
    expect_silence(&probe(LANE_PORT), &short_header, "a QUIC packet of an unknown connection");
    expect_silence(&probe(LANE_PORT), &[0x30; 100], "a record of an unknown lane");
    expect_silence(&probe(LANE_PORT), &[0x20; 64], "a path probe of an unknown path");
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    expect_silence(&probe(LANE_PORT), &stun, "a STUN binding request");
    expect_silence(&probe(LANE_PORT), &[0], "a sentinel");
}

/// The first datagram of a client that knows everything but an offered token: well-formed and correctly protected.
fn quic_initial(target: SocketAddr) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"ringlane/1".to_vec(), b"libp2p".to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3 has Initial keys")));
    config.initial_dst_cid_provider(Arc::new(|| ConnectionId::new(&[0xc7; 20])));
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None);
    let now = Instant::now();
    let name = Ipv4Addr::LOCALHOST.to_string();
    let (_, mut connection) = endpoint.connect(now, config, target, &name).expect("the parameters are valid");
    let mut datagram = Vec::new();
    let transmit = connection.poll_transmit(now, 1, &mut datagram).expect("a client speaks first");
    datagram.truncate(transmit.size);
    assert!(datagram.len() >= 1200 && datagram[0] & 0xf0 == 0xc0, "an Initial has a long header and is padded");
    datagram
}
