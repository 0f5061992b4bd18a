//! Why a peer is not reached directly by lanes: one reason, the first that explains it, from what both ends know of what
//! lies before them. Pure.
//!
//! Of the peer's end nothing is known but what its offer tells: its addresses, which of them others see, and what its NAT does.
//! It is authentic, and may be a lie; the peer harms nobody but itself by it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ringlane_shared::path::candidate::is_local_use;
use ringlane_shared::stun::nat::{Filtering, Mapping, Scope};
use ringlane_shared::wire::offer::{CandidateKind, Offer};

use crate::admin::nat::HostStatus;
use crate::admin::obstacle::ObstacleStatus;

/// How long after a peer is connected its lanes may take.
const TRYING: Duration = Duration::from_secs(10);

/// What one end has of one family of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Family {
    /// Whether it reaches more than its own network with it.
    pub(crate) reaches_out: bool,
    /// Whether no UDP leaves its network, as far as is known.
    pub(crate) is_udp_blocked: bool,
    /// Whether something translates it.
    pub(crate) is_translated: bool,
    /// How that chooses ports.
    pub(crate) mapping: Mapping,
    /// Whom it lets in; of a peer that is never known.
    pub(crate) filtering: Filtering,
    /// Where others see it, as far as is known, if something translates it.
    pub(crate) outside: Option<IpAddr>,
}

/// What one end has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct End {
    pub(crate) v4: Family,
    pub(crate) v6: Family,
}

impl End {
    /// Our end: `reaches_out` is whether there are routes to far addresses of IPv4 and IPv6.
    pub(crate) fn here(hosts: &[HostStatus], reaches_out: [bool; 2]) -> Self {
        let family = |is_v4: bool, reaches_out| {
            let mut asked =
                hosts.iter().filter(|host| host.view.local.is_ipv4() == is_v4 && host.view.servers_asked > 0);
            let told = asked.clone().filter(|host| host.view.is_translated.is_some());
            // The address that tells most; those of other networks of ours may see no more than neighbours.
            let best = told.max_by_key(|host| host.view.scope);
            let translated = best.filter(|host| host.view.is_translated == Some(true));
            let mapped = translated.and_then(|host| host.view.ports.iter().find_map(|port| port.mapped));
            Family {
                reaches_out: reaches_out || best.is_some_and(|host| host.view.scope > Some(Scope::Neighbours)),
                is_udp_blocked: asked.clone().next().is_some() && asked.all(|host| host.is_udp_blocked == Some(true)),
                is_translated: translated.is_some(),
                mapping: best.map_or(Mapping::Unknown, |host| host.view.mapping),
                filtering: best.map_or(Filtering::Unknown, |host| host.view.filtering),
                outside: mapped.map(|mapped| mapped.ip().to_canonical()),
            }
        };
        Self { v4: family(true, reaches_out[0]), v6: family(false, reaches_out[1]) }
    }

    /// A peer's end, as far as its offer tells.
    pub(crate) fn of_offer(offer: &Offer) -> Self {
        let seen = &offer.extensions.candidates;
        let family = |is_v4: bool| {
            let hosts = offer.candidates.iter().map(|candidate| candidate.ip.to_canonical());
            let hosts: Vec<IpAddr> = hosts.filter(|ip| ip.is_ipv4() == is_v4).collect();
            let is_public = hosts.iter().any(|ip| !is_local_use(*ip));
            let seen = seen.iter().filter(|candidate| candidate.kind != CandidateKind::Relayed);
            let outside = seen.map(|candidate| candidate.address.ip().to_canonical()).find(|ip| ip.is_ipv4() == is_v4);
            (!hosts.is_empty(), is_public, outside)
        };
        let [v4, v6] = [family(true), family(false)];
        type Told = (bool, bool, Option<IpAddr>);
        let end = |(is_there, is_public, outside): Told, other: Told, is_v4: bool| {
            // Behind a translator, or in a network that leads nowhere: the latter if the other family has more to say.
            let is_known = is_public || outside.is_some();
            let is_hidden = is_there && !is_known && !(other.1 || other.2.is_some());
            let is_translated = !is_public && (outside.is_some() || is_hidden);
            let is_about_it = is_translated && (is_v4 || v4.2.is_none());
            let mapping = if is_about_it { offer.extensions.punch.mapping } else { Mapping::Unknown };
            Family {
                reaches_out: is_known || is_hidden,
                // Whoever is behind a translator and hears any answer to its questions knows how it is seen.
                is_udp_blocked: is_hidden && mapping == Mapping::Unknown,
                is_translated,
                mapping,
                filtering: Filtering::Unknown,
                outside: outside.filter(|_| is_translated),
            }
        };
        Self { v4: end(v4, v6, true), v6: end(v6, v4, false) }
    }

