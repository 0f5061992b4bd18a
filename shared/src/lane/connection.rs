//! A lane's QUIC connection without a socket: quinn-proto's endpoint and connection, driven by whoever owns the lane.
//!
//! Control drives it until the handshake is confirmed on both sides, then moves it, whole, to the lane's worker
//! (RFC 9000; `docs/architecture.md` has the picture). quinn-proto is fed one constant remote address: which address
//! the peer really has is the lane's business.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, ConnectError, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, ReadError, SendDatagramError, ServerConfig, StreamId, VarInt, WriteError,
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::epoch::{EpochSecrets, PSK_BYTES, PSK_EXPORTER_LABEL};
use super::keys::{KeyError, LaneKeys, Role, Suite};
use crate::id::LaneId;
use crate::limits::{TRAIN_BYTES_MAX, TRAIN_RECORDS_MAX};

/// Name given to `connect`; it only has to parse, SNI is off and the peer's key is what is verified.
const SERVER_NAME: &str = "peer.invalid";

/// Why a lane's QUIC connection could not be made or has ended.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LaneConnectionError {
    /// quinn-proto refused to dial: our configuration is at fault.
    #[error("cannot dial: {0}")]
    Connect(#[from] ConnectError),
    /// The datagram that should have opened the connection does not.
    #[error("not a QUIC Initial")]
    NotInitial,
    /// quinn-proto refused the Initial: the peer is at fault.
    #[error("refused: {0}")]
    Accept(ConnectionError),
    /// The connection has ended.
    #[error("{0}")]
    Lost(ConnectionError),
}

/// The peer has ended the lane's stream, which is to last as long as the lane: it is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the peer has ended the lane's stream")]
pub struct StreamEnded;

/// UDP datagrams of a lane's QUIC connection that may leave in one send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuicTrain<'a> {
    /// One behind the other, at most [`TRAIN_BYTES_MAX`] bytes.
    pub bytes: &'a [u8],
    /// Bytes of each but the last, which may be shorter.
    pub each_bytes: usize,
    /// DATAGRAM frames in them.
    pub frames: u32,
}

/// What became of the DATAGRAM frames that a connection was given to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Given {
    frames: u64,
    /// Of those, the ones that were neither sent nor are waiting, as far as is known.
    dropped: u64,
    /// Room for them while none waits.
    room_bytes: usize,
}

/// A lane's QUIC connection. Owner: control until the hand-over, then the lane's worker.
pub struct LaneConnection {
    endpoint: Endpoint,
    connection: Connection,
    handle: ConnectionHandle,
    role: Role,
    /// The address quinn-proto believes in, for the life of the lane.
    remote: SocketAddr,
    /// The lane's one stream, once there is one: the client opens it.
    stream: Option<StreamId>,
    transmit: Vec<u8>,
    connected: bool,
    lost: Option<ConnectionError>,
    given: Given,
}

