//! Names, asked on a real kernel: of a node whose only peer never runs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use ringlane_shared::dns::listen_address;
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6, parse_peer_id, service_address};

use crate::lab::{Lab, Namespace, PATIENCE, Site, succeed};
use crate::node::{Node, RINGLANE, mesh, name_of};

fn question(name: &str, asked: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), asked));
    message.to_vec().expect("a question can be written")
}

/// The answer's code and what its records say, one text each.
fn read(answer: &[u8]) -> (ResponseCode, Vec<String>) {
    let answer = Message::from_vec(answer).expect("an answer is well formed");
    let records = answer.answers.iter().map(|record| record.data.to_string());
    (answer.metadata.response_code, records.collect())
}

/// Asks over UDP, inside the namespace.
pub(crate) fn ask(
    router: &Namespace,
    server: SocketAddr,
    name: &str,
    asked: RecordType,
) -> (ResponseCode, Vec<String>) {
    let question = question(name, asked);
    router.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        socket.send_to(&question, server).expect("the question leaves");
        let mut answer = [0; 2048];
        let (bytes, from) = socket.recv_from(&mut answer).expect("there is an answer");
        assert_eq!(from, server);
        read(&answer[..bytes])
    })
}

fn ask_over_tcp(router: &Namespace, server: SocketAddr, name: &str, asked: RecordType) -> (ResponseCode, Vec<String>) {
    let question = question(name, asked);
    router.enter(|| {
        let mut stream = TcpStream::connect(server).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        stream
            .write_all(&[&(question.len() as u16).to_be_bytes()[..], &question].concat())
            .expect("the question leaves");
        let mut length = [0; 2];
        stream.read_exact(&mut length).expect("there is an answer");
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).expect("the answer is whole");
        read(&answer)
    })
}

#[test]
fn a_node_answers_for_its_network_also_for_peers_that_are_offline() {
    let Some(lab) = Lab::up(2) else { return };
    let [setup_a, setup_b] = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let mut node = Node::up(&setup_a);
    node.wait_until("the node to answer", |_| true);

    let server = listen_address(&setup_a.interface);
    let zone = format!("{}.hyprspace.", setup_a.interface);
    let peer = format!("{}.{zone}", name_of(Site::B));
    let id = parse_peer_id(&setup_b.id).expect("init printed an id");
    let ask = |name: &str, asked| ask(&setup_a.router, server, name, asked);
    let no_error = |records: Vec<String>| (ResponseCode::NoError, records);

    let (code, records) = ask(&peer, RecordType::A);
    let [alias, address] = records.as_slice() else { panic!("{code}: {records:?}") };
    assert!(alias.starts_with("k51") && alias.ends_with(&zone), "{alias}");
    assert_eq!(*address, builtin_ipv4(&id).to_string());
    assert_eq!(ask(alias, RecordType::AAAA), no_error(vec![builtin_ipv6(&id).to_string()]));
    assert_eq!(ask_over_tcp(&setup_a.router, server, &peer, RecordType::A), (code, records.clone()));
    assert_eq!(ask(&peer.to_uppercase(), RecordType::A), (code, records.clone()));

    let service = vec![format!("http.{alias}"), service_address(&id, "http").to_string()];
    assert_eq!(ask(&format!("http.{peer}"), RecordType::AAAA), no_error(service.clone()));
    assert_eq!(ask(&format!("http.{peer}"), RecordType::A), no_error(vec![service[0].clone()]));
    assert_eq!(ask(&peer, RecordType::MX), no_error(vec![alias.clone()]));
    let reverse = Name::from(builtin_ipv4(&id)).to_ascii();
    assert_eq!(ask(&reverse, RecordType::PTR), no_error(vec![peer.clone()]));
    assert_eq!(ask(&format!("nobody.{zone}"), RecordType::A), (ResponseCode::NXDomain, Vec::new()));
    assert_eq!(ask("example.org.", RecordType::A), (ResponseCode::Refused, Vec::new()));

    succeed(Command::new(RINGLANE).args(["down", "--interface", &setup_a.interface]));
    assert!(node.wait_ended().success());
    assert!(setup_a.router.enter(|| TcpStream::connect(server)).is_err(), "the name server outlives its node");
}

#[test]
fn a_name_server_that_cannot_listen_keeps_no_node_from_running() {
    let Some(lab) = Lab::up(2) else { return };
    let [mut setup, _] = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let _taken = setup.router.enter(|| UdpSocket::bind("127.0.0.1:5300")).expect("the port is free");
    setup.set("dns", "listen", "127.0.0.1:5300");
    setup.write();
    let mut node = Node::up(&setup);
    node.wait_until("the node to answer", |_| true);
    assert!(node.log().contains("the name server cannot listen"), "{}", node.log());
}
