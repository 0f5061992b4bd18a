//! Passing packets between workers, in order, where the worker that read a packet has no lane to its peer.
//!
//! Each ordered pair of workers has a bounded queue of its own and a bounded way back for the emptied buffers, so
//! nothing is allocated once the sender has filled its pool, and nobody waits for anybody.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use ringlane_shared::id::{PeerIndex, WorkerId};
use ringlane_shared::limits::HAND_OVER_QUEUE_PACKETS;

use crate::wake::Wake;

/// One packet on its way to another worker.
#[derive(Debug)]
pub(crate) struct HandedOver {
    /// Its bytes are the first `bytes` of this.
    buffer: Box<[u8]>,
    bytes: u16,
    /// Where it goes.
    pub(crate) peer: PeerIndex,
    /// Its flow's hash, so that the other worker picks the lane as this one would.
    pub(crate) flow_hash: u32,
    /// Whether its TCP or UDP checksum is partial.
    pub(crate) is_partial: bool,
}

impl HandedOver {
    /// The packet.
    pub(crate) fn packet(&self) -> &[u8] {
        &self.buffer[..usize::from(self.bytes)]
    }
}

/// A worker's way to one other worker.
struct Way {
    packets: Sender<HandedOver>,
    emptied: Receiver<Box<[u8]>>,
    /// Buffers not yet made; those made are here, in the queue, or on their way back.
    unmade: usize,
    buffer_bytes: usize,
    wake: Arc<Wake>,
}

/// A worker's packets from one other worker.
struct Arrivals {
    packets: Receiver<HandedOver>,
    emptied: Sender<Box<[u8]>>,
}

/// One worker's ends of all the queues between workers.
pub(crate) struct HandOver {
    ways: Vec<Option<Way>>,
    arrivals: Vec<Arrivals>,
    /// Which queue is looked into first; moves on so that none is starved.
    first: usize,
}

impl HandOver {
    /// Makes the queues between workers with these wake-ups, for packets of up to `mtu` bytes; one entry per worker.
    pub(crate) fn between(wakes: &[Arc<Wake>], mtu: u16) -> Vec<Self> {
        let mut ends: Vec<_> =
            wakes.iter().map(|_| Self { ways: Vec::new(), arrivals: Vec::new(), first: 0 }).collect();
        for from in 0..wakes.len() {
            for (to, wake) in wakes.iter().enumerate() {
                if from == to {
                    ends[from].ways.push(None);
                    continue;
                }
                let (packets, arriving) = bounded(HAND_OVER_QUEUE_PACKETS);
                let (emptied, returning) = bounded(HAND_OVER_QUEUE_PACKETS);
                ends[from].ways.push(Some(Way {
                    packets,
                    emptied: returning,
                    unmade: HAND_OVER_QUEUE_PACKETS,
                    buffer_bytes: usize::from(mtu),
                    wake: Arc::clone(wake),
                }));
                ends[to].arrivals.push(Arrivals { packets: arriving, emptied });
            }
        }
        ends
    }

    /// Passes a packet to `to`. Returns whether there was room.
    pub(crate) fn pass(
        &mut self,
        to: WorkerId,
        packet: &[u8],
        peer: PeerIndex,
        flow_hash: u32,
        is_partial: bool,
    ) -> bool {
        let Some(Some(way)) = self.ways.get_mut(to.position()) else { return false };
        let mut buffer = match way.emptied.try_recv() {
            Ok(buffer) => buffer,
            Err(_) if way.unmade > 0 => {
                way.unmade -= 1;
                vec![0; way.buffer_bytes].into()
            }
            Err(_) => return false,
        };
        let (Some(room), Ok(bytes)) = (buffer.get_mut(..packet.len()), u16::try_from(packet.len())) else {
            // The TUN gives no packet larger than its MTU; the buffer is lost to the pool, which refills itself.
            way.unmade += 1;
            return false;
        };
        room.copy_from_slice(packet);
        let sent = way.packets.try_send(HandedOver { buffer, bytes, peer, flow_hash, is_partial }).is_ok();
        if !sent {
            way.unmade += 1;
        }
        way.wake.wake();
        sent
    }

    /// The next packet that another worker has passed to this one. Give its buffer back with [`HandOver::empty`].
    pub(crate) fn take(&mut self) -> Option<(usize, HandedOver)> {
        let count = self.arrivals.len();
        for step in 0..count {
            let from = (self.first + step) % count;
            if let Ok(packet) = self.arrivals[from].packets.try_recv() {
                self.first = (from + 1) % count;
                return Some((from, packet));
            }
        }
        None
    }

    /// Sends the buffer of a packet from [`HandOver::take`] back to where it came from.
    pub(crate) fn empty(&self, from: usize, packet: HandedOver) {
        // The way back is as wide as there are buffers; if the sender is gone, so is the need for it.
        let _ = self.arrivals[from].emptied.try_send(packet.buffer);
    }

    /// Whether no packet waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.arrivals.iter().all(|arrivals| arrivals.packets.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_arrive_in_order_and_a_full_queue_says_no_until_buffers_return() {
        let wakes: Vec<_> = (0..3).map(|_| Arc::new(Wake::new().unwrap())).collect();
        let mut ends = HandOver::between(&wakes, 1500);
        let number = |count: usize| (count as u32).to_be_bytes();
        for count in 0..HAND_OVER_QUEUE_PACKETS {
            assert!(ends[0].pass(WorkerId(2), &number(count), PeerIndex(4), 9, false));
        }
        assert!(!ends[0].pass(WorkerId(2), b"more", PeerIndex(4), 9, false));
        assert!(ends[1].is_empty() && !ends[2].is_empty());
        for count in 0..HAND_OVER_QUEUE_PACKETS {
            let (from, packet) = ends[2].take().unwrap();
            assert_eq!(packet.packet(), number(count));
            assert_eq!((packet.peer, packet.flow_hash), (PeerIndex(4), 9));
            ends[2].empty(from, packet);
        }
        assert!(ends[2].take().is_none());
        assert!(ends[0].pass(WorkerId(2), b"again", PeerIndex(4), 9, false));
        assert!(!ends[0].pass(WorkerId(0), b"self", PeerIndex(4), 9, false));
        assert!(!ends[0].pass(WorkerId(1), &[0; 1501], PeerIndex(4), 9, false));
    }
}
