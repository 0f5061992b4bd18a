//! Names in configured addresses, `/dns`, `/dns4` and `/dns6`: looked up anew for every dial. Bootstrap contacts may also
//! have `/dnsaddr`, whose text records (`texts`) lead to further addresses.
//!
//! The system's own resolver does it, so that a name means here what it means to every other program on the host:
//! `/etc/hosts` counts, and so does a `resolv.conf` that DHCP wrote long after we started. What is dialled, and all that
//! comes of it, are IP addresses: each passes the same filter as any other.
//!
//! The resolver blocks, so it runs on threads of its own: a bounded number, whatever the number of names.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::limits::{ADDRESS_TEXT_BYTES_MAX, DIALED_ADDRESSES_MAX, DNSADDR_LOOKUPS_MAX, NAME_LOOKUPS_MAX};
use tokio::sync::Semaphore;

use super::connections::TransportName;
use super::{address, texts};

/// How long one name may take. The lookup may go on, to the resolver's own time limits, but nobody waits for it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

type LookUp<T> = dyn Fn(&str) -> io::Result<Vec<T>> + Send + Sync;

/// How names are looked up.
#[derive(Clone)]
pub struct Resolver {
    look_up: Arc<LookUp<IpAddr>>,
    look_up_texts: Arc<LookUp<String>>,
    threads: Arc<Semaphore>,
}

impl Resolver {
    /// The system's.
    pub fn system() -> Self {
        Self::new(|host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    /// One that asks `look_up`, which may block.
    pub fn new(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self {
            look_up: Arc::new(look_up),
            look_up_texts: Arc::new(texts::look_up),
            threads: Arc::new(Semaphore::new(NAME_LOOKUPS_MAX)),
        }
    }

    /// The same, but text records come from `look_up`, which may block.
    pub fn with_texts(self, look_up: impl Fn(&str) -> io::Result<Vec<String>> + Send + Sync + 'static) -> Self {
        Self { look_up_texts: Arc::new(look_up), ..self }
    }

    /// The addresses that an address of `peer` with a name stands for, in the resolver's order.
    async fn resolve(&self, peer: &PeerId, address: &Multiaddr) -> Result<Vec<Multiaddr>, String> {
        let mut found = Vec::new();
        let mut waiting = VecDeque::from([address.clone()]);
        let (mut look_ups, mut problem) = (0, "it leads to no address of the peer".to_owned());
        while let Some(address) = waiting.pop_front().filter(|_| look_ups < DNSADDR_LOOKUPS_MAX) {
            let further = if let Some(Protocol::Dnsaddr(host)) = address.iter().next() {
                look_ups += 1;
                self.resolve_texts(&host, peer).await.map(|addresses| waiting.extend(addresses))
            } else if let Some(name) = Name::parse(&address) {
                look_ups += 1;
                self.resolve_name(&name).await.map(|addresses| found.extend(addresses))
            } else {
                found.push(address);
                Ok(())
            };
            if let Err(error) = further {
                problem = error;
            }
        }
        let mut seen = HashSet::new();
        found.retain(|address| seen.insert(address.clone()));
        found.truncate(DIALED_ADDRESSES_MAX);
        if found.is_empty() { Err(problem) } else { Ok(found) }
    }

    async fn resolve_name(&self, name: &Name) -> Result<Vec<Multiaddr>, String> {
        let addresses = name.with(&self.ips(&name.host).await?);
        if addresses.is_empty() { Err(format!("it has no {} address", name.family())) } else { Ok(addresses) }
    }

    /// The addresses of `peer` that the text records of `_dnsaddr.<host>` name.
    async fn resolve_texts(&self, host: &str, peer: &PeerId) -> Result<Vec<Multiaddr>, String> {
        let texts = self.on_thread(&self.look_up_texts, format!("_dnsaddr.{host}")).await?;
        let addresses = texts.iter().filter(|text| text.len() <= ADDRESS_TEXT_BYTES_MAX).filter_map(|text| {
            let address: Multiaddr = text.strip_prefix("dnsaddr=")?.parse().ok()?;
            let names_it = address.iter().last() == Some(Protocol::P2p(*peer));
            names_it.then(|| address::without_peer(&address, peer).ok())?
        });
        Ok(addresses.take(DNSADDR_LOOKUPS_MAX).collect())
    }

    /// The IP addresses of a host.
    pub(crate) async fn ips(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        self.on_thread(&self.look_up, host.to_owned()).await
    }

    async fn on_thread<T: Send + 'static>(&self, look_up: &Arc<LookUp<T>>, host: String) -> Result<Vec<T>, String> {
        let looking_up = async {
            let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
            let look_up = Arc::clone(look_up);
            let looking_up = tokio::task::spawn_blocking(move || {
                let found = look_up(&host);
                drop(thread);
                found
            });
            looking_up.await?
        };
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, looking_up).await;
        found.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())
    }
}

