//! What `status` says of how peers are found.

use serde::{Deserialize, Serialize};

use crate::exchange::ExchangeCounters;
use crate::swarm::MdnsCounters;

/// How peers are found, and what that costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DiscoveryStatus {
    /// On the local networks; `null` if that is off.
    pub mdns: Option<MdnsStatus>,
    /// By asking Hyprspace's nodes.
    pub pex: PexStatus,
    /// By what peers sign of themselves.
    pub records: RecordsStatus,
}

/// Multicast DNS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MdnsStatus {
    /// Packets sent that ask who is there.
    pub queries_sent: u64,
    /// Packets sent that tell where we are.
    pub announcements_sent: u64,
    /// Packets read.
    pub packets_heard: u64,
    /// Packets read that made no sense.
    pub packets_malformed: u64,
    /// Packets not looked at, because too many came.
    pub packets_ignored: u64,
    /// Addresses of configured peers known from it now.
    pub addresses: u64,
}

/// Hyprspace's peer exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PexStatus {
    /// Answers we got.
    pub answers_received: u64,
    /// Answers we gave.
    pub answers_sent: u64,
    /// Requests that made no sense, or came too often.
    pub requests_refused: u64,
    /// Lines of answers that could not be read.
    pub bad_lines: u64,
    /// Addresses known from it now.
    pub addresses: u64,
}

/// Signed records between Ringlane's nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RecordsStatus {
    /// Records of peers held now.
    pub held: u64,
    /// Records received that were news.
    pub learnt: u64,
    /// Records received that were known, or about nobody here.
    pub ignored: u64,
    /// Records received that their subject has not signed.
    pub forged: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
}

impl DiscoveryStatus {
    /// From what the control loop counts.
    pub(crate) fn new(mdns: Option<MdnsCounters>, exchange: ExchangeCounters) -> Self {
        let ExchangeCounters { pex_asked, pex_answered, pex_refused, pex_bad_lines, pex_addresses, records, gossip } =
            exchange;
        Self {
            mdns: mdns.map(|counters| MdnsStatus {
                queries_sent: counters.queries_sent,
                announcements_sent: counters.announcements_sent,
                packets_heard: counters.packets_heard,
                packets_malformed: counters.packets_malformed,
                packets_ignored: counters.packets_ignored,
                addresses: counters.addresses,
            }),
            pex: PexStatus {
                answers_received: pex_asked,
                answers_sent: pex_answered,
                requests_refused: pex_refused,
                bad_lines: pex_bad_lines,
                addresses: pex_addresses,
            },
            records: RecordsStatus {
                held: records,
                learnt: gossip.records_learnt,
                ignored: gossip.records_ignored,
                forged: gossip.records_forged,
                messages_sent: gossip.messages_sent,
                bytes_sent: gossip.bytes_sent,
                messages_received: gossip.messages_received,
                bytes_received: gossip.bytes_received,
            },
        }
    }
}