    fn families(&self) -> [bool; 2] {
        [self.v4.reaches_out, self.v6.reaches_out]
    }

    fn is_udp_blocked(&self) -> bool {
        let out = [self.v4, self.v6].into_iter().filter(|family| family.reaches_out);
        let mut blocked = out.map(|family| family.is_udp_blocked).peekable();
        blocked.peek().is_some() && blocked.all(|is_blocked| is_blocked)
    }
}

/// The way that packets take instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Detour {
    /// None.
    Nothing,
    /// On a libp2p stream from one node to the other.
    Stream {
        /// Below it.
        transport: &'static str,
    },
    /// On one that a relay passes on.
    RelayedStream {
        /// Between us and the relay, if that is known.
        transport: Option<&'static str>,
        /// The relay's name or id, if that is known.
        relay: Option<String>,
    },
    /// In lanes that another node forwards.
    RelayedLanes {
        /// Its name or id.
        relay: String,
    },
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no packets pass"),
            Self::Stream { transport } => write!(f, "packets go by a stream over {transport}"),
            Self::RelayedStream { transport, relay } => {
                f.write_str("packets go by a stream")?;
                if let Some(transport) = transport {
                    write!(f, " over {transport}")?;
                }
                write!(f, " through relay {}", relay.as_deref().unwrap_or("(unknown)"))
            }
            Self::RelayedLanes { relay } => write!(f, "packets go in lanes that {relay} forwards"),
        }
    }
}

/// All that a reason is found from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) here: End,
    /// Nothing before the peer has made an offer.
    pub(crate) there: Option<End>,
    /// Why there are to be no lanes, if so.
    pub(crate) stream_only: Option<StreamOnly>,
    /// Whether libp2p connects the two.
    pub(crate) is_connected: bool,
    /// For how long it has, or for how long no lane has stood, whichever is less.
    pub(crate) since: Duration,
    /// Whether peers are to be in networks of ours only.
    pub(crate) is_lan_only: bool,
    /// Whether holes are punched: `nat.punch`.
    pub(crate) punches: bool,
    /// What else is known of what went wrong.
    pub(crate) problem: Option<&'a str>,
    pub(crate) detour: Detour,
}

/// Why there are to be no lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StreamOnly {
    /// `carrier = "stream"`.
    Configured,
    /// The peer has none.
    Hyprspace,
}

/// Why a peer is not reached directly by lanes, and how it is instead.
pub(crate) fn obstacle(facts: &Facts<'_>) -> ObstacleStatus {
    let (code, reason) = reason(facts);
    ObstacleStatus { code: code.to_owned(), text: format!("{reason}: {}", facts.detour) }
}

fn reason(facts: &Facts<'_>) -> (&'static str, String) {
    let plain = |code: &'static str, text: &str| (code, text.to_owned());
    match facts.stream_only {
        Some(StreamOnly::Configured) => return plain("carrier_stream", "carrier = \"stream\" is configured for it"),
        Some(StreamOnly::Hyprspace) => return plain("hyprspace", "it is a Hyprspace node, which has no lanes"),
        None => {}
    }
    if !facts.is_connected {
        let why = facts.problem.map(|problem| format!(" ({problem})")).unwrap_or_default();
        return ("not_connected", format!("nothing connects this node to it{why}"));
    }
    if facts.here.is_udp_blocked() {
        return plain("udp_blocked", "no UDP leaves this network");
    }
    let Some(there) = facts.there else {
        if facts.since < TRYING {
            return trying(facts.since);
        }
        let why = facts.problem.unwrap_or("it has not answered");
        return ("no_offer", format!("it has made no offer of lanes ({why})"));
    };
    if let Some(text) = families_differ(facts.here.families(), there.families()) {
        return plain("families_differ", text);
    }
    if facts.since < TRYING {
        return trying(facts.since);
    }
    if facts.is_lan_only {
        return plain("lan_only", "control.scope is \"lan\", and lanes to it would have to leave this host's networks");
    }
    if there.is_udp_blocked() {
        return plain("peer_udp_blocked", "as far as its offer tells, no UDP leaves its network");
    }
    punching(&facts.here, &there, facts.punches)
}

