//! Packets from the workers that leave by control.

use std::time::Instant;

use ringlane_shared::limits::BATCH_QUEUE_MESSAGES;
use ringlane_shared::plane::BatchEnd;

use super::Control;

impl Control {
    /// Gives each batch to who sends it on.
    pub(super) fn handle_batches(&mut self) {
        for _ in 0..BATCH_QUEUE_MESSAGES {
            let Some(batch) = self.batches.try_recv() else { return };
            match batch.end() {
                BatchEnd::Peer(peer) => self.packets.send(peer, batch),
                BatchEnd::Services => self.services.handle_packets(batch, Instant::now()),
            }
        }
        // There may be more, and everybody else has waited long enough.
        self.batches_woken.notify_one();
    }
}
