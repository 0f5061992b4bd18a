//! FQ-CoDel (RFC 8290): each flow has a queue, the queues take turns by bytes, one that is new or has been quiet goes
//! first, and CoDel watches each of them.
//!
//! Packets lie in cells of one size, so that any packet fits where any other was. The pieces of a super-segment are
//! queued as what they are, packets: between two of them anybody else's may leave.

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::limits::{EGRESS_DROP_BATCH, EGRESS_FLOWS};
use ringlane_shared::packet::marks::mark_congestion;

use super::codel::{Codel, CodelConfig, Nanos};

/// No cell, or no flow.
const NONE: u32 = u32::MAX;

/// What a queue is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FqConfig {
    /// Largest packet.
    pub(crate) packet_bytes: usize,
    /// Memory for packets.
    pub(crate) pool_bytes: usize,
    /// Bytes a flow may send before it is the next one's turn.
    pub(crate) quantum_bytes: u32,
    pub(crate) codel: CodelConfig,
}

/// What a packet's bytes do not say of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label {
    pub(crate) peer: PeerIndex,
    pub(crate) flow_hash: u32,
    pub(crate) is_partial: bool,
}

/// What became of packets that are not those asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It is lost, for this reason.
    Dropped(PeerIndex, DropReason),
    /// It met congestion and says so.
    Marked,
}

/// A packet that leaves. Ours until [`Fq::release`].
#[derive(Debug)]
#[must_use = "a cell that is not released is lost to the queue"]
pub(crate) struct Leaving {
    cell: u32,
    pub(crate) label: Label,
}

#[derive(Clone, Copy)]
struct Cell {
    next: u32,
    bytes: u32,
    since: Nanos,
    label: Label,
}

#[derive(Clone, Copy)]
struct Flow {
    head: u32,
    tail: u32,
    bytes: u32,
    packets: u32,
    deficit: i64,
    codel: Codel,
    /// It stands in one of the lists.
    is_listed: bool,
    /// The next flow in its list.
    next: u32,
}

/// Flows one behind the other.
#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

/// A worker's own queue. Lives on the worker's thread; allocates nothing after `new`.
pub(crate) struct Fq {
    config: FqConfig,
    pool: Box<[u8]>,
    cell_bytes: usize,
    cells: Box<[Cell]>,
    free: u32,
    flows: Box<[Flow]>,
    /// Flows that had nothing queued a moment ago.
    new: List,
    /// The others that have.
    old: List,
    /// Those of either kind whose next packet may not leave now.
    held_new: List,
    held_old: List,
    queued_bytes: u32,
    queued_packets: u32,
}

impl Fq {
    /// An empty queue. Its memory is taken from the system as it is used, the last cell that came free first.
    pub(crate) fn new(config: FqConfig) -> Self {
        let cell_bytes = config.packet_bytes.next_multiple_of(64).max(64);
        let count = (config.pool_bytes / cell_bytes).max(1);
        let label = Label { peer: PeerIndex(0), flow_hash: 0, is_partial: false };
        let cell = |id: usize| Cell { next: id as u32 + 1, bytes: 0, since: 0, label };
        let mut cells: Box<[Cell]> = (0..count).map(cell).collect();
        if let Some(last) = cells.last_mut() {
            last.next = NONE;
        }
        let flow = Flow {
            head: NONE,
            tail: NONE,
            bytes: 0,
            packets: 0,
            deficit: 0,
            codel: Codel::default(),
            is_listed: false,
            next: NONE,
        };
        let list = List { head: NONE, tail: NONE };
        Self {
            config,
            pool: vec![0; count * cell_bytes].into(),
            cell_bytes,
            cells,
            free: 0,
            flows: vec![flow; EGRESS_FLOWS].into(),
            new: list,
            old: list,
            held_new: list,
            held_old: list,
            queued_bytes: 0,
            queued_packets: 0,
        }
    }

    /// Packets that wait.
    pub(crate) fn queued_packets(&self) -> u32 {
        self.queued_packets
    }

    /// Their bytes.
    pub(crate) fn queued_bytes(&self) -> u32 {
        self.queued_bytes
    }

    /// Queues a packet of `bytes`, which `write` writes. When there is no room, the flow that has most of it loses its
    /// oldest packets first.
    pub(crate) fn queue(
        &mut self,
        now: Nanos,
        label: Label,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
        mut fate: impl FnMut(Fate),
    ) {
        if bytes > self.cell_bytes {
            return fate(Fate::Dropped(label.peer, DropReason::TooBig));
        }
        if self.free == NONE {
            self.drop_from_fattest(&mut fate);
        }
        let id = self.free;
        let Some(cell) = self.cells.get_mut(id as usize) else {
            // All cells are leaving, which the worker never lets come about.
            return fate(Fate::Dropped(label.peer, DropReason::EgressFull));
        };
        self.free = cell.next;
        *cell = Cell { next: NONE, bytes: bytes as u32, since: now, label };
        write(&mut self.pool[id as usize * self.cell_bytes..][..bytes]);

        let number = bucket(label.flow_hash);
        let flow = &mut self.flows[number as usize];
        match flow.tail {
            NONE => flow.head = id,
            tail => self.cells[tail as usize].next = id,
        }
        flow.tail = id;
        flow.bytes += bytes as u32;
        flow.packets += 1;
        self.queued_bytes += bytes as u32;
        self.queued_packets += 1;
        if !flow.is_listed {
            flow.is_listed = true;
            flow.deficit = i64::from(self.config.quantum_bytes);
            self.new.push(&mut self.flows, number);
        }
    }

