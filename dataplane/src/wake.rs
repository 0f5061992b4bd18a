//! Waking a worker that sleeps, without a system call while it does not.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// A worker's eventfd and whether the worker is, or is about to be, asleep.
///
/// Shared by the worker, control and the other workers. Who has put something into a queue of the worker calls
/// [`Wake::wake`]; the worker calls [`Wake::prepare_sleep`], looks into its queues once more, and only then sleeps. The
/// two fences make it impossible that the sender misses the flag and the worker the message.
#[derive(Debug)]
pub(crate) struct Wake {
    eventfd: OwnedFd,
    sleeping: AtomicBool,
}

impl Wake {
    /// Makes the eventfd. It blocks on reading, as io_uring reads of non-blocking descriptors do not wait.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { eventfd: eventfd(0, EventfdFlags::CLOEXEC)?, sleeping: AtomicBool::new(false) })
    }

    /// The descriptor that becomes readable.
    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Wakes the worker if it sleeps. Any thread.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            // Fails only when the counter is about to overflow, and then the worker is being woken already.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// Announces that the worker will sleep unless it finds something to do. Only the worker.
    pub(crate) fn prepare_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends what [`Wake::prepare_sleep`] announced. Only the worker.
    pub(crate) fn end_sleep(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeper_is_written_to_and_only_once() {
        let wake = Wake::new().unwrap();
        let pending = || {
            let mut polled = [rustix::event::PollFd::new(wake.eventfd(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())).unwrap() == 1
        };
        wake.wake();
        assert!(!pending(), "nobody slept");
        wake.prepare_sleep();
        wake.wake();
        wake.wake();
        assert!(pending());
        let mut count = [0; 8];
        rustix::io::read(wake.eventfd(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
