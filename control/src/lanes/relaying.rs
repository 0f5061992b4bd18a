//! Lanes that we relay for others: binds that arrive at the listeners, and the sockets that workers get.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlane_shared::bucket::ByteRate;
use ringlane_shared::id::WorkerId;
use ringlane_shared::limits::{FORWARDS_BURST_BYTES, FORWARDS_BYTES_PER_SECOND};
use ringlane_shared::path::choice::Ends;
use ringlane_shared::plane::{Forward, ForwardCounters, ForwardHalf, ForwardId, PlaneCommand};

use super::drops::ListenerDrop;
use super::engine::{LaneEngine, LaneOutcome};
use super::handshake::Path;
use super::socket;
use crate::udp_relay::book::{BindFault, Book, Step};

/// A relayed lane ends after so long without a datagram. Its ends bind it every 15 s, whether they use it or not.
const IDLE: Duration = Duration::from_secs(45);

/// What there is of relaying for others. Owner: the lane engine.
#[derive(Debug)]
pub(super) struct Relaying {
    book: Book,
    rate: ByteRate,
    forwards: BTreeMap<ForwardId, Arc<ForwardCounters>>,
}

impl Relaying {
    pub(super) fn new(port: u16, workers: u8, now: Instant) -> Self {
        let rate = ByteRate { per_second: FORWARDS_BYTES_PER_SECOND, burst: FORWARDS_BURST_BYTES };
        Self { book: Book::new(port, workers, now), rate, forwards: BTreeMap::new() }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.book.poll_timeout()
    }
}

impl LaneEngine {
    /// What we relay, and for whom. What is changed there is carried out when the engine is polled next.
    pub fn book(&mut self) -> &mut Book {
        &mut self.relaying.book
    }

    /// The same, to look at.
    pub fn relayed_for_others(&self) -> &Book {
        &self.relaying.book
    }

    /// How much each lane may carry that begins to be relayed from now on.
    pub fn set_forward_rate(&mut self, rate: ByteRate) {
        self.relaying.rate = rate;
    }

    /// What was forwarded of each lane that is being relayed.
    pub fn forwards(&self) -> impl Iterator<Item = (ForwardId, &ForwardCounters)> {
        self.relaying.forwards.iter().map(|(id, counters)| (*id, &**counters))
    }

    /// A worker forwards a lane no more, or did not begin to.
    pub fn handle_forward_ended(&mut self, id: ForwardId) {
        self.relaying.forwards.remove(&id);
        self.relaying.book.handle_forward_ended(id);
    }

    /// A request to be bound came to a listener, or to the socket of a lane that is relayed already.
    pub(super) fn handle_bind_request(
        &mut self,
        path: Path,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), ListenerDrop> {
        let Path { local, remote } = path;
        let Self { relaying, listeners, paths, standing, policy, .. } = self;
        let Some(listener) = listeners.get(local) else { return Err(ListenerDrop::BadBind) };
        // A socket connected to where a lane of ours leads would take what is for that.
        let is_free =
            || !paths.contains_key(&path) && !standing.leads(path) && !policy.pairs(&[local.ip()], [remote]).is_empty();
        match relaying.book.handle_bind(Ends { local, remote }, datagram, now, is_free) {
            Ok(answer) => socket::send_to(listener, remote, &answer),
            Err(BindFault::Unknown | BindFault::Path) => return Err(ListenerDrop::BadBind),
            Err(BindFault::TooMany) => return Err(ListenerDrop::TooMany),
        }
        Ok(())
    }

    /// Carries out what the book wants, and ends what is over.
    pub(super) fn tick_relaying(&mut self, now: Instant) {
        if self.relaying.book.poll_timeout().is_some_and(|at| at <= now) {
            self.relaying.book.handle_timeout(now);
        }
        while let Some(step) = self.relaying.book.poll_step() {
            match step {
                Step::Close { id, worker } => {
                    self.relaying.forwards.remove(&id);
                    self.order_forward(worker, PlaneCommand::RemoveForward(id));
                }
                Step::Open { id, worker, halves } => match forward_sockets(halves) {
                    Ok(halves) => {
                        let counters = Arc::new(ForwardCounters::default());
                        self.relaying.forwards.insert(id, Arc::clone(&counters));
                        let forward = Forward { id, halves, rate: self.relaying.rate, idle: IDLE, counters };
                        self.order_forward(worker, PlaneCommand::AddForward(Box::new(forward)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a lane cannot be relayed");
                        self.relaying.book.handle_forward_ended(id);
                    }
                },
            }
        }
    }

    /// As few as there are allotments and moves of their ends, which are bounded.
    fn order_forward(&mut self, worker: WorkerId, command: PlaneCommand) {
        self.orders += 1;
        self.outcomes.push_back(LaneOutcome::Order { worker, command });
    }
}

fn forward_sockets(halves: [Ends; 2]) -> std::io::Result<[ForwardHalf; 2]> {
    let half = |Ends { local, remote }| {
        let socket = OwnedFd::from(socket::forward(local, remote)?);
        std::io::Result::Ok(ForwardHalf { socket, local, remote })
    };
    Ok([half(halves[0])?, half(halves[1])?])
}
