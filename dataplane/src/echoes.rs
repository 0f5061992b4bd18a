//! The echoes of a turn: collected while records are delivered, handled when all of them are.

use ringlane_shared::drop_reason::DropReason;
use ringlane_shared::limits::ECHOES_PER_TURN;
use ringlane_shared::wire::echo::Echo;

use crate::sys::ring::SocketSlot;

/// An echo that arrived in an authentic record or DATAGRAM frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ArrivedEcho {
    /// Whose record it was: the slot of the lane's own socket.
    pub(crate) lane: SocketSlot,
    /// The socket it arrived on, where a request is answered: the lane's own, or that of a path it could take.
    pub(crate) socket: SocketSlot,
    /// It came in a DATAGRAM frame, where a request is answered in one.
    pub(crate) is_datagram: bool,
    /// What it says.
    pub(crate) echo: Echo,
}

/// The echoes of one turn. Its memory is there from the start.
#[derive(Debug)]
pub(crate) struct Echoes {
    arrived: Vec<ArrivedEcho>,
}

impl Echoes {
    /// Room for a turn's echoes.
    pub(crate) fn new() -> Self {
        Self { arrived: Vec::with_capacity(ECHOES_PER_TURN) }
    }

    /// Takes in the payload of an echo frame. What there is no room for is lost, as a record could be.
    pub(crate) fn take(
        &mut self,
        lane: SocketSlot,
        socket: SocketSlot,
        is_datagram: bool,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let echo = Echo::parse(payload).map_err(|_| DropReason::FrameMalformed)?;
        if self.arrived.len() >= ECHOES_PER_TURN {
            return Err(DropReason::EchoLimited);
        }
        self.arrived.push(ArrivedEcho { lane, socket, is_datagram, echo });
        Ok(())
    }

    /// One of them, the last first.
    pub(crate) fn pop(&mut self) -> Option<ArrivedEcho> {
        self.arrived.pop()
    }
}
