//! Counters and gauges that one worker writes and anyone may read at any time, without stopping it.
//!
//! Each has a single writer, so an increment is a relaxed load and store; each set stands on cache lines of its own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::egress::EgressGauges;
use super::forward::ForwardedCounters;
use super::offload::OffloadGauges;
use super::settings::Engine;
use crate::drop_reason::DropReason;
use crate::lane::keys::Suite;
use crate::lane::seal::Sequence;
use crate::path::loss::Loss;
use crate::wire::record::EpochTag;

/// A number that only grows, written by one thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. Only the owning worker may call this.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Its value a moment ago.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One counter per [`DropReason`].
#[derive(Debug, Default)]
pub struct DropCounters([Counter; DropReason::COUNT]);

impl DropCounters {
    /// Counts one drop.
    pub fn count(&self, reason: DropReason) {
        self.0[reason.position()].add(1);
    }

    /// Counts several drops.
    pub fn count_many(&self, reason: DropReason, drops: u64) {
        self.0[reason.position()].add(drops);
    }

    /// Drops for one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.position()].get()
    }
}

/// What one worker moved to and from one peer. Inner packets and bytes, as the TUN saw them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PeerCounters {
    /// Inner packets sealed and given to the kernel, or given to control.
    pub packets_sent: Counter,
    /// Their bytes.
    pub bytes_sent: Counter,
    /// Inner packets admitted and given to the TUN.
    pub packets_received: Counter,
    /// Their bytes.
    pub bytes_received: Counter,
    /// Records sent.
    pub records_sent: Counter,
    /// Authentic records received.
    pub records_received: Counter,
    /// DATAGRAM frames with packets, given to lanes' QUIC connections.
    pub quic_datagrams_sent: Counter,
    /// DATAGRAM frames that arrived by lanes' QUIC connections.
    pub quic_datagrams_received: Counter,
    /// Those of the packets sent that were given to control, for the peer's stream.
    pub stream_packets_sent: Counter,
    /// Those of the packets received that came by the peer's stream.
    pub stream_packets_received: Counter,
    /// What was dropped of this peer's traffic.
    pub drops: DropCounters,
}

/// What one worker did, whoever the peer.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Turns of the worker's loop.
    pub turns: Counter,
    /// System calls that moved packets; with io_uring each is one enter of the packet ring.
    pub enters: Counter,
    /// Times the worker slept because nothing was to do.
    pub sleeps: Counter,
    /// Packets passed to another worker because this one had no lane to the peer.
    pub handed_over: Counter,
    /// Times the TUN read ran out of buffers and was armed again.
    pub tun_buffer_shortages: Counter,
    /// Times a lane's receive ran out of buffers and was armed again.
    pub udp_buffer_shortages: Counter,
    /// Super-segments read from the TUN.
    pub super_segments_read: Counter,
    /// Super-segments written to the TUN.
    pub super_segments_written: Counter,
    /// Writes to the TUN, of packets and of super-segments.
    pub tun_writes: Counter,
    /// Sends of records to lanes' sockets, each of one record or a train of them.
    pub trains_sent: Counter,
    /// Receives from lanes' sockets, each of one datagram or a train of them.
    pub trains_received: Counter,
    /// Trains that the kernel did not take whole and that were sent again, record by record.
    pub trains_resent: Counter,
    /// Drops that belong to no peer.
    pub drops: DropCounters,
    /// What was forwarded of lanes that the node relays.
    pub forwarded: ForwardedCounters,
    /// What waits to leave.
    pub egress: EgressGauges,
    /// What became of the offloads this worker uses.
    pub offloads: OffloadGauges,
    /// What it runs on; nothing before it has started.
    pub engine: OnceLock<Engine>,
}

/// How packets leave by a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum LaneCarrier {
    /// In records.
    #[default]
    Records = 0,
    /// In DATAGRAM frames of its QUIC connection.
    Quic = 1,
}

/// Bits of the newest record's counter beside its epoch's tag: a counter never comes near.
const NEWEST_COUNTER_BITS: u32 = 60;
const NEWEST_COUNTER_MASK: u64 = (1 << NEWEST_COUNTER_BITS) - 1;

/// What a worker reports of one lane.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LaneGauges {
    rtt_us: AtomicU64,
    shortest_rtt_us: AtomicU64,
    mtu_bytes: AtomicU32,
    epoch: AtomicU64,
    newest: AtomicU64,
    loss: AtomicU32,
    is_silent: AtomicBool,
    carrier: AtomicU8,
    suite: AtomicU8,
    /// Epochs that followed the first.
    pub rekeys: Counter,
    /// Rekeyings that came to nothing.
    pub rekeys_failed: Counter,
    /// Times the lane moved to another path.
    pub moves: Counter,
    /// Echo requests sent.
    pub echoes_sent: Counter,
    /// Echo replies received that answered a request of ours.
    pub echoes_answered: Counter,
}

