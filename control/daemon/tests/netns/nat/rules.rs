//! A gateway in the language of nftables.
//!
//! Conntrack alone makes a NAT that lets in only answers. Where more is let in, a map leads from each outside port to who
//! it was mapped for, and every packet that leaves renews its entry.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use super::kinds::{Filtering, Gateway, Mapping, Passes};

/// Ports of a [`Mapping::Next`] gateway, used in turn.
pub(crate) const NEXT_PORTS: Range<u16> = 40_000..44_096;

/// What a [`Mapping::Other`] gateway turns over in the ports of a host inside, by the last number of its address. Hosts
/// that use one port are so seen at different ones.
const OTHER_PORT: [(u8, u16); 2] = [(10, 0x4000), (20, 0x6000)];
/// The same for whoever else is inside.
const OTHER_PORT_ELSE: u16 = 0x5000;
/// What it turns over besides, times how often it was started again.
const STARTED_AGAIN: u16 = 0x0200;

/// A gateway's rules, and what they take from the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'g> {
    pub(crate) gateway: &'g Gateway,
    /// The address that outsiders see.
    pub(crate) outside: Ipv4Addr,
    /// How long a UDP flow that says nothing is remembered; whole seconds.
    pub(crate) udp_timeout: Duration,
    /// How often the gateway was started again.
    pub(crate) starts: u16,
}

impl Rules<'_> {
    /// For `nft -f`, on a gateway whose interfaces are called `outside`, and `inside` with a number. They replace those that
    /// are there together with what these have remembered; conntrack's entries stay.
    pub(crate) fn text(&self) -> String {
        let sections = [self.memory(), self.source(), self.destination(), self.forward()].concat();
        format!("table inet gateway\ndelete table inet gateway\ntable inet gateway {{\n{sections}}}\n")
    }

    fn memory(&self) -> String {
        let kept = format!("flags dynamic,timeout; timeout {}s", self.udp_timeout.as_secs());
        format!(
            " map mappings {{ type inet_service : ipv4_addr . inet_service; {kept}; }}\n \
             set contacted {{ type inet_service . ipv4_addr; {kept}; }}\n \
             chain remember {{\n  \
             type filter hook postrouting priority srcnat + 10\n  \
             meta nfproto != ipv4 accept\n  \
             oifname outside update @contacted {{ udp sport . ip daddr }}\n  \
             ct direction original ct status snat \
             update @mappings {{ udp sport : ct original ip saddr . ct original proto-src }}\n  \
             ct direction reply ct status dnat \
             update @mappings {{ udp sport : ct reply ip saddr . ct reply proto-src }}\n }}\n"
        )
    }

    /// From inside to outside, and from inside to inside by the outside address.
    fn source(&self) -> String {
        let [a, b, _] = self.gateway.inside;
        let mut rules = String::from(" chain source {\n  type nat hook postrouting priority srcnat\n");
        for Ports { of, port, flags } in self.ports() {
            let udp = format!("meta nfproto ipv4 meta l4proto udp {of}");
            let to = if port.is_empty() { String::new() } else { format!("to {port}") };
            rules += &format!("  oifname outside {udp} masquerade {to} {flags}\n");
            if self.gateway.hairpins {
                rules += &format!(
                    "  oifname \"inside*\" {udp} ip saddr {a}.{b}.0.0/16 ct status dnat snat ip to {}{port} {flags}\n",
                    self.outside,
                );
            }
        }
        rules + "  oifname outside meta nfproto ipv4 masquerade\n }\n"
    }

    fn ports(&self) -> Vec<Ports> {
        let one = |port: String, flags| vec![Ports { of: String::new(), port, flags }];
        match self.gateway.mapping {
            Mapping::Same => one(String::new(), ""),
            Mapping::Random => one(String::new(), "fully-random"),
            Mapping::Next => {
                // A number from numgen would be a port with its bytes in the wrong order.
                let ports: Vec<_> = NEXT_PORTS.enumerate().map(|(at, port)| format!("{at} : {port}")).collect();
                one(format!(":numgen inc mod {} map {{ {} }}", ports.len(), ports.join(", ")), "")
            }
            Mapping::Other => {
                let port = |turned: u16| format!(":udp sport ^ {:#06x}", turned ^ (self.starts * STARTED_AGAIN));
                let ports = OTHER_PORT.map(|(number, turned)| Ports {
                    of: format!("ip saddr & 0.0.0.255 == 0.0.0.{number}"),
                    port: port(turned),
                    flags: "",
                });
                ports.into_iter().chain(one(port(OTHER_PORT_ELSE), "")).collect()
            }
        }
    }

    /// Who gets in without having been answered, and where to. Answers conntrack leads back by itself.
    fn destination(&self) -> String {
        let let_in = match self.gateway.filtering {
            Filtering::AddressAndPort => String::new(),
            Filtering::Address => "  iifname outside udp dport . ip saddr @contacted MAPPED\n".into(),
            Filtering::Independent => "  iifname outside MAPPED\n".into(),
        };
        let hairpin = match self.gateway.hairpins {
            true => format!("  iifname \"inside*\" ip daddr {} MAPPED\n", self.outside),
            false => String::new(),
        };
        let rules =
            [&let_in, &hairpin].map(|rule| rule.replace("MAPPED", "dnat ip to udp dport map @mappings")).concat();
        format!(" chain destination {{\n  type nat hook prerouting priority dstnat\n{rules} }}\n")
    }

    /// What passes, and what is left to the gateway itself: nothing. Who comes too early must leave no trace, or conntrack
    /// would hold its ports against the flow that goes the other way.
    fn forward(&self) -> String {
        let passes = match self.gateway.passes {
            Passes::Everything => "",
            Passes::NoUdp => "  meta l4proto udp drop\n",
            Passes::OnlyTcp443 => {
                "  iifname \"inside*\" tcp dport != 443 drop\n  iifname \"inside*\" meta l4proto != tcp drop\n"
            }
        };
        format!(
            " chain itself {{\n  type filter hook input priority filter\n  \
             meta l4proto {{ icmp, ipv6-icmp }} accept\n  ct state established,related accept\n  \
             iifname outside drop\n  ip daddr {} drop\n }}\n \
             chain through {{\n  type filter hook forward priority filter\n{passes}  \
             ct state established,related accept\n  ct status dnat accept\n  \
             iifname outside drop\n  oifname \"inside*\" drop\n }}\n",
            self.outside
        )
    }
}

/// How the outside ports of some inside are chosen.
struct Ports {
    /// A match; empty for all.
    of: String,
    /// A colon and a port; empty for the one inside.
    port: String,
    flags: &'static str,
}
