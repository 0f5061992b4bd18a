//! What is measured: every scenario by name, the labs it needs, and the work it does in them.

mod content;
mod iperf;
mod latency;
mod meter;
mod restart;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::contender::{Contender, INNER_MTU_BYTES, NodeSettings, Tunnel};
use crate::lab::SITES;
use crate::metric::Metric;
use crate::underlay::{Disturber, Link, LinkSpec, Underlay};

/// Rate of the bottleneck in [`Variant::Narrow`], IP headers included.
const NARROW_BITS_PER_S: u64 = 100_000_000;

/// What ringlane is told of it: a little less, so that the queue is its own.
const NARROW_NODE: &str = "rate_mbit = 95\n";

/// Streams of datagrams at once: as the receiver has a buffer for each, more arrive than of one stream, although one
/// thread of `iperf3` sends them all.
const UDP_STREAMS: u32 = 4;

/// One way of putting contenders to work.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// On the command line and in result files.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    pub(crate) variant: Variant,
    pub(crate) work: Work,
    pub(crate) ends: Ends,
    /// Whether `--quick` does it.
    pub(crate) quick: bool,
}

/// The labs of one kind: all contenders' are up at the same time, those of another kind are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Variant {
    /// Two sites joined by a veth.
    Plain,
    /// Real packets on every link.
    Cut,
    /// 9000-byte underlay, tunnels as ever.
    Jumbo,
    /// 9000-byte underlay, and tunnels that make use of it.
    JumboInner,
    /// 9000-byte underlay, and ringlane as it comes: nothing configured.
    JumboAuto,
    /// 20 ms round trip.
    Far,
    /// 20 ms round trip, 1 % loss, 5 % reordering.
    Lossy1,
    /// 20 ms round trip, 2 % loss, 5 % reordering.
    Lossy2,
    /// 10 ms round trip through a bottleneck of 100 Mbit/s with a long queue, which ringlane is told of.
    Narrow,
    /// Three sites, of which a has both others as peers.
    ThreeSites,
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// Bulk TCP from a to b; with `both_ways` from b to a too, at once.
    Tcp { streams: u32, both_ways: bool },
    /// Bulk TCP from a to b and from a to c at once.
    TwoPeers,
    /// Datagrams of that many bytes from a to b as fast as they can be sent one at a time.
    Udp { bytes: u32, streams: u32 },
    /// Requests from a, answers from b; loaded by bulk TCP beside it.
    Latency { loaded: bool },
    /// The same, first idle and then beside a bulk TCP stream that fills whatever queue there is: how much is added.
    Fair,
    /// Hashed bytes and datagrams from a to b, checked where they arrive.
    Content { megabytes: u32 },
    /// Both sides start; until the first ping comes back.
    Start,
    /// Side b is killed and starts again; until the first ping comes back.
    Recovery,
}

/// Where its traffic begins and ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ends {
    /// At hosts: the routers forward it.
    Hosts,
    /// At the routers themselves.
    Routers,
}

