//! Whether a lane's device is the bottleneck, and how much the kernel may then hold of the lane's datagrams.
//!
//! What the kernel holds is a queue without fairness that nothing overtakes. So it gets no more than keeps the device
//! busy between two looks, which is found as the kernel finds it for its network cards (BQL): more whenever it ran dry
//! although packets waited, less when it never came near. It also never gets more than the device sends in a few
//! milliseconds: a worker that has to wait for its core for longer loses throughput then, and not everybody's latency.

use ringlane_shared::limits::{
    UNSENT_BYTES_FIRST, UNSENT_BYTES_MAX, UNSENT_BYTES_MIN, UNSENT_BYTES_NOTICED, UNSENT_BYTES_STANDING,
};

use super::codel::Nanos;

/// A lane that sends at once is looked at after so many bytes, and not sooner than this after the last look.
const LOOK_BYTES: u32 = UNSENT_BYTES_STANDING;
/// The time between two looks.
pub(crate) const LOOK_PAUSE: Nanos = 1_000_000;
/// Looks at which the kernel must have held a lot, one after the other, for its queue to be a standing one; and looks
/// after which the limit shrinks by what was never used of it.
const WINDOW_LOOKS: u32 = 16;
/// For how long the device may have work at most.
const AHEAD: Nanos = 8_000_000;
/// For how long nothing must have been held back before the lane sends at once again.
pub(crate) const RELIEF: Nanos = 1_000_000_000;

/// One lane's socket, as seen from its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct PushBack {
    is_queueing: bool,
    /// Given to the kernel since the last look.
    given_bytes: u32,
    looked_at: Nanos,
    /// What the kernel held then.
    unsent_bytes: u32,
    limit_bytes: u32,
    /// How fast the device is, in bytes per [`AHEAD`]; 0 before it is known.
    pace_bytes: u32,
    /// Packets wait because of the limit.
    holds_back: bool,
    /// When that was last so.
    held_back_at: Nanos,
    /// Looks since the limit changed, and the least that the kernel held at one.
    looks: u32,
    least_bytes: u32,
}

impl PushBack {
    /// Whether packets have to queue for this lane.
    pub(crate) fn is_queueing(&self) -> bool {
        self.is_queueing
    }

    /// A record has been sealed for the kernel. While packets queue they were counted as they left the queue.
    pub(crate) fn sent(&mut self, bytes: usize) {
        if !self.is_queueing {
            self.given_bytes = self.given_bytes.saturating_add(bytes as u32);
        }
    }

    /// A packet has left the queue for a record of this lane, and takes about so many bytes of it.
    pub(crate) fn queued_for(&mut self, bytes: usize) {
        if self.is_queueing {
            self.given_bytes = self.given_bytes.saturating_add(bytes as u32);
        }
    }

    /// Whether so much was sent that the kernel is to be asked, if that was not done a moment ago.
    pub(crate) fn has_sent_much(&self) -> bool {
        self.given_bytes >= LOOK_BYTES
    }

    /// Whether it is time to ask the kernel how much it holds.
    pub(crate) fn wants_look(&self, now: Nanos) -> bool {
        (self.is_queueing || self.has_sent_much()) && now.saturating_sub(self.looked_at) >= LOOK_PAUSE
    }

    /// Packets are left in the queue, some of them because of this lane's limit if it has reached that.
    pub(crate) fn left_queued(&mut self) {
        self.holds_back = !self.may_take();
    }

    /// The kernel has said how much it holds.
    pub(crate) fn looked(&mut self, now: Nanos, unsent_bytes: u32) {
        if self.is_queueing && unsent_bytes > 0 {
            self.measure(now, unsent_bytes);
        }
        (self.looked_at, self.unsent_bytes, self.given_bytes) = (now, unsent_bytes, 0);
        if !self.is_queueing {
            self.looks = if unsent_bytes >= UNSENT_BYTES_STANDING { self.looks + 1 } else { 0 };
            if unsent_bytes >= UNSENT_BYTES_NOTICED || self.looks >= WINDOW_LOOKS {
                self.begin(now);
            }
            return;
        }
        if std::mem::take(&mut self.holds_back) {
            self.held_back_at = now;
            self.adapt();
        } else if now.saturating_sub(self.held_back_at) >= RELIEF {
            *self = Self { looked_at: now, ..Self::default() };
        }
    }

