//! An internet of namespaces, two public nodes on it, and two sites, each in a place of some [`Kind`].
//!
//! ```text
//!  router-r (R)     router-s (S)            5.10.0.2, 5.20.0.2: public
//!       |                |
//!  +----+----------------+-----+
//!  |         internet          |            forwards what has a public address, and nothing else
//!  +----+----------------+-----+
//!       | 5.30.0.2       | 5.40.0.2         outside
//!   gateway-a1       gateway-b0             as many as the kind has; a0 is the one next to the node
//!       | inside0        | inside0
//!   gateway-a0           |
//!       |                |
//!  router-a (A)     router-b (B)            192.168.1.10, 192.168.1.20: alike on purpose, as homes are
//!       |                |
//!    host-a           host-b                10.10.0.2, 10.20.0.2: inner
//! ```
//!
//! The addresses are like no private network's and no documentation's, as programs believe neither to be public.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::kinds::{Gateway, Kind, Pair, SHARED};
use super::rules::Rules;
use crate::delay::{TreatedLink, Treatment, interface};
use crate::lab::{Lab, Namespace, Site};

/// How long a gateway remembers a UDP flow that says nothing, unless a test sets something else.
const UDP_TIMEOUT: Duration = Duration::from_secs(60);

/// A NAT lets through what it cannot make sense of, as it is.
const MARTIANS: &str = "table ip internet {
 chain martians {
  type filter hook forward priority filter
  ip saddr { 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16 } drop
 }
}
";

/// Lets nothing pass, before anything remembers it.
const PAUSE: &str = "table inet pause {
 chain everything {
  type filter hook prerouting priority raw
  drop
 }
}
";

/// The interface of a node's router towards the rest, as in every lab.
pub(crate) const UNDERLAY: &str = "underlay";

/// A running lab; it vanishes with its owner.
#[derive(Debug)]
pub(crate) struct NatLab {
    lab: Lab,
    internet: Namespace,
    /// Of sites A and B, the node's own gateway first.
    gateways: [Vec<Placed>; 2],
    /// Whether A's gateways are B's, too.
    is_shared: bool,
    /// The IPv4 addresses of A and B where nothing translates them.
    untranslated: [Ipv4Addr; 2],
}

/// A gateway in its namespace.
#[derive(Debug)]
struct Placed {
    gateway: Gateway,
    namespace: Namespace,
    outside: Ipv4Addr,
    udp_timeout: Duration,
    starts: u16,
}

/// Whose traffic to drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
    Both,
}

impl NatLab {
    /// Makes a lab. `None` as [`Lab::up`].
    pub(crate) fn up(pair: Pair) -> Option<Self> {
        let mut lab = Lab::empty()?;
        let internet = lab.add("internet");
        internet.run("ip route add blackhole default");
        internet.run("ip -6 route add blackhole default");
        load(&lab, &internet, MARTIANS);
        let untranslated = [Site::A, Site::B].map(|site| public(site).0);
        let mut nat = Self { lab, internet, gateways: [vec![], vec![]], is_shared: false, untranslated };
        for site in [Site::R, Site::S] {
            let router = nat.lab.add(&format!("router-{}", site.letter()));
            nat.attach(&router, UNDERLAY, site, true, true);
        }
        let routers = [Site::A, Site::B].map(|site| nat.add_site(site));
        match pair {
            Pair::Apart(a, b) => {
                for ((site, kind), router) in [(Site::A, a), (Site::B, b)].into_iter().zip(&routers) {
                    nat.place(site, kind, router);
                }
            }
            Pair::SameNat { hairpins } => nat.place_together(Gateway { hairpins, ..SHARED }, &routers, false),
            Pair::SameLan => nat.place_together(SHARED, &routers, true),
        }
        Some(nat)
    }

    /// For all that takes a lab of sites.
    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The IPv4 address that outsiders see of A or B, if it has one.
    pub(crate) fn seen_at(&self, site: Site) -> Ipv4Addr {
        let owner = self.owner(site);
        self.gateways[owner].last().map_or(self.untranslated[owner], |outermost| outermost.outside)
    }

    /// Has all of a site's gateways forget every flow, as if they had been started again: whoever chooses other ports
    /// chooses different ones now.
    pub(crate) fn forget(&mut self, site: Site) {
        let owner = self.owner(site);
        for placed in &mut self.gateways[owner] {
            placed.starts += 1;
            placed.start_again(&self.lab);
        }
    }

