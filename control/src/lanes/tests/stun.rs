//! Where an engine's questions go, with servers that the test plays by hand.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use ringlane_shared::stun::client::Target;
use ringlane_shared::stun::message::{Message, Success};

use super::*;

fn socket(net: u8, host: u8) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 77, net, host), 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn received(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Some((buffer[..length].to_vec(), from)),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}

/// Lets the engine ask, and has the servers tell it that each of its ports is one of `outside`, until they have given so many
/// answers and for a while after that.
async fn answer(node: &mut Node, servers: &[UdpSocket], outside: &[UdpSocket], count: usize) {
    let (mut given, mut rest) = (0, 20);
    while rest > 0 {
        let _ = timeout(Duration::from_millis(5), node.engine.next()).await;
        for server in servers {
            while let Some((question, from)) = received(server) {
                let Ok(Message::Request(request)) = Message::parse(&question) else { panic!("a request") };
                let mapped = outside[usize::from(from.port() - PORT)].local_addr().unwrap();
                let success = Success { id: request.id, mapped, other: None, origin: None };
                server.send_to(&success.to_bytes(200).unwrap(), from).unwrap();
                given += 1;
            }
        }
        rest -= u32::from(given >= count);
    }
}

#[tokio::test]
async fn no_question_to_ourselves_goes_into_the_networks_that_lanes_carry() {
    let net = 71;
    let mut node = Node::listening(net, 1, 2);
    let servers = [socket(net, 3), socket(net, 4)];
    let outside = [socket(net, 9), socket(net, 9)];
    node.engine.set_inner_networks(vec![format!("127.77.{net}.9/32").parse().unwrap()]);
    let targets = (0..).zip(&servers).map(|(party, server)| Target::server(server.local_addr().unwrap(), party));
    let hosts = [(node.ip, targets.collect())];
    node.engine.set_stun(&hosts, &BTreeSet::new(), Instant::now().into_std());
    answer(&mut node, &servers, &outside, 4).await;
    let view = node.engine.nat_views().next().unwrap().clone();
    assert!(view.is_mapping_certain, "{view:?}");
    assert!(outside.iter().all(|outside| received(outside).is_none()));

    // Elsewhere they do.
    node.engine.set_inner_networks(Vec::new());
    node.engine.ask_stun_anew(Instant::now().into_std());
    answer(&mut node, &servers, &outside, 4).await;
    assert!(outside.iter().all(|outside| received(outside).is_some()));
}