    /// The kernel has refused datagrams: its buffer for the socket is full.
    pub(crate) fn refused(&mut self, now: Nanos) {
        if !self.is_queueing {
            return self.begin(now);
        }
        self.held_back_at = now;
        self.set_limit(self.limit_bytes / 2);
    }

    /// Whether the kernel may get more.
    pub(crate) fn may_take(&self) -> bool {
        !self.is_queueing || self.unsent_bytes.saturating_add(self.given_bytes) < self.limit_bytes
    }

    fn begin(&mut self, now: Nanos) {
        self.is_queueing = true;
        self.held_back_at = now;
        self.set_limit(UNSENT_BYTES_FIRST);
    }

    /// The device has been busy since the last look: what the kernel holds no more is what it has sent. The kernel's bytes
    /// are a little more than ours, so that this errs on the side of a slower device.
    fn measure(&mut self, now: Nanos, unsent_bytes: u32) {
        let sent = u64::from(self.unsent_bytes) + u64::from(self.given_bytes);
        let sent = sent.saturating_sub(unsent_bytes.into());
        let pace = sent * AHEAD / now.saturating_sub(self.looked_at).max(1);
        let pace = u32::try_from(pace).unwrap_or(u32::MAX).min(UNSENT_BYTES_MAX);
        self.pace_bytes = match self.pace_bytes {
            0 => pace,
            before => before - before / 8 + pace / 8,
        };
        if self.limit_bytes > self.most_bytes() {
            self.set_limit(self.most_bytes());
        }
    }

    fn most_bytes(&self) -> u32 {
        match self.pace_bytes {
            0 => UNSENT_BYTES_MAX,
            pace => pace.clamp(UNSENT_BYTES_MIN, UNSENT_BYTES_MAX),
        }
    }

    fn adapt(&mut self) {
        if self.unsent_bytes >= self.limit_bytes {
            // What was there before the limit was: it says nothing of it.
            return;
        }
        if self.unsent_bytes == 0 {
            return self.set_limit(self.limit_bytes.saturating_mul(2));
        }
        self.looks += 1;
        self.least_bytes = self.least_bytes.min(self.unsent_bytes);
        if self.looks >= WINDOW_LOOKS {
            self.set_limit(self.limit_bytes - self.least_bytes / 2);
        }
    }

