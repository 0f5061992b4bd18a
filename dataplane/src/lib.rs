//! Ringlane's workers: one pinned thread per core, each with a TUN queue, a packet ring and lanes of its own.
//!
//! [`spawn`] is the only way in. From then on control and the workers speak through [`ringlane_shared::plane`] only.
//! Start reading at `worker.rs`, then `outbound.rs` and `inbound.rs`.

mod batches;
mod delivered;
mod echoes;
mod egress;
mod fragments;
mod hand_over;
mod icmp;
mod inbound;
pub mod io;
mod lane;
mod marks;
mod outbound;
mod sleep;
mod sys;
mod wake;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use ringlane_shared::id::WorkerId;
use ringlane_shared::limits::{BATCH_QUEUE_MESSAGES, WORKERS_MAX, datagram_bytes_max};
use ringlane_shared::plane::queue::{plane_queue, plane_queue_of};
use ringlane_shared::plane::{
    Engine, Offload, PacketBatch, PlaneCommand, PlaneEvent, PlaneSender, ToControl, WorkerCounters, WorkerSettings,
};
use thiserror::Error;
use tracing::{debug, warn};

pub use crate::io::engine::NoIoUring;
pub use crate::io::tun::{Tun, TunError};

use crate::egress::pace::LinkClock;
use crate::hand_over::HandOver;
use crate::io::engine::choose;
use crate::io::offload::{probe_udp, report};
use crate::sys::ring::{Epoll, PacketRing, RingConfig, Uring};
use crate::wake::Wake;
use crate::worker::{EgressQueue, State, Worker};

/// How often a worker that has stopped tries to say so, and how long it waits in between: a second in all.
const STOPPED_TRIES: u32 = 100;
const STOPPED_PAUSE: Duration = Duration::from_millis(10);

/// Why the workers could not be started: the system is at fault.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// More workers than [`WORKERS_MAX`].
    #[error("{0} workers are more than the {WORKERS_MAX} there can be")]
    TooMany(usize),
    /// The kernel refused what a worker needs.
    #[error("worker {worker} cannot start: {error} (if it is for memory: see `ulimit -l` for locked memory)")]
    Kernel {
        /// Which worker.
        worker: u8,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// io_uring was asked for by name and cannot be used.
    #[error(
        "`engine = \"io_uring\"` is configured and io_uring cannot be used: {0}; `engine = \"auto\"` would use epoll"
    )]
    NoIoUring(#[from] NoIoUring),
}

/// The running workers.
#[derive(Debug)]
pub struct Dataplane {
    /// Orders to the workers, one queue each, at the position of their [`WorkerId`].
    pub commands: Vec<PlaneSender<PlaneCommand>>,
    /// Packets for the TUN, one queue each at the same positions. Of one peer they go to one worker, so that they keep their
    /// order.
    pub deliveries: Vec<PlaneSender<PacketBatch>>,
    /// What each of them did, at the same positions.
    pub counters: Vec<Arc<WorkerCounters>>,
    threads: Vec<JoinHandle<()>>,
}

impl<E: sys::ring::Engine> std::fmt::Debug for Worker<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Waits until all workers have ended: after [`PlaneCommand::Stop`], or a failure that they have reported.
    pub fn join(self) {
        for thread in self.threads {
            // A worker's panic was caught and reported by the worker itself.
            let _ = thread.join();
        }
    }
}

/// Starts one worker per queue of `tun`.
///
/// Returns when all of them run; if one cannot, none does.
pub fn spawn(tun: Tun, settings: &WorkerSettings, control: &ToControl) -> Result<Dataplane, SpawnError> {
    match choose(settings.engine)? {
        chosen @ Engine::Epoll => spawn_on::<Epoll>(chosen, tun, settings, control),
        chosen => spawn_on::<Uring>(chosen, tun, settings, control),
    }
}

