//! Reading and writing both protocols, each step bounded in bytes and time.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use ringlane_shared::limits::{PEERS_MESSAGE_BYTES_MAX, PEX_ANSWER_BYTES_MAX};
use ringlane_shared::wire::peers::LENGTH_BYTES;
use ringlane_shared::wire::pex::REQUEST;
use tokio::time::timeout;

use super::Done;
use crate::swarm::InboundStream;

/// How long a request, an answer or a message may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes a message and gives the stream back.
pub(super) async fn write_message(peer: PeerId, mut stream: Box<Stream>, message: Vec<u8>) -> Done {
    let result = bounded(async {
        stream.write_all(&message).await?;
        stream.flush().await
    });
    let result = result.await.map(|()| stream);
    Done::Sent { peer, result }
}

/// Waits for the next message; however long until its first byte.
pub(super) async fn read_message(peer: PeerId, mut stream: Box<InboundStream>) -> Done {
    let message = message(&mut stream).await;
    Done::Received { peer, stream, message }
}

async fn message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut length = [0; LENGTH_BYTES];
    stream.read_exact(&mut length[..1]).await?;
    bounded(async {
        stream.read_exact(&mut length[1..]).await?;
        let bytes = usize::from(u16::from_be_bytes(length));
        if bytes > PEERS_MESSAGE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; bytes];
        stream.read_exact(&mut message).await?;
        Ok(message.into())
    })
    .await
}

/// Reads the request of a peer that asks by Hyprspace's exchange.
pub(super) async fn read_request(peer: PeerId, mut stream: Box<InboundStream>) -> Done {
    let mut request = [0; REQUEST.len()];
    let read = bounded(async { stream.read_exact(&mut request).await }).await;
    Done::Asked { peer, stream, is_request: read.is_ok() && request == REQUEST }
}

/// Writes an answer and closes the stream, without which it counts for nothing.
pub(super) async fn answer(mut stream: Box<InboundStream>, answer: Vec<u8>) -> Done {
    let written = bounded(async {
        stream.write_all(&answer).await?;
        stream.close().await
    });
    // The peer sees for itself that it has got nothing.
    let _ = written.await;
    Done::Answered
}

/// Asks by Hyprspace's exchange.
pub(super) async fn ask(peer: PeerId, mut stream: Box<Stream>) -> Done {
    let answer = bounded(async {
        stream.write_all(REQUEST).await?;
        stream.flush().await?;
        let answer = read_answer(&mut stream).await?;
        // An answer is an answer, whether or not our end of the stream closes.
        let _ = stream.close().await;
        Ok(answer)
    });
    Done::Told { peer, answer: answer.await }
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    stream.take(PEX_ANSWER_BYTES_MAX as u64).read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn bounded<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STEP_TIMEOUT, work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    #[tokio::test]
    async fn a_message_is_read_whole_or_not_at_all_and_no_longer_than_allowed() {
        let read = async |bytes: &[u8]| message(&mut Cursor::new(bytes)).await.map_err(|error| error.kind());
        assert_eq!(read(&[0, 3, 7, 8, 9, 1]).await, Ok(Bytes::from_static(&[7, 8, 9])));
        assert_eq!(read(&[0, 0]).await, Ok(Bytes::new()));
        for end in 0..5 {
            assert_eq!(read(&[0, 3, 7, 8, 9][..end]).await, Err(io::ErrorKind::UnexpectedEof), "{end}");
        }
        assert_eq!(read(&[0xff, 0xff]).await, Err(io::ErrorKind::InvalidData));
    }

    #[tokio::test]
    async fn an_answer_without_end_is_cut() {
        let mut endless = futures::io::repeat(b'x');
        assert_eq!(read_answer(&mut endless).await.unwrap().len(), PEX_ANSWER_BYTES_MAX);
    }
}
