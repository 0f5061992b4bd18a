//! `[relay]`: peers that pass connections on for each other.

use super::error::Report;
use super::tree::{Placed, Table};
use super::validate::PeerDraft;
use super::{bootstrap_address, value};
use crate::id::PeerId;
use crate::limits::{
    ADDRESSES_PER_PEER_MAX, RELAY_ADDRESSES_CONFIGURED_MAX, RELAY_RATE_MBIT_MAX, RELAY_RESERVATIONS_MAX,
};

/// What [`RelaySettings::rate_mbit`] is unless configured.
pub const RELAY_RATE_MBIT_DEFAULT: u32 = 1000;

/// Whether a node is a relay for its configured peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RelayServe {
    /// While it is known to be reachable from everywhere.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

const WORDS: [(&str, RelayServe); 3] =
    [("auto", RelayServe::Auto), ("always", RelayServe::Always), ("never", RelayServe::Never)];

impl RelayServe {
    /// Its word in a configuration.
    pub fn name(self) -> &'static str {
        WORDS.iter().find(|(_, serve)| *serve == self).map_or("", |(word, _)| word)
    }
}

/// The relays' settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelaySettings {
    /// Whether we are one.
    pub serve: RelayServe,
    /// Configured peers to be used as relays before all others, each once. Their addresses are among those of the peers.
    pub preferred: Vec<PeerId>,
    /// How many relays to be reachable through at once while we are not known to be public; 0 for none.
    pub max: u8,
    /// How much all lanes relayed for others may carry together, in Mbit/s, outer headers included, both directions
    /// together; 1 to [`RELAY_RATE_MBIT_MAX`].
    pub rate_mbit: u32,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self { serve: RelayServe::default(), preferred: Vec::new(), max: 2, rate_mbit: RELAY_RATE_MBIT_DEFAULT }
    }
}

/// Reads the table, whose keys are known. The relays' addresses become addresses of `peers`.
pub(super) fn read(table: &Table<'_>, peers: &mut [PeerDraft], report: &mut Report<'_>) -> RelaySettings {
    let mut settings = RelaySettings::default();
    if let Some(serve) = table.get("serve").and_then(|item| item.word(&WORDS, report)) {
        settings.serve = serve;
    }
    if let Some(max) = table.get("max").and_then(|item| item.integer(0..=RELAY_RESERVATIONS_MAX, "a number", report)) {
        settings.max = max;
    }
    let rates = 1..=RELAY_RATE_MBIT_MAX;
    if let Some(rate) = table.get("rate_mbit").and_then(|item| item.integer(rates, "Mbit/s", report)) {
        settings.rate_mbit = rate;
    }
    let Some(list) = table.get("addresses").and_then(|item| item.list(RELAY_ADDRESSES_CONFIGURED_MAX, report)) else {
        return settings;
    };
    for item in list {
        let Some(text) = item.string(report) else { continue };
        let Some((id, _)) = bootstrap_address(text) else {
            let remedy = "write one such as \"/ip4/192.0.2.1/udp/8001/quic-v1/p2p/12D3KooW...\"";
            report.refuse(&item.place(), "is not the address of a peer with its id at the end", remedy);
            continue;
        };
        let Some(peer) = peers.iter_mut().find(|peer| peer.id.as_ref().is_some_and(|known| known.value == id)) else {
            let remedy = "add a [[peers]] entry for it: only peers are used as relays";
            report.refuse(&item.place(), "belongs to a node that is no peer", remedy);
            continue;
        };
        let address = match value::peer_address(text, Some(&id)) {
            Ok(address) => address,
            Err(flaw) => {
                report.refuse(&item.place(), flaw.problem, flaw.remedy);
                continue;
            }
        };
        if peer.addresses.iter().all(|known| known.value != address) {
            if peer.addresses.len() == ADDRESSES_PER_PEER_MAX {
                let remedy = format!("keep it to {ADDRESSES_PER_PEER_MAX} for each peer");
                report.refuse(&item.place(), "is one address too many for this peer", remedy);
                continue;
            }
            peer.addresses.push(Placed::new(address, item.place()));
        }
        if !settings.preferred.contains(&id) {
            settings.preferred.push(id);
        }
    }
    settings
}
