//! Why packets to or from a peer's streams died in control: one counter per reason, as [`crate::lanes::ListenerDrop`]s have.

/// Why a packet died. Names are stable: status and metrics print them among the peer's drops.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum StreamDrop {
    /// Outbound: the oldest of a full queue. The stream is slower than what is sent.
    QueueFull,
    /// Outbound: longer than a frame may be.
    TooLong,
    /// Outbound: a super-segment or an unfinished checksum, for a stream that takes neither. We are at fault.
    Form,
    /// Outbound: it was being written when its stream ended.
    Lost,
    /// Outbound: the peer was gone before it could be queued, or while it waited.
    NotConnected,
    /// Inbound: no IP packet.
    Malformed,
}

impl StreamDrop {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::TooLong, Self::Form, Self::Lost, Self::NotConnected, Self::Malformed];

    /// The reason's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "stream_queue_full",
            Self::TooLong => "stream_too_long",
            Self::Form => "stream_form",
            Self::Lost => "stream_lost",
            Self::NotConnected => "stream_not_connected",
            Self::Malformed => "stream_malformed",
        }
    }
}

/// One counter per [`StreamDrop`]. Owner: control.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamDrops([u64; StreamDrop::ALL.len()]);

impl StreamDrops {
    pub(super) fn count(&mut self, reason: StreamDrop) {
        self.count_many(reason, 1);
    }

    pub(super) fn count_many(&mut self, reason: StreamDrop, packets: u64) {
        self.0[reason as usize] += packets;
    }

    /// Drops for one reason.
    pub fn get(&self, reason: StreamDrop) -> u64 {
        self.0[reason as usize]
    }

    /// All reasons with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (StreamDrop, u64)> {
        StreamDrop::ALL.into_iter().map(|reason| (reason, self.get(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut drops = StreamDrops::default();
        for (position, reason) in StreamDrop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
            assert_eq!(StreamDrop::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
            drops.count(reason);
        }
        assert!(drops.iter().all(|(_, count)| count == 1));
    }
}
