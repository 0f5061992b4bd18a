//! Rules that keep our own underlay traffic out of routes that cover it.
//!
//! A route that covers an address our own traffic must reach, 0.0.0.0/0 above all, stands in a table of our own. With
//! `T` that table, `L` the prefix's length and `B` a base of our own, the kernel's rules are
//!
//! ```text
//! B          fwmark 0x524c                        goto B+133    sockets that we make
//! B          iif lo ipproto udp sport 8001        goto B+133    QUIC's listeners; rp_filter knows these, too
//! B          iif lo ipproto udp sport 8100-8107   goto B+133    lanes
//! B          iif lo ipproto tcp sport 8001        goto B+133    TCP's listeners and what leaves from their port
//! B+1+128-L  to PREFIX lookup main suppress_prefixlength L      what the host routes more precisely is its own
//! B+1+128-L  to PREFIX lookup T                                 the rest is the tunnel's
//! B+133      oif INTERFACE ipproto udp sport .. nop             where the jumps end; says whose the rules are
//! ```
//!
//! so that for each prefix the longest match holds across both tables. `iif lo` is what this host itself sends: traffic
//! of hosts behind it goes through the tunnel whatever its ports are. Rules outlive a node that was killed; the next one
//! with the same interface finds them by protocol and the last rule's interface, and removes them.
//!
//! What the kernel answers by itself to strays, such as a port unreachable for the lane of a node that was killed, is of
//! no socket: it carries neither mark nor port and goes into the tunnel, where the peer drops it for its source.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use futures::TryStreamExt;
use ipnet::IpNet;
use libc::{EAFNOSUPPORT, EEXIST, ENOENT, EOPNOTSUPP};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use rtnetlink::IpVersion;
use tracing::{debug, info};

use super::{Netlink, NetlinkError, ROUTE_PROTOCOL, family, ipv6_enabled};
use crate::underlay::UNDERLAY_MARK;

/// Before the kernel's main table (32766), and behind where administrators put theirs if they want them to win.
const BASE_FIRST: u32 = 10_000;
/// Priorities of one node: the jumps, one for each prefix length, and the end.
const PRIORITIES: u32 = 134;
/// How many nodes a host may run.
const SLOTS: u32 = 160;
const _: () = assert!(BASE_FIRST + SLOTS * PRIORITIES < 32_766);
/// The first node's table.
const TABLE_FIRST: u32 = 0x524c_0000;

/// Where one node's rules and table are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Detour {
    interface: String,
    base: u32,
    table: u32,
    udp: Vec<RangeInclusive<u16>>,
    tcp: Vec<u16>,
}

impl Detour {
    fn end(&self) -> u32 {
        self.base + PRIORITIES - 1
    }

    /// The rules that a family needs as soon as it has one detour.
    fn jumps(&self, family: AddressFamily) -> Vec<RuleMessage> {
        let jump = |attributes: Vec<RuleAttribute>| {
            let mut rule = rule(family, self.base, RuleAction::Goto);
            rule.attributes.push(RuleAttribute::Goto(self.end()));
            rule.attributes.extend(attributes);
            rule
        };
        let local = |protocol: IpProtocol, start: u16, end: u16| {
            jump(vec![
                RuleAttribute::Iifname("lo".to_owned()),
                RuleAttribute::IpProtocol(protocol),
                RuleAttribute::SourcePortRange(RulePortRange { start, end }),
            ])
        };
        let mut end = rule(family, self.end(), RuleAction::Nop);
        end.attributes.push(RuleAttribute::Oifname(self.interface.clone()));
        // A rule by port that is not for this host's own packets only: with one, the kernel looks at ports in reverse
        // path filtering as well, where the jumps below then hold, too.
        let ports = self.udp.first().map_or(1..=1, Clone::clone);
        let (start, end_port) = (*ports.start(), *ports.end());
        end.attributes.push(RuleAttribute::IpProtocol(IpProtocol::Udp));
        end.attributes.push(RuleAttribute::SourcePortRange(RulePortRange { start, end: end_port }));
        let mut rules = vec![end, jump(vec![RuleAttribute::FwMark(UNDERLAY_MARK), RuleAttribute::FwMask(u32::MAX)])];
        rules.extend(self.udp.iter().map(|ports| local(IpProtocol::Udp, *ports.start(), *ports.end())));
        rules.extend(self.tcp.iter().map(|port| local(IpProtocol::Tcp, *port, *port)));
        rules
    }

    /// The two rules of one prefix, in the order they are looked at.
    fn rules_of(&self, prefix: IpNet) -> [RuleMessage; 2] {
        let to_table = |table: u32| {
            let priority = self.base + 1 + 128 - u32::from(prefix.prefix_len());
            let mut rule = rule(family(prefix.addr()), priority, RuleAction::ToTable);
            rule.attributes.push(RuleAttribute::Table(table));
            if prefix.prefix_len() > 0 {
                rule.header.dst_len = prefix.prefix_len();
                rule.attributes.push(RuleAttribute::Destination(prefix.addr()));
            }
            rule
        };
        let mut main = to_table(u32::from(netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN));
        main.attributes.push(RuleAttribute::SuppressPrefixLen(prefix.prefix_len().into()));
        [main, to_table(self.table)]
    }
}

fn rule(family: AddressFamily, priority: u32, action: RuleAction) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = action;
    rule.attributes.push(RuleAttribute::Priority(priority));
    rule.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)));
    rule
}