impl LaneGauges {
    /// Stores the smoothed round-trip time. Only the owning worker may call this, and all setters.
    pub fn set_rtt(&self, rtt: Duration) {
        self.rtt_us.store(rtt.as_micros().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Stores the shortest round-trip time of late.
    pub fn set_shortest_rtt(&self, rtt: Duration) {
        self.shortest_rtt_us.store(rtt.as_micros().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Stores what the lane's path was found to lose.
    pub fn set_loss(&self, loss: Loss) {
        let (asked, lost) = loss.counts();
        self.loss.store(u32::from(asked) << 16 | u32::from(lost), Ordering::Relaxed);
    }

    /// Stores the largest UDP payload the lane's path is known to carry.
    pub fn set_mtu(&self, bytes: u16) {
        self.mtu_bytes.store(u32::from(bytes), Ordering::Relaxed);
    }

    /// Stores the epoch that seals.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Stores where the newest record stands that was opened.
    pub fn set_newest(&self, newest: Sequence) {
        let tag = u64::from(EpochTag::of_epoch(newest.epoch).get());
        self.newest.store(tag << NEWEST_COUNTER_BITS | newest.counter & NEWEST_COUNTER_MASK, Ordering::Relaxed);
    }

    /// Stores the AEAD of the lane's records.
    pub fn set_suite(&self, suite: Suite) {
        self.suite.store(suite as u8, Ordering::Relaxed);
    }

    /// The AEAD of the lane's records; `None` until a worker owns it.
    pub fn suite(&self) -> Option<Suite> {
        let code = self.suite.load(Ordering::Relaxed);
        Suite::ALL.into_iter().find(|suite| *suite as u8 == code)
    }

    /// Stores whether the peer has stopped answering.
    pub fn set_silent(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::Relaxed);
    }

    /// Stores how packets leave.
    pub fn set_carrier(&self, carrier: LaneCarrier) {
        self.carrier.store(carrier as u8, Ordering::Relaxed);
    }

    /// Smoothed round-trip time in microseconds; 0 before the first figure.
    pub fn rtt_us(&self) -> u64 {
        self.rtt_us.load(Ordering::Relaxed)
    }

    /// Shortest round-trip time of late; the smoothed one before the first figure.
    pub fn shortest_rtt_us(&self) -> u64 {
        match self.shortest_rtt_us.load(Ordering::Relaxed) {
            0 => self.rtt_us(),
            us => us,
        }
    }

    /// What the lane's path was found to lose.
    pub fn loss(&self) -> Loss {
        let counts = self.loss.load(Ordering::Relaxed);
        Loss::new((counts >> 16) as u16, counts as u16)
    }

    /// Largest UDP payload the lane's path is known to carry; 0 before the first figure.
    pub fn mtu_bytes(&self) -> u16 {
        self.mtu_bytes.load(Ordering::Relaxed) as u16
    }

    /// The epoch that seals.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Whether a record with this epoch and counter could be the next one opened, as far as was known a moment ago: of the
    /// newest one's epoch, not older, and less than `ahead` above it. The first of the next epoch is not such a one: its
    /// counter is 0, which needs no guessing.
    pub fn could_be_next(&self, epoch: EpochTag, counter: u64, ahead: u64) -> bool {
        let newest = self.newest.load(Ordering::Relaxed);
        let (tag, newest) = (newest >> NEWEST_COUNTER_BITS, newest & NEWEST_COUNTER_MASK);
        epoch == EpochTag::of_epoch(tag) && (newest..newest + ahead).contains(&counter)
    }

    /// Whether the peer has stopped answering.
    pub fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Relaxed)
    }

    /// How packets leave.
    pub fn carrier(&self) -> LaneCarrier {
        match self.carrier.load(Ordering::Relaxed) {
            1 => LaneCarrier::Quic,
            _ => LaneCarrier::Records,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_record_is_not_older_not_far_ahead_and_of_this_epoch() {
        let gauges = LaneGauges::default();
        assert!(gauges.could_be_next(EpochTag::default(), 0, 10));
        gauges.set_newest(Sequence { epoch: 15, counter: 1000 });
        let cases = [(15, 1000, true), (15, 1009, true), (15, 999, false), (15, 1010, false)];
        for (epoch, counter, expected) in
            cases.into_iter().chain([(16, 0, false), (16, 1001, false), (14, 1001, false)])
        {
            assert_eq!(gauges.could_be_next(EpochTag::of_epoch(epoch), counter, 10), expected, "{epoch}, {counter}");
        }
    }
}