    /// The packet whose turn it is, of those that may leave now. What becomes of others on the way is told to `fate`.
    pub(crate) fn next(
        &mut self,
        now: Nanos,
        mut may_leave: impl FnMut(&Label) -> bool,
        mut fate: impl FnMut(Fate),
    ) -> Option<Leaving> {
        loop {
            let is_new = self.new.head != NONE;
            let number = if is_new { self.new.head } else { self.old.head };
            let flow = self.flows.get_mut(number as usize)?;
            if flow.deficit <= 0 {
                flow.deficit += i64::from(self.config.quantum_bytes);
                self.pop(is_new);
                self.old.push(&mut self.flows, number);
                continue;
            }
            if let Some(cell) = self.cells.get(flow.head as usize)
                && !may_leave(&cell.label)
            {
                self.pop(is_new);
                let held = if is_new { &mut self.held_new } else { &mut self.held_old };
                held.push(&mut self.flows, number);
                continue;
            }
            if let Some(leaving) = self.take_watched(number, now, &mut fate) {
                return Some(leaving);
            }
            self.pop(is_new);
            if is_new && self.old.head != NONE {
                // Else a flow could stay new, and go first, by sending a packet at a time.
                self.old.push(&mut self.flows, number);
            } else {
                self.flows[number as usize].is_listed = false;
            }
        }
    }

    /// Lets flows be looked at again whose packets could not leave.
    pub(crate) fn reconsider(&mut self) {
        for (held, list) in [(&mut self.held_new, &mut self.new), (&mut self.held_old, &mut self.old)] {
            list.append(&mut self.flows, held);
        }
    }

    /// The bytes of a packet that leaves.
    pub(crate) fn packet(&self, leaving: &Leaving) -> &[u8] {
        let bytes = self.cells[leaving.cell as usize].bytes as usize;
        &self.pool[leaving.cell as usize * self.cell_bytes..][..bytes]
    }

    /// The packet has left.
    pub(crate) fn release(&mut self, leaving: Leaving) {
        self.cells[leaving.cell as usize].next = self.free;
        self.free = leaving.cell;
    }

    // Inside

    fn pop(&mut self, is_new: bool) {
        let list = if is_new { &mut self.new } else { &mut self.old };
        list.pop(&mut self.flows);
    }

    /// The next packet of a flow that CoDel lets pass.
    fn take_watched(&mut self, number: u32, now: Nanos, fate: &mut impl FnMut(Fate)) -> Option<Leaving> {
        loop {
            // The flow's own, and not everybody's as Linux has it: a flow of single packets could not be any shorter.
            let queued_bytes = self.flows[number as usize].bytes;
            let Some(leaving) = self.take(number) else {
                self.flows[number as usize].codel.ran_empty();
                return None;
            };
            let Cell { bytes, since, .. } = self.cells[leaving.cell as usize];
            let flow = &mut self.flows[number as usize];
            if flow.codel.hits(&self.config.codel, now, since, queued_bytes) {
                let packet = &mut self.pool[leaving.cell as usize * self.cell_bytes..][..bytes as usize];
                if !mark_congestion(packet) {
                    fate(Fate::Dropped(leaving.label.peer, DropReason::EgressDelayed));
                    self.release(leaving);
                    continue;
                }
                fate(Fate::Marked);
            }
            flow.deficit -= i64::from(bytes);
            return Some(leaving);
        }
    }

    fn take(&mut self, number: u32) -> Option<Leaving> {
        let flow = &mut self.flows[number as usize];
        let id = flow.head;
        let cell = self.cells.get(id as usize)?;
        flow.head = cell.next;
        if flow.head == NONE {
            flow.tail = NONE;
        }
        flow.bytes -= cell.bytes;
        flow.packets -= 1;
        self.queued_bytes -= cell.bytes;
        self.queued_packets -= 1;
        Some(Leaving { cell: id, label: cell.label })
    }

    fn drop_from_fattest(&mut self, fate: &mut impl FnMut(Fate)) {
        // By what it has of what there is too little of: small packets take a cell each as well.
        let fattest = (0..).zip(self.flows.iter()).max_by_key(|(_, flow)| flow.packets);
        let Some((number, flow)) = fattest else { return };
        for _ in 0..flow.packets.div_ceil(2).min(EGRESS_DROP_BATCH) {
            let Some(leaving) = self.take(number) else { return };
            fate(Fate::Dropped(leaving.label.peer, DropReason::EgressFull));
            self.release(leaving);
        }
    }
}

/// Which queue a flow has. Its hash's lowest bits are the same for all flows of a worker, the highest for all of a lane.
fn bucket(flow_hash: u32) -> u32 {
    flow_hash.wrapping_mul(0x9e37_79b1) >> (32 - EGRESS_FLOWS.ilog2())
}

impl List {
    fn push(&mut self, flows: &mut [Flow], number: u32) {
        flows[number as usize].next = NONE;
        match self.tail {
            NONE => self.head = number,
            tail => flows[tail as usize].next = number,
        }
        self.tail = number;
    }

    fn pop(&mut self, flows: &mut [Flow]) {
        if let Some(flow) = flows.get(self.head as usize) {
            self.head = flow.next;
            if self.head == NONE {
                self.tail = NONE;
            }
        }
    }

    fn append(&mut self, flows: &mut [Flow], other: &mut Self) {
        match (self.tail, other.head) {
            (_, NONE) => return,
            (NONE, head) => self.head = head,
            (tail, head) => flows[tail as usize].next = head,
        }
        self.tail = other.tail;
        *other = Self { head: NONE, tail: NONE };
    }
}

#[cfg(test)]
mod tests;
