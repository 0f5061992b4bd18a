//! One QUIC handshake on its own connected socket, and what arrives there before a worker owns it.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use ringlane_shared::lane::connection::{LaneConnection, LaneConnectionError};
use ringlane_shared::limits::EARLY_DATAGRAMS_MAX;
use tokio::net::UdpSocket;

use super::socket;

/// Told to the peer when we end a handshake that it still believes in.
const CODE_CANCELLED: u32 = 1;

/// Which 4-tuple, as we see it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Path {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Where a handshake stands.
pub(super) enum Progress {
    /// Under way.
    Pending,
    /// Both ends know each other.
    Confirmed,
    /// Over.
    Lost(LaneConnectionError),
}

/// A handshake under way. Owner: control.
pub(super) struct Handshake {
    pub(super) path: Path,
    socket: UdpSocket,
    connection: LaneConnection,
    early: Vec<Vec<u8>>,
    /// When the connection's next timer runs out.
    due: Option<Instant>,
}

/// What is left of a handshake that has succeeded.
pub(super) struct Finished {
    pub(super) path: Path,
    pub(super) socket: std::net::UdpSocket,
    pub(super) connection: LaneConnection,
    pub(super) early: Vec<Vec<u8>>,
}

impl Handshake {
    /// Makes the socket that `connection`, which has just begun, will use.
    pub(super) fn new(connection: LaneConnection, path: Path, now: Instant) -> io::Result<Self> {
        let socket = socket::connected(path.local, path.remote)?;
        Ok(Self { path, socket, connection, early: Vec::new(), due: Some(now) })
    }

    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Takes in a QUIC datagram of this path.
    pub(super) fn handle_quic(&mut self, datagram: &[u8], now: Instant) {
        self.connection.handle_datagram(now, datagram);
        self.due = Some(now);
    }

    /// Keeps a record that overtook the handshake's end for the worker. Returns whether there was room.
    pub(super) fn keep_early(&mut self, record: &[u8]) -> bool {
        let room = self.early.len() < EARLY_DATAGRAMS_MAX;
        if room {
            self.early.push(record.to_vec());
        }
        room
    }

    /// When to call [`Self::drive`] at the latest.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Sends what is due and says where the handshake stands.
    pub(super) fn drive(&mut self, now: Instant) -> Progress {
        let Self { socket, connection, .. } = self;
        self.due = connection.drive(now, |datagram| socket::send(socket, datagram));
        match self.connection.lost() {
            Some(error) => Progress::Lost(error),
            None if self.connection.is_confirmed() => Progress::Confirmed,
            None => Progress::Pending,
        }
    }

    /// Ends the handshake and tells the peer, once.
    pub(super) fn cancel(mut self, now: Instant) {
        self.connection.close(now, CODE_CANCELLED, "cancelled");
        self.drive(now);
    }

    /// Takes the socket out of control's event loop. What the kernel still holds for it stays readable.
    pub(super) fn finish(self) -> io::Result<Finished> {
        let Self { path, socket, connection, early, .. } = self;
        Ok(Finished { path, socket: socket.into_std()?, connection, early })
    }
}
