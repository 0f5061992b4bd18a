//! What a relay does for a circuit: bytes from either end to the other, until both have said all.
//!
//! Each direction has a buffer of its own; what one end does not take is not read from the other, so that yamux's or
//! QUIC's windows hold back who sends. Both directions share one rate. Nothing is looked at: the two ends' handshake and
//! all that follows are between them.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use ringlane_shared::limits::{CIRCUIT_BUFFER_BYTES, CIRCUIT_BYTES_PER_SECOND};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long the other direction may go on when one has ended.
const LINGER: Duration = Duration::from_secs(30);
/// How long an end may take nothing of what there is for it. Whoever sends to it may have long given up, and is not heard of
/// while nothing is read from it: each such circuit would keep one of its places for ever.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How much may be carried at once after silence.
const BURST: Duration = Duration::from_millis(50);
/// Reads and writes of one direction before the control loop gets another turn.
const STEPS_PER_POLL: usize = 8;

/// What a circuit has carried, in bytes: from its source, and to it.
#[derive(Debug, Default)]
pub(super) struct Tally([AtomicU64; 2]);

impl Tally {
    pub(super) fn bytes(&self) -> [u64; 2] {
        self.0.each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
    }
}

/// Carries bytes both ways until both ends have closed; an error of either ends both, and so does an end that takes nothing.
pub(super) async fn carry<S, T>(mut source: S, mut target: T, tally: Arc<Tally>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut halves = [Half::default(), Half::default()];
    let mut rate = Rate::new();
    let mut linger: Option<Pin<Box<Sleep>>> = None;
    let mut stalled: Option<Pin<Box<Sleep>>> = None;
    let mut taken = tally.bytes();
    poll_fn(|cx| {
        let [there, back] = &mut halves;
        let [there_bytes, back_bytes] = &tally.0;
        let there_is_over = there.poll(cx, &mut source, &mut target, &mut rate, there_bytes)?.is_ready();
        let back_is_over = back.poll(cx, &mut target, &mut source, &mut rate, back_bytes)?.is_ready();
        if there_is_over && back_is_over {
            return Poll::Ready(Ok(()));
        }
        let has_moved = std::mem::replace(&mut taken, tally.bytes()) != taken;
        if !there.is_owed() && !back.is_owed() {
            stalled = None;
        } else {
            let deadline = || Instant::now() + STALLED_AFTER;
            let timer = stalled.get_or_insert_with(|| Box::pin(sleep_until(deadline())));
            if has_moved {
                timer.as_mut().reset(deadline());
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        if there_is_over || back_is_over {
            let linger = linger.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
            ready!(linger.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await
}

/// How much both directions may carry now.
struct Rate {
    /// When all that was carried will have been paid for.
    paid_at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Rate {
    fn new() -> Self {
        let now = Instant::now();
        Self { paid_at: now, timer: Box::pin(sleep_until(now)) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if self.paid_at <= now + BURST {
            return Poll::Ready(());
        }
        self.timer.as_mut().reset(self.paid_at - BURST);
        self.timer.as_mut().poll(cx)
    }

    fn pay(&mut self, bytes: usize) {
        let cost = Duration::from_nanos(bytes as u64 * 1_000_000_000 / CIRCUIT_BYTES_PER_SECOND);
        self.paid_at = self.paid_at.max(Instant::now()) + cost;
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Given back while there is nothing in it.
    buffer: Vec<u8>,
    taken: usize,
    unflushed: bool,
    at_end: bool,
    is_over: bool,
}

impl Half {
    /// Whether the writer has not yet taken all that there is for it.
    fn is_owed(&self) -> bool {
        self.taken < self.buffer.len() || self.at_end && !self.is_over
    }

    /// Ready when the reader has closed and the writer has been told.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        rate: &mut Rate,
        carried: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        if self.is_over {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..STEPS_PER_POLL {
            while self.taken < self.buffer.len() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer[self.taken..]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.taken += written;
                self.unflushed = true;
                carried.fetch_add(written as u64, Ordering::Relaxed);
            }
            if self.at_end {
                ready!(Pin::new(&mut *to).poll_close(cx))?;
                self.is_over = true;
                return Poll::Ready(Ok(()));
            }
            ready!(rate.poll(cx));
            self.buffer.resize(CIRCUIT_BUFFER_BYTES, 0);
            self.taken = 0;
            let read = Pin::new(&mut *from).poll_read(cx, &mut self.buffer);
            let bytes = match &read {
                Poll::Ready(Ok(bytes)) => *bytes,
                _ => 0,
            };
            self.buffer.truncate(bytes);
            if bytes == 0 {
                self.buffer = Vec::new();
            }
            match read {
                Poll::Ready(Ok(0)) => self.at_end = true,
                Poll::Ready(Ok(bytes)) => rate.pay(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};

    use super::*;

    /// One end of a pipe that holds little.
    struct End(DuplexStream);

    impl AsyncRead for End {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
            let mut to = ReadBuf::new(to);
            ready!(Pin::new(&mut self.0).poll_read(cx, &mut to))?;
            Poll::Ready(Ok(to.filled().len()))
        }
    }

    impl AsyncWrite for End {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, from)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    const PIPE_BYTES: usize = 20_000;

    fn pipe() -> (End, End) {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        (End(near), End(far))
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_arrive_as_they_were_and_one_direction_goes_on_when_the_other_has_ended() {
        let ((mut source, at_source), (mut target, at_target)) = (pipe(), pipe());
        let tally = Arc::new(Tally::default());
        let carrying = carry(at_source, at_target, Arc::clone(&tally));
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let talk = async {
            let both = futures::join!(
                async {
                    source.write_all(&sent).await.unwrap();
                    source.close().await.unwrap();
                    let mut answer = Vec::new();
                    source.read_to_end(&mut answer).await.unwrap();
                    answer
                },
                async {
                    let mut heard = Vec::new();
                    target.read_to_end(&mut heard).await.unwrap();
                    target.write_all(b"and back").await.unwrap();
                    target.close().await.unwrap();
                    heard
                }
            );
            assert_eq!(both.0, b"and back");
            assert!(both.1 == sent);
        };
        let (carried, ()) = futures::join!(carrying, talk);
        carried.unwrap();
        assert_eq!(tally.bytes(), [300_000, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_is_no_faster_than_its_rate_holds_little_and_does_not_outlive_an_end_that_never_closes() {
        let ((mut source, at_source), (mut target, at_target)) = (pipe(), pipe());
        let tally = Arc::new(Tally::default());
        let carrying = tokio::spawn(carry(at_source, at_target, Arc::clone(&tally)));
        // The target reads nothing.
        let chunk = vec![0; 1 << 20];
        let stuck = tokio::time::timeout(Duration::from_secs(5), source.write_all(&chunk)).await;
        assert!(stuck.is_err(), "the sender is held back");
        assert!(tally.bytes()[0] <= PIPE_BYTES as u64);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            target.read_to_end(&mut all).await.map(|_| (all.len(), target))
        });
        let begin = Instant::now();
        let seconds = 1;
        for _ in 0..seconds * CIRCUIT_BYTES_PER_SECOND / chunk.len() as u64 {
            source.write_all(&chunk).await.unwrap();
        }
        assert!(begin.elapsed() >= Duration::from_secs(seconds) - BURST - Duration::from_millis(100));
        source.close().await.unwrap();
        let (_, _target) = reading.await.unwrap().unwrap();
        let error = carrying.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "the target never closes");
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_is_slow_keeps_its_circuit_and_one_that_takes_nothing_loses_it() {
        let ((mut source, at_source), (mut target, at_target)) = (pipe(), pipe());
        let carrying = tokio::spawn(carry(at_source, at_target, Arc::default()));
        let sending = tokio::spawn(async move {
            let sent = source.write_all(&[0; 100_000]).await;
            (sent, source)
        });
        let mut piece = [0; 1000];
        for _ in 0..10 {
            tokio::time::sleep(STALLED_AFTER - Duration::from_secs(1)).await;
            target.read_exact(&mut piece).await.unwrap();
        }
        assert!(!carrying.is_finished());
        let begin = Instant::now();
        let ended = tokio::time::timeout(2 * STALLED_AFTER, carrying).await.expect("it ends");
        assert_eq!(ended.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() <= STALLED_AFTER);
        assert!(sending.await.unwrap().0.is_err(), "the source is told");
        drop(target);
    }
}
