//! Nodes over loopback that find each other without knowing each other's addresses: by the DHT, by delegated routers, by a
//! Kubo node; and networks with a swarm key.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures::StreamExt;
use futures::future::select_all;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use libp2p::identity::Keypair;
use libp2p::kad::{self, store::MemoryStore};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, noise, tcp, yamux};
use ringlane_control::swarm::{Discovery, Node, NodeConfig, NodeEvent, Resolver, swarm_key};
use ringlane_shared::config::{DhtMode, RouterSettings, RouterUrl};
use ringlane_shared::wire::routing::peer_request;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Everything here takes a second or two; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at that nothing announces.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Clone)]
struct Site {
    keypair: Keypair,
    id: PeerId,
    ip: Ipv4Addr,
}

impl Site {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let keypair = Keypair::generate_ed25519();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // 127.129.0.0 and up: the lower half belongs to other tests.
        let ip = Ipv4Addr::from(0x7f81_0000 + (std::process::id() % 0x7d00) * 0x100 + n);
        Self { id: keypair.public().to_peer_id(), keypair, ip }
    }

    fn tcp(&self) -> Multiaddr {
        format!("/ip4/{}/tcp/8001", self.ip).parse().unwrap()
    }

    fn quic(&self) -> Multiaddr {
        format!("/ip4/{}/udp/8001/quic-v1", self.ip).parse().unwrap()
    }

    /// A node that listens on both; of each of its peers it knows the address only if `true` stands beside it.
    fn node(&self, peers: &[(&Site, bool)], discovery: Discovery, resolver: Resolver) -> Node {
        let peers = peers.iter().map(|(site, known)| (site.id, if *known { vec![site.tcp()] } else { Vec::new() }));
        let mut node = Node::new(NodeConfig {
            allow_loopback: true,
            seed: u64::from(u32::from(self.ip)),
            resolver,
            discovery,
            ..NodeConfig::new(self.keypair.clone(), peers.collect())
        })
        .unwrap();
        assert!(node.set_listen_addresses(&[self.tcp(), self.quic()]).is_empty());
        node
    }

    fn client(&self, peers: &[(&Site, bool)]) -> Node {
        self.node(peers, Discovery::default(), Resolver::system())
    }
}