    /// The address that [`Self::renumber`] would give next.
    pub(crate) fn next_address(&self, site: Site) -> Ipv4Addr {
        let [a, b, c, number] = self.seen_at(site).octets();
        Ipv4Addr::new(a, b, c, number + 1)
    }

    /// Gives the outermost of a site's gateways, or a public site itself, another IPv4 address.
    pub(crate) fn renumber(&mut self, site: Site) {
        let (old, new) = (self.seen_at(site), self.next_address(site));
        let owner = self.owner(site);
        let (namespace, device) = match self.gateways[owner].last_mut() {
            Some(outermost) => {
                outermost.outside = new;
                (outermost.namespace.clone(), "outside")
            }
            None => {
                self.untranslated[owner] = new;
                (self.lab.router(site), UNDERLAY)
            }
        };
        // In this order the default route would be gone for no moment.
        namespace.run("sysctl -q -w net.ipv4.conf.all.promote_secondaries=1");
        namespace.run(&format!("ip address add {new}/24 dev {device}"));
        namespace.run(&format!("ip address del {old}/24 dev {device}"));
        if let Some(outermost) = self.gateways[owner].last() {
            outermost.start_again(&self.lab);
        }
    }

    /// Sets how long a site's gateways remember a UDP flow that says nothing, in whole seconds. Full cones forget what
    /// they know.
    pub(crate) fn set_udp_timeout(&mut self, site: Site, timeout: Duration) {
        let owner = self.owner(site);
        for placed in &mut self.gateways[owner] {
            placed.udp_timeout = timeout;
            placed.install(&self.lab);
        }
    }

    /// Whether any of a site's gateways remembers a UDP flow.
    pub(crate) fn remembers(&self, site: Site) -> bool {
        self.gateways[self.owner(site)].iter().any(|placed| {
            let flows = placed.namespace.run("conntrack -L -p udp");
            !flows.is_empty() || placed.namespace.run("nft list ruleset").contains(" expires ")
        })
    }

    /// Has the internet drop what two sites send to each other; all else passes.
    pub(crate) fn part(&self, [a, b]: [Site; 2], family: Family) {
        let matched = match family {
            Family::V4 => "meta nfproto ipv4",
            Family::V6 => "meta nfproto ipv6",
            Family::Both => "",
        };
        let between = |from: Site, to: Site| format!("  iifname {} oifname {} {matched} drop\n", port(from), port(to));
        let rules = format!(
            "table inet parted {{\n chain between {{\n  type filter hook forward priority filter\n{}{} }}\n}}\n",
            between(a, b),
            between(b, a),
        );
        load(&self.lab, &self.internet, &rules);
    }

    /// Treats what a site on the internet sends and gets, as long as what is returned lives; after that it is cut off.
    pub(crate) fn treat(&self, site: Site, treatment: Treatment) -> TreatedLink {
        let (router, port) = (self.lab.router(site), port(site));
        self.internet.run(&format!("ip link delete {port}"));
        let ends = [interface(&router, UNDERLAY), interface(&self.internet, &port)];
        self.address(&router, UNDERLAY, site, true, true);
        TreatedLink::start(ends, treatment)
    }

    /// Ends what [`Self::part`] began.
    pub(crate) fn join(&self) {
        self.internet.run("nft delete table inet parted");
    }

    /// Where in `gateways` a site's are.
    fn owner(&self, site: Site) -> usize {
        usize::from(site == Site::B && !self.is_shared)
    }

    /// A site's router and host, joined with each other only.
    fn add_site(&mut self, site: Site) -> Namespace {
        let router = self.lab.add(&format!("router-{}", site.letter()));
        let host = self.lab.add(&format!("host-{}", site.letter()));
        join((&router, "lan"), (&host, "eth0"));
        let (v4, v6) = (site.host_v4(), site.host_v6());
        let [a, b, ..] = v4.octets();
        let segments = v6.segments();
        let first = Ipv6Addr::new(segments[0], segments[1], 0, 0, 0, 0, 0, 1);
        router.run(&format!("ip address add {a}.{b}.0.1/16 dev lan"));
        router.run(&format!("ip address add {first}/64 dev lan nodad"));
        host.run(&format!("ip address add {v4}/16 dev eth0"));
        host.run(&format!("ip address add {v6}/64 dev eth0 nodad"));
        host.run(&format!("ip route add default via {a}.{b}.0.1"));
        host.run(&format!("ip -6 route add default via {first}"));
        router
    }

