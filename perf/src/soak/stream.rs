//! Streams that prove what arrived: chunk by chunk, with numbers and hashes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use super::traffic::{LOOK, Shared};

/// Content of a chunk.
pub(super) const CHUNK_BYTES: usize = 32 << 10;
/// Stream, whether it is the last, and number, each as u64.
const HEADER_BYTES: usize = 24;
const HASH_BYTES: usize = 32;
/// Time from one chunk of a long stream to the next: 13 Mbit/s.
const CHUNK_INTERVAL: Duration = Duration::from_millis(20);

/// Sends chunks until there are that many, or until all traffic is to stop, and waits for the receiver to say how many
/// it has got.
pub(super) fn send_stream(
    mut stream: TcpStream,
    id: u64,
    chunks: u64,
    random: &mut fastrand::Rng,
    shared: &Shared,
) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(LOOK))?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut chunk = vec![0; HEADER_BYTES + CHUNK_BYTES + HASH_BYTES];
    let (mut number, mut last) = (0, false);
    while !last {
        last = number + 1 == chunks || shared.stopping();
        fill_chunk(&mut chunk, [id, last.into(), number], random);
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(0) => bail!("it takes nothing more after {number} chunks"),
                Ok(written) => rest = &rest[written..],
                Err(error) if may_pass(&error, shared) => {}
                Err(error) => return Err(error).with_context(|| format!("broken after {number} chunks were sent")),
            }
        }
        number += 1;
        if chunks == u64::MAX {
            std::thread::sleep(CHUNK_INTERVAL);
        }
    }
    let mut received = [0; 8];
    read_exact(&mut stream, &mut received, shared).context("waiting for the receiver's count")?;
    let received = u64::from_le_bytes(received);
    ensure!(received == number, "{received} of {number} chunks arrived");
    Ok(())
}

/// Reads a stream until its last chunk and answers how many there were.
pub(super) fn take_stream(mut stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut chunk = vec![0; HEADER_BYTES + CHUNK_BYTES + HASH_BYTES];
    let (mut received, mut id) = (0, None);
    loop {
        let arrived = read_exact(&mut stream, &mut chunk, shared);
        arrived.with_context(|| format!("broken after {received} chunks have arrived"))?;
        let Some([stream_id, last, number]) = verify_chunk(&chunk) else {
            bail!("chunk {received} is not as it was sent");
        };
        ensure!(number == received, "chunk {number} comes where {received} should");
        ensure!(*id.get_or_insert(stream_id) == stream_id, "chunk {number} is another stream's");
        received += 1;
        shared.chunks.fetch_add(1, Ordering::Relaxed);
        if last == 1 {
            return stream.write_all(&received.to_le_bytes()).context("answering");
        }
    }
}

fn fill_chunk(chunk: &mut [u8], header: [u64; 3], random: &mut fastrand::Rng) {
    let (body, hash) = chunk.split_at_mut(HEADER_BYTES + CHUNK_BYTES);
    for (field, value) in body.chunks_exact_mut(8).zip(header) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    random.fill(&mut body[HEADER_BYTES..]);
    hash.copy_from_slice(&Sha256::digest(&*body));
}

/// Stream, whether it is the last, and number; none if it is not what was sent.
fn verify_chunk(chunk: &[u8]) -> Option<[u64; 3]> {
    let (body, hash) = chunk.split_last_chunk::<HASH_BYTES>()?;
    let fields = body.first_chunk::<HEADER_BYTES>()?.as_chunks::<8>().0;
    let [stream, last, number] = fields else { return None };
    (Sha256::digest(body)[..] == hash[..]).then(|| [*stream, *last, *number].map(u64::from_le_bytes))
}

fn read_exact(stream: &mut TcpStream, mut buffer: &mut [u8], shared: &Shared) -> anyhow::Result<()> {
    while !buffer.is_empty() {
        match stream.read(buffer) {
            Ok(0) => bail!("the other end has closed it"),
            Ok(read) => buffer = &mut buffer[read..],
            Err(error) if may_pass(&error, shared) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether it is only a matter of waiting, and we still do.
fn may_pass(error: &io::Error, shared: &Shared) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
        // What the kernel itself reports as timed out is the end of a connection; a timeout of ours has no such code.
        && error.raw_os_error() != Some(rustix::io::Errno::TIMEDOUT.raw_os_error())
        && !shared.abort.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_chunk_with_one_bit_changed_is_noticed() {
        let mut chunk = vec![0; HEADER_BYTES + CHUNK_BYTES + HASH_BYTES];
        fill_chunk(&mut chunk, [3, 1, 77], &mut fastrand::Rng::with_seed(5));
        assert_eq!(verify_chunk(&chunk), Some([3, 1, 77]));
        for place in (0..chunk.len()).step_by(997).chain([chunk.len() - 1]) {
            chunk[place] ^= 1;
            assert_eq!(verify_chunk(&chunk), None, "byte {place}");
            chunk[place] ^= 1;
        }
    }

    #[test]
    fn a_stream_arrives_and_one_that_is_cut_off_is_a_problem() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Shared::default();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| take_stream(listener.accept().unwrap().0, &shared));
            send_stream(connect(), 4, 3, &mut fastrand::Rng::with_seed(1), &shared).unwrap();
            taken.join().unwrap().unwrap();
            assert_eq!(shared.chunks.load(Ordering::Relaxed), 3);

            let taken = scope.spawn(|| take_stream(listener.accept().unwrap().0, &shared));
            connect().write_all(&[0; 100]).unwrap();
            let error = taken.join().unwrap().unwrap_err();
            assert!(format!("{error:#}").contains("broken after 0 chunks"), "{error:#}");
        });
    }
}