/// Runs the nodes until `done`, and something else beside them.
async fn run_until(
    nodes: &mut [Node],
    beside: impl Future<Output = Infallible>,
    mut done: impl FnMut(&[Node]) -> bool,
) {
    let run = async {
        tokio::pin!(beside);
        while !done(nodes) {
            tokio::select! {
                _ = select_all(nodes.iter_mut().map(|node| Box::pin(node.next()))) => {}
                never = &mut beside => match never {},
                // What a refusal changes, no event tells.
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it should have happened by now");
}

fn alone() -> impl Future<Output = Infallible> {
    std::future::pending()
}

fn is_connected(node: &Node, to: &Site) -> bool {
    node.best_connection(&to.id).is_some()
}

/// Whether the nodes at these positions become connected within a time in which they certainly would if they could.
async fn stay_apart(nodes: &mut [Node], a: usize, b: &Site) {
    let apart = async {
        loop {
            let (event, ..) = select_all(nodes.iter_mut().map(|node| Box::pin(node.next()))).await;
            drop(event);
            assert!(!is_connected(&nodes[a], b), "nothing should have told them of each other");
        }
    };
    let _: Result<Infallible, _> = tokio::time::timeout(Duration::from_secs(4), apart).await;
}

#[tokio::test]
async fn two_clients_that_know_only_our_own_server_find_each_other() {
    let [server, a, b] = [Site::new(), Site::new(), Site::new()];
    let serving = Discovery { dht: DhtMode::Server, ..Discovery::default() };
    let mut nodes = [
        server.node(&[(&a, false), (&b, false)], serving, Resolver::system()),
        a.client(&[(&server, true), (&b, false)]),
        b.client(&[(&server, true), (&a, false)]),
    ];
    run_until(&mut nodes, alone(), |nodes| is_connected(&nodes[1], &b) && is_connected(&nodes[2], &a)).await;
    let address = nodes[1].best_connection(&b.id).unwrap().remote.clone();
    assert!(
        [&nodes[1], &nodes[2]].iter().all(|node| node.contacts().count() == 0),
        "nobody else is dialled: {address}"
    );
}

#[tokio::test]
async fn without_a_server_among_them_they_do_not() {
    let [hub, a, b] = [Site::new(), Site::new(), Site::new()];
    let mut nodes = [
        hub.client(&[(&a, false), (&b, false)]),
        a.client(&[(&hub, true), (&b, false)]),
        b.client(&[(&hub, true), (&a, false)]),
    ];
    run_until(&mut nodes, alone(), |nodes| is_connected(&nodes[1], &hub) && is_connected(&nodes[2], &hub)).await;
    stay_apart(&mut nodes, 1, &b).await;
}

/// A DHT server that is nobody's peer. Like a Go server it tells where everybody is who has been there.
#[derive(NetworkBehaviour)]
struct Public {
    identify: identify::Behaviour,
    dht: kad::Behaviour<MemoryStore>,
}

struct PublicServer {
    swarm: Swarm<Public>,
    /// What those who came offered us.
    offered: HashSet<StreamProtocol>,
}

impl PublicServer {
    fn new(site: &Site) -> Self {
        let swarm = SwarmBuilder::with_existing_identity(site.keypair.clone())
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|key| {
                let id = key.public().to_peer_id();
                let mut dht = kad::Behaviour::with_config(
                    id,
                    MemoryStore::new(id),
                    kad::Config::new(StreamProtocol::new("/ipfs/kad/1.0.0")),
                );
                dht.set_mode(Some(kad::Mode::Server));
                Public { identify: identify::Behaviour::new(identify::Config::new(String::new(), key.public())), dht }
            })
            .unwrap()
            .build();
        let mut server = Self { swarm, offered: HashSet::new() };
        server.swarm.listen_on(site.tcp()).unwrap();
        server
    }

    async fn run(&mut self) -> Infallible {
        loop {
            if let SwarmEvent::Behaviour(PublicEvent::Identify(identify::Event::Received { peer_id, info, .. })) =
                self.swarm.select_next_some().await
            {
                self.offered.extend(info.protocols);
                for address in info.listen_addrs {
                    self.swarm.behaviour_mut().dht.add_address(&peer_id, address);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_public_server_leads_to_a_peer_and_is_told_nothing_of_the_vpn() {
    let [public, a, b] = [Site::new(), Site::new(), Site::new()];
    let mut server = PublicServer::new(&public);
    let with = |contact: String| Discovery { bootstrap: vec![contact.parse().unwrap()], ..Discovery::default() };
    let (id, address) = (public.id, public.tcp());
    let text = format!("dnsaddr={address}/p2p/{id}");
    let resolver = Resolver::system().with_texts(move |host| {
        assert_eq!(host, "_dnsaddr.boot.example");
        Ok(vec![text.clone()])
    });
    let mut nodes = [
        a.node(&[(&b, false)], with(format!("/dnsaddr/boot.example/p2p/{id}")), resolver),
        b.node(&[(&a, false)], with(format!("{address}/p2p/{id}")), Resolver::system()),
    ];
    run_until(&mut nodes, server.run(), |nodes| is_connected(&nodes[0], &b) && is_connected(&nodes[1], &a)).await;
    for node in &nodes {
        assert_eq!(node.contacts().map(|(peer, _)| peer).collect::<Vec<_>>(), [id]);
        assert!(node.all_connections().all(|connection| connection.peer != id), "a contact is no peer");
    }
    let ours: Vec<_> = server.offered.iter().filter(|name| !name.as_ref().starts_with("/ipfs/")).collect();
    assert!(ours.is_empty() && !server.offered.is_empty(), "{ours:?}");
}

#[tokio::test]
async fn a_stranger_that_dials_us_is_refused_though_we_dial_strangers() {
    let [public, a] = [Site::new(), Site::new()];
    let mut server = PublicServer::new(&public);
    let contact = format!("/ip4/127.0.0.1/tcp/9/p2p/{}", PeerId::random()).parse().unwrap();
    let discovery = Discovery { bootstrap: vec![contact], ..Discovery::default() };
    let mut nodes = [a.node(&[(&Site::new(), false)], discovery, Resolver::system())];
    server.swarm.dial(a.tcp()).unwrap();
    run_until(&mut nodes, server.run(), |nodes| nodes[0].refused_connections() > 0).await;
    assert_eq!(nodes[0].contacts().count(), 0);
}

type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// An HTTP server that answers every request with what `answer` makes of its path; with TLS if given an acceptor.
struct Http {
    at: SocketAddr,
    asked: Asked,
    task: JoinHandle<()>,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Http {
    async fn new(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&str) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (at, asked, answer) = (listener.local_addr().unwrap(), Asked::default(), Arc::new(answer));
        let log = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let service = service_fn(move |request: Request<Incoming>| {
                    let accept = request.headers().get("accept").map(|value| value.to_str().unwrap().to_owned());
                    let path = request.uri().to_string();
                    log.lock().unwrap().push((format!("{} {path}", request.method()), accept.unwrap_or_default()));
                    let response = answer(&path);
                    async move { Ok::<_, Infallible>(response) }
                });
                let server = hyper::server::conn::http1::Builder::new();
                // One at a time: a client that gives up must not stop the others.
                let _ = match &tls {
                    None => server.serve_connection(TokioIo::new(socket), service).await,
                    Some(tls) => match tls.accept(socket).await {
                        Ok(secured) => server.serve_connection(TokioIo::new(secured), service).await,
                        Err(_) => Ok(()),
                    },
                };
            }
        });
        Self { at, asked, task }
    }

    fn url(&self, https: bool) -> RouterUrl {
        RouterUrl::parse(&format!("{}://{}/base/", if https { "https" } else { "http" }, self.at)).unwrap()
    }
}

fn body(status: u16, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).header("location", "/elsewhere").body(Full::new(text.into())).unwrap()
}

/// What a router says of a site.
fn record(site: &Site) -> String {
    format!("{{\"Schema\":\"peer\",\"ID\":\"{}\",\"Addrs\":[\"{}\"]}}\n", site.id, site.tcp())
}

#[tokio::test]
async fn a_delegated_router_leads_to_a_peer_whatever_the_others_answer() {
    let [a, b] = [Site::new(), Site::new()];
    let (said, huge) = (record(&b), vec![b' '; (1 << 20) + 1]);
    let servers = [
        Http::new(None, |_| body(302, "")).await,
        Http::new(None, move |_| body(200, huge.clone())).await,
        Http::new(None, |_| body(404, "no")).await,
        Http::new(None, |_| body(200, "{\"Peers\":[")).await,
        Http::new(None, move |_| body(200, said.clone())).await,
    ];
    let routers = servers.iter().map(|server| RouterSettings { url: server.url(false), pin: None }).collect();
    let discovery = Discovery { routers, dht: DhtMode::Off, ..Discovery::default() };
    let off = Discovery { dht: DhtMode::Off, ..Discovery::default() };
    let mut nodes =
        [a.node(&[(&b, false)], discovery, Resolver::system()), b.node(&[(&a, false)], off, Resolver::system())];
    run_until(&mut nodes, alone(), |nodes| is_connected(&nodes[0], &b)).await;
    let asked = servers[4].asked.lock().unwrap()[0].clone();
    let path = format!("GET /base{}", peer_request(&b.id));
    assert_eq!(asked, (path, "application/x-ndjson,application/json".to_owned()));
    let redirected = servers[0].asked.lock().unwrap().clone();
    assert!(redirected.iter().all(|(path, _)| !path.contains("elsewhere")), "{redirected:?}");
}

/// A server's certificate, signed by itself, and the pin of its key.
fn certificate() -> (TlsAcceptor, [u8; 32]) {
    let made = rcgen::generate_simple_self_signed(["router.example".to_owned()]).unwrap();
    let pin = digest(&SHA256, &made.key_pair.public_key_der()).as_ref().try_into().unwrap();
    let key = PrivateKeyDer::try_from(made.key_pair.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), pin)
}

#[tokio::test]
async fn a_pinned_router_needs_no_authority_and_one_with_another_key_is_not_asked() {
    let [a, b] = [Site::new(), Site::new()];
    let (right, wrong, unknown) = (certificate(), certificate(), certificate());
    let said = [record(&b), record(&b), record(&b)];
    let [of_right, of_wrong, of_unknown] = said.map(|said| move |_: &str| body(200, said.clone()));
    let servers = [
        Http::new(Some(wrong.0), of_wrong).await,
        Http::new(Some(unknown.0), of_unknown).await,
        Http::new(Some(right.0), of_right).await,
    ];
    let pins = [Some(right.1), None, Some(right.1)];
    let routers = servers.iter().zip(pins).map(|(server, pin)| RouterSettings { url: server.url(true), pin });
    let discovery = Discovery { routers: routers.collect(), dht: DhtMode::Off, ..Discovery::default() };
    let mut nodes = [a.node(&[(&b, false)], discovery, Resolver::system()), b.client(&[(&a, false)])];
    run_until(&mut nodes, alone(), |nodes| is_connected(&nodes[0], &b)).await;
    let asked: Vec<_> = servers.iter().map(|server| server.asked.lock().unwrap().len()).collect();
    assert!(asked[..2] == [0, 0] && asked[2] > 0, "{asked:?}");
}

#[tokio::test]
async fn a_kubo_node_tells_of_its_connections_and_its_bootstrap_list() {
    let [public, a, b, c] = [Site::new(), Site::new(), Site::new(), Site::new()];
    let mut server = PublicServer::new(&public);
    let connected = format!("{{\"Peers\":[{{\"Addr\":\"{}\",\"Peer\":\"{}\"}}]}}", b.tcp(), b.id);
    let bootstrap = format!("{{\"Peers\":[\"{}/p2p/{}\"]}}", public.tcp(), public.id);
    let kubo = Http::new(None, move |path| match path {
        "/api/v0/swarm/peers" => body(200, connected.clone()),
        "/api/v0/bootstrap" => body(200, bootstrap.clone()),
        _ => body(404, ""),
    })
    .await;
    let discovery = Discovery { kubo: Some(kubo.at), ..Discovery::default() };
    let contact = format!("{}/p2p/{}", public.tcp(), public.id).parse().unwrap();
    let with_contact = Discovery { bootstrap: vec![contact], ..Discovery::default() };
    let mut nodes = [
        a.node(&[(&b, false), (&c, false)], discovery, Resolver::system()),
        b.client(&[(&a, false)]),
        c.node(&[(&a, false)], with_contact, Resolver::system()),
    ];
    run_until(&mut nodes, server.run(), |nodes| is_connected(&nodes[0], &b) && is_connected(&nodes[0], &c)).await;
    let asked = kubo.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|(request, _)| request.starts_with("POST ")), "{asked:?}");
}

