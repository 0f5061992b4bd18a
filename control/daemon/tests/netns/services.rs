//! Services by the kernel: their addresses, ports and routes, and what becomes of connections to them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use ringlane_shared::identity::{parse_peer_id, service_address};
use toml::{Table, Value};

use crate::lab::{Lab, Namespace, PATIENCE, Site};
use crate::node::{Setup, mesh, name_of, up_and_direct};
use crate::traffic::{expect_content, send_content};

/// What one direction of a connection carries.
const BYTES: usize = 20_000_000;

fn offer(setup: &mut Setup, name: &str, target: &str, deny: &[&str]) {
    let services = setup.settings.entry("services").or_insert_with(|| Table::new().into());
    let mut service = Table::new();
    service.insert("target".into(), target.into());
    let deny = deny.iter().map(|peer| Value::from(*peer)).collect();
    service.insert("deny".into(), Value::Array(deny));
    services.as_table_mut().expect("services is a table").insert(name.into(), service.into());
    setup.write();
}

pub(crate) fn connect(from: &Namespace, id: &str, service: &str, port: u16) -> std::io::Result<TcpStream> {
    let peer = parse_peer_id(id).expect("a peer id");
    let address: Ipv6Addr = service_address(&peer, service);
    let stream = from.enter(|| TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)))?;
    Ok(stream)
}

/// A listener at 127.0.0.1, in a namespace.
pub(crate) fn listen(at: &Namespace, port: u16) -> TcpListener {
    at.enter(|| TcpListener::bind(("127.0.0.1", port)).expect("the port is free"))
}

pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("a connection that was made can be accepted");
    let bounded = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    bounded.expect("a timeout can be set");
    stream
}

/// Both ends of a connection to a service: large both ways at once, then each direction ends by itself.
pub(crate) fn carry(near: TcpStream, far: TcpStream, bytes: usize) {
    thread::scope(|scope| {
        for (from, to, seed) in [(&near, &far, 1), (&far, &near, 2)] {
            let (from, to) = (from.try_clone().expect("clones"), to.try_clone().expect("clones"));
            scope.spawn(move || send_content(from, seed, bytes));
            scope.spawn(move || expect_content(to, seed, bytes));
        }
    });
}

/// The client says that it has said all before the target answers.
fn half_close(mut near: TcpStream, mut far: TcpStream) {
    near.write_all(b"question").and_then(|()| near.shutdown(Shutdown::Write)).expect("an open connection");
    let mut text = String::new();
    far.read_to_string(&mut text).expect("the question and its end arrive");
    assert_eq!(text, "question");
    far.write_all(b"answer").expect("the other direction is open");
    drop(far);
    text.clear();
    near.read_to_string(&mut text).expect("the answer and its end arrive");
    assert_eq!(text, "answer");
}

fn refusal(from: &Namespace, id: &str, service: &str) -> ErrorKind {
    connect(from, id, service, 80).expect_err("nobody may be connected").kind()
}

#[test]
fn services_answer_on_every_port_and_refuse_whom_they_must() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 2), (Site::B, 2)]);
    let socket = lab.directory().join("x.sock");
    let path = format!("/unix{}", socket.display());
    let [a, b] = &mut setups;
    offer(a, "own", "/tcp/8081", &[]);
    offer(b, "example", "/tcp/8080", &[]);
    offer(b, "socket", &path, &[]);
    offer(b, "denied", "/tcp/8080", &[&format!("@{}", name_of(Site::A))]);
    offer(b, "dead", "/tcp/9", &[]);
    let mut nodes = up_and_direct(&setups, [2, 2]);
    let [a, b] = &setups;

    let target = listen(&b.router, 8080);
    for port in [80, 9999] {
        let near = connect(&a.router, &b.id, "example", port).expect("B's service answers");
        carry(near, accept(&target), BYTES / 2);
    }
    half_close(connect(&a.router, &b.id, "example", 1).expect("B's service answers"), accept(&target));
    unix_target(&a.router, &b.id, &socket);

    let own = listen(&a.router, 8081);
    let near = connect(&a.router, &a.id, "own", 443).expect("our own service answers");
    carry(near, accept(&own), BYTES / 10);
    half_close(connect(&a.router, &a.id, "own", 443).expect("our own service answers"), accept(&own));

    for (node, service) in [(b, "denied"), (b, "dead"), (b, "unknown"), (a, "unknown")] {
        assert_eq!(refusal(&a.router, &node.id, service), ErrorKind::ConnectionRefused, "{service}");
    }
    let own = service_address(&parse_peer_id(&a.id).expect("a peer id"), "own");
    a.router.ping(own.into());

    nodes[1].wait_until("no connection to be left", |status| status.sum("streams_of_peers") == 0);
    let status = nodes[0].wait_until("no connection to be left", |status| status.sum("connections_to_peers") == 0);
    assert_eq!((status.sum("accepted_by_peers"), status.sum("not_allowed")), (4, 1));
    assert_eq!((status.sum("unknown_at_peer"), status.sum("unknown_here")), (2, 1));
    let status = nodes[1].status();
    assert_eq!((status.sum("accepted"), status.sum("not_allowed"), status.sum("target_failed")), (4, 1, 1));

    nodes[1].terminate();
    nodes[0].wait_until("B to be gone", |status| status.state(Site::B) == "offline");
    assert_eq!(refusal(&a.router, &b.id, "example"), ErrorKind::HostUnreachable);
}

fn unix_target(from: &Namespace, id: &str, socket: &Path) {
    let target = UnixListener::bind(socket).expect("the lab's directory takes a socket");
    let mut near = connect(from, id, "socket", 5432).expect("B's service answers");
    let (mut far, _) = target.accept().expect("a connection that was made can be accepted");
    let mut text = [0; 5];
    near.write_all(b"there").expect("an open connection");
    far.read_exact(&mut text).expect("all arrives");
    assert_eq!(&text, b"there");
    far.write_all(b"-back").expect("an open connection");
    near.read_exact(&mut text).expect("all arrives");
    assert_eq!(&text, b"-back");
}

#[test]
fn hundreds_of_connections_to_a_peer_are_open_at_once() {
    const CONNECTIONS: usize = 300;
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    offer(&mut setups[1], "example", "/tcp/8080", &[]);
    let mut nodes = up_and_direct(&setups, [1, 1]);
    let [a, b] = &setups;
    let target = listen(&b.router, 8080);
    let mut pairs: Vec<_> = (0..CONNECTIONS)
        .map(|_| (connect(&a.router, &b.id, "example", 80).expect("B's service answers"), accept(&target)))
        .collect();
    assert_eq!(nodes[0].status().sum("connections_to_peers"), CONNECTIONS as u64);
    let mut byte = [0];
    for (near, far) in &mut pairs {
        near.write_all(b"x").and_then(|()| far.read_exact(&mut byte)).expect("an open connection");
        far.write_all(b"y").and_then(|()| near.read_exact(&mut byte)).expect("an open connection");
    }
    drop(pairs);
    for node in &mut nodes {
        node.wait_until("no connection to be left", |status| {
            status.sum("streams_of_peers") + status.sum("connections_to_peers") == 0
        });
    }
}
