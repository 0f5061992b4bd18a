//! The packets that wait for a peer's stream, as the frames they leave in: pure.
//!
//! Bounded in bytes and in packets; when it is full the oldest make room, for they are worth least. What has been given
//! to a stream is out of reach of that: a frame of which a part is written must be written whole.

use std::collections::VecDeque;

use ringlane_shared::limits::{STREAM_QUEUE_BYTES, STREAM_QUEUE_PACKETS};
use ringlane_shared::plane::BatchItem;
use ringlane_shared::wire::packets::{Framing, Mark, Unsendable};

use super::drops::{StreamDrop, StreamDrops};

/// From so many unused bytes at its front on, the memory is tidied up.
const SLACK_BYTES: usize = 64 << 10;

/// One peer's queue. Owner: the peer's streams, on the control thread.
#[derive(Debug)]
pub(super) struct OutQueue {
    framing: Framing,
    /// Frames that wait, the first at `start`, and the size of each.
    waiting: Vec<u8>,
    start: usize,
    sizes: VecDeque<u32>,
    /// Whole frames given to the stream, the size of each packet's, and how many bytes of them the stream has taken. A
    /// mark has them for itself.
    writing: Vec<u8>,
    writing_sizes: Vec<u32>,
    written: usize,
}

impl OutQueue {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            framing,
            waiting: Vec::new(),
            start: 0,
            sizes: VecDeque::new(),
            writing: Vec::new(),
            writing_sizes: Vec::new(),
            written: 0,
        }
    }

    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    /// Queues a packet; what makes room for it, or cannot be sent at all, is counted.
    pub(super) fn push(&mut self, item: BatchItem<'_>, drops: &mut StreamDrops) {
        let size = match self.framing.write(item, &mut self.waiting) {
            Ok(size) => size,
            Err(Unsendable::Length(0)) | Err(Unsendable::Form) => return drops.count(StreamDrop::Form),
            Err(Unsendable::Length(_)) => return drops.count(StreamDrop::TooLong),
        };
        self.sizes.push_back(size as u32);
        while self.sizes.len() > STREAM_QUEUE_PACKETS || self.waiting_bytes() > STREAM_QUEUE_BYTES {
            let Some(size) = self.sizes.pop_front() else { break };
            self.start += size as usize;
            drops.count(StreamDrop::QueueFull);
        }
        self.tidy();
    }

    /// What to write next: the rest of what has been begun, or else as many whole frames as fit `bytes_max`, but one at
    /// least. Nothing if nothing waits.
    pub(super) fn next(&mut self, bytes_max: usize) -> &[u8] {
        if self.written == self.writing.len() {
            self.writing.clear();
            self.writing_sizes.clear();
            self.written = 0;
            let mut bytes = 0;
            while let Some(&size) = self.sizes.front() {
                if bytes > 0 && bytes + size as usize > bytes_max {
                    break;
                }
                bytes += size as usize;
                self.writing_sizes.push(size);
                self.sizes.pop_front();
            }
            self.writing.extend_from_slice(&self.waiting[self.start..self.start + bytes]);
            self.start += bytes;
            self.tidy();
        }
        &self.writing[self.written..]
    }

    /// Has a mark written next, on this stream or never. Only for between batches.
    pub(super) fn put_mark(&mut self, mark: Mark) {
        debug_assert!(self.is_between_batches());
        self.writing.clear();
        self.writing_sizes.clear();
        self.written = 0;
        mark.write(&mut self.writing);
    }

    /// The stream has taken so many bytes of what [`Self::next`] gave.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.written = (self.written + bytes).min(self.writing.len());
    }

    /// The stream has failed, or is left. What it has not begun to take goes to the next one; a frame it took a part of is
    /// lost. Returns whether there was one.
    pub(super) fn handle_stream_lost(&mut self, drops: &mut StreamDrops) -> bool {
        if self.writing_sizes.is_empty() {
            let was_cut = self.written > 0 && !self.is_between_batches();
            self.writing.clear();
            self.written = 0;
            return was_cut;
        }
        let (mut begin, mut begun) = (0, 0);
        for &size in &self.writing_sizes {
            if begin >= self.written {
                break;
            }
            begin += size as usize;
            begun += 1;
        }
        let was_cut = begin > self.written;
        if was_cut {
            drops.count(StreamDrop::Lost);
        }
        self.writing.drain(..begin);
        self.writing_sizes.drain(..begun);
        self.written = 0;
        was_cut
    }

    /// Whether nothing is left to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.sizes.is_empty() && self.is_between_batches()
    }

    /// Whether no frame has been begun that is not written whole.
    pub(super) fn is_between_batches(&self) -> bool {
        self.written == self.writing.len()
    }

    /// How many packets wait, or are being written.
    pub(super) fn packets(&self) -> usize {
        self.sizes.len() + if self.is_between_batches() { 0 } else { self.writing_sizes.len() }
    }

    /// Forgets everything, for the peer is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.framing);
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting.len() - self.start
    }

    /// Moves what waits to the front once less than half of the memory is used: each byte once for each it makes room for.
    fn tidy(&mut self) {
        if self.start == self.waiting.len() {
            self.waiting.clear();
            self.start = 0;
        } else if self.start >= SLACK_BYTES && self.start > self.waiting_bytes() {
            self.waiting.drain(..self.start);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringlane_shared::limits::STREAM_WRITE_BYTES;
    use ringlane_shared::plane::BatchItemForm;
    use ringlane_shared::wire::packets::{Frame, FrameReader};

    use super::*;

    const WHOLE: BatchItemForm = BatchItemForm::Packet { is_partial: false };

    /// An IPv4 packet with a number in it.
    fn packet(number: u32, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0x45; bytes.max(24)];
        packet[2..4].copy_from_slice(&(bytes.max(24) as u16).to_be_bytes());
        packet[20..24].copy_from_slice(&number.to_be_bytes());
        packet
    }

    fn numbers(bytes: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        let mut reader = FrameReader::new(Framing::Hyprspace);
        let read = reader.read(bytes, |frame| match frame {
            Frame::Packet(item) => found.push(u32::from_be_bytes(item.packet[20..24].try_into().unwrap())),
            Frame::Mark(_) | Frame::Malformed => panic!("what we write is packets"),
        });
        read.unwrap();
        found
    }

    #[test]
    fn when_the_queue_is_full_the_oldest_go_and_the_order_stays() {
        let (mut queue, mut drops) = (OutQueue::new(Framing::Hyprspace), StreamDrops::default());
        let all = STREAM_QUEUE_PACKETS as u32 + 100;
        for number in 0..all {
            queue.push(BatchItem { form: WHOLE, packet: &packet(number, 60) }, &mut drops);
        }
        assert_eq!(drops.get(StreamDrop::QueueFull), 100);
        let mut written = Vec::new();
        while !queue.is_empty() {
            let next = queue.next(STREAM_WRITE_BYTES);
            assert!(next.len() <= STREAM_WRITE_BYTES && next.len() % 2 == 0);
            written.extend_from_slice(next);
            let bytes = next.len();
            queue.advance(bytes);
        }
        assert_eq!(numbers(&written), (100..all).collect::<Vec<_>>());
        assert!(queue.next(1).is_empty());
    }

    #[test]
    fn what_does_not_fit_the_stream_is_counted_and_delays_nothing() {
        let (mut queue, mut drops) = (OutQueue::new(Framing::Hyprspace), StreamDrops::default());
        queue.push(BatchItem { form: WHOLE, packet: &packet(0, 1421) }, &mut drops);
        queue.push(BatchItem { form: BatchItemForm::Packet { is_partial: true }, packet: &packet(1, 60) }, &mut drops);
        queue.push(BatchItem { form: WHOLE, packet: &packet(2, 1420) }, &mut drops);
        assert_eq!((drops.get(StreamDrop::TooLong), drops.get(StreamDrop::Form)), (1, 1));
        assert_eq!(numbers(queue.next(1)), [2]);
    }

    #[test]
    fn a_mark_stays_on_its_stream_and_costs_no_packet() {
        let (mut queue, mut drops) = (OutQueue::new(Framing::Ringlane), StreamDrops::default());
        queue.push(BatchItem { form: WHOLE, packet: &packet(0, 60) }, &mut drops);
        for (taken, was_cut) in [(0, false), (3, true), (8, false)] {
            queue.put_mark(Mark::Leave(7));
            assert_eq!(queue.next(1), [3, 0, 0, 4, 0, 0, 0, 7]);
            assert_eq!(queue.packets(), 1);
            queue.advance(taken);
            assert_eq!(queue.handle_stream_lost(&mut drops), was_cut);
        }
        assert_eq!((queue.next(1)[0], drops.get(StreamDrop::Lost)), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Write { batch: usize, taken: usize },
        Lose,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (24..1420_usize).prop_map(Step::Push),
            3 => (1..20_000_usize, 0..20_000_usize).prop_map(|(batch, taken)| Step::Write { batch, taken }),
            1 => Just(Step::Lose),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        /// Each stream is whole frames, but for its last; all streams together are the packets in order, without those
        /// that were under way when a stream was lost.
        #[test]
        fn no_packet_is_lost_with_a_stream_but_the_one_under_way(steps in steps()) {
            let (mut queue, mut drops) = (OutQueue::new(Framing::Hyprspace), StreamDrops::default());
            let mut streams = vec![Vec::new()];
            let mut pushed = 0;
            for step in steps {
                match step {
                    Step::Push(bytes) => {
                        queue.push(BatchItem { form: WHOLE, packet: &packet(pushed, bytes) }, &mut drops);
                        pushed += 1;
                    }
                    Step::Write { batch, taken } => {
                        let next = queue.next(batch);
                        let taken = taken.min(next.len());
                        streams.last_mut().unwrap().extend_from_slice(&next[..taken]);
                        queue.advance(taken);
                    }
                    Step::Lose => {
                        queue.handle_stream_lost(&mut drops);
                        streams.push(Vec::new());
                    }
                }
            }
            while !queue.is_empty() {
                let next = queue.next(STREAM_WRITE_BYTES).to_vec();
                queue.advance(next.len());
                streams.last_mut().unwrap().extend(next);
            }
            let read: Vec<u32> = streams.iter().flat_map(|stream| numbers(stream)).collect();
            prop_assert!(read.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(read.len() as u64 + drops.get(StreamDrop::Lost), u64::from(pushed));
        }
    }
}
