//! Networks that let nothing pass but the web, or nothing but one proxy, and nodes that keep to their LAN.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use socket2::SockRef;

use crate::full_tunnel::{assert_no_recursion, internet, list, reaches_the_internet_by_b, watch_recursion};
use crate::lab::{Lab, Namespace, PATIENCE, Site, succeed};
use crate::node::{Node, RINGLANE, Setup, Status, mesh, name_of};
use crate::routes::set_routes;
use crate::traffic::{tcp_both_ways, udp_flows};

const PROXY_PORT: u16 = 3128;
/// A name that nobody knows but the proxy.
const NAME: &str = "b.example";

/// Has the router drop what comes from the underlay, but for this.
fn let_pass_only(router: &Namespace, passing: &[&str]) {
    router.run("nft add table inet web");
    router.run("nft add chain inet web input { type filter hook input priority 0 ; }");
    for rule in passing {
        router.run(&format!("nft add rule inet web input iifname underlay {rule} accept"));
    }
    router.run("nft add rule inet web input iifname underlay meta l4proto tcp counter drop");
    router.run("nft add rule inet web input iifname underlay meta l4proto udp counter drop");
}

fn strings(texts: &[String]) -> Vec<toml::Value> {
    texts.iter().cloned().map(toml::Value::String).collect()
}

/// Has a node listen where it does, and on this port of all its addresses.
fn listen_too(setup: &mut Setup, web: &str) {
    let mut listen = setup.settings["control"]["listen"].as_array().cloned().expect("listen is an array");
    listen.push(format!("/ip4/0.0.0.0/{web}").into());
    setup.set("control", "listen", listen);
}

fn wait_stream(node: &mut Node, peer: Site) -> Status {
    node.wait_until("packets by stream", |status| {
        status.state(peer) == "direct" && status.peer(peer).is_some_and(|peer| peer["carrier"] == "stream")
    })
}

/// What carries a node's connections, and where they lead.
fn connections(setup: &Setup) -> Vec<(String, String)> {
    let mut peers = Command::new(RINGLANE);
    let listed = succeed(peers.args(["peers", "--json", "--interface", &setup.interface])).stdout;
    let listed: Value = serde_json::from_slice(&listed).expect("--json prints JSON");
    let text = |connection: &Value, key: &str| connection[key].as_str().unwrap_or_default().to_owned();
    let all = listed.as_array().expect("a list").iter();
    all.map(|connection| (text(connection, "transport"), text(connection, "remote"))).collect()
}

fn traffic_crosses(lab: &Lab) {
    let (a, b) = (lab.host(Site::A), lab.host(Site::B));
    for address in Site::B.host() {
        a.ping(address);
        tcp_both_ways(&a, &b, address, 2, 500_000);
        udp_flows(&a, &b, address, 2, 2);
    }
}

/// Has the router pass TCP 443 only, and node and peer know of each other's port there.
fn meet_by_web_only(setup: &mut Setup, web: &str) {
    let_pass_only(&setup.router, &["tcp dport 443", "tcp sport 443"]);
    listen_too(setup, web);
    let site = if setup.site == Site::A { Site::B } else { Site::A };
    addresses(setup).push(format!("/ip4/{}/{web}", site.underlay()).into());
    setup.write();
}

/// Those of the only peer.
fn addresses(setup: &mut Setup) -> &mut Vec<toml::Value> {
    let peer = &mut setup.settings["peers"].as_array_mut().expect("peers is an array")[0];
    peer["addresses"].as_array_mut().expect("addresses is an array")
}

#[test]
fn a_full_tunnel_in_a_websocket_does_not_swallow_it() {
    let Some(lab) = Lab::up(3) else { return };
    internet(&lab);
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    set_routes(&mut setups[0], [list(&["0.0.0.0/0", "::/0"])]);
    setups.iter_mut().for_each(|setup| meet_by_web_only(setup, "tcp/443/wss"));
    // So that it is A who dials, with a default route that leads to whom it dials.
    addresses(&mut setups[1]).clear();
    setups[1].write();
    let mut nodes = setups.each_ref().map(Node::up);
    wait_stream(&mut nodes[0], Site::B);
    wait_stream(&mut nodes[1], Site::A);
    watch_recursion(&setups[0]);
    reaches_the_internet_by_b(&lab);

    assert!(nodes[1].terminate().success());
    nodes[0].wait_until("B to be gone", |status| status.state(Site::B) != "direct");
    nodes[1].up_again(&setups[1]);
    wait_stream(&mut nodes[0], Site::B);
    wait_stream(&mut nodes[1], Site::A);
    reaches_the_internet_by_b(&lab);
    assert_no_recursion(&setups[0].router);
}

