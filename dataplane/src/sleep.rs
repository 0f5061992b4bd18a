//! Sleeping in monoio: until the eventfd is signalled or a deadline passes.
//!
//! This file is all that knows monoio. The eventfd is read by a task of its own, whose read stays in the
//! kernel across sleeps, so that going to sleep and waking up cancels and allocates nothing.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use monoio::fs::File;

/// How long a worker sleeps without a deadline; nothing depends on it.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Runs `run` to its end on this thread, with the timers and tasks of a [`Sleeper`].
pub(crate) fn block_on(run: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().with_entries(256).enable_timer().build()?.block_on(run)
}

#[derive(Default)]
struct Signal {
    fired: Cell<bool>,
    failed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    fn fire(&self) {
        self.fired.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Where a worker waits. Lives on the worker's thread, inside its monoio runtime.
pub(crate) struct Sleeper {
    signal: Rc<Signal>,
}

impl Sleeper {
    /// Starts watching the eventfd.
    pub(crate) fn start(eventfd: &OwnedFd) -> io::Result<Self> {
        let file = File::from_std(eventfd.try_clone()?.into())?;
        let signal = Rc::new(Signal::default());
        let fired = Rc::clone(&signal);
        monoio::spawn(async move {
            let mut count = vec![0; 8];
            loop {
                let (read, back) = file.read_at(count, 0).await;
                count = back;
                match read {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                }
                fired.fire();
            }
            // Without the eventfd nobody can wake the worker, so it must not sleep again.
            fired.failed.set(true);
            fired.fire();
        });
        Ok(Self { signal })
    }

    /// Waits for the eventfd or the deadline, whichever is first.
    pub(crate) async fn sleep_until(&mut self, deadline: Option<Instant>) {
        let signal = &self.signal;
        let deadline = deadline.unwrap_or_else(|| Instant::now() + SLEEP_MAX);
        let mut timer = pin!(monoio::time::sleep_until(deadline.into()));
        poll_fn(|context| {
            if signal.fired.replace(false) || signal.failed.get() {
                return Poll::Ready(());
            }
            *signal.waker.borrow_mut() = Some(context.waker().clone());
            timer.as_mut().poll(context)
        })
        .await;
    }

    /// Lets the runtime do what it has to and comes straight back.
    pub(crate) async fn visit(&mut self) {
        let mut visited = false;
        poll_fn(|context| {
            if std::mem::replace(&mut visited, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}
