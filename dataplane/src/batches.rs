//! Packets for control, gathered in batches: those that leave by peers' streams, and those to services. Pure.

use ringlane_shared::limits::{BATCH_BYTES_MAX, BATCHES_OPEN_MAX, BATCHES_SPARE_MAX};
use ringlane_shared::plane::stream::Tally;
use ringlane_shared::plane::{BatchEnd, BatchItemForm, PacketBatch};

/// A batch, and what it stands for.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) batch: PacketBatch,
    pub(crate) tally: Tally,
}

/// The batches of a worker's turn, and memory for more. Owner: one worker.
///
/// Allocates for a batch, not for a packet, and for none while memory comes back.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    /// In the order in which they were begun, one per end.
    open: Vec<Filled>,
    spare: Vec<Vec<u8>>,
}

impl Batches {
    /// Adds a packet to the batch for `end`. Returns one that has to be sent now, because it is full, or makes room.
    pub(crate) fn add(&mut self, end: BatchEnd, form: BatchItemForm, packet: &[u8], tally: Tally) -> Option<Filled> {
        let position = self.open.iter().position(|open| open.batch.end() == end);
        if let Some(open) = position.and_then(|position| self.open.get_mut(position))
            && open.batch.push(form, packet)
        {
            open.tally += tally;
            return None;
        }
        let full = match position {
            Some(position) => Some(self.open.remove(position)),
            None if self.open.len() >= BATCHES_OPEN_MAX => Some(self.open.remove(0)),
            None => None,
        };
        let mut batch = PacketBatch::new(end, self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES_MAX)));
        // An empty one takes any packet.
        if batch.push(form, packet) {
            self.open.push(Filled { batch, tally });
        }
        full
    }

    /// The next batch to be sent at the end of the turn.
    pub(crate) fn next(&mut self) -> Option<Filled> {
        if self.open.is_empty() { None } else { Some(self.open.remove(0)) }
    }

    /// Takes back the memory of a batch.
    pub(crate) fn give_back(&mut self, memory: Vec<u8>) {
        // More than a batch needs is not worth keeping.
        if self.spare.len() < BATCHES_SPARE_MAX && (1..=2 * BATCH_BYTES_MAX).contains(&memory.capacity()) {
            self.spare.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use ringlane_shared::id::PeerIndex;

    use super::*;

    const PACKET: BatchItemForm = BatchItemForm::Packet { is_partial: false };

    fn add(batches: &mut Batches, peer: u16, packet: &[u8]) -> Option<Filled> {
        let tally = Tally { packets: 1, bytes: packet.len() as u64 };
        batches.add(BatchEnd::Peer(PeerIndex(peer)), PACKET, packet, tally)
    }

    #[test]
    fn each_end_has_a_batch_of_its_own_that_is_sent_when_full() {
        let mut batches = Batches::default();
        let packet = [7; 1400];
        let mut sent = Vec::new();
        for _ in 0..100 {
            sent.extend([3, 4].into_iter().filter_map(|peer| add(&mut batches, peer, &packet)));
        }
        assert_eq!(sent.len(), 4);
        sent.extend(std::iter::from_fn(|| batches.next()));
        for peer in [3, 4].map(PeerIndex) {
            let of_peer = sent.iter().filter(|filled| filled.batch.end() == BatchEnd::Peer(peer));
            let (packets, tally) = of_peer.fold((0, Tally::default()), |(packets, mut tally), filled| {
                tally += filled.tally;
                (packets + filled.batch.packets(), tally)
            });
            assert_eq!((packets, tally), (100, Tally { packets: 100, bytes: 140_000 }));
        }
        assert!(sent.iter().all(|filled| filled.batch.bytes() <= BATCH_BYTES_MAX));
    }

    #[test]
    fn one_end_too_many_sends_the_oldest_batch() {
        let mut batches = Batches::default();
        let ends = BATCHES_OPEN_MAX as u16;
        assert!((0..ends).all(|peer| add(&mut batches, peer, &[1]).is_none()));
        let oldest = add(&mut batches, ends, &[1]).unwrap();
        assert_eq!(oldest.batch.end(), BatchEnd::Peer(PeerIndex(0)));
        assert_eq!(std::iter::from_fn(|| batches.next()).count(), BATCHES_OPEN_MAX);
    }

    #[test]
    fn memory_that_comes_back_is_used_again_and_only_so_much_is_kept() {
        let mut batches = Batches::default();
        (0..2 * BATCHES_SPARE_MAX).for_each(|_| batches.give_back(Vec::with_capacity(BATCH_BYTES_MAX)));
        batches.give_back(Vec::new());
        assert_eq!(batches.spare.len(), BATCHES_SPARE_MAX);
        let address = batches.spare.last().map(|memory| memory.as_ptr());
        add(&mut batches, 1, &[1; 1400]);
        let memory = batches.next().map(|filled| filled.batch.into_memory()).unwrap();
        assert_eq!(Some(memory.as_ptr()), address);
        batches.give_back(Vec::with_capacity(3 * BATCH_BYTES_MAX));
        assert_eq!(batches.spare.len(), BATCHES_SPARE_MAX - 1);
    }
}
