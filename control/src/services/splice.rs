//! Two streams joined: what comes out of one goes into the other, each direction to its own end.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use ringlane_shared::limits::SERVICE_COPY_BYTES;

use super::far::Far;

/// Bytes copied before others have their turn.
const TURN_BYTES: usize = 4 * SERVICE_COPY_BYTES;

/// Copies until both directions have ended. When one fails, both sides hear of it, as far as they can.
///
/// The end of one direction is passed on and the other goes on. A side that takes no more bytes ends only the
/// direction towards it: what it has still to say may be on its way.
pub(super) async fn splice(mut a: Far, mut b: Far) -> io::Result<()> {
    let (mut there, mut back) = (Direction::default(), Direction::default());
    let ended = poll_fn(|cx| {
        let there = there.poll(cx, &mut a, &mut b)?;
        let back = back.poll(cx, &mut b, &mut a)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    let ended = ended.await;
    if ended.is_err() {
        a.fail();
        b.fail();
    }
    ended
}

/// What is on its way from one side to the other.
#[derive(Default)]
struct Direction {
    /// Allocated with the first bytes.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    needs_flush: bool,
    source_ended: bool,
    is_over: bool,
}

impl Direction {
    /// Copies what there is. Ready when nothing will ever come again; fails when the source does.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Far, to: &mut Far) -> Poll<io::Result<()>> {
        let mut copied = 0;
        while !self.is_over {
            if copied >= TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.start < self.end {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..self.end])) {
                    Ok(written @ 1..) => {
                        self.start += written;
                        self.needs_flush = true;
                    }
                    Ok(0) | Err(_) => self.is_over = true,
                }
                continue;
            }
            if self.source_ended {
                // What it says does not matter: there is nothing more to be said to it.
                let _ = ready!(Pin::new(&mut *to).poll_close(cx));
                self.is_over = true;
                continue;
            }
            if self.buffer.is_empty() {
                self.buffer.resize(SERVICE_COPY_BYTES, 0);
            }
            match Pin::new(&mut *from).poll_read(cx, &mut self.buffer) {
                Poll::Ready(read) => {
                    (self.start, self.end) = (0, read?);
                    self.source_ended = self.end == 0;
                    copied += self.end;
                }
                Poll::Pending => {
                    if self.needs_flush && Pin::new(&mut *to).poll_flush(cx).is_ready() {
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
