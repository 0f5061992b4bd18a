//! The congestion controller of a lane's QUIC connection, which is none.
//!
//! What such a connection carries in bulk is inner packets, in DATAGRAM frames. The flows they belong to have congestion
//! control of their own, end to end, and see every loss and every delay of the path. A second controller around them
//! would answer the same losses once more, and where it held packets back they would queue inside a node, out of sight
//! of the flows and of the queue management of whatever is the bottleneck (RFC 9221, section 5.4, leaves the choice to
//! the application; RFC 8085, section 3.1.11, says of tunnels that IP traffic inside them is already controlled). So
//! this one never paces and never holds back: a packet leaves in the turn that brought it, as in a record.
//!
//! The only thing it bounds is memory. For every packet that is neither acknowledged nor lost quinn-proto keeps an entry,
//! and on a path that is dead nothing is either. Beyond [`QUIC_PACKETS_IN_FLIGHT_MAX`] the window is a small one until
//! an acknowledgement comes, so the connection's queue fills, which drops the oldest.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::congestion::{Controller, ControllerFactory};

use crate::limits::QUIC_PACKETS_IN_FLIGHT_MAX;

/// Nothing is ever in flight that fills it, and quinn-proto does not pace a window of more than 32 bits.
const OPEN_WINDOW_BYTES: u64 = 1 << 40;

/// The window while too much is in flight: enough for whatever is not a packet of ours, less than what is in flight.
const CLOSED_WINDOW_BYTES: u64 = 64 << 10;

/// Lets everything through while acknowledgements come. Owner: the connection.
#[derive(Clone, Debug, Default)]
pub struct Unhindered {
    newest_sent: u64,
    newest_acknowledged: u64,
}

impl Controller for Unhindered {
    fn on_sent(&mut self, _now: Instant, _bytes: u64, last_packet_number: u64) {
        if self.newest_sent == 0 && self.newest_acknowledged == 0 {
            // The first on this path need not be the connection's first.
            self.newest_acknowledged = last_packet_number;
        }
        self.newest_sent = last_packet_number;
    }

    fn on_end_acks(&mut self, _now: Instant, _in_flight: u64, _app_limited: bool, largest: Option<u64>) {
        self.newest_acknowledged = largest.unwrap_or(self.newest_acknowledged);
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        // Packet numbers of the handshake are counted apart and begin again, so that for a moment they may be greater.
        let in_flight = self.newest_sent.saturating_sub(self.newest_acknowledged);
        if in_flight < QUIC_PACKETS_IN_FLIGHT_MAX { OPEN_WINDOW_BYTES } else { CLOSED_WINDOW_BYTES }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        OPEN_WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Makes [`Unhindered`] for each path of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnhinderedFactory;

impl ControllerFactory for UnhinderedFactory {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Unhindered::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_closes_when_nothing_is_acknowledged_and_opens_when_something_is() {
        let now = Instant::now();
        let mut controller = Unhindered::default();
        let first = 1 << 40;
        controller.on_sent(now, 1400, first);
        controller.on_sent(now, 1400, first + QUIC_PACKETS_IN_FLIGHT_MAX - 1);
        assert!(controller.window() > u64::from(u32::MAX), "quinn-proto would pace");
        controller.on_sent(now, 1400, first + QUIC_PACKETS_IN_FLIGHT_MAX);
        assert_eq!(controller.window(), CLOSED_WINDOW_BYTES);
        controller.on_congestion_event(now, now, true, 1 << 30);
        controller.on_end_acks(now, 0, false, Some(first + 1));
        assert_eq!(controller.window(), OPEN_WINDOW_BYTES);
    }
}