/// All scenarios, grouped by variant, in the order they are measured; what disturbs a tunnel comes last.
pub(crate) const SCENARIOS: [Scenario; 26] = {
    use Ends::{Hosts, Routers};
    use Variant::{Cut, Far, Jumbo, JumboAuto, JumboInner, Lossy1, Lossy2, Narrow, Plain, ThreeSites};
    use Work::{Content, Fair, Latency, Recovery, Start, Tcp, TwoPeers, Udp};
    const TCP1: Work = Tcp { streams: 1, both_ways: false };
    const TCP8: Work = Tcp { streams: 8, both_ways: false };
    const BOTH: Work = Tcp { streams: 1, both_ways: true };
    const UDP1300: Work = Udp { bytes: 1300, streams: UDP_STREAMS };
    const fn scenario(
        name: &'static str,
        title: &'static str,
        variant: Variant,
        work: Work,
        ends: Ends,
        quick: bool,
    ) -> Scenario {
        Scenario { name, title, variant, work, ends, quick }
    }
    [
        scenario("tcp1", "TCP, 1 stream", Plain, TCP1, Hosts, true),
        scenario("tcp8", "TCP, 8 streams", Plain, TCP8, Hosts, true),
        scenario("bidir", "TCP, both directions at once", Plain, BOTH, Hosts, true),
        scenario("udp1300", "UDP, 1300-byte datagrams", Plain, UDP1300, Hosts, true),
        scenario("udp200", "UDP, 200-byte datagrams", Plain, Udp { bytes: 200, streams: UDP_STREAMS }, Hosts, true),
        scenario("rtt-idle", "Request and response, idle", Plain, Latency { loaded: false }, Hosts, true),
        scenario("rtt-load", "Request and response beside bulk TCP", Plain, Latency { loaded: true }, Hosts, true),
        scenario("local-tcp1", "TCP, 1 stream, router to router", Plain, TCP1, Routers, false),
        scenario("local-tcp8", "TCP, 8 streams, router to router", Plain, TCP8, Routers, false),
        scenario("content", "Hashed stream and datagrams", Plain, Content { megabytes: 200 }, Hosts, false),
        scenario("start", "Start of both sides to first ping", Plain, Start, Hosts, true),
        scenario("recovery", "Kill and restart of one side to first ping", Plain, Recovery, Hosts, false),
        scenario("cut-tcp1", "TCP, 1 stream, cut on the wire", Cut, TCP1, Hosts, true),
        scenario("cut-tcp8", "TCP, 8 streams, cut on the wire", Cut, TCP8, Hosts, false),
        scenario("loss2-tcp1", "TCP, 1 stream, 20 ms RTT, 2 % loss, 5 % reordering", Lossy2, TCP1, Hosts, true),
        scenario("loss2-tcp8", "TCP, 8 streams, 20 ms RTT, 2 % loss, 5 % reordering", Lossy2, TCP8, Hosts, false),
        scenario(
            "loss2-content",
            "Hashed stream and datagrams, 20 ms RTT, 2 % loss, 5 % reordering",
            Lossy2,
            Content { megabytes: 2 },
            Hosts,
            false,
        ),
        scenario("loss1-tcp1", "TCP, 1 stream, 20 ms RTT, 1 % loss, 5 % reordering", Lossy1, TCP1, Hosts, false),
        scenario("loss1-tcp8", "TCP, 8 streams, 20 ms RTT, 1 % loss, 5 % reordering", Lossy1, TCP8, Hosts, false),
        scenario("far-tcp1", "TCP, 1 stream, 20 ms RTT", Far, TCP1, Hosts, false),
        scenario("far-tcp8", "TCP, 8 streams, 20 ms RTT", Far, TCP8, Hosts, false),
        scenario("jumbo-tcp1", "TCP, 1 stream, 9000-byte underlay, inner MTU 1420", Jumbo, TCP1, Hosts, false),
        scenario("jumbo8920-tcp1", "TCP, 1 stream, 9000-byte underlay, inner MTU 8920", JumboInner, TCP1, Hosts, false),
        scenario("jumbo-auto", "TCP, 1 stream, 9000-byte underlay, nothing configured", JumboAuto, TCP1, Hosts, false),
        scenario("fair-100", "Requests beside bulk TCP at 100 Mbit/s, 10 ms RTT", Narrow, Fair, Hosts, false),
        scenario("two-peers", "TCP, 1 stream to each of two peers at once", ThreeSites, TwoPeers, Hosts, false),
    ]
};

impl Variant {
    /// All of them, in the order they are measured.
    pub(crate) const ALL: [Self; 10] = [
        Self::Plain,
        Self::Cut,
        Self::Lossy2,
        Self::Lossy1,
        Self::Far,
        Self::Jumbo,
        Self::JumboInner,
        Self::JumboAuto,
        Self::Narrow,
        Self::ThreeSites,
    ];

    /// How many sites there are.
    pub(crate) fn sites(self) -> usize {
        if self == Self::ThreeSites { 3 } else { 2 }
    }

    /// MTU of the tunnels, in bytes; none for what ringlane takes by itself.
    pub(crate) fn inner_mtu(self) -> Option<u16> {
        match self {
            Self::JumboInner => Some(8920),
            Self::JumboAuto => None,
            _ => Some(INNER_MTU_BYTES),
        }
    }

    /// What ringlane's nodes are told besides.
    pub(crate) fn node(self) -> NodeSettings {
        let dataplane = if self == Self::Narrow { NARROW_NODE } else { "" };
        NodeSettings { dataplane: dataplane.into(), ..NodeSettings::default() }
    }

