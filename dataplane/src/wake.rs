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
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn pending(wake: &Wake, patience: Timespec) -> bool {
        let mut polled = [PollFd::new(wake.eventfd(), PollFlags::IN)];
        poll(&mut polled, Some(&patience)).unwrap() == 1
    }

    fn read(wake: &Wake) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(wake.eventfd(), &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn only_a_sleeper_is_written_to_and_only_once() {
        let wake = Wake::new().unwrap();
        wake.wake();
        assert!(!pending(&wake, Timespec::default()), "nobody slept");
        wake.prepare_sleep();
        wake.wake();
        wake.wake();
        assert!(pending(&wake, Timespec::default()));
        assert_eq!(read(&wake), 1);
    }

    /// What the worker does next.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Next {
        EndSleep,
        Take,
        PrepareSleep,
        LookAgain,
        /// It sleeps until the eventfd can be read.
        Read,
    }

    /// A worker in its loop and two senders with one message each, one step at a time.
    struct Model {
        wake: Wake,
        queued: u32,
        worker: Next,
        /// Steps done, of each sender.
        senders: [u8; 2],
    }

    impl Model {
        fn after(order: &[usize]) -> Self {
            let mut model = Self { wake: Wake::new().unwrap(), queued: 0, worker: Next::PrepareSleep, senders: [0; 2] };
            order.iter().for_each(|who| assert!(model.step(*who)));
            model
        }

        /// One step of the worker (0) or a sender (1, 2). Returns whether there was one to do.
        fn step(&mut self, who: usize) -> bool {
            match who.checked_sub(1).map(|sender| &mut self.senders[sender]) {
                Some(2) => return false,
                Some(done) => {
                    *done += 1;
                    if *done == 1 {
                        self.queued += 1;
                    } else {
                        self.wake.wake();
                    }
                }
                None => {
                    self.worker = match self.worker {
                        Next::EndSleep => {
                            self.wake.end_sleep();
                            Next::Take
                        }
                        Next::Take => {
                            self.queued = 0;
                            Next::PrepareSleep
                        }
                        Next::PrepareSleep => {
                            self.wake.prepare_sleep();
                            Next::LookAgain
                        }
                        Next::LookAgain if self.queued > 0 => Next::EndSleep,
                        Next::LookAgain => Next::Read,
                        Next::Read if pending(&self.wake, Timespec::default()) => {
                            read(&self.wake);
                            Next::EndSleep
                        }
                        Next::Read => return false,
                    };
                }
            }
            true
        }
    }

    /// Goes through all orders that begin with `order`; returns how many there are.
    fn explore(order: &mut Vec<usize>) -> u32 {
        let mut orders = 0;
        for who in 0..3 {
            if Model::after(order).step(who) {
                order.push(who);
                orders += explore(order);
                order.pop();
            }
        }
        if orders == 0 {
            let model = Model::after(order);
            assert_eq!((model.worker, model.queued), (Next::Read, 0), "after {order:?}");
            return 1;
        }
        orders
    }

    #[test]
    fn no_order_of_steps_leaves_a_message_to_a_sleeper() {
        let orders = explore(&mut Vec::new());
        assert!(orders > 1000, "{orders}");
    }

    /// A number that shares its cache line with no other.
    #[derive(Default)]
    #[repr(align(128))]
    struct Line(AtomicU32);

    /// On real cores, where a store becomes visible after later loads are done: without either fence, most runs of this
    /// lose a message. The queue is a plain counter, as a queue's own fences would hide ours.
    #[test]
    fn no_message_is_lost_between_two_cores() {
        const MESSAGES: u32 = 150_000;
        let wake = Arc::new(Wake::new().unwrap());
        let [sent, taken] = [(); 2].map(|()| Arc::new(Line::default()));
        let worker = {
            let (wake, sent, taken) = (Arc::clone(&wake), Arc::clone(&sent), Arc::clone(&taken));
            move || {
                let (mut last, mut sleeps) = (0, 0u32);
                while last < MESSAGES {
                    // About as long as the sender takes to see what was taken, now more, now less.
                    (0..last % 64).for_each(|_| std::hint::spin_loop());
                    wake.prepare_sleep();
                    if sent.0.load(Ordering::Acquire) == last {
                        sleeps += 1;
                        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
                        assert!(pending(&wake, patience), "message {last} was lost");
                        read(&wake);
                    }
                    wake.end_sleep();
                    last = sent.0.load(Ordering::Acquire);
                    taken.0.store(last, Ordering::Release);
                }
                sleeps
            }
        };
        let worker = thread::spawn(worker);
        for message in 1..=MESSAGES {
            sent.0.store(message, Ordering::Release);
            wake.wake();
            // The next one comes about when the worker, having taken this one, wants to sleep.
            let mut spins = 0;
            while taken.0.load(Ordering::Acquire) < message && !worker.is_finished() {
                spins += 1;
                if spins % 64 == 0 {
                    thread::yield_now();
                }
            }
        }
        let sleeps = worker.join().unwrap();
        assert!(sleeps > 0, "it never slept");
    }
}