fn trying(since: Duration) -> (&'static str, String) {
    ("trying", format!("still trying ({} s)", since.as_secs()))
}

fn families_differ(here: [bool; 2], there: [bool; 2]) -> Option<&'static str> {
    match (here, there) {
        ([false, true], [true, false]) => Some("this end has IPv6 only and the peer IPv4 only"),
        ([true, false], [false, true]) => Some("this end has IPv4 only and the peer IPv6 only"),
        _ => None,
    }
}

/// Both could send to each other, and what they send does not arrive.
fn punching(here: &End, there: &End, punches: bool) -> (&'static str, String) {
    let plain = |code: &'static str, text: &str| (code, text.to_owned());
    let is_v6 = !(here.v4.reaches_out && there.v4.reaches_out);
    let (here, there) = if is_v6 { (here.v6, there.v6) } else { (here.v4, there.v4) };
    if !punches && here.is_translated && there.is_translated {
        return plain("punch_off", "both ends are behind NATs, and hole punching is switched off (nat.punch)");
    }
    if here.is_translated && here.outside.is_some() && here.outside == there.outside {
        return plain(
            "same_nat",
            "both ends are behind one NAT, and UDP passes from one to the other neither inside it nor by its outside address",
        );
    }
    let strict = if here.filtering == Filtering::AddressAndPortDependent { "only ports it has sent to" } else { "few" };
    match (here.mapping.is_symmetric(), there.mapping.is_symmetric()) {
        (true, true) => plain("both_symmetric", "both ends' NATs choose a port for each destination"),
        (true, false) if there.is_translated => plain(
            "symmetric",
            "this end's NAT chooses a port for each destination, and what comes from there the peer's NAT does not let in",
        ),
        (false, true) if here.is_translated => (
            "peer_symmetric",
            format!("the peer's NAT chooses a port for each destination, and this end's NAT lets in {strict}"),
        ),
        _ => plain(
            "udp_lost",
            "UDP between the two ends' lane ports does not arrive, as if a firewall at this end or the peer's dropped it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use ringlane_shared::id::LaneId;
    use ringlane_shared::path::candidate::OwnCandidate;
    use ringlane_shared::stun::nat::{HostView, PortView};
    use ringlane_shared::wire::offer::{Candidate, Extensions, Features, LaneSet, OfferSecret, Punch};

    use super::*;

    const OPEN: Family = Family {
        reaches_out: true,
        is_udp_blocked: false,
        is_translated: false,
        mapping: Mapping::Unknown,
        filtering: Filtering::Unknown,
        outside: None,
    };
    const NONE: Family = Family { reaches_out: false, ..OPEN };
    const BLOCKED: Family = Family { is_udp_blocked: true, is_translated: true, ..OPEN };
    const CONE: Family = Family {
        is_translated: true,
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressAndPortDependent,
        ..OPEN
    };
    const SYMMETRIC: Family = Family { mapping: Mapping::AddressAndPortDependent, ..CONE };

    fn seen_at(ip: &str, family: Family) -> Family {
        Family { outside: Some(ip.parse().unwrap()), ..family }
    }

    fn v4(v4: Family) -> End {
        End { v4, v6: NONE }
    }

    fn v6(v6: Family) -> End {
        End { v4: NONE, v6 }
    }

    fn facts(here: End, there: End) -> Facts<'static> {
        Facts {
            here,
            there: Some(there),
            stream_only: None,
            is_connected: true,
            since: Duration::from_secs(60),
            is_lan_only: false,
            punches: true,
            problem: None,
            detour: Detour::RelayedStream { transport: Some("tcp"), relay: Some("site-r".to_owned()) },
        }
    }

    #[test]
    fn the_first_reason_that_explains_it_is_told() {
        let usual = || facts(v4(CONE), v4(CONE));
        let young = Duration::from_secs(3);
        let cases = [
            ("udp_blocked", facts(v4(BLOCKED), v4(SYMMETRIC))),
            ("udp_blocked", facts(v4(BLOCKED), v6(OPEN))),
            ("udp_lost", facts(End { v4: BLOCKED, v6: OPEN }, v6(OPEN))),
            ("peer_udp_blocked", facts(v4(SYMMETRIC), v4(BLOCKED))),
            ("both_symmetric", facts(v4(SYMMETRIC), v4(SYMMETRIC))),
            ("symmetric", facts(v4(SYMMETRIC), v4(CONE))),
            ("peer_symmetric", facts(v4(CONE), v4(SYMMETRIC))),
            ("udp_lost", facts(v4(SYMMETRIC), v4(OPEN))),
            ("udp_lost", facts(v4(OPEN), v4(SYMMETRIC))),
            ("udp_lost", usual()),
            ("same_nat", facts(v4(seen_at("5.30.0.2", CONE)), v4(seen_at("5.30.0.2", CONE)))),
            ("same_nat", facts(v4(seen_at("5.30.0.2", SYMMETRIC)), v4(seen_at("5.30.0.2", CONE)))),
            ("udp_lost", facts(v4(seen_at("5.30.0.2", CONE)), v4(seen_at("5.40.0.2", CONE)))),
            ("punch_off", Facts { punches: false, ..usual() }),
            ("punch_off", Facts { punches: false, ..facts(v4(SYMMETRIC), v4(SYMMETRIC)) }),
            ("udp_lost", Facts { punches: false, ..facts(v4(CONE), v4(OPEN)) }),
            ("families_differ", facts(v6(OPEN), v4(CONE))),
            ("families_differ", facts(v4(CONE), v6(OPEN))),
            // It is connected, so there is a way, whatever the routes say.
            ("udp_lost", facts(v4(NONE), v4(CONE))),
            ("families_differ", Facts { since: young, ..facts(v4(CONE), v6(OPEN)) }),
            ("trying", Facts { since: young, ..usual() }),
            ("trying", Facts { since: young, there: None, ..usual() }),
            ("udp_blocked", Facts { since: young, there: None, ..facts(v4(BLOCKED), v4(OPEN)) }),
            ("no_offer", Facts { there: None, ..usual() }),
            ("lan_only", Facts { is_lan_only: true, ..usual() }),
            ("not_connected", Facts { is_connected: false, ..usual() }),
            ("carrier_stream", Facts { stream_only: Some(StreamOnly::Configured), is_connected: false, ..usual() }),
            ("hyprspace", Facts { stream_only: Some(StreamOnly::Hyprspace), ..facts(v4(BLOCKED), v4(BLOCKED)) }),
        ];
        for (code, facts) in cases {
            assert_eq!(obstacle(&facts).code, code, "{facts:?}");
        }
    }

    #[test]
    fn the_sentence_says_what_is_the_matter_and_how_packets_go() {
        let detours = [
            (Detour::Nothing, "no packets pass"),
            (Detour::Stream { transport: "quic" }, "packets go by a stream over quic"),
            (Detour::RelayedStream { transport: None, relay: None }, "packets go by a stream through relay (unknown)"),
            (Detour::RelayedLanes { relay: "site-r".to_owned() }, "packets go in lanes that site-r forwards"),
        ];
        for (detour, text) in detours {
            let facts = Facts { detour, since: Duration::from_secs(3), ..facts(v4(CONE), v4(CONE)) };
            assert_eq!(obstacle(&facts).text, format!("still trying (3 s): {text}"));
        }
        let blocked = obstacle(&facts(v4(BLOCKED), v4(CONE))).text;
        assert_eq!(blocked, "no UDP leaves this network: packets go by a stream over tcp through relay site-r");
        let problem = Some("/ip4/192.0.2.1/tcp/8001: connection refused");
        let offline = Facts { is_connected: false, problem, detour: Detour::Nothing, ..facts(v4(CONE), v4(CONE)) };
        assert_eq!(
            obstacle(&offline).text,
            "nothing connects this node to it (/ip4/192.0.2.1/tcp/8001: connection refused): no packets pass"
        );
    }

    fn offer(hosts: &[&str], seen: &[(&str, CandidateKind)], mapping: Mapping) -> Offer {
        let candidate = |ip: &&str| Candidate { kind: CandidateKind::Host, ip: ip.parse().unwrap(), port: 8100 };
        let seen = seen.iter().map(|(address, kind)| {
            let address = address.parse().unwrap();
            OwnCandidate { worker: 0, kind: *kind, address }
        });
        Offer {
            instance: [0; 16],
            secret: OfferSecret::new([0; 32]),
            features: Features::default(),
            workers: 1,
            port: 8100,
            lane_id_base: LaneId::from_be_bytes([0; 3]),
            lanes: LaneSet(0),
            candidates: hosts.iter().map(candidate).collect(),
            extensions: Extensions { candidates: seen.collect(), punch: Punch { mapping, ..Punch::default() } },
        }
    }

    #[test]
    fn an_offer_tells_what_is_before_the_peer() {
        use CandidateKind::{Mapped, Relayed, ServerReflexive};
        let seen = [("5.40.0.2:2000", ServerReflexive)];
        let cone = seen_at("5.40.0.2", Family { filtering: Filtering::Unknown, ..CONE });
        let symmetric = seen_at("5.40.0.2", Family { filtering: Filtering::Unknown, ..SYMMETRIC });
        let cases = [
            (offer(&["5.40.0.2"], &[], Mapping::Unknown), v4(OPEN)),
            (offer(&["192.168.1.2"], &seen, Mapping::EndpointIndependent), v4(cone)),
            (offer(&["192.168.1.2"], &seen, Mapping::AddressAndPortDependent), v4(symmetric)),
            (offer(&["192.168.1.2", "100.64.7.7"], &[], Mapping::Unknown), v4(BLOCKED)),
            (offer(&["192.168.1.2"], &[("5.9.9.9:1", Relayed)], Mapping::Unknown), v4(BLOCKED)),
            (
                offer(&["192.168.1.2"], &[("5.9.9.9:1", Mapped)], Mapping::Unknown),
                v4(seen_at("5.9.9.9", Family { is_translated: true, ..OPEN })),
            ),
            // The private IPv4 address of whoever has IPv6 leads nowhere, unless something says otherwise.
            (offer(&["10.20.0.1", "2a01:28::2"], &[], Mapping::Unknown), v6(OPEN)),
            (offer(&["10.20.0.1", "2a01:28::2"], &seen, Mapping::EndpointIndependent), End { v4: cone, v6: OPEN }),
            (offer(&["fd00:20::1", "2a01:28::2"], &[], Mapping::Unknown), v6(OPEN)),
            (offer(&[], &[], Mapping::AddressDependent), v4(NONE)),
        ];
        for (offer, end) in cases {
            assert_eq!(End::of_offer(&offer), end, "{:?} {:?}", offer.candidates, offer.extensions);
        }
    }

    #[test]
    fn our_own_end_is_what_the_servers_furthest_away_have_told() {
        let host = |local: &str, scope, asked, translated: Option<bool>, blocked| HostStatus {
            view: HostView {
                local: local.parse().unwrap(),
                scope,
                servers_asked: asked,
                servers_answered: u8::from(translated.is_some()),
                is_silent: blocked,
                is_translated: translated,
                mapping: if translated == Some(true) { Mapping::AddressAndPortDependent } else { Mapping::Unknown },
                is_mapping_certain: true,
                filtering: Filtering::AddressAndPortDependent,
                keeps_ports: None,
                port_step: None,
                hairpins: None,
                rtt_us: None,
                ports: vec![PortView { worker: 0, local_port: 8100, mapped: Some("5.30.0.2:8100".parse().unwrap()) }],
            },
            is_udp_blocked: Some(blocked),
        };
        let near = host("10.0.0.1", Some(Scope::Neighbours), 1, Some(false), false);
        let far = host("192.168.1.2", Some(Scope::Internet), 2, Some(true), false);
        let unasked = host("192.168.9.9", None, 0, None, true);
        for reaches_out in [true, false] {
            let here = End::here(&[near.clone(), far.clone(), unasked.clone()], [reaches_out, false]);
            assert_eq!(here, v4(seen_at("5.30.0.2", SYMMETRIC)), "an answer from afar is a way out");
        }
        let silent = |local: &str| host(local, None, 2, None, true);
        let here = End::here(&[silent("10.0.0.1"), silent("2a01::1"), unasked.clone()], [true, true]);
        assert!(here.v4.is_udp_blocked && here.v6.is_udp_blocked && here.is_udp_blocked());
        assert!(!End::here(&[silent("10.0.0.1"), near], [true, true]).v4.is_udp_blocked);
        assert!(!End::here(&[unasked], [true, true]).is_udp_blocked(), "nobody was asked");
    }
}
