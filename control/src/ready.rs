//! Which streams have something to do: each has a waker of its own, so that one that is busy does not have all be polled.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use futures::task::AtomicWaker;

/// The streams that were woken, by their keys and in that order, each at most once. What wakes them may run on any thread.
pub(crate) struct Ready<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    queue: Mutex<VecDeque<Arc<Slot<K>>>>,
    owner: AtomicWaker,
}

/// One stream's place in the queue.
struct Slot<K> {
    key: K,
    is_queued: AtomicBool,
    shared: Arc<Shared<K>>,
}

impl<K: Send + Sync> Wake for Slot<K> {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(&self.shared);
            shared.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(self);
            shared.owner.wake();
        }
    }
}

impl<K: Copy + Send + Sync + 'static> Ready<K> {
    /// The waker of the stream with that key; one for each stream, since each is queued for itself.
    pub(crate) fn waker(&self, key: K) -> Waker {
        Arc::new(Slot { key, is_queued: AtomicBool::new(false), shared: Arc::clone(&self.shared) }).into()
    }

    /// Says who is to be woken when a stream is.
    pub(crate) fn register(&self, owner: &Waker) {
        self.shared.owner.register(owner);
    }

    /// The stream that has waited longest. When it is woken from now on, it is queued again.
    pub(crate) fn pop(&self) -> Option<K> {
        let slot = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        slot.is_queued.store(false, Ordering::Release);
        Some(slot.key)
    }
}

impl<K> Default for Ready<K> {
    fn default() -> Self {
        Self { shared: Arc::new(Shared { queue: Mutex::default(), owner: AtomicWaker::new() }) }
    }
}

impl<K> fmt::Debug for Ready<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_come_in_the_order_they_were_woken_in_and_once() {
        let ready = Ready::default();
        let wakers: Vec<_> = (0..3).map(|key| ready.waker(key)).collect();
        [2, 0, 2, 1, 0].into_iter().for_each(|key: usize| wakers[key].wake_by_ref());
        let order: Vec<_> = std::iter::from_fn(|| ready.pop()).collect();
        assert_eq!(order, [2, 0, 1]);
        wakers[2].wake_by_ref();
        assert_eq!((ready.pop(), ready.pop()), (Some(2), None));
    }
}