    /// Joins a namespace's interface with the internet, at a site's public addresses.
    fn attach(&self, namespace: &Namespace, device: &str, site: Site, has_v4: bool, has_v6: bool) {
        join((&self.internet, &port(site)), (namespace, device));
        self.address(namespace, device, site, has_v4, has_v6);
    }

    /// Gives both ends of such a link their addresses.
    fn address(&self, namespace: &Namespace, device: &str, site: Site, has_v4: bool, has_v6: bool) {
        let port = port(site);
        let ((v4, v6), (hop_v4, hop_v6)) = (public(site), numbered(site, 1));
        if has_v4 {
            self.internet.run(&format!("ip address add {hop_v4}/24 dev {port}"));
            namespace.run(&format!("ip address add {v4}/24 dev {device}"));
            namespace.run(&format!("ip route add default via {hop_v4}"));
        }
        if has_v6 {
            self.internet.run(&format!("ip address add {hop_v6}/64 dev {port} nodad"));
            namespace.run(&format!("ip address add {v6}/64 dev {device} nodad"));
            namespace.run(&format!("ip -6 route add default via {hop_v6}"));
        }
    }

    /// Puts a site's router into a place of its own.
    fn place(&mut self, site: Site, kind: Kind, router: &Namespace) {
        let gateways = kind.gateways();
        let mut placed: Vec<Placed> = Vec::new();
        // From the internet inwards.
        for (depth, gateway) in gateways.iter().enumerate().rev() {
            let namespace = self.lab.add(&format!("gateway-{}{depth}", site.letter()));
            let outside = match placed.last() {
                None => {
                    self.attach(&namespace, "outside", site, kind.has_v4(), kind.has_v6());
                    public(site).0
                }
                Some(outer) => {
                    let outside = behind(&outer.gateway, 2);
                    settle(outer, (&namespace, "outside"), outside);
                    outside
                }
            };
            placed.push(Placed::new(*gateway, namespace, outside));
        }
        match placed.last() {
            None => self.attach(router, UNDERLAY, site, kind.has_v4(), kind.has_v6()),
            Some(own) if kind.has_v4() => settle(own, (router, UNDERLAY), behind(&own.gateway, host_number(site))),
            Some(own) => join((&own.namespace, "inside0"), (router, UNDERLAY)),
        }
        if let Some(own) = placed.last().filter(|_| kind.has_v6()) {
            self.delegate(site, own, router);
        }
        placed.iter().for_each(|placed| placed.install(&self.lab));
        placed.reverse();
        self.gateways[usize::from(site == Site::B)] = placed;
    }

    /// Gives a site's inside network an IPv6 prefix of its own.
    fn delegate(&self, site: Site, own: &Placed, router: &Namespace) {
        let inside = |number| Ipv6Addr::new(0x2a01, net_number(site).into(), 1, 0, 0, 0, 0, number);
        self.internet.run(&format!("ip -6 route add {}/48 via {}", inside(0), public(site).1));
        own.namespace.run(&format!("ip address add {}/64 dev inside0 nodad", inside(1)));
        router.run(&format!("ip address add {}/64 dev {UNDERLAY} nodad", inside(host_number(site).into())));
        router.run(&format!("ip -6 route add default via {}", inside(1)));
    }

    /// Puts both routers behind one gateway: in one network, or each in one of its own.
    fn place_together(&mut self, gateway: Gateway, routers: &[Namespace; 2], is_one_lan: bool) {
        let namespace = self.lab.add("gateway-a0");
        self.attach(&namespace, "outside", Site::A, true, false);
        let placed = Placed::new(gateway, namespace.clone(), public(Site::A).0);
        if is_one_lan {
            namespace.run("ip link add name inside0 type bridge forward_delay 0 mcast_snooping 0");
            namespace.run(&format!("ip address add {}/24 dev inside0", behind(&gateway, 1)));
            namespace.run("ip link set inside0 up");
            // What is bridged is none of a router's business, but some kernels ask it.
            namespace.run("sysctl -q -e -w net.bridge.bridge-nf-call-iptables=0");
        }
        for ((number, site), router) in (0..).zip([Site::A, Site::B]).zip(routers) {
            let [a, b, c] = gateway.inside;
            let within = Gateway { inside: [a, b, if is_one_lan { c } else { c + number }], ..gateway };
            let device = if is_one_lan { format!("port{number}") } else { format!("inside{number}") };
            join((&namespace, &device), (router, UNDERLAY));
            if is_one_lan {
                namespace.run(&format!("ip link set {device} master inside0"));
            } else {
                namespace.run(&format!("ip address add {}/24 dev {device}", behind(&within, 1)));
            }
            router.run(&format!("ip address add {}/24 dev {UNDERLAY}", behind(&within, host_number(site))));
            router.run(&format!("ip route add default via {}", behind(&within, 1)));
        }
        placed.install(&self.lab);
        self.gateways[0].push(placed);
        self.is_shared = true;
    }
}

