//! The libp2p part of the control thread: reaching configured peers, keeping them connected, and asking them things.
//!
//! [`Node`] is the only way in. Below it, from the wire up:
//!
//! | Module | What it is |
//! |---|---|
//! | [`address`] | which addresses may be dialled at all; where an address leads |
//! | `transport` | TCP with Noise or TLS and yamux, QUIC, and the filter that applies [`address`] to every dial |
//! | `tcp`, `quic` | TCP whose dials leave from marked sockets; QUIC whose dials leave from the right one |
//! | `gate` | refuses the connections of peers that are not configured, of addresses nobody wants, and too many |
//! | `rates` | how often each of many may do something |
//! | `streams` | raw streams of our protocols, on the connection we choose |
//! | [`exchange`], `exchanges` | one question and one answer on a stream; those under way |
//! | `mdns` | finding peers on the local networks |
//! | `names` | what names in configured addresses stand for, asked anew for every dial |
//! | `dialer` | when to dial whom and where: pure |
//! | `connections` | who is connected how, and which connections are too many: pure |
//! | `health` | whether a connection still carries anything: pure |
//! | [`discovery`] | finding peers nobody gave an address of: the DHT, its bootstrap contacts, delegated routers |
//! | `dht` | the DHT's behaviour |
//! | `seeker`, `bootstrap` | whom to look for when; when to go to which contact: pure |
//! | `swarm_key` | the key of a private libp2p network |
//! | `problems` | why a peer is not connected, for the operator |
//! | `relay` | connections by way of a third node |
//! | `listeners` | the addresses we listen on |
//! | `behaviour` | the above and the stock behaviours, put together |
//! | `node` | the event loop's body |

pub mod address;
mod behaviour;
mod bootstrap;
mod connections;
mod dht;
mod dialer;
pub mod discovery;
pub mod exchange;
mod exchanges;
mod gate;
mod health;
mod listeners;
mod mdns;
mod names;
mod node;
mod problems;
mod quic;
pub(crate) mod rates;
mod recorder;
mod relay;
mod seeker;
mod streams;
pub mod swarm_key;
mod tcp;
mod texts;
mod transport;
pub mod web;

pub use connections::{ConnectionHold, ConnectionInfo, Direction, PeerKind, Quality, TransportName, Way};
pub use dialer::Source;
pub use discovery::Discovery;
pub use exchange::{ExchangeError, OpenError};
pub use exchanges::{ExchangeId, ExchangeToken};
pub use libp2p::swarm::ConnectionId;
pub use listeners::{ListenError, ListenFault};
pub use mdns::{MdnsCounters, Segment};
pub use names::Resolver;
pub use node::{KnownAddress, LearntAddress, Node, NodeConfig, NodeError, NodeEvent, RelayReport};
pub use relay::{CarriedCircuit, HopCounters};
pub use streams::{Accepted, InboundStream, OpenId};
pub use transport::{PeerTransport, Underlay};