    /// What lies between the sites.
    pub(crate) fn underlay(self, by: Disturber) -> Underlay {
        let link = |spec| Underlay { link: Some(Link { spec, by }), ..Underlay::PLAIN };
        let far = |loss, reorder| link(LinkSpec { delay_ms: 10.0, jitter_ms: 0.0, loss, reorder, rate: None, seed: 1 });
        let narrow =
            LinkSpec { delay_ms: 5.0, jitter_ms: 0.0, loss: 0.0, reorder: 0.0, rate: Some(NARROW_BITS_PER_S), seed: 1 };
        match self {
            Self::Plain | Self::ThreeSites => Underlay::PLAIN,
            Self::Cut => Underlay { cut: true, ..Underlay::PLAIN },
            Self::Narrow => link(narrow),
            Self::Jumbo | Self::JumboInner | Self::JumboAuto => Underlay { mtu: 9000, ..Underlay::PLAIN },
            Self::Far => far(0.0, 0.0),
            Self::Lossy1 => far(0.01, 0.05),
            Self::Lossy2 => far(0.02, 0.05),
        }
    }
}

/// What came of a measurement.
#[derive(Debug, Default)]
pub(crate) struct Measurement {
    pub(crate) figures: BTreeMap<Metric, f64>,
    /// What the load generators said.
    pub(crate) raw: Map<String, Value>,
    /// Payload that was received, if it is known: CPU time is given for a gigabyte of it.
    payload_bytes: Option<f64>,
}

impl Scenario {
    /// The scenario of that name.
    pub(crate) fn named(name: &str) -> anyhow::Result<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name).with_context(|| format!("there is no scenario {name}"))
    }

    /// The figure that says how a contender fared in it.
    pub(crate) fn metric(&self) -> Metric {
        match self.work {
            Work::Tcp { .. } | Work::TwoPeers | Work::Content { .. } => Metric::BitsPerSecond,
            Work::Udp { .. } => Metric::PacketsPerSecond,
            Work::Latency { loaded: false } => Metric::RttP50Us,
            Work::Latency { loaded: true } => Metric::RttP99Us,
            Work::Fair => Metric::RttP99AboveUs,
            Work::Start | Work::Recovery => Metric::Seconds,
        }
    }

    /// Why a contender is not measured in it although it can be set up.
    pub(crate) fn obstacle(&self, contender: Contender) -> Option<&'static str> {
        let comparable = contender.is_ringlane() || matches!(contender, Contender::Bare | Contender::Null);
        if self.variant == Variant::JumboAuto && !comparable {
            return Some("it is about what ringlane takes by itself");
        }
        let restarts = matches!(self.work, Work::Start | Work::Recovery);
        (restarts && contender == Contender::Bare).then_some("there is nothing to restart")
    }

    /// Measures one contender. With the path of its binary, ringlane is asked for its counters.
    pub(crate) fn measure(
        &self,
        tunnel: &mut Tunnel,
        ringlane: Option<&Path>,
        seconds: u32,
    ) -> anyhow::Result<Measurement> {
        match self.work {
            Work::Start => return restart::start(tunnel),
            Work::Recovery => return restart::recover(tunnel),
            _ => {}
        }
        let meter = meter::Meter::start(ringlane, tunnel)?;
        let lab = &tunnel.lab;
        let way = |far: usize| match self.ends {
            Ends::Hosts => iperf::Path {
                client: SITES[0].host_namespace(),
                server: SITES[far].host_namespace(),
                address: SITES[far].host.to_owned(),
            },
            Ends::Routers => iperf::Path {
                client: SITES[0].router(),
                server: SITES[far].router(),
                address: tunnel.sides[far].address.clone(),
            },
        };
        let mut measurement = match self.work {
            Work::Tcp { streams, both_ways } => iperf::tcp(lab, &way(1), streams, both_ways, seconds),
            Work::TwoPeers => iperf::two_peers(lab, &way(1), &way(2), seconds),
            Work::Udp { bytes, streams } => iperf::udp(lab, &way(1), bytes, streams, seconds),
            Work::Latency { loaded } => latency::measure(lab, &way(1), loaded, seconds),
            Work::Fair => latency::beside_bulk(lab, &way(1), seconds),
            Work::Content { megabytes } => content::measure(lab, &way(1), megabytes, seconds),
            Work::Start | Work::Recovery => unreachable!("they have returned above"),
        }?;
        meter.finish(tunnel, &mut measurement)?;
        Ok(measurement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_have_names_of_their_own_and_lie_together_by_variant() {
        let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
        let mut variants: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.variant).collect();
        variants.dedup();
        assert_eq!(variants, Variant::ALL);
    }
}