/// An address that begins with a name.
struct Name {
    host: String,
    ipv4: bool,
    ipv6: bool,
    /// Behind the name.
    transport: Multiaddr,
}

impl Name {
    /// Reads an address that would be dialled if an IP address stood in the name's place.
    fn parse(address: &Multiaddr) -> Option<Self> {
        let (host, ipv4, ipv6) = match address.iter().next()? {
            Protocol::Dns(host) => (host, true, true),
            Protocol::Dns4(host) => (host, true, false),
            Protocol::Dns6(host) => (host, false, true),
            _ => return None,
        };
        let transport = address.iter().skip(1).collect();
        let name = Self { host: host.into_owned(), ipv4, ipv6, transport };
        address::parse(&name.at([192, 0, 2, 1].into())).is_ok().then_some(name)
    }

    fn at(&self, ip: IpAddr) -> Multiaddr {
        let address: Multiaddr = std::iter::once(Protocol::from(ip)).chain(self.transport.iter()).collect();
        if address::transport_of(&address) != Some(TransportName::Wss) {
            return address;
        }
        // What TLS and HTTP ask for is the name, by which one address may have several servers.
        let named = address.iter().take_while(|part| !matches!(part, Protocol::Wss(_) | Protocol::Tls));
        let sni = self.sni().unwrap_or_else(|| self.host.clone());
        let web = [Protocol::Tls, Protocol::Sni(sni.into()), Protocol::Ws("/".into())];
        named.chain(web).collect()
    }

    fn sni(&self) -> Option<String> {
        self.transport.iter().find_map(|part| match part {
            Protocol::Sni(name) => Some(name.into_owned()),
            _ => None,
        })
    }

    fn with(&self, found: &[IpAddr]) -> Vec<Multiaddr> {
        let wanted = found.iter().filter(|ip| if ip.is_ipv4() { self.ipv4 } else { self.ipv6 });
        let mut addresses = Vec::new();
        for address in wanted.map(|ip| self.at(*ip)).take(DIALED_ADDRESSES_MAX) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    fn family(&self) -> &'static str {
        match (self.ipv4, self.ipv6) {
            (true, false) => "IPv4",
            (false, true) => "IPv6",
            _ => "IP",
        }
    }
}

/// Whether this is an address with a name that can be dialled once the name is looked up.
pub(super) fn is_name(address: &Multiaddr) -> bool {
    Name::parse(address).is_some()
}

/// What a peer's names were found to stand for.
pub(super) struct Found {
    pub(super) peer: PeerId,
    pub(super) fresh_port: bool,
    /// Each address to dial, and the one with the name that it came from.
    pub(super) addresses: Vec<(Multiaddr, Multiaddr)>,
    /// Names without an address, and why; those that are news.
    pub(super) failures: Vec<(Multiaddr, String)>,
}

/// The lookups under way. One for each dial, so as many as dials.
pub(super) struct LookUps {
    resolver: Resolver,
    under_way: FuturesUnordered<BoxFuture<'static, LookedUp>>,
    /// Names that last had no address: a name is complained of once, until it has been found again.
    missing: HashSet<Multiaddr>,
}

struct LookedUp {
    peer: PeerId,
    fresh_port: bool,
    names: Vec<(Multiaddr, Result<Vec<Multiaddr>, String>)>,
}

impl LookUps {
    pub(super) fn new(resolver: Resolver) -> Self {
        Self { resolver, under_way: FuturesUnordered::new(), missing: HashSet::new() }
    }