fn key(digit: char) -> Discovery {
    let file = format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", digit.to_string().repeat(64));
    Discovery { swarm_key: swarm_key::parse(file.as_bytes()), ..Discovery::default() }
}

#[tokio::test]
async fn nodes_with_one_swarm_key_meet_over_tcp_and_others_stay_outside() {
    let [a, b, other, open] = [Site::new(), Site::new(), Site::new(), Site::new()];
    let everybody = [(&b, true), (&other, true), (&open, true)];
    let back = [(&a, true)];
    let mut nodes = [
        a.node(&everybody, key('1'), Resolver::system()),
        b.node(&back, key('1'), Resolver::system()),
        other.node(&back, key('2'), Resolver::system()),
        open.client(&back),
    ];
    run_until(&mut nodes, alone(), |nodes| is_connected(&nodes[0], &b) && is_connected(&nodes[1], &a)).await;
    assert_eq!(nodes[0].listen_addresses().collect::<Vec<_>>(), [&a.tcp()], "QUIC is off");
    stay_apart(&mut nodes, 0, &other).await;
    stay_apart(&mut nodes, 0, &open).await;
}

#[tokio::test]
async fn told_to_look_for_everybody_a_node_does_so_at_once() {
    let [a, b] = [Site::new(), Site::new()];
    let router = Http::new(None, |_| body(404, "")).await;
    let routers = vec![RouterSettings { url: router.url(false), pin: None }];
    let discovery = Discovery { routers, ..Discovery::default() };
    let mut nodes = [a.node(&[(&b, false)], discovery, Resolver::system())];
    let asked = || router.asked.lock().unwrap().len();
    // With no event of the node's own, only time passes between two requests.
    async fn run(node: &mut Node, until: impl Fn() -> bool) {
        let run = async {
            while !until() {
                let _: Result<NodeEvent, _> = tokio::time::timeout(Duration::from_millis(10), node.next()).await;
            }
        };
        tokio::time::timeout(PATIENCE, run).await.expect("it should have happened by now");
    }
    run(&mut nodes[0], || asked() == 3).await;
    let told = std::time::Instant::now();
    nodes[0].rediscover();
    run(&mut nodes[0], || asked() == 4).await;
    assert!(told.elapsed() < Duration::from_secs(3), "the fourth search would have been due after 6 s at the earliest");
}