impl LaneConnection {
    /// Starts dialling. Call [`Self::drive`] next: it has the first datagrams to send.
    pub fn connect(
        endpoint: EndpointConfig,
        client: ClientConfig,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<Self, LaneConnectionError> {
        let mut endpoint = Endpoint::new(Arc::new(endpoint), None, true, None);
        let (handle, connection) = endpoint.connect(now, client, remote, SERVER_NAME)?;
        Ok(Self::new(endpoint, connection, handle, Role::Client, remote))
    }

    /// Accepts the connection that `initial`, the client's first datagram, opens. Call [`Self::drive`] next.
    pub fn accept(
        endpoint: EndpointConfig,
        server: Arc<ServerConfig>,
        remote: SocketAddr,
        initial: &[u8],
        now: Instant,
    ) -> Result<Self, LaneConnectionError> {
        let mut endpoint = Endpoint::new(Arc::new(endpoint), Some(server), true, None);
        let mut response = Vec::new();
        let incoming = match endpoint.handle(now, remote, None, None, BytesMut::from(initial), &mut response) {
            Some(DatagramEvent::NewConnection(incoming)) => incoming,
            _ => return Err(LaneConnectionError::NotInitial),
        };
        response.clear();
        match endpoint.accept(incoming, now, &mut response, None) {
            Ok((handle, connection)) => Ok(Self::new(endpoint, connection, handle, Role::Server, remote)),
            Err(error) => Err(LaneConnectionError::Accept(error.cause)),
        }
    }

    fn new(
        endpoint: Endpoint,
        mut connection: Connection,
        handle: ConnectionHandle,
        role: Role,
        remote: SocketAddr,
    ) -> Self {
        let given = Given { room_bytes: connection.datagrams().send_buffer_space(), ..Given::default() };
        let (stream, transmit) = (None, Vec::new());
        Self { endpoint, connection, handle, role, remote, stream, transmit, connected: false, lost: None, given }
    }

    /// Takes in one QUIC datagram that arrived for this lane. Nothing it could contain panics or answers a stranger:
    /// what quinn-proto would answer statelessly is thrown away. Call [`Self::drive`] after a batch of them.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        let mut response = std::mem::take(&mut self.transmit);
        response.clear();
        match self.endpoint.handle(now, self.remote, None, None, BytesMut::from(datagram), &mut response) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => self.connection.handle_event(event),
            Some(DatagramEvent::NewConnection(incoming)) => self.endpoint.ignore(incoming),
            Some(DatagramEvent::Response(_)) | None => {}
        }
        self.transmit = response;
    }

    /// Runs timers and gives every datagram that is due to `send`; a datagram that cannot be sent counts as lost.
    ///
    /// Returns when to call again at the latest, if ever.
    pub fn drive(&mut self, now: Instant, mut send: impl FnMut(&[u8])) -> Option<Instant> {
        self.drive_with(now, 1, |train| send(train.bytes))
    }

    /// As [`Self::drive`], with as many datagrams at once as one send may take: for a connection that carries packets.
    pub fn drive_in_trains(&mut self, now: Instant, send: impl FnMut(QuicTrain<'_>)) -> Option<Instant> {
        self.drive_with(now, self.train_datagrams_max(), send)
    }

    /// How many datagrams as large as the path carries fit one send.
    pub fn train_datagrams_max(&self) -> usize {
        (TRAIN_BYTES_MAX / usize::from(self.mtu_bytes()).max(1)).clamp(1, usize::from(TRAIN_RECORDS_MAX))
    }

    fn drive_with(
        &mut self,
        now: Instant,
        datagrams_max: usize,
        mut send: impl FnMut(QuicTrain<'_>),
    ) -> Option<Instant> {
        let mut frames_sent = self.connection.stats().frame_tx.datagram;
        loop {
            if self.connection.poll_timeout().is_some_and(|deadline| deadline <= now) {
                self.connection.handle_timeout(now);
            }
            self.transmit.clear();
            while let Some(transmit) = self.connection.poll_transmit(now, datagrams_max, &mut self.transmit) {
                let before = std::mem::replace(&mut frames_sent, self.connection.stats().frame_tx.datagram);
                let frames = (frames_sent - before) as u32;
                let each_bytes = transmit.segment_size.unwrap_or(transmit.size);
                send(QuicTrain { bytes: &self.transmit[..transmit.size], each_bytes, frames });
                self.transmit.clear();
            }
            let mut again = false;
            while let Some(event) = self.connection.poll_endpoint_events() {
                again = true;
                if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                    self.connection.handle_event(event);
                }
            }
            while let Some(event) = self.connection.poll() {
                match event {
                    Event::Connected => self.connected = true,
                    Event::ConnectionLost { reason } => self.lost = Some(reason),
                    _ => {}
                }
            }
            if !again {
                break self.connection.poll_timeout();
            }
        }
    }

    /// Largest DATAGRAM frame (RFC 9221) that the path is known to carry, in bytes of its payload, or `None` if the peer
    /// takes none.
    pub fn datagram_bytes_max(&mut self) -> Option<usize> {
        self.connection.datagrams().max_size()
    }

    /// Gives the connection a DATAGRAM frame's payload, which [`Self::drive_in_trains`] sends. The oldest that still wait
    /// make room for it.
    pub fn send_datagram(&mut self, payload: &[u8]) -> Result<(), SendDatagramError> {
        self.connection.datagrams().send(Bytes::copy_from_slice(payload), true)?;
        self.given.frames += 1;
        Ok(())
    }

    /// Payload bytes that a connection can be given without dropping others.
    pub fn datagram_room_bytes(&mut self) -> usize {
        self.connection.datagrams().send_buffer_space()
    }

    /// The next DATAGRAM frame's payload that has arrived.
    pub fn receive_datagram(&mut self) -> Option<Bytes> {
        self.connection.datagrams().recv()
    }

    /// DATAGRAM frames dropped unsent since this was asked last. It is known only when none waits any more.
    pub fn take_dropped_datagrams(&mut self) -> u64 {
        if self.datagram_room_bytes() < self.given.room_bytes {
            return 0;
        }
        let dropped = self.given.frames - self.connection.stats().frame_tx.datagram;
        dropped - std::mem::replace(&mut self.given.dropped, dropped)
    }

    /// Has the connection send something that the peer acknowledges; [`Self::drive`] does.
    pub fn ping(&mut self) {
        self.connection.ping();
    }

    /// Has the next packets sealed with new keys (RFC 9001, section 6), and the peer follow. What is left of the rekeying
    /// before, if anything, goes on instead.
    pub fn update_keys(&mut self) {
        self.connection.force_key_update();
    }

    /// Frames received that acknowledge something.
    pub fn acknowledgements(&self) -> u64 {
        self.connection.stats().frame_rx.acks
    }

    /// Whether both ends have verified each other's key: a client's `Connected` alone does not say so.
    pub fn is_confirmed(&self) -> bool {
        self.connected
            && !self.connection.is_handshaking()
            && match self.role {
                Role::Server => true,
                Role::Client => self.connection.stats().frame_rx.handshake_done > 0,
            }
    }

    /// Why the connection has ended, once it has.
    pub fn lost(&self) -> Option<LaneConnectionError> {
        self.lost.clone().map(LaneConnectionError::Lost)
    }

    /// Tells the peer that the lane ends; [`Self::drive`] sends it.
    pub fn close(&mut self, now: Instant, code: u32, reason: &'static str) {
        self.connection.close(now, VarInt::from_u32(code), Bytes::from_static(reason.as_bytes()));
    }

    /// Gives what the peer has written on the lane's stream since to `take`, piece by piece: never more than its flow
    /// control window. Call [`Self::drive`] next.
    pub fn read_stream(&mut self, mut take: impl FnMut(&[u8])) -> Result<(), StreamEnded> {
        let Some(stream) = self.stream() else { return Ok(()) };
        let mut stream = self.connection.recv_stream(stream);
        let mut chunks = stream.read(true).map_err(|_| StreamEnded)?;
        let ended = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => take(&chunk.bytes),
                Ok(None) | Err(ReadError::Reset(_)) => break Err(StreamEnded),
                Err(ReadError::Blocked) => break Ok(()),
            }
        };
        // Whatever has to be sent for it, `drive` sends.
        let _ = chunks.finalize();
        ended
    }

    /// Writes to the lane's stream what fits, perhaps nothing, and returns how many bytes that was. Call [`Self::drive`]
    /// next; room for the rest comes with the peer's datagrams.
    pub fn write_stream(&mut self, bytes: &[u8]) -> Result<usize, StreamEnded> {
        let Some(stream) = self.stream() else { return Ok(0) };
        if bytes.is_empty() {
            // quinn-proto would send an empty frame, which the peer acknowledges, whereupon we are called again, for ever.
            return Ok(0);
        }
        match self.connection.send_stream(stream).write(bytes) {
            Ok(written) => Ok(written),
            Err(WriteError::Blocked) => Ok(0),
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => Err(StreamEnded),
        }
    }

    fn stream(&mut self) -> Option<StreamId> {
        if self.stream.is_none() && !self.connection.is_closed() {
            let mut streams = self.connection.streams();
            self.stream = match self.role {
                Role::Client => streams.open(Dir::Bi),
                Role::Server => streams.accept(Dir::Bi),
            };
        }
        self.stream.filter(|_| !self.connection.is_closed())
    }

    /// Which end of the connection we are.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The peer's subject public key info (RFC 7250), as verified by the handshake.
    pub fn peer_public_key_info(&self) -> Option<Vec<u8>> {
        let identity = self.connection.crypto_session().peer_identity()?;
        let certificates = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
        match certificates.as_slice() {
            [key] => Some(key.to_vec()),
            _ => None,
        }
    }

    /// Derives the lane's keys of epoch 0. The handshake must be confirmed.
    pub fn lane_keys(&self, suite: Suite) -> Result<LaneKeys, KeyError> {
        let session = self.connection.crypto_session();
        LaneKeys::derive(suite, self.role, |output, label, context| {
            session.export_keying_material(output, label, context)
        })
    }

    /// What the keys of the lane's later epochs will be made from, given what its records carry to the peer and to us. The
    /// handshake must be confirmed.
    pub fn epoch_secrets(&self, suite: Suite, outbound: LaneId, inbound: LaneId) -> Result<EpochSecrets, KeyError> {
        let mut psk = Zeroizing::new([0; PSK_BYTES]);
        let session = self.connection.crypto_session();
        session.export_keying_material(psk.as_mut_slice(), PSK_EXPORTER_LABEL, b"").map_err(|_| KeyError)?;
        Ok(EpochSecrets::new(suite, self.role, outbound, inbound, psk))
    }

    /// Smoothed round-trip time of the path.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Largest UDP payload the path is known to carry.
    pub fn mtu_bytes(&self) -> u16 {
        self.connection.current_mtu()
    }
}

impl std::fmt::Debug for LaneConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneConnection").field("role", &self.role).field("lost", &self.lost).finish_non_exhaustive()
    }
}
