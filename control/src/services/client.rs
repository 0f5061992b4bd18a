//! One TCP connection of a local client to a service: smoltcp's socket on the near side, a [`Far`] on the other.
//!
//! Bytes go straight from one side's buffer into the other side: what the far side does not take stays in the socket's
//! receive buffer and closes the client's window, and what the client does not take is not read from the far side.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncWrite};
use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{ListenError, Socket, SocketBuffer, State};
use smoltcp::wire::IpListenEndpoint;

use super::far::Far;
use super::stack::Stack;

/// A client that was silent for so long is asked whether it is still there.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
/// One that does not answer for so long is gone.
const GONE_AFTER: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(240);
/// One that asks for a connection and does not say that it has it: nobody, perhaps.
const OPEN_WITHIN: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(10);
/// When a socket wants to be looked at again that has just been looked at.
const SOON: Duration = Duration::from_millis(10);

/// What is to be done after a connection was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Visited {
    /// Nothing until it is woken, or until then.
    Waits(Option<Instant>),
    /// There is more to do at once.
    HasMore,
    /// It is over.
    Over,
}

/// An open connection.
pub(super) struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    far: Far,
    waker: Waker,
    /// The client has said all it has to say.
    client_ended: bool,
    /// The far side has.
    far_ended: bool,
    /// The far side was told, or takes no more.
    far_is_told: bool,
    needs_flush: bool,
    is_open: bool,
}

impl Connection {
    /// Answers the packet that asked for the connection. Each direction holds at most `buffer_bytes`.
    pub(super) fn accept(
        stack: &mut Stack,
        syn: &[u8],
        endpoint: IpListenEndpoint,
        far: Far,
        buffer_bytes: usize,
        waker: Waker,
        now: Instant,
    ) -> Result<Self, ListenError> {
        let buffer = || SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.listen(endpoint)?;
        socket.set_nagle_enabled(false);
        // What is acknowledged late is sent late by a client whose window is small; packets come in batches anyway.
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(OPEN_WITHIN));
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        let mut connection = Self {
            sockets,
            handle,
            far,
            waker,
            client_ended: false,
            far_ended: false,
            far_is_told: false,
            needs_flush: false,
            is_open: false,
        };
        connection.feed(stack, syn, now);
        Ok(connection)
    }

    /// Takes a packet of the client's.
    pub(super) fn feed(&mut self, stack: &mut Stack, packet: &[u8], now: Instant) {
        stack.feed(&mut self.sockets, packet, now);
        let state = self.sockets.get::<Socket<'_>>(self.handle).state();
        self.client_ended |= matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
    }

    /// Lets it be looked at soon.
    pub(super) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Moves what can be moved, and sends what can be sent.
    pub(super) fn visit(&mut self, stack: &mut Stack, now: Instant) -> Visited {
        let state = self.sockets.get::<Socket<'_>>(self.handle).state();
        let is_opening = matches!(state, State::Listen | State::SynReceived);
        if !is_opening && !std::mem::replace(&mut self.is_open, true) {
            self.sockets.get_mut::<Socket<'_>>(self.handle).set_timeout(Some(GONE_AFTER));
        }
        let has_more = !is_opening && self.move_bytes();
        let sent = stack.flush(&mut self.sockets, now);
        let deadline = stack.deadline(&self.sockets, now);
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        let is_due = deadline.is_some_and(|at| at <= now);
        let is_done = self.client_ended && self.far_ended;
        match socket.state() {
            // Refused by the stack, or reset by the client before it was open.
            State::Listen => return self.fail(),
            State::Closed if socket.remote_endpoint().is_none() && !is_done => return self.fail(),
            // The last bytes may still be waiting for the far side.
            State::Closed if socket.remote_endpoint().is_none() && self.far_is_told => return Visited::Over,
            State::TimeWait if self.far_is_told && is_done && !is_due => return Visited::Over,
            // The stack would throw those bytes away when the time is over.
            State::TimeWait if !is_due => return Visited::Waits(None),
            _ => {}
        }
        match (has_more || is_due, sent > 0 || !stack.has_room()) {
            (true, true) => Visited::HasMore,
            (true, false) if has_more => Visited::HasMore,
            (true, false) => Visited::Waits(Some(now + SOON)),
            (false, _) => Visited::Waits(deadline),
        }
    }

    fn fail(&mut self) -> Visited {
        self.far.fail();
        Visited::Over
    }

    /// Returns whether there may be more at once.
    fn move_bytes(&mut self) -> bool {
        let waker = self.waker.clone();
        let mut cx = Context::from_waker(&waker);
        self.move_to_far(&mut cx);
        self.move_to_client(&mut cx)
    }

    fn move_to_far(&mut self, cx: &mut Context<'_>) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        let far = &mut self.far;
        while socket.can_recv() {
            if self.far_is_told {
                // It is of no use to anybody, but what comes after it is.
                let _ = socket.recv(|bytes| (bytes.len(), ()));
                continue;
            }
            let written = socket.recv(|bytes| match Pin::new(&mut *far).poll_write(cx, bytes) {
                Poll::Ready(Ok(written @ 1..)) => (written.min(bytes.len()), Poll::Ready(true)),
                Poll::Ready(_) => (0, Poll::Ready(false)),
                Poll::Pending => (0, Poll::Pending),
            });
            match written {
                Ok(Poll::Ready(true)) => self.needs_flush = true,
                Ok(Poll::Ready(false)) => self.far_is_told = true,
                Ok(Poll::Pending) | Err(_) => break,
            }
        }
        if self.needs_flush && !self.far_is_told && Pin::new(&mut *far).poll_flush(cx).is_ready() {
            self.needs_flush = false;
        }
        if self.client_ended && !socket.can_recv() && !self.far_is_told {
            self.far_is_told = Pin::new(far).poll_close(cx).is_ready();
        }
    }

    fn move_to_client(&mut self, cx: &mut Context<'_>) -> bool {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        let far = &mut self.far;
        let mut left = socket.send_capacity();
        while !self.far_ended && socket.can_send() {
            if left == 0 {
                return true;
            }
            let read = socket.send(|room| match Pin::new(&mut *far).poll_read(cx, room) {
                Poll::Ready(Ok(read)) => (read.min(room.len()), Poll::Ready(Ok(read))),
                Poll::Ready(Err(error)) => (0, Poll::Ready(Err(error))),
                Poll::Pending => (0, Poll::Pending),
            });
            match read {
                Ok(Poll::Ready(Ok(0))) => {
                    self.far_ended = true;
                    socket.close();
                }
                Ok(Poll::Ready(Ok(read))) => left = left.saturating_sub(read),
                Ok(Poll::Ready(Err(_))) => {
                    socket.abort();
                    self.far_ended = true;
                    self.far_is_told = true;
                }
                Ok(Poll::Pending) | Err(_) => break,
            }
        }
        false
    }
}
