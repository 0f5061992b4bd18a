//! What a worker says of the packets that wait to leave.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::counters::Counter;

/// How a worker's packets leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EgressState {
    /// At once: nothing is slower than the worker.
    Direct,
    /// By way of the worker's own queue, where flows take turns: a rate is configured, or a socket pushes back.
    Queueing,
}

impl EgressState {
    /// Its stable name, as status and metrics print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Queueing => "queueing",
        }
    }
}

/// What waits to leave, as the worker last said. One writer, any readers.
#[derive(Debug, Default)]
pub struct EgressGauges {
    is_queueing: AtomicBool,
    queued_packets: AtomicU32,
    queued_bytes: AtomicU32,
    /// Packets marked instead of dropped because they had stood in the queue for too long (CoDel with ECN).
    pub marked: Counter,
}

impl EgressGauges {
    /// Stores the latest figures. Only the owning worker may call this.
    pub fn set(&self, state: EgressState, queued_packets: u32, queued_bytes: u32) {
        self.is_queueing.store(state == EgressState::Queueing, Ordering::Relaxed);
        self.queued_packets.store(queued_packets, Ordering::Relaxed);
        self.queued_bytes.store(queued_bytes, Ordering::Relaxed);
    }

    /// How packets leave.
    pub fn state(&self) -> EgressState {
        if self.is_queueing.load(Ordering::Relaxed) { EgressState::Queueing } else { EgressState::Direct }
    }

    /// Packets that wait.
    pub fn queued_packets(&self) -> u32 {
        self.queued_packets.load(Ordering::Relaxed)
    }

    /// Their bytes.
    pub fn queued_bytes(&self) -> u32 {
        self.queued_bytes.load(Ordering::Relaxed)
    }
}
