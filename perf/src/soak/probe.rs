//! Requests that say at any time whether the link carries.

use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::traffic::{Shared, lock};

const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// A shorter silence is no gap: the machine may be busy.
const GAP: Duration = Duration::from_millis(100);
/// Gaps that a probe remembers: one a second for a day.
const GAPS_MAX: usize = 86_400;

/// A span of time in which a probe had no answer.
pub(super) type Gap = (Instant, Instant);

/// Requests of one size in one flow.
#[derive(Debug)]
pub(super) struct Probe {
    /// Letter of the site that answers.
    pub(super) to: char,
    pub(super) bytes: usize,
    silence: Mutex<Silence>,
}

/// When answers came, as far as they did not.
#[derive(Debug)]
struct Silence {
    last_answer: Instant,
    gaps: Vec<Gap>,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { last_answer: now, gaps: Vec::new() }
    }

    fn handle_answer(&mut self, now: Instant) {
        if now - self.last_answer > GAP && self.gaps.len() < GAPS_MAX {
            self.gaps.push((self.last_answer, now));
        }
        self.last_answer = now;
    }

    fn gaps_since(&self, start: Instant, now: Instant) -> Vec<Gap> {
        let current = (now - self.last_answer > GAP).then_some((self.last_answer, now));
        self.gaps.iter().copied().filter(|&(_, end)| end > start).chain(current).collect()
    }
}

impl Probe {
    pub(super) fn new(to: char, bytes: usize) -> Self {
        Self { to, bytes, silence: Mutex::new(Silence::new(Instant::now())) }
    }

    /// The gaps that ended since then, or have not.
    pub(super) fn gaps_since(&self, start: Instant) -> Vec<Gap> {
        lock(&self.silence).gaps_since(start, Instant::now())
    }

    /// Sends requests until all traffic is to stop.
    pub(super) fn run(&self, socket: &UdpSocket, shared: &Shared) -> anyhow::Result<()> {
        let (mut request, mut answer) = (vec![0; self.bytes], vec![0; 2048]);
        let mut due = Instant::now();
        for number in 0_u64.. {
            if shared.stopping() {
                break;
            }
            write_request(&mut request, number);
            // While nothing is routed, the kernel says so; that is a gap like any other.
            let _ = socket.send(&request);
            shared.requests.fetch_add(1, Ordering::Relaxed);
            due = (due + PROBE_INTERVAL).max(Instant::now());
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                socket.set_read_timeout(Some(left))?;
                let Ok(length) = socket.recv(&mut answer) else { continue };
                if is_answer(&answer[..length], self.bytes, &mut request) {
                    shared.answers.fetch_add(1, Ordering::Relaxed);
                    lock(&self.silence).handle_answer(Instant::now());
                } else {
                    shared.wrong_answers.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }
}

/// A request is its number, and content drawn from that.
fn write_request(request: &mut [u8], number: u64) {
    let (head, content) = request.split_at_mut(size_of::<u64>());
    head.copy_from_slice(&number.to_le_bytes());
    fastrand::Rng::with_seed(number).fill(content);
}

/// Whether this is what we sent, now or earlier. Uses `scratch` for that.
fn is_answer(answer: &[u8], bytes: usize, scratch: &mut [u8]) -> bool {
    let Some(number) = answer.first_chunk() else { return false };
    write_request(scratch, u64::from_le_bytes(*number));
    answer.len() == bytes && answer == scratch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_a_silence_of_more_than_a_tenth_of_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut silence = Silence::new(start);
        for ms in [20, 40, 140, 160, 900, 920] {
            silence.handle_answer(at(ms));
        }
        assert_eq!(silence.gaps_since(start, at(930)), [(at(160), at(900))]);
        assert_eq!(silence.gaps_since(at(500), at(1500)), [(at(160), at(900)), (at(920), at(1500))]);
        assert_eq!(silence.gaps_since(at(900), at(1000)), []);
    }

    #[test]
    fn an_answer_must_be_what_was_sent() {
        let (mut request, mut scratch) = (vec![0; 64], vec![0; 64]);
        write_request(&mut request, 9);
        assert!(is_answer(&request, 64, &mut scratch));
        request[40] ^= 1;
        assert!(!is_answer(&request, 64, &mut scratch));
        assert!(!is_answer(&request[..63], 64, &mut scratch) && !is_answer(&[], 64, &mut scratch));
    }
}
