//! All that control and workers ever say to each other: commands down, events up, immutable snapshots, counters.
//!
//! ```text
//!            PlaneCommand (bounded queue + wake-up)            one queue per worker
//!  control ------------------------------------------> worker 0..N-1
//!          <------------------------------------------
//!            PlaneEvent   (bounded queue + wake-up)            one queue for all workers
//!          <------------------------------------------
//!            PacketBatch  (bounded queues + wake-up, both ways) what travels by stream or to services
//!          <- - - - - - - counters: written by one worker, read by control at any time
//! ```

pub mod batch;
pub mod command;
pub mod counters;
pub mod egress;
pub mod event;
pub mod forward;
pub mod offload;
pub mod queue;
pub mod settings;
pub mod snapshot;
pub mod stream;

pub use batch::{BatchEnd, BatchItem, BatchItemForm, PacketBatch, StreamForm};
pub use command::{LaneHandOver, PassedOn, PlaneCommand, TrialPath};
pub use counters::{LaneCarrier, LaneGauges, PeerCounters, WorkerCounters};
pub use egress::{EgressGauges, EgressState};
pub use event::{LaneChange, LaneEnd, PlaneEvent, Stray, ToControl};
pub use forward::{Forward, ForwardCounters, ForwardEnd, ForwardHalf, ForwardId, ForwardedCounters};
pub use offload::{Offload, OffloadGauges, OffloadState, Offloads};
pub use queue::{PlaneReceiver, PlaneSender, QueueFull};
pub use settings::{CarrierChoice, Engine, OuterMarks, RekeyLimits, WorkerSettings};
pub use snapshot::{PeerEntry, Snapshot};