    fn set_limit(&mut self, bytes: u32) {
        self.limit_bytes = bytes.clamp(UNSENT_BYTES_MIN, self.most_bytes());
        (self.looks, self.least_bytes) = (0, u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker with ever more to send, looking every `pause`, over a device of so many bytes per millisecond.
    struct Device {
        push_back: PushBack,
        now: Nanos,
        unsent: u32,
        sent: u64,
        most: u32,
    }

    impl Device {
        fn new() -> Self {
            Self { push_back: PushBack::default(), now: LOOK_PAUSE, unsent: 0, sent: 0, most: 0 }
        }

        fn run(&mut self, millis: u32, bytes_per_ms: u32) {
            for step in 0..millis {
                // Timers are late by up to a millisecond.
                let pause = 1 + step % 2;
                if self.push_back.wants_look(self.now) {
                    self.push_back.looked(self.now, self.unsent);
                }
                let mut given = 0;
                while self.push_back.may_take() && given < 512 << 10 {
                    self.push_back.sent(9000);
                    self.push_back.queued_for(9000);
                    given += 9000;
                }
                self.push_back.left_queued();
                self.unsent += given;
                self.most = self.most.max(self.unsent);
                let left = self.unsent.min(bytes_per_ms * pause);
                self.unsent -= left;
                self.sent += u64::from(left);
                self.now += LOOK_PAUSE * u64::from(pause);
            }
        }
    }

    #[test]
    fn a_device_that_is_the_bottleneck_is_noticed_kept_busy_and_not_drowned() {
        for bytes_per_ms in [12_500, 125_000, 250_000] {
            let mut device = Device::new();
            device.run(20, bytes_per_ms);
            assert!(device.push_back.is_queueing());
            device.run(400, bytes_per_ms);
            (device.sent, device.most) = (0, 0);
            device.run(1000, bytes_per_ms);
            let could = u64::from(bytes_per_ms) * 1500;
            assert!(device.sent * 100 >= could * 93, "{bytes_per_ms}: {} of {could}", device.sent);
            let bound = 6 * bytes_per_ms + UNSENT_BYTES_MIN;
            assert!(device.most <= bound, "{bytes_per_ms}: {} are more than {bound}", device.most);
        }
    }

    #[test]
    fn a_lane_whose_datagrams_leave_at_once_is_left_alone_and_rarely_looked_at() {
        let mut push_back = PushBack::default();
        let mut looks = 0;
        for now in (1..=1000).map(|step| step * LOOK_PAUSE / 10) {
            push_back.sent(60_000);
            if push_back.wants_look(now) {
                looks += 1;
                // A train now and then is no queue.
                push_back.looked(now, if looks % WINDOW_LOOKS == 0 { 0 } else { UNSENT_BYTES_NOTICED - 1 });
            }
            assert!(push_back.may_take() && !push_back.is_queueing());
        }
        assert_eq!(looks, 100);
    }

    /// It loses throughput then: the device cannot know what comes next.
    #[test]
    fn a_worker_that_is_held_up_does_not_make_the_queue_longer() {
        let mut device = Device::new();
        device.run(420, 12_500);
        for _ in 0..50 {
            // 30 ms without a core.
            (device.unsent, device.now) = (0, device.now + 30 * LOOK_PAUSE);
            device.most = 0;
            device.run(20, 12_500);
        }
        assert!(device.most <= 11 * 12_500, "{}", device.most);
    }

    #[test]
    fn a_queue_that_stands_is_noticed_before_it_is_long() {
        let mut push_back = PushBack::default();
        for look in 1..=WINDOW_LOOKS {
            assert!(!push_back.is_queueing());
            push_back.looked(u64::from(look) * LOOK_PAUSE, UNSENT_BYTES_STANDING);
        }
        assert!(push_back.is_queueing());
    }

    /// Otherwise every pause of the senders would make the limit grow.
    #[test]
    fn a_device_that_ran_dry_with_nothing_to_send_does_not_get_more() {
        let mut push_back = PushBack::default();
        push_back.refused(1);
        let before = push_back.limit_bytes;
        for now in (1..50).map(|look| look * LOOK_PAUSE) {
            push_back.queued_for(before as usize);
            assert!(!push_back.may_take());
            push_back.looked(now, 0);
        }
        assert_eq!(push_back.limit_bytes, before);
    }

    #[test]
    fn a_second_without_anything_held_back_ends_it() {
        let mut push_back = PushBack::default();
        push_back.refused(1);
        assert!(push_back.is_queueing());
        push_back.looked(RELIEF, 0);
        assert!(push_back.is_queueing());
        push_back.looked(RELIEF + 1, 0);
        assert!(!push_back.is_queueing());
    }

    #[test]
    fn a_buffer_that_is_smaller_than_the_limit_lowers_it_to_what_it_takes_but_not_to_nothing() {
        let mut push_back = PushBack::default();
        for now in 1..40 {
            push_back.refused(now);
        }
        assert_eq!(push_back.limit_bytes, UNSENT_BYTES_MIN);
        assert!(push_back.may_take());
    }
}
