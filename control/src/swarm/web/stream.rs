//! A WebSocket as a stream of bytes: what is written becomes binary messages, whose ends mean nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use ringlane_shared::limits::{WEBSOCKET_MESSAGE_BYTES_MAX, WEBSOCKET_WRITE_BYTES_MAX};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Bytes asked of the kernel at a time; the library clears as many before each read.
const READ_BYTES: usize = 16 * 1024;

/// Messages without a byte for us that are looked at before others have a turn: strangers can send them without end.
const IDLE_MESSAGES_PER_POLL: usize = 64;

/// What a WebSocket runs over: TCP, or TLS over TCP.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Carrier for S {}

/// What both ends agree to without a word.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WEBSOCKET_WRITE_BYTES_MAX)
        .max_message_size(Some(WEBSOCKET_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(WEBSOCKET_MESSAGE_BYTES_MAX))
}

/// An established WebSocket.
pub(in crate::swarm) struct WebStream {
    socket: WebSocketStream<Box<dyn Carrier>>,
    /// What is left of the last message read.
    unread: Bytes,
}

impl WebStream {
    pub(super) fn new(socket: WebSocketStream<Box<dyn Carrier>>) -> Self {
        Self { socket, unread: Bytes::new() }
    }
}

impl futures::AsyncRead for WebStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut idle = 0;
        while self.unread.is_empty() {
            if idle == IDLE_MESSAGES_PER_POLL {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            idle += 1;
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(0)),
                Some(Ok(Message::Binary(message))) => self.unread = message,
                // Answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a message of text")));
                }
                Some(Err(error)) => return Poll::Ready(Err(as_io(error))),
            }
        }
        let taken = buffer.len().min(self.unread.len());
        buffer[..taken].copy_from_slice(&self.unread[..taken]);
        self.unread.advance(taken);
        Poll::Ready(Ok(taken))
    }
}

impl futures::AsyncWrite for WebStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = &bytes[..bytes.len().min(WEBSOCKET_WRITE_BYTES_MAX)];
        if taken.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(as_io)?;
        Pin::new(&mut self.socket).start_send(Message::Binary(Bytes::copy_from_slice(taken))).map_err(as_io)?;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(as_io)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(as_io)
    }
}

fn as_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt, SinkExt};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn pair() -> (WebStream, WebSocketStream<Box<dyn Carrier>>) {
        let (ours, theirs) = tokio::io::duplex(10_000);
        let ours = WebSocketStream::from_raw_socket(Box::new(ours) as Box<dyn Carrier>, Role::Server, Some(config()));
        let theirs =
            WebSocketStream::from_raw_socket(Box::new(theirs) as Box<dyn Carrier>, Role::Client, Some(config()));
        (WebStream::new(ours.await), theirs.await)
    }

    #[tokio::test]
    async fn bytes_arrive_as_they_were_written_however_they_are_cut() {
        let (mut ours, theirs) = pair().await;
        let mut theirs = WebStream::new(theirs);
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = async move {
            theirs.write_all(&sent).await.unwrap();
            theirs.close().await.unwrap();
        };
        let reading = async move {
            let mut received = Vec::new();
            let mut piece = [0; 999];
            loop {
                match ours.read(&mut piece).await.unwrap() {
                    0 => return received,
                    read => received.extend_from_slice(&piece[..read]),
                }
            }
        };
        let ((), received) = futures::join!(writing, reading);
        assert!(received == expected);
    }

    #[tokio::test]
    async fn text_and_messages_beyond_the_bound_end_a_stream_and_pings_do_not() {
        let (mut ours, mut theirs) = pair().await;
        theirs.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
        theirs.send(Message::Binary(Bytes::from_static(b"ab"))).await.unwrap();
        let mut piece = [0; 8];
        assert_eq!(ours.read(&mut piece).await.unwrap(), 2);
        theirs.send(Message::Text("text".into())).await.unwrap();
        assert_eq!(ours.read(&mut piece).await.unwrap_err().kind(), io::ErrorKind::InvalidData);

        let (mut ours, mut theirs) = pair().await;
        let long = Message::Binary(vec![0; WEBSOCKET_MESSAGE_BYTES_MAX + 1].into());
        let sending = async move {
            // Its end may not come through: nobody reads it.
            let _ = theirs.send(long).await;
        };
        let reading = async move {
            let error = ours.read(&mut piece).await.unwrap_err();
            drop(ours);
            error
        };
        let ((), error) = futures::join!(sending, reading);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_flood_of_empty_messages_leaves_others_their_turn() {
        let (mut ours, mut theirs) = pair().await;
        for _ in 0..8 * IDLE_MESSAGES_PER_POLL {
            theirs.feed(Message::Binary(Bytes::new())).await.unwrap();
        }
        theirs.send(Message::Binary(Bytes::from_static(b"ab"))).await.unwrap();
        let (mut piece, mut turns) = ([0; 8], 0);
        let read = std::future::poll_fn(|cx| {
            turns += 1;
            futures::AsyncRead::poll_read(Pin::new(&mut ours), cx, &mut piece)
        });
        assert_eq!(read.await.unwrap(), 2);
        assert!(turns > 8, "{turns}");
    }
}
