//! Which peers have something to do: each has a waker of its own, so that one busy stream does not have all be polled.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use futures::task::{ArcWake, AtomicWaker, waker};

/// The peers that were woken, in the order in which they were, each once.
#[derive(Debug, Default)]
pub(super) struct Ready {
    woken: Mutex<VecDeque<Arc<PeerWaker>>>,
    loop_waker: AtomicWaker,
}

/// One peer's.
#[derive(Debug)]
pub(super) struct PeerWaker {
    position: usize,
    is_queued: AtomicBool,
    ready: Arc<Ready>,
}

impl ArcWake for PeerWaker {
    fn wake_by_ref(peer: &Arc<Self>) {
        if !peer.is_queued.swap(true, Ordering::AcqRel) {
            peer.ready.woken.lock().unwrap_or_else(PoisonError::into_inner).push_back(Arc::clone(peer));
            peer.ready.loop_waker.wake();
        }
    }
}

impl Ready {
    /// The waker of the peer at this position.
    pub(super) fn waker(self: &Arc<Self>, position: usize) -> Waker {
        waker(Arc::new(PeerWaker { position, is_queued: AtomicBool::new(false), ready: Arc::clone(self) }))
    }

    /// Who is to be woken when a peer is.
    pub(super) fn register(&self, waker: &Waker) {
        self.loop_waker.register(waker);
    }

    /// The peer that has been waiting for longest.
    pub(super) fn next(&self) -> Option<usize> {
        let peer = self.woken.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        peer.is_queued.store(false, Ordering::Release);
        Some(peer.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_come_in_the_order_they_were_woken_in_and_once() {
        let ready = Arc::new(Ready::default());
        let wakers: Vec<_> = (0..3).map(|position| ready.waker(position)).collect();
        [2, 0, 2, 1, 0].into_iter().for_each(|position: usize| wakers[position].wake_by_ref());
        let order: Vec<_> = std::iter::from_fn(|| ready.next()).collect();
        assert_eq!(order, [2, 0, 1]);
        wakers[2].wake_by_ref();
        assert_eq!((ready.next(), ready.next()), (Some(2), None));
    }
}
