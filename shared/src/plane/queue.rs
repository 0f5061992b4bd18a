//! A bounded queue with a wake-up: how a message gets from one plane's thread to the other's event loop.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use thiserror::Error;

use crate::limits::PLANE_QUEUE_MESSAGES;

/// The queue was full, or the other side is gone; the message comes back.
#[derive(Error)]
#[error("the plane queue is full or its receiver is gone")]
pub struct QueueFull<T>(pub T);

impl<T> std::fmt::Debug for QueueFull<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueueFull(..)")
    }
}

/// Sends messages to another thread and wakes it. Cheap to clone.
pub struct PlaneSender<T> {
    queue: Sender<T>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl<T> Clone for PlaneSender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), wake: Arc::clone(&self.wake) }
    }
}

impl<T> std::fmt::Debug for PlaneSender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PlaneSender(..)")
    }
}

impl<T> PlaneSender<T> {
    /// Queues a message and wakes the receiver. Never blocks.
    pub fn try_send(&self, message: T) -> Result<(), QueueFull<T>> {
        let sent = self.queue.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => QueueFull(message),
        });
        (self.wake)();
        sent
    }
}

/// Receives the messages of a queue; the owner's event loop waits on whatever the queue's wake-up touches.
pub struct PlaneReceiver<T> {
    queue: Receiver<T>,
}

impl<T> PlaneReceiver<T> {
    /// The next message, if one is there. Never blocks.
    pub fn try_recv(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// Whether a message is waiting.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// Makes a queue of [`PLANE_QUEUE_MESSAGES`]; `wake` is called from the sender's thread after each message and must
/// not block.
pub fn plane_queue<T>(wake: impl Fn() + Send + Sync + 'static) -> (PlaneSender<T>, PlaneReceiver<T>) {
    plane_queue_of(PLANE_QUEUE_MESSAGES, wake)
}

/// As [`plane_queue`], for so many messages.
pub fn plane_queue_of<T>(
    messages: usize,
    wake: impl Fn() + Send + Sync + 'static,
) -> (PlaneSender<T>, PlaneReceiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(messages);
    (PlaneSender { queue: sender, wake: Arc::new(wake) }, PlaneReceiver { queue: receiver })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_full_queue_gives_the_message_back_and_every_send_wakes() {
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = Arc::clone(&woken);
        let (sender, receiver) = plane_queue(move || {
            wake.fetch_add(1, Ordering::Relaxed);
        });
        for message in 0..PLANE_QUEUE_MESSAGES {
            sender.try_send(message).unwrap();
        }
        assert_eq!(sender.try_send(usize::MAX).unwrap_err().0, usize::MAX);
        assert_eq!(woken.load(Ordering::Relaxed), PLANE_QUEUE_MESSAGES + 1);
        assert_eq!(receiver.try_recv(), Some(0));
        sender.try_send(usize::MAX).unwrap();
    }
}
