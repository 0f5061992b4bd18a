//! New keys for a lane: carries the conversation over its QUIC stream, and puts what comes of it to use.

use std::time::Instant;

use ringlane_shared::lane::connection::StreamEnded;
use ringlane_shared::lane::keys::Role;
use ringlane_shared::lane::rekey::{RekeyError, RekeyOutput};
use ringlane_shared::plane::{LaneChange, LaneEnd, PlaneEvent};
use thiserror::Error;
use tracing::debug;

use super::State;
use super::lanes::Close;
use crate::lane::Lane;
use crate::sys::ring::SocketSlot;

/// The peer's part of a rekeying makes no sense.
pub(super) const CLOSE_REKEY: Close = (4, "rekey");

/// Why a lane cannot go on: the peer is at fault.
#[derive(Debug, Error)]
pub(super) enum RekeyFailure {
    #[error(transparent)]
    Stream(#[from] StreamEnded),
    #[error(transparent)]
    Rekey(#[from] RekeyError),
}

impl From<RekeyFailure> for LaneEnd {
    fn from(failure: RekeyFailure) -> Self {
        Self::Failed(format!("rekeying: {failure}"))
    }
}

/// Does what a lane's rekeying has to do, before its QUIC connection is driven. Returns what control should hear of.
pub(super) fn drive_rekey(lane: &mut Lane, now: Instant) -> Result<Option<PlaneEvent>, RekeyFailure> {
    let Lane { rekey, connection, sealer, opener, gauges, .. } = lane;
    let mut read = Ok(());
    connection.read_stream(|bytes| {
        if read.is_ok() {
            read = rekey.handle_stream(bytes, now);
        }
    })?;
    read?;
    rekey.handle_record_of(opener.newest_epoch());
    rekey.handle_timeout(sealer.wear(), now)?;
    let mut event = None;
    while let Some(output) = rekey.poll_output() {
        match output {
            RekeyOutput::Open { epoch, key } => opener.install(epoch, key),
            RekeyOutput::Seal { epoch, key } => {
                sealer.install(epoch, key);
                gauges.set_epoch(epoch);
            }
            RekeyOutput::Settled { epoch } => {
                gauges.rekeys.add(1);
                if connection.role() == Role::Client {
                    // Packets in DATAGRAM frames forget the past in the same rhythm as records.
                    connection.update_keys();
                }
                debug!(lane = %lane.index, remote = %lane.remote, epoch, asks_crossed = rekey.crossed(), "lane rekeyed");
            }
            RekeyOutput::RetireBefore { epoch } => opener.retire_before(epoch),
            RekeyOutput::Overdue => {
                gauges.rekeys_failed.add(1);
                let Lane { serial, peer, index, .. } = *lane;
                event = Some(PlaneEvent::LaneChanged { serial, peer, index, change: LaneChange::RekeyOverdue });
            }
        }
    }
    let written = connection.write_stream(rekey.unsent())?;
    rekey.handle_sent(written);
    Ok(event)
}

impl State {
    /// Has a lane's keys seen to in the turn to come, if they are worn or the peer has begun to seal with newer ones.
    /// Called once per turn or train, not per record.
    pub(super) fn notice_keys(&mut self, slot: SocketSlot) {
        let Some(lane) = self.lanes.get_mut(slot) else { return };
        if lane.rekey.is_due(lane.sealer.wear()) || lane.opener.newest_epoch() > lane.sealer.epoch() {
            lane.has_quic_news = true;
            self.has_quic_news = true;
            // Nothing else may happen that would keep the worker awake.
            self.deadline = Some(self.now);
        }
    }
}