    /// Looks up one dial's names. They come back together, by [`Self::poll`].
    pub(super) fn start(&mut self, peer: PeerId, names: Vec<Multiaddr>, fresh_port: bool) {
        let each = names.into_iter().map(|name| {
            let resolver = self.resolver.clone();
            async move {
                let found = resolver.resolve(&peer, &name).await;
                (name, found)
            }
        });
        let all = join_all(each);
        self.under_way.push(Box::pin(async move { LookedUp { peer, fresh_port, names: all.await } }));
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        let Poll::Ready(Some(LookedUp { peer, fresh_port, names })) = self.under_way.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        let mut found = Found { peer, fresh_port, addresses: Vec::new(), failures: Vec::new() };
        for (name, result) in names {
            match result {
                Ok(addresses) => {
                    self.missing.remove(&name);
                    found.addresses.extend(addresses.into_iter().map(|address| (address, name.clone())));
                }
                Err(error) => {
                    if self.missing.insert(name.clone()) {
                        found.failures.push((name, error));
                    }
                }
            }
        }
        found.addresses.truncate(DIALED_ADDRESSES_MAX);
        Poll::Ready(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str) -> Vec<String> {
        let ips = ["192.0.2.7", "2001:db8::7", "192.0.2.7", "192.0.2.8"].map(|ip| ip.parse().unwrap());
        let name = Name::parse(&address.parse().unwrap()).unwrap();
        name.with(&ips).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_stands_for_each_address_of_the_families_it_asks_for_once() {
        let v6 = "/ip6/2001:db8::7/udp/8001/quic-v1";
        let v4 = ["/ip4/192.0.2.7/udp/8001/quic-v1", "/ip4/192.0.2.8/udp/8001/quic-v1"];
        assert_eq!(found("/dns4/b.example/udp/8001/quic-v1"), v4);
        assert_eq!(found("/dns6/b.example/udp/8001/quic-v1"), [v6]);
        assert_eq!(found("/dns/b.example/udp/8001/quic-v1"), [v4[0], v6, v4[1]]);
    }

    #[test]
    fn a_name_with_tls_stays_in_the_address_for_those_who_serve_several() {
        let named = "/ip6/2001:db8::7/tcp/443/tls/sni/b.example/ws";
        assert_eq!(found("/dns6/b.example/tcp/443/wss"), [named]);
        assert_eq!(found("/dns6/b.example/tcp/443/tls/ws"), [named]);
        assert_eq!(found("/dns6/a.example/tcp/443/tls/sni/b.example/ws"), [named]);
        assert_eq!(found("/dns6/b.example/tcp/80/ws"), ["/ip6/2001:db8::7/tcp/80/ws"]);
    }

    #[test]
    fn only_names_with_a_transport_we_speak_are_names() {
        for (address, expected) in [
            ("/dns/b.example/tcp/1", true),
            ("/dns/b.example/udp/1", false),
            ("/dns/b.example/tcp/1/ws", true),
            ("/dns/b.example/tcp/1/tls/ws", true),
            ("/dns/b.example/tcp/1/tls", false),
            ("/dnsaddr/b.example", false),
            ("/ip4/192.0.2.1/tcp/1", false),
        ] {
            assert_eq!(is_name(&address.parse().unwrap()), expected, "{address}");
        }
    }

    #[tokio::test]
    async fn a_dnsaddr_leads_through_further_ones_and_names_to_the_peers_addresses() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let texts = move |host: &str| {
            Ok(match host {
                "_dnsaddr.a.example" => vec![
                    format!("dnsaddr=/dnsaddr/b.example/p2p/{peer}"),
                    format!("dnsaddr=/ip4/192.0.2.9/tcp/9/p2p/{other}"),
                    "dnsaddr=/ip4/192.0.2.9/tcp/9".to_owned(),
                    "v=spf1".to_owned(),
                ],
                "_dnsaddr.b.example" => vec![
                    format!("dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/{peer}"),
                    format!("dnsaddr=/dns4/c.example/tcp/2/p2p/{peer}"),
                    format!("dnsaddr=/dnsaddr/a.example/p2p/{peer}"),
                ],
                _ => return Err(io::ErrorKind::NotFound.into()),
            })
        };
        let resolver = Resolver::new(|_| Ok(vec![[192, 0, 2, 2].into()])).with_texts(texts);
        let resolve = async |text: &str| {
            let found = resolver.resolve(&peer, &text.parse().unwrap()).await?;
            Ok::<_, String>(found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let found = resolve("/dnsaddr/a.example").await.unwrap();
        assert_eq!(found, ["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/2"], "a circle ends, too");
        assert!(resolve("/dnsaddr/nowhere.example").await.is_err());
    }

    #[tokio::test]
    async fn a_name_that_is_not_found_is_complained_of_once_until_it_is_found_again() {
        let (peer, name) = (PeerId::random(), "/dns4/b.example/tcp/1".parse::<Multiaddr>().unwrap());
        let answers = [None, Some("2001:db8::1"), Some("192.0.2.1"), None];
        let answers = std::sync::Mutex::new(answers.map(|ip| ip.map(|ip| ip.parse().unwrap())).into_iter());
        let mut look_ups = LookUps::new(Resolver::new(move |_| {
            let answer: Option<IpAddr> = answers.lock().unwrap().next().flatten();
            answer.map(|ip| vec![ip]).ok_or(io::ErrorKind::NotFound.into())
        }));
        let mut seen = Vec::new();
        for _ in 0..4 {
            look_ups.start(peer, vec![name.clone()], false);
            let found = std::future::poll_fn(|cx| look_ups.poll(cx)).await;
            seen.push((found.addresses.len(), found.failures.len()));
        }
        assert_eq!(seen, [(0, 1), (0, 0), (1, 0), (0, 1)]);
    }
}
