//! One question and one answer on a stream of `/ringlane/link/1`.
//!
//! ```text
//! asker                               answerer
//!   | length (16, big-endian), question  |
//!   | ---------------------------------> |      then the asker closes its direction
//!   | length (16, big-endian), answer    |
//!   | <--------------------------------- |      then the answerer closes its direction
//! ```
//! What is in them is not this module's business. Bytes behind a message are not read.

use std::io;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use ringlane_shared::limits::{LINK_EXCHANGE_LENGTH_BYTES, OFFER_BYTES_MAX};
use thiserror::Error;

pub use super::streams::OpenError;

/// The protocol's name.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/ringlane/link/1");

/// How long each half may take: asking and getting the answer, reading a question, sending an answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an exchange failed.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// The stream could not be opened.
    #[error(transparent)]
    NotOpened(#[from] OpenError),
    /// The other side took too long.
    #[error("the peer took longer than {} s", EXCHANGE_TIMEOUT.as_secs())]
    TimedOut,
    /// A message is longer than allowed; ours or, by its length prefix, the peer's.
    #[error("a message of {bytes} bytes is longer than the allowed {OFFER_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The stream ended before the message did.
    #[error("the peer ended the stream before its message")]
    Truncated,
    /// We have too many exchanges with this peer under way.
    #[error("too many exchanges with this peer are under way")]
    Busy,
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for ExchangeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// Asks: sends the question, waits for the answer.
pub(crate) async fn ask<S>(mut stream: S, question: &[u8]) -> Result<Vec<u8>, ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    bounded(EXCHANGE_TIMEOUT, async {
        write_message(&mut stream, question).await?;
        stream.close().await?;
        read_message(&mut stream).await
    })
    .await
}

/// Reads the question of a stream the peer opened.
pub(crate) async fn read_question<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ExchangeError> {
    bounded(EXCHANGE_TIMEOUT, read_message(stream)).await
}

/// Sends the answer and ends the stream.
pub(crate) async fn send_answer<S: AsyncWrite + Unpin>(stream: &mut S, answer: &[u8]) -> Result<(), ExchangeError> {
    bounded(EXCHANGE_TIMEOUT, async {
        write_message(stream, answer).await?;
        Ok(stream.close().await?)
    })
    .await
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = Result<T, ExchangeError>>) -> Result<T, ExchangeError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(ExchangeError::TimedOut))
}

async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), ExchangeError> {
    let bytes = message.len();
    let length =
        u16::try_from(bytes).ok().filter(|_| bytes <= OFFER_BYTES_MAX).ok_or(ExchangeError::TooLong { bytes })?;
    // One write: prefix and message leave in one datagram when they fit.
    let mut framed = Vec::with_capacity(LINK_EXCHANGE_LENGTH_BYTES + bytes);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    Ok(stream.flush().await?)
}

async fn read_message<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ExchangeError> {
    let mut length = [0; LINK_EXCHANGE_LENGTH_BYTES];
    stream.read_exact(&mut length).await?;
    let bytes = usize::from(u16::from_be_bytes(length));
    if bytes > OFFER_BYTES_MAX {
        return Err(ExchangeError::TooLong { bytes });
    }
    let mut message = vec![0; bytes];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use futures::io::Cursor;

    use super::*;

    async fn read(bytes: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        read_question(&mut Cursor::new(bytes)).await
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        for length in [0, 1, 255, 256, OFFER_BYTES_MAX] {
            let message: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut written = Cursor::new(Vec::new());
            send_answer(&mut written, &message).await.unwrap();
            assert_eq!(written.get_ref().len(), LINK_EXCHANGE_LENGTH_BYTES + length);
            assert_eq!(read(written.get_ref()).await.unwrap(), message);
        }
    }

    #[tokio::test]
    async fn a_message_over_the_bound_is_refused_by_both_sides_before_it_is_stored() {
        let long = vec![0; OFFER_BYTES_MAX + 1];
        let mut written = Cursor::new(Vec::new());
        assert!(matches!(send_answer(&mut written, &long).await, Err(ExchangeError::TooLong { .. })));
        assert!(matches!(read(&[0x10, 0x01]).await, Err(ExchangeError::TooLong { bytes: 4097 })));
        assert!(matches!(read(&[0xff, 0xff, 0]).await, Err(ExchangeError::TooLong { bytes: 65535 })));
    }

    #[tokio::test]
    async fn every_cut_of_a_message_is_truncated() {
        let whole = [0, 3, 7, 8, 9];
        for end in 0..whole.len() {
            assert!(matches!(read(&whole[..end]).await, Err(ExchangeError::Truncated)), "{end}");
        }
        assert_eq!(read(&whole).await.unwrap(), [7, 8, 9]);
    }

    #[tokio::test]
    async fn a_silent_peer_ends_in_a_timeout() {
        let mut silent = futures::stream::pending::<io::Result<Vec<u8>>>().into_async_read();
        let limit = Duration::from_millis(1);
        assert!(matches!(bounded(limit, read_message(&mut silent)).await, Err(ExchangeError::TimedOut)));
    }
}
