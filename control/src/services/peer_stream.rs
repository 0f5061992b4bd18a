//! A stream to a peer, as a service's connection uses it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep};

use super::far::ByteStream;
use crate::swarm::ConnectionHold;

/// How long a peer that has said all it had to say may take no more of what is said to it. A Hyprspace node that closes a
/// stream never reads on, and does not say so.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Keeps the connection under it from being closed as one too many, and notices a peer that has gone away by halves.
pub struct PeerStream<S> {
    stream: S,
    _hold: Option<ConnectionHold>,
    has_ended: bool,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> PeerStream<S> {
    /// A stream on a connection.
    pub fn new(stream: S, hold: Option<ConnectionHold>) -> Self {
        Self { stream, _hold: hold, has_ended: false, stalled: None }
    }

    /// What becomes of an attempt to say something.
    fn watch<T>(&mut self, cx: &mut Context<'_>, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if said.is_ready() || !self.has_ended {
            self.stalled = None;
            return said;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_LIMIT)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ByteStream for PeerStream<S> {}

impl<S: AsyncRead + Unpin> AsyncRead for PeerStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.has_ended |= matches!(read, Poll::Ready(Ok(0))) && !buffer.is_empty();
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_close(cx);
        self.watch(cx, closed)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Says nothing, and hears nothing.
    struct Deaf;

    impl AsyncRead for Deaf {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }
    }

    impl AsyncWrite for Deaf {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_has_ended_and_reads_no_more_is_given_up_and_no_other() {
        let mut stream = PeerStream::new(Deaf, None);
        assert!(timeout(STALL_LIMIT * 10, stream.write(b"x")).await.is_err(), "a slow reader is waited for");
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        let since = Instant::now();
        assert_eq!(stream.write(b"x").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(since.elapsed().as_secs(), STALL_LIMIT.as_secs());
    }
}