fn spawn_on<E: sys::ring::Engine>(
    engine: Engine,
    tun: Tun,
    settings: &WorkerSettings,
    control: &ToControl,
) -> Result<Dataplane, SpawnError> {
    let WorkerSettings { mtu, hash_seed, ref cores, busy_poll, rekey, keep_alive, fragments, outer_marks, .. } =
        *settings;
    let count = tun.queues.len();
    if count > WORKERS_MAX {
        return Err(SpawnError::TooMany(count));
    }
    let system = |worker: usize| move |error| SpawnError::Kernel { worker: worker as u8, error };
    let wakes: Vec<_> =
        (0..count).map(|worker| Wake::new().map(Arc::new).map_err(system(worker))).collect::<Result<_, _>>()?;
    let hand_overs = HandOver::between(&wakes, mtu);
    // Shared by all: the rate is the node's.
    let clock = settings.rate_bits_per_s.map(|rate| Arc::new(LinkClock::new(Instant::now(), rate)));
    let wanted = tun.wanted;
    let offloads = probe_udp(tun.offloads).map_err(system(0))?;

    let mut dataplane =
        Dataplane { commands: Vec::new(), deliveries: Vec::new(), counters: Vec::new(), threads: Vec::new() };
    let (started, starts) = mpsc::channel();
    for (worker, ((queue, wake), hand_over)) in tun.queues.into_iter().zip(wakes).zip(hand_overs).enumerate() {
        let waker = Arc::clone(&wake);
        let (sender, commands) = plane_queue(move || waker.wake());
        let waker = Arc::clone(&wake);
        let (delivery, delivered) = plane_queue_of(BATCH_QUEUE_MESSAGES, move || waker.wake());
        let counters = Arc::new(WorkerCounters::default());
        let egress = EgressQueue::new(mtu, outer_marks, clock.clone());
        dataplane.commands.push(sender);
        dataplane.deliveries.push(delivery);
        dataplane.counters.push(Arc::clone(&counters));
        let (control, report_start) = (control.clone(), started.clone());
        let core = (!cores.is_empty()).then(|| CoreId { id: cores[worker % cores.len()].into() });
        let id = WorkerId(worker as u8);
        let thread = std::thread::Builder::new().name(format!("ringlane-w{worker}")).spawn(move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                warn!(worker, core = core.id, "cannot pin the worker to its core");
            }
            // The ring belongs to the thread that makes it.
            let config = RingConfig { mtu, datagram_bytes: datagram_bytes_max(mtu), offloads };
            let ring = match PacketRing::<E>::new(queue, wake.eventfd(), config) {
                Ok(ring) => ring,
                Err(error) => {
                    let _ = report_start.send((worker, Err(error)));
                    return;
                }
            };
            report(wanted, offloads.with(Offload::HugePages, ring.has_huge_pages()), &counters.offloads);
            // Nobody else sets it.
            let _ = counters.engine.set(engine);
            let _ = report_start.send((worker, Ok(())));
            drop(report_start);
            let reports = control.events.clone();
            let worker = Worker {
                id,
                mtu,
                hash_seed,
                fragments,
                busy_poll,
                rekey,
                ring,
                wake,
                commands,
                delivered,
                events: control.events,
                batches: control.batches,
                hand_over,
                counters,
                state: State::new(mtu, offloads, keep_alive, egress),
            };
            run_to_end(worker, &reports);
        });
        match thread {
            Ok(thread) => dataplane.threads.push(thread),
            Err(error) => {
                let _ = started.send((worker, Err(error)));
            }
        }
    }
    drop(started);
    let mut failure = None;
    for (worker, start) in starts {
        if let Err(error) = start {
            failure = Some(SpawnError::Kernel { worker: worker as u8, error });
        }
    }
    match failure {
        None => Ok(dataplane),
        Some(error) => {
            for commands in &dataplane.commands {
                // A worker that has not started has no use for it.
                let _ = commands.try_send(PlaneCommand::Stop);
            }
            dataplane.join();
            Err(error)
        }
    }
}

/// Runs a worker and reports how it ended, panics included.
fn run_to_end<E: sys::ring::Engine>(worker: Worker<E>, reports: &PlaneSender<PlaneEvent>) {
    let id = worker.id;
    let ended = catch_unwind(AssertUnwindSafe(|| E::block_on(worker.run())));
    let message = match ended {
        Ok(Ok(())) => {
            debug!(worker = id.0, "stopped");
            // A worker of very many lanes has just filled the queue with their ends. Control reads them, unless it is
            // gone too.
            for _ in 0..STOPPED_TRIES {
                if reports.try_send(PlaneEvent::Stopped { worker: id }).is_ok() {
                    break;
                }
                std::thread::sleep(STOPPED_PAUSE);
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
        }
    };
    if reports.try_send(PlaneEvent::Failed { worker: id, message: message.clone() }).is_err() {
        // Control does not read its queue any more, and a node with a dead worker must not go on.
        tracing::error!(worker = id.0, message, "a worker failed and control does not listen");
        std::process::exit(1);
    }
}
