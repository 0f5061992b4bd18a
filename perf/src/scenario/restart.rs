//! How long it takes until packets cross.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Measurement;
use crate::contender::Tunnel;
use crate::metric::Metric;

/// A contender that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Ends both sides in an orderly way and starts both.
pub(super) fn start(tunnel: &mut Tunnel) -> anyhow::Result<Measurement> {
    for side in &mut tunnel.sides {
        side.stop(Signal::TERM);
    }
    let started = Instant::now();
    for side in &mut tunnel.sides {
        side.start_again(&tunnel.lab)?;
    }
    until_packets_cross(tunnel, started)
}

/// Kills the last side and starts it again; the other one runs on.
pub(super) fn recover(tunnel: &mut Tunnel) -> anyhow::Result<Measurement> {
    let started = Instant::now();
    if let Some(side) = tunnel.sides.last_mut() {
        side.stop(Signal::KILL);
        side.start_again(&tunnel.lab)?;
    }
    until_packets_cross(tunnel, started)
}

fn until_packets_cross(tunnel: &mut Tunnel, started: Instant) -> anyhow::Result<Measurement> {
    tunnel.wait_until_packets_cross(LIMIT)?;
    let figures = BTreeMap::from([(Metric::Seconds, started.elapsed().as_secs_f64())]);
    Ok(Measurement { figures, ..Measurement::default() })
}