#[test]
fn where_only_tcp_443_passes_nodes_meet_in_websockets_with_and_without_tls_and_packets_flow() {
    for (web, transport) in [("tcp/443/ws", "ws"), ("tcp/443/wss", "wss")] {
        let Some(lab) = Lab::up(2) else { return };
        let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
        setups.iter_mut().for_each(|setup| meet_by_web_only(setup, web));
        let mut nodes = setups.each_ref().map(Node::up);
        wait_stream(&mut nodes[0], Site::B);
        wait_stream(&mut nodes[1], Site::A);
        traffic_crosses(&lab);
        for setup in &setups {
            let connections = connections(setup);
            assert!(!connections.is_empty(), "{transport}");
            for (carried, remote) in connections {
                assert_eq!(carried, transport, "{remote}");
                assert!(remote.ends_with(&web[7..]), "{remote}");
            }
        }
    }
}

/// A proxy that knows one name.
struct Proxy {
    listener: TcpListener,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Serves in `at` whoever brings `credentials`, in base64, if there are any.
    fn start(at: &Namespace, credentials: Option<&'static str>) -> Self {
        let listener = at.enter(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            socket.set_reuse_address(true).expect("what lingers does not count");
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PROXY_PORT)).into()).expect("the port is free");
            socket.listen(16).expect("a bound socket can listen");
            TcpListener::from(socket)
        });
        let open = Arc::new(Mutex::new(Vec::new()));
        let (accepted, connections, at) = (listener.try_clone().expect("clones"), Arc::clone(&open), at.clone());
        let accepting = thread::spawn(move || {
            while let Ok((client, _)) = accepted.accept() {
                let kept = client.try_clone().expect("clones");
                connections.lock().expect("nobody panics with it").push(kept);
                let (connections, at) = (Arc::clone(&connections), at.clone());
                thread::spawn(move || {
                    // Whatever ends it ends this connection only.
                    let _ = serve(client, &at, credentials, &connections);
                });
            }
        });
        Self { listener, open, accepting: Some(accepting) }
    }
}

/// Ends every connection through it.
impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for socket in self.open.lock().expect("nobody panics with it").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn serve(
    mut client: TcpStream,
    at: &Namespace,
    credentials: Option<&str>,
    open: &Mutex<Vec<TcpStream>>,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let asked = credentials.map(|credentials| format!("\r\nProxy-Authorization: Basic {credentials}\r\n"));
    if asked.is_some_and(|header| !head.contains(&header)) {
        return client.write_all(b"HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic realm=\"lab\"\r\n\r\n");
    }
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split_once(' ')).map(|(target, _)| target);
    let (host, port) = target.and_then(|target| target.rsplit_once(':')).ok_or(io::ErrorKind::InvalidData)?;
    let ip = if host == NAME { Some(IpAddr::from(Site::B.underlay())) } else { host.parse().ok() };
    let Some((ip, port)) = ip.zip(port.parse().ok()) else {
        return client.write_all(b"HTTP/1.1 502 No such host\r\n\r\n");
    };
    let reached = at.enter(move || TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE));
    let Ok(server) = reached else {
        return client.write_all(b"HTTP/1.1 503 Not reached\r\n\r\n");
    };
    open.lock().expect("nobody panics with it").push(server.try_clone()?);
    client.write_all(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 lab\r\n\r\n")?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    io::copy(&mut &server, &mut client)?;
    client.shutdown(Shutdown::Both)
}

fn problem(status: &Status) -> &str {
    status.peer(Site::B).and_then(|peer| peer["problem"].as_str()).unwrap_or_default()
}