impl Placed {
    fn new(gateway: Gateway, namespace: Namespace, outside: Ipv4Addr) -> Self {
        Self { gateway, namespace, outside, udp_timeout: UDP_TIMEOUT, starts: 0 }
    }

    /// Forgets everything, and takes up the rules as they are to be now.
    fn start_again(&self, lab: &Lab) {
        // A packet at the wrong moment would carry something over from before.
        load(lab, &self.namespace, PAUSE);
        self.install(lab);
        self.namespace.run("conntrack -F");
        self.namespace.run("nft delete table inet pause");
    }

    /// Loads the rules as they are to be now.
    fn install(&self, lab: &Lab) {
        let rules =
            Rules { gateway: &self.gateway, outside: self.outside, udp_timeout: self.udp_timeout, starts: self.starts };
        load(lab, &self.namespace, &rules.text());
        let seconds = self.udp_timeout.as_secs();
        self.namespace.run(&format!(
            "sysctl -q -w net.netfilter.nf_conntrack_udp_timeout={seconds} \
             net.netfilter.nf_conntrack_udp_timeout_stream={seconds}"
        ));
    }
}

fn load(lab: &Lab, namespace: &Namespace, rules: &str) {
    let file = lab.directory().join(format!("{}.nft", namespace.name()));
    fs::write(&file, rules).expect("the lab's directory can be written");
    namespace.run(&format!("nft -f {}", file.display()));
}

/// Joins two namespaces by a pair of interfaces of these names, both up.
fn join((one, device): (&Namespace, &str), (other, other_device): (&Namespace, &str)) {
    one.run(&format!("ip link add name {device} type veth peer name {other_device} netns {}", other.name()));
    one.run(&format!("ip link set {device} up"));
    other.run(&format!("ip link set {other_device} up"));
}

/// Joins a namespace with the one network inside a gateway.
fn settle(outer: &Placed, (namespace, device): (&Namespace, &str), address: Ipv4Addr) {
    join((&outer.namespace, "inside0"), (namespace, device));
    outer.namespace.run(&format!("ip address add {}/24 dev inside0", behind(&outer.gateway, 1)));
    namespace.run(&format!("ip address add {address}/24 dev {device}"));
    namespace.run(&format!("ip route add default via {}", behind(&outer.gateway, 1)));
}

/// An address inside a gateway.
fn behind(gateway: &Gateway, number: u8) -> Ipv4Addr {
    let [a, b, c] = gateway.inside;
    Ipv4Addr::new(a, b, c, number)
}

/// The last number of a node's address behind a gateway.
fn host_number(site: Site) -> u8 {
    if site == Site::A { 10 } else { 20 }
}

/// A site's place on the internet: whoever is outermost there has these addresses.
pub(crate) fn public(site: Site) -> (Ipv4Addr, Ipv6Addr) {
    numbered(site, 2)
}

/// An address in these networks; the internet's own is number 1.
pub(crate) fn numbered(site: Site, number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let net = net_number(site);
    (Ipv4Addr::new(5, net, 0, number), Ipv6Addr::new(0x2a01, net.into(), 0, 0, 0, 0, 0, number.into()))
}

/// Whether this is an address of one of the two public nodes.
pub(crate) fn is_of_third_peer(address: IpAddr) -> bool {
    [Site::R, Site::S].iter().any(|&site| {
        let (v4, v6) = public(site);
        address == IpAddr::V4(v4) || address == IpAddr::V6(v6)
    })
}

/// The number of a site's networks. They have nothing else in common, as programs count networks of 16 bits.
fn net_number(site: Site) -> u8 {
    match site {
        Site::R => 10,
        Site::S => 20,
        Site::A => 30,
        Site::B => 40,
        Site::C => unreachable!("this lab has no such site"),
    }
}

/// The internet's interface to a site.
fn port(site: Site) -> String {
    format!("to-{}", site.letter())
}
