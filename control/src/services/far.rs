//! The far end of a connection: a stream to a peer, or a socket to a target.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use ringlane_shared::config::ServiceTarget;
use ringlane_shared::wire::service::{ServiceReply, UnknownReply};
use socket2::SockRef;
use thiserror::Error;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// How long a peer may take to answer on a stream, and a target to accept a connection.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection's bytes both ways; dropping it ends it.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {
    /// Makes the other side see a failure instead of an end when it is dropped, where that can be told apart.
    fn fail(&mut self) {}
}

// A yamux stream that is dropped before both directions have ended is reset; QUIC's cannot be, by libp2p. So streams to
// peers need no more than that ([`PeerStream`](super::PeerStream)).

/// Any of them.
pub type Far = Box<dyn ByteStream>;

/// Why a connection to a service could not be made.
#[derive(Debug, Error)]
pub enum AskError {
    /// There is no connection to the peer, or it opened no stream.
    #[error("the peer cannot be reached")]
    NotReached,
    /// Nobody answered in time.
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    TimedOut,
    /// The peer or the target said no.
    #[error("the service was refused: {0:?}")]
    Refused(ServiceReply),
    /// The peer's answer means nothing.
    #[error(transparent)]
    Answer(#[from] UnknownReply),
    /// The stream or the socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Asks a peer for one of its services.
pub(super) async fn ask(mut far: Far, id: [u8; 2]) -> Result<Far, AskError> {
    let asked = async {
        // Hyprspace reads both bytes at once, so they are written at once.
        far.write_all(&id).await?;
        far.flush().await?;
        let mut reply = [0];
        far.read_exact(&mut reply).await?;
        match ServiceReply::parse(reply[0])? {
            ServiceReply::Open => Ok(()),
            refused => Err(AskError::Refused(refused)),
        }
    };
    timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| AskError::TimedOut)??;
    Ok(far)
}

/// Connects to a service's target.
pub(super) async fn connect(target: &ServiceTarget) -> Result<Far, AskError> {
    let connected = async {
        match target {
            ServiceTarget::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                SockRef::from(&stream).set_keepalive(true)?;
                Ok(Target::Tcp(stream))
            }
            ServiceTarget::Unix(path) => UnixStream::connect(path).await.map(Target::Unix),
        }
    };
    let target: io::Result<Target> = timeout(ANSWER_TIMEOUT, connected).await.map_err(|_| AskError::TimedOut)?;
    Ok(Box::new(target?))
}

/// A target's socket, with the traits that libp2p's streams have.
pub(super) enum Target {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ByteStream for Target {
    fn fail(&mut self) {
        if let Self::Tcp(stream) = self {
            // Closing it now sends a reset. If that cannot be had, an end will do.
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Target {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        };
        read.map_ok(|()| buffer.filled().len())
    }
}

impl AsyncWrite for Target {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (Far, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Box::new(Target::Unix(ours)), theirs)
    }

    #[tokio::test]
    async fn the_identifier_comes_in_one_piece_and_nothing_behind_the_answer_is_lost() {
        let (far, mut peer) = pair();
        peer.write_all(b"\xf1hello").await.unwrap();
        let mut far = ask(far, [0xa3, 0xdd]).await.unwrap();
        let mut request = [0; 8];
        assert_eq!(peer.read(&mut request).await.unwrap(), 2);
        assert_eq!(request[..2], [0xa3, 0xdd]);
        let mut hello = [0; 5];
        far.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
    }

    #[tokio::test]
    async fn everything_but_yes_is_a_refusal() {
        for (answer, expected) in [
            (&b"\xf2"[..], "the service was refused: Unknown"),
            (b"\xf3", "the service was refused: NotAllowed"),
            (b"\x00", "the peer answered 0x00, which means nothing"),
            (b"", "unexpected end of file"),
        ] {
            let (far, mut peer) = pair();
            peer.write_all(answer).await.unwrap();
            peer.shutdown().await.unwrap();
            assert_eq!(ask(far, [0; 2]).await.err().map(|error| error.to_string()).as_deref(), Some(expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_is_given_up() {
        let (far, _peer) = pair();
        let asked = tokio::time::Instant::now();
        assert!(matches!(ask(far, [0; 2]).await, Err(AskError::TimedOut)));
        assert!(asked.elapsed() >= ANSWER_TIMEOUT && asked.elapsed() < 2 * ANSWER_TIMEOUT);
    }
}