#[test]
fn where_only_a_proxy_is_reached_it_is_told_the_name_and_who_asks_and_may_go_away_for_a_while() {
    let Some(lab) = Lab::up(3) else { return };
    let proxy_at = lab.router(Site::C);
    let proxy = Site::C.underlay();
    let [mut a, mut b] = [Site::A, Site::B].map(|site| Setup::init(&lab, site).workers(1));
    let_pass_only(&a.router, &[&format!("ip saddr {proxy} tcp sport {PROXY_PORT}")]);
    listen_too(&mut b, "tcp/443/wss");
    b.add_peer(&name_of(Site::A), &a.id, &[], &Site::A.networks());
    b.write();
    a.add_peer(&name_of(Site::B), &b.id, &[format!("/dns4/{NAME}/tcp/443/wss")], &Site::B.networks());
    a.set("control", "proxy", format!("http://{proxy}:{PROXY_PORT}"));
    a.write();
    // `me:secret`
    let mut running = Proxy::start(&proxy_at, Some("bWU6c2VjcmV0"));
    let mut nodes = [Node::up(&a), Node::up(&b)];
    nodes[0].wait_until("the proxy wants to know who asks", |status| problem(status).contains("407"));

    nodes[0].terminate();
    a.set("control", "proxy", format!("http://me:secret@{proxy}:{PROXY_PORT}"));
    a.write();
    nodes[0].up_again(&a);
    wait_stream(&mut nodes[0], Site::B);
    wait_stream(&mut nodes[1], Site::A);
    traffic_crosses(&lab);
    let connections = connections(&a);
    assert!(
        connections.iter().all(|(transport, remote)| transport == "wss" && remote.contains(NAME)),
        "{connections:?}"
    );
    assert!(!nodes[0].log().contains("secret"), "a password is in the log");

    drop(running);
    nodes[0].wait_until("the proxy to be missed", |status| problem(status).contains("cannot be reached"));
    running = Proxy::start(&proxy_at, Some("bWU6c2VjcmV0"));
    wait_stream(&mut nodes[0], Site::B);
    wait_stream(&mut nodes[1], Site::A);
    traffic_crosses(&lab);
    drop(running);
}

#[test]
fn on_a_lan_a_neighbour_is_found_and_a_peer_beyond_a_router_is_neither_dialled_nor_let_in() {
    let Some(lab) = Lab::up(3) else { return };
    // B moves behind C, where only IPv4 leads.
    let beyond = |host: u8| Ipv4Addr::new(198, 51, 100, host);
    for (site, lines) in [
        (Site::A, vec![format!("ip route add {}/24 via {}", beyond(0), Site::C.underlay())]),
        (
            Site::B,
            vec![
                "ip address flush dev underlay".to_owned(),
                format!("ip address add {}/24 dev underlay", beyond(2)),
                format!("ip route add 10.201.0.0/24 via {}", beyond(3)),
            ],
        ),
        (Site::C, vec![format!("ip address add {}/24 dev underlay", beyond(3))]),
    ] {
        lines.iter().for_each(|line| drop(lab.router(site).run(line)));
    }
    let [mut a, mut b, mut c] = [Site::A, Site::B, Site::C].map(|site| Setup::init(&lab, site).workers(1));
    let at = |ip: Ipv4Addr| [format!("/ip4/{ip}/tcp/8001"), format!("/ip4/{ip}/udp/8001/quic-v1")];
    let listen = strings(&at(Ipv4Addr::UNSPECIFIED));
    for setup in [&mut a, &mut b, &mut c] {
        setup.set("control", "listen", listen.clone());
        setup.set("control", "mdns", setup.site != Site::B);
    }
    a.set("control", "scope", "lan");
    a.add_peer(&name_of(Site::B), &b.id, &at(beyond(2)), &Site::B.networks());
    a.add_peer(&name_of(Site::C), &c.id, &[], &Site::C.networks());
    b.add_peer(&name_of(Site::A), &a.id, &at(Site::A.underlay()), &Site::A.networks());
    c.add_peer(&name_of(Site::A), &a.id, &[], &Site::A.networks());
    [&a, &b, &c].into_iter().for_each(Setup::write);
    let mut nodes = [Node::up(&a), Node::up(&b), Node::up(&c)];
    nodes[0].wait_direct(&[Site::C], 1);
    let status = nodes[0]
        .wait_until("refusals both ways", |status| status.gate("dial_beyond_lan") > 0 && status.gate("beyond_lan") > 0);
    assert_eq!(status.state(Site::B), "offline");
    assert!(problem(&status).contains("control.scope"), "{}", problem(&status));
    lab.host(Site::A).ping(Site::C.host_v4().into());

    nodes[0].terminate();
    a.set("control", "scope", "any");
    a.write();
    nodes[0].up_again(&a);
    nodes[0].wait_direct(&[Site::B, Site::C], 1);
}