impl Netlink {
    /// Finds a place for the rules of the node that runs `interface`, and removes those that one before it has left.
    /// `udp` and `tcp` are the ports that its underlay traffic leaves from.
    pub async fn claim_detour(
        &self,
        interface: &str,
        udp: Vec<RangeInclusive<u16>>,
        tcp: Vec<u16>,
    ) -> Result<Detour, NetlinkError> {
        let mut owners = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            for rule in self.our_rules(version).await? {
                if let Some(name) = owner(&rule) {
                    owners.push((slot(priority(&rule)), name));
                }
            }
        }
        let at = |slot: u32| Detour {
            interface: interface.to_owned(),
            base: BASE_FIRST + slot * PRIORITIES,
            table: TABLE_FIRST + slot,
            udp: udp.clone(),
            tcp: tcp.clone(),
        };
        for (slot, _) in owners.iter().filter(|(_, name)| name == interface) {
            let removed = self.remove_detours(&at(*slot)).await?;
            info!(interface, rules = removed, "removed routing rules that a node before this one has left");
        }
        let first = interface.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let taken = |slot: &u32| owners.iter().any(|(other, name)| other == slot && name != interface);
        let free = (0..SLOTS).map(|step| (first % SLOTS + step) % SLOTS).find(|slot| !taken(slot));
        Ok(at(free.unwrap_or(first % SLOTS)))
    }

    /// Finds the place anew, as long as no rule stands: only rules keep others off a place, and another node may have
    /// taken it since.
    pub async fn reclaim_detour(&self, detour: &mut Detour) -> Result<(), NetlinkError> {
        *detour = self.claim_detour(&detour.interface, detour.udp.clone(), detour.tcp.clone()).await?;
        Ok(())
    }

    /// Routes a prefix into the tunnel past our own underlay traffic. Answers whether the route is in place, as
    /// [`Netlink::add_route`].
    pub async fn add_detour(
        &self,
        detour: &Detour,
        interface: u32,
        prefix: IpNet,
        source: Option<IpAddr>,
    ) -> Result<bool, NetlinkError> {
        // Where IPv6 is left out of the kernel altogether, there are no rules of it either.
        if prefix.addr().is_ipv6() && !ipv6_enabled(&detour.interface) {
            debug!(%prefix, "IPv6 is disabled, route skipped");
            return Ok(false);
        }
        for rule in detour.jumps(family(prefix.addr())) {
            self.add_rule(rule).await?;
        }
        if !self.put_route(interface, prefix, source, detour.table).await? {
            return Ok(false);
        }
        for rule in detour.rules_of(prefix) {
            self.add_rule(rule).await?;
        }
        Ok(true)
    }

    /// Takes a detour back; what it shares with others stays. One that is already gone is no error.
    pub async fn remove_detour(&self, detour: &Detour, interface: u32, prefix: IpNet) -> Result<(), NetlinkError> {
        for rule in detour.rules_of(prefix).into_iter().rev() {
            self.remove_rule(rule).await?;
        }
        self.take_route(interface, prefix, detour.table).await
    }

    /// Removes all rules of one family, or of both; returns how many. The routes hang on the interface.
    pub async fn remove_detours(&self, detour: &Detour) -> Result<usize, NetlinkError> {
        let removed = self.remove_detours_of(detour, true).await?;
        Ok(removed + self.remove_detours_of(detour, false).await?)
    }

    /// As [`Netlink::remove_detours`], of one family.
    pub async fn remove_detours_of(&self, detour: &Detour, ipv4: bool) -> Result<usize, NetlinkError> {
        let version = if ipv4 { IpVersion::V4 } else { IpVersion::V6 };
        let mut ours = self.our_rules(version).await?;
        ours.retain(|rule| (detour.base..=detour.end()).contains(&priority(rule)));
        // The end, which says whose they are, goes last.
        ours.sort_by_key(|rule| (owner(rule).is_some(), priority(rule)));
        let removed = ours.len();
        for rule in ours {
            self.remove_rule(rule).await?;
        }
        Ok(removed)
    }

    async fn our_rules(&self, version: IpVersion) -> Result<Vec<RuleMessage>, NetlinkError> {
        let listed = self.handle.rule().get(version).execute().try_collect::<Vec<_>>().await;
        match listed.map_err(|error| NetlinkError::new("list routing rules", error)) {
            Ok(mut rules) => {
                let ours = RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
                rules.retain(|rule| rule.attributes.contains(&ours));
                Ok(rules)
            }
            // IPv6, or rules at all, may be compiled out.
            Err(error) if matches!(error.errno(), Some(EAFNOSUPPORT | EOPNOTSUPP)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn add_rule(&self, rule: RuleMessage) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule;
        match request.execute().await.map_err(|error| NetlinkError::new("add a routing rule", error)) {
            Err(error) if error.errno() == Some(EEXIST) => Ok(()),
            added => added,
        }
    }

    async fn remove_rule(&self, rule: RuleMessage) -> Result<(), NetlinkError> {
        let removed = self.handle.rule().del(rule).execute().await;
        match removed.map_err(|error| NetlinkError::new("remove a routing rule", error)) {
            Err(error) if error.errno() == Some(ENOENT) => Ok(()),
            removed => removed,
        }
    }
}

fn priority(rule: &RuleMessage) -> u32 {
    let priority = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    };
    rule.attributes.iter().find_map(priority).unwrap_or_default()
}

/// The interface of the node that a slot's last rule names.
fn owner(rule: &RuleMessage) -> Option<String> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Oifname(name) if rule.header.action == RuleAction::Nop => Some(name.clone()),
        _ => None,
    })
}

fn slot(priority: u32) -> u32 {
    priority.saturating_sub(BASE_FIRST) / PRIORITIES
}
