//! Ringlane's control thread: finds, authenticates and connects peers, sets up lanes, owns the kernel's configuration.
//!
//! | Module | What it is |
//! |---|---|
//! | [`runtime`] | the thread's one select loop: [`runtime::run`] is the way in |
//! | [`coordinator`] | what control decides, pure: events in, intents out |
//! | [`swarm`] | libp2p: who is connected, and offers there and back |
//! | [`exchange`] | what nodes tell each other of third ones |
//! | [`lanes`] | listeners, probes and handshakes that make lanes |
//! | [`services`] | TCP services with addresses of their own: those of peers, and ours |
//! | [`environment`] | Hyprspace's environment variables |
//! | `obstacle` | why no lane leads to a peer from node to node |
//! | `nat` | what others see of our lane ports: whom to ask, and what came of it |
//! | `portmap` | routers asked to map our ports |
//! | `routing` | delegated routers and a Kubo node, asked over HTTP where peers are |
//! | [`dns`] | the name server, and systemd-resolved told of it |
//! | [`metrics`] | what Prometheus reads |
//! | [`netcheck`] | what lies between this node and everybody else, in words |
//! | [`netlink`] | addresses, routes and MTU of the TUN interface; the host's own addresses |
//! | [`packets`] | packets on libp2p streams, for peers that no lane leads to |
//! | [`routes`] | networks behind peers: who routes them, and who of several does |
//! | [`udp_relay`] | lanes relayed at the speed of UDP: for others, and by others |
//! | [`underlay`] | what keeps our own traffic out of the tunnel |
//! | [`admin`] | the socket that `ringlane status` and its siblings talk to |
//! | `tls_client` | TLS clients that judge the server's certificate themselves |
//! | [`store`] | the identity key and the peer cache on disk |

mod addresses;
pub mod admin;
pub mod coordinator;
pub mod dns;
pub mod environment;
pub mod exchange;
pub mod lanes;
pub mod metrics;
mod nat;
pub mod netcheck;
pub mod netlink;
mod obstacle;
pub mod packets;
mod portmap;
mod ready;
mod report;
pub mod routes;
mod routing;
pub mod runtime;
pub mod services;
mod signals;
pub mod store;
pub mod swarm;
mod tls_client;
pub mod udp_relay;
pub mod underlay;
