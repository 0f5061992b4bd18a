//! Which connections have something to do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use futures::task::AtomicWaker;

/// The connections that were woken, in that order, each at most once. What wakes them may run on any thread.
#[derive(Default)]
pub(super) struct Ready {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<VecDeque<Arc<Slot>>>,
    owner: AtomicWaker,
}

/// One connection's place in the queue.
pub(super) struct Slot {
    key: u64,
    is_queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(&self.shared);
            shared.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(self);
            shared.owner.wake();
        }
    }
}

impl Ready {
    /// The waker of a connection.
    pub(super) fn waker(&self, key: u64) -> Waker {
        Arc::new(Slot { key, is_queued: AtomicBool::new(false), shared: Arc::clone(&self.shared) }).into()
    }

    /// Says who is to be woken when a connection is.
    pub(super) fn register(&self, owner: &Waker) {
        self.shared.owner.register(owner);
    }

    /// The connection that has waited longest. When it is woken from now on, it is queued again.
    pub(super) fn pop(&self) -> Option<u64> {
        let slot = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        slot.is_queued.store(false, Ordering::Release);
        Some(slot.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_queued_once_until_it_had_its_turn() {
        let ready = Ready::default();
        let (first, second) = (ready.waker(1), ready.waker(2));
        first.wake_by_ref();
        second.wake_by_ref();
        first.wake_by_ref();
        assert_eq!([ready.pop(), ready.pop(), ready.pop()], [Some(1), Some(2), None]);
        first.wake_by_ref();
        assert_eq!(ready.pop(), Some(1));
    }
}
