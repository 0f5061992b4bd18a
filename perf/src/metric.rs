//! What is measured, in which unit, and which way is better.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One kind of figure. The names in result files are these in snake_case; units come last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Payload the receivers got, both directions together.
    BitsPerSecond,
    /// Datagrams the receivers got.
    PacketsPerSecond,
    /// Share of datagrams that were sent and did not arrive, 0 to 1.
    LossRatio,
    /// Share of the datagrams that arrived behind one that was sent later, 0 to 1.
    ReorderRatio,
    /// TCP segments that were sent again.
    Retransmits,
    /// Request to response over UDP, median.
    RttP50Us,
    /// The same, 99th percentile.
    RttP99Us,
    /// Request to response over TCP, median.
    TcpRttP50Us,
    /// The same, 99th percentile.
    TcpRttP99Us,
    /// What a bulk stream adds to the median of the idle link: to the median of UDP requests beside it.
    RttP50AboveUs,
    /// The same, to their 99th percentile.
    RttP99AboveUs,
    /// How long it took until the first ping came back.
    Seconds,
    /// CPU time of the contender's processes, both sides, for a gigabyte (10^9 bytes) of payload.
    CpuSecondsPerGb,
    /// The same of the whole machine, so kernel, hosts and load generator included.
    MachineCpuSecondsPerGb,
    /// Largest resident set during the measurement, of the side that had more.
    RssPeakBytes,
    /// System calls of ringlane's packet rings for an inner packet sent or received.
    EntersPerPacket,
    /// Packets ringlane dropped, whatever the reason.
    NodeDrops,
    /// Packets the kernel dropped because a tunnel's interface was not read fast enough.
    TunDrops,
    /// Datagrams the kernel dropped because a router's socket was not read fast enough.
    SocketDrops,
}

impl Metric {
    /// Whether a larger figure is the better one.
    pub(crate) fn larger_is_better(self) -> bool {
        matches!(self, Self::BitsPerSecond | Self::PacketsPerSecond)
    }

    /// Whether it counts what should not happen, so that 0 is not worth a word.
    pub(crate) fn is_trouble(self) -> bool {
        use Metric::{LossRatio, NodeDrops, ReorderRatio, Retransmits, SocketDrops, TunDrops};
        matches!(self, LossRatio | ReorderRatio | Retransmits | NodeDrops | TunDrops | SocketDrops)
    }

    /// A figure with its unit, for people.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::BitsPerSecond if value < 1e8 => format!("{:.1} Mbit/s", value / 1e6),
            Self::BitsPerSecond => format!("{:.2} Gbit/s", value / 1e9),
            Self::PacketsPerSecond => format!("{:.1} kpackets/s", value / 1e3),
            Self::LossRatio | Self::ReorderRatio => format!("{:.1} %", value * 100.0),
            Self::RttP50Us | Self::RttP99Us | Self::TcpRttP50Us | Self::TcpRttP99Us => format!("{value:.0} us"),
            Self::RttP50AboveUs | Self::RttP99AboveUs => format!("{value:.0} us"),
            Self::Seconds => format!("{value:.2} s"),
            Self::CpuSecondsPerGb | Self::MachineCpuSecondsPerGb => format!("{value:.2} s/GB"),
            Self::RssPeakBytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Self::EntersPerPacket => format!("{value:.3}"),
            Self::Retransmits | Self::NodeDrops | Self::TunDrops | Self::SocketDrops => format!("{value:.0}"),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BitsPerSecond => "throughput",
            Self::PacketsPerSecond => "packets received",
            Self::LossRatio => "loss",
            Self::ReorderRatio => "reordering",
            Self::Retransmits => "retransmits",
            Self::RttP50Us => "RTT p50",
            Self::RttP99Us => "RTT p99",
            Self::TcpRttP50Us => "TCP RTT p50",
            Self::TcpRttP99Us => "TCP RTT p99",
            Self::RttP50AboveUs => "RTT p50 above idle",
            Self::RttP99AboveUs => "RTT p99 above idle",
            Self::Seconds => "time",
            Self::CpuSecondsPerGb => "CPU",
            Self::MachineCpuSecondsPerGb => "CPU, machine",
            Self::RssPeakBytes => "peak RSS",
            Self::EntersPerPacket => "enters/packet",
            Self::NodeDrops => "node drops",
            Self::TunDrops => "TUN drops",
            Self::SocketDrops => "socket drops",
        })
    }
}
