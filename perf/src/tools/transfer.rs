//! Transfers that prove what arrived: a hashed stream over TCP, and numbered, hashed datagrams over UDP.
//!
//! A stream is its length (u64, little endian), so many seeded pseudo-random bytes, and the SHA-256 of these. A
//! datagram is
//!
//! ```text
//! flow (u16) | flows (u16) | number (u64) | datagrams of the flow (u64) | pseudo-random bytes | SHA-256 (first 16 bytes)
//! ```
//!
//! little endian, the hash over all before it. Each flow has a socket of its own, so that it is one flow to the network.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{EndSignals, STOP_LOOK, enlarge_buffers, print_line, print_ready};

/// Bytes hashed and written at a time.
const CHUNK_BYTES: usize = 1 << 16;
/// How long the other end may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Flow, flows, number and count.
const HEADER_BYTES: usize = 2 + 2 + 8 + 8;
/// What of the hash a datagram carries.
const HASH_BYTES: usize = 16;
/// Longest UDP payload over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Flows of one transfer.
const FLOWS_MAX: u16 = 64;
/// Datagrams of one flow: the receiver keeps a bit for each, 8 MiB in all.
const DATAGRAMS_MAX: u64 = 1 << 26;

#[derive(Debug, clap::Args)]
pub(crate) struct SendArgs {
    /// The receiver's address
    #[arg(long)]
    connect: SocketAddr,
    /// Bytes to send
    #[arg(long)]
    bytes: u64,
    /// Where the pseudo-random bytes start
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReceiveArgs {
    /// Where to listen; port 0 is any that is free
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UdpSendArgs {
    /// The receiver's address
    #[arg(long)]
    connect: SocketAddr,
    /// Datagrams to send in each flow
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=DATAGRAMS_MAX))]
    count: u64,
    /// Bytes of a datagram
    #[arg(long, default_value_t = 1300)]
    size: usize,
    /// Flows, each from a port of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(FLOWS_MAX)))]
    flows: u16,
    /// Datagrams per second, all flows together; 0 is as fast as they go
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Where the pseudo-random bytes start
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UdpReceiveArgs {
    /// Where to listen; port 0 is any that is free
    #[arg(long)]
    listen: SocketAddr,
    /// After how many milliseconds of silence, once something has come, what is missing counts as lost
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    idle_ms: u64,
}

/// What became of a stream.
#[derive(Debug, Serialize)]
struct Streamed {
    bytes: u64,
    /// Whether all of it is there, with the right hash; the sender does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<bool>,
    seconds: f64,
}

pub(super) fn send(arguments: &SendArgs) -> anyhow::Result<()> {
    let stream = TcpStream::connect_timeout(&arguments.connect, PATIENCE);
    let mut stream = stream.with_context(|| format!("connecting to {}", arguments.connect))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut random = fastrand::Rng::with_seed(arguments.seed);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let start = Instant::now();
    stream.write_all(&arguments.bytes.to_le_bytes()).context("sending")?;
    let mut left = arguments.bytes;
    while left > 0 {
        let chunk = &mut chunk[..left.min(CHUNK_BYTES as u64) as usize];
        random.fill(chunk);
        hash.update(&*chunk);
        stream.write_all(chunk).context("sending")?;
        left -= chunk.len() as u64;
    }
    stream.write_all(&hash.finalize()).context("sending")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // The receiver closes when it has everything.
    stream.read_to_end(&mut Vec::new()).context("waiting for the receiver")?;
    print_line(&Streamed { bytes: arguments.bytes, ok: None, seconds: start.elapsed().as_secs_f64() })
}

pub(super) fn receive(arguments: &ReceiveArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(arguments.listen).with_context(|| format!("listening on {}", arguments.listen))?;
    print_ready(Some(listener.local_addr()?))?;
    let (stream, _) = listener.accept().context("accepting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    print_line(&take_stream(stream)?)
}

/// Reads a stream to its end, or to where it breaks off.
fn take_stream(mut stream: impl Read) -> anyhow::Result<Streamed> {
    let start = Instant::now();
    let mut length = [0; 8];
    stream.read_exact(&mut length).context("receiving the length")?;
    let length = u64::from_le_bytes(length);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    while bytes < length {
        let room = (length - bytes).min(CHUNK_BYTES as u64) as usize;
        match stream.read(&mut chunk[..room]) {
            Ok(0) => break,
            Ok(read) => {
                hash.update(&chunk[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("receiving, after {bytes} of {length} bytes")),
        }
    }
    let mut digest = [0; 32];
    let ok = stream.read_exact(&mut digest).is_ok() && digest[..] == hash.finalize()[..];
    Ok(Streamed { bytes, ok: Some(ok), seconds: start.elapsed().as_secs_f64() })
}

/// What was sent.
#[derive(Debug, Serialize)]
struct DatagramsSent {
    sent: u64,
    /// Sends that the kernel refused; their datagrams are among those the receiver misses.
    refused: u64,
    seconds: f64,
}

pub(super) fn udp_send(arguments: &UdpSendArgs) -> anyhow::Result<()> {
    ensure!(
        (HEADER_BYTES + HASH_BYTES..=DATAGRAM_BYTES_MAX).contains(&arguments.size),
        "a datagram is {} to {DATAGRAM_BYTES_MAX} bytes long",
        HEADER_BYTES + HASH_BYTES
    );
    let any = if arguments.connect.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sockets = (0..arguments.flows).map(|_| {
        let socket = UdpSocket::bind(any)?;
        socket.connect(arguments.connect).with_context(|| format!("connecting to {}", arguments.connect))?;
        enlarge_buffers(&socket)?;
        Ok(socket)
    });
    let sockets: Vec<UdpSocket> = sockets.collect::<anyhow::Result<_>>()?;
    let mut random = fastrand::Rng::with_seed(arguments.seed);
    let mut datagram = vec![0; arguments.size];
    let (mut sent, mut refused) = (0, 0);
    let start = Instant::now();
    for number in 0..arguments.count {
        for (flow, socket) in (0..).zip(&sockets) {
            if arguments.rate > 0 {
                let due = start + Duration::from_secs_f64((sent + refused) as f64 / arguments.rate as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            fill(&mut datagram, &Header { flow, flows: arguments.flows, number, count: arguments.count }, &mut random);
            match socket.send(&datagram) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
    }
    print_line(&DatagramsSent { sent, refused, seconds: start.elapsed().as_secs_f64() })
}

/// What a datagram says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    flow: u16,
    flows: u16,
    number: u64,
    /// Datagrams of the flow.
    count: u64,
}

/// Makes a datagram; it has room for the header and the hash.
fn fill(datagram: &mut [u8], header: &Header, random: &mut fastrand::Rng) {
    let (body, hash) = datagram.split_at_mut(datagram.len() - HASH_BYTES);
    body[..2].copy_from_slice(&header.flow.to_le_bytes());
    body[2..4].copy_from_slice(&header.flows.to_le_bytes());
    body[4..12].copy_from_slice(&header.number.to_le_bytes());
    body[12..HEADER_BYTES].copy_from_slice(&header.count.to_le_bytes());
    random.fill(&mut body[HEADER_BYTES..]);
    hash.copy_from_slice(&Sha256::digest(&*body)[..HASH_BYTES]);
}

/// Reads a datagram; `None` if it is not what a sender has made.
fn verify(datagram: &[u8]) -> Option<Header> {
    let (body, hash) = datagram.split_last_chunk::<HASH_BYTES>()?;
    let header = body.first_chunk::<HEADER_BYTES>()?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let long = |at: usize| header[at..at + 8].iter().rfold(0, |value, &byte| value << 8 | u64::from(byte));
    let header = Header { flow: word(0), flows: word(2), number: long(4), count: long(12) };
    let possible = header.flow < header.flows
        && header.flows <= FLOWS_MAX
        && header.number < header.count
        && header.count <= DATAGRAMS_MAX;
    (possible && Sha256::digest(body)[..HASH_BYTES] == hash[..]).then_some(header)
}

/// What was received, over all flows.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct DatagramsReceived {
    /// Whole and for the first time.
    received: u64,
    /// Missing at the end; of a flow that nothing came of, the number is unknown.
    lost: u64,
    /// Behind one with a greater number of the same flow.
    reordered: u64,
    /// There before.
    duplicated: u64,
    /// With a wrong hash, or nothing that a sender makes.
    corrupted: u64,
    /// Flows that something came of.
    flows: usize,
    bytes: u64,
    /// From the first to the last.
    seconds: f64,
}

/// The datagrams of one flow that have come.
#[derive(Clone, Debug, Default)]
struct Flow {
    count: u64,
    /// One bit each.
    seen: Vec<u64>,
    received: u64,
    /// One more than the greatest number.
    next: u64,
}

/// All that has come.
#[derive(Debug, Default)]
struct Ledger {
    /// At the position of their numbers.
    flows: Vec<Flow>,
    total: DatagramsReceived,
}

impl Ledger {
    fn note(&mut self, datagram: &[u8]) {
        let Some(header) = verify(datagram) else {
            self.total.corrupted += 1;
            return;
        };
        if self.flows.len() < usize::from(header.flows) {
            self.flows.resize(usize::from(header.flows), Flow::default());
        }
        let flow = &mut self.flows[usize::from(header.flow)];
        flow.count = flow.count.max(header.count);
        let (word, bit) = ((header.number / 64) as usize, 1 << (header.number % 64));
        if flow.seen.len() <= word {
            flow.seen.resize(word + 1, 0);
        }
        if flow.seen[word] & bit != 0 {
            self.total.duplicated += 1;
            return;
        }
        flow.seen[word] |= bit;
        flow.received += 1;
        self.total.received += 1;
        self.total.bytes += datagram.len() as u64;
        self.total.reordered += u64::from(header.number < flow.next);
        flow.next = flow.next.max(header.number + 1);
    }

    /// Whether nothing is missing that we know of.
    fn is_complete(&self) -> bool {
        !self.flows.is_empty() && self.flows.iter().all(|flow| flow.count > 0 && flow.received == flow.count)
    }

    fn total(&self) -> DatagramsReceived {
        let flows = self.flows.iter().filter(|flow| flow.received > 0);
        let lost = self.flows.iter().map(|flow| flow.count - flow.received).sum();
        DatagramsReceived { lost, flows: flows.count(), ..self.total }
    }
}

pub(super) fn udp_receive(arguments: &UdpReceiveArgs) -> anyhow::Result<()> {
    let stop = EndSignals::hold()?.into_flag();
    let socket = UdpSocket::bind(arguments.listen).with_context(|| format!("binding {}", arguments.listen))?;
    enlarge_buffers(&socket)?;
    socket.set_read_timeout(Some(STOP_LOOK))?;
    print_ready(Some(socket.local_addr()?))?;
    let idle = Duration::from_millis(arguments.idle_ms);
    let mut ledger = Ledger::default();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut first_and_last: Option<(Instant, Instant)> = None;
    while !stop.load(Ordering::Relaxed) && !ledger.is_complete() {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let now = Instant::now();
                first_and_last = Some((first_and_last.map_or(now, |(first, _)| first), now));
                ledger.note(&buffer[..length]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                if first_and_last.is_some_and(|(_, last)| last.elapsed() >= idle) {
                    break;
                }
            }
            Err(error) => return Err(error).context("receiving"),
        }
    }
    let seconds = first_and_last.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    print_line(&DatagramsReceived { seconds, ..ledger.total() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u64).to_le_bytes()[..], content, &Sha256::digest(content)].concat()
    }

    #[test]
    fn a_stream_is_right_only_with_every_byte_in_its_place() {
        let whole = stream(&[1, 2, 3, 4, 5]);
        let ok = |stream: &[u8]| take_stream(stream).expect("the length is there").ok;
        assert_eq!(ok(&whole), Some(true));
        assert_eq!(ok(&stream(&[])), Some(true));
        for place in 8..whole.len() {
            let mut other = whole.clone();
            other[place] ^= 1;
            assert_eq!(ok(&other), Some(false), "byte {place} changed");
            assert_eq!(ok(&whole[..place]), Some(false), "cut before byte {place}");
        }
        assert!(take_stream(&whole[..7]).is_err());
    }

    fn datagram(flow: u16, number: u64) -> Vec<u8> {
        let mut datagram = vec![0; 100];
        fill(&mut datagram, &Header { flow, flows: 2, number, count: 5 }, &mut fastrand::Rng::with_seed(number));
        datagram
    }

    #[test]
    fn order_is_judged_within_a_flow() {
        let mut ledger = Ledger::default();
        for (flow, number) in [(1, 0), (0, 0), (0, 1), (1, 3), (1, 2), (0, 4), (1, 2), (1, 1), (1, 4)] {
            ledger.note(&datagram(flow, number));
        }
        let expected = DatagramsReceived {
            received: 8,
            lost: 2,
            reordered: 2,
            duplicated: 1,
            flows: 2,
            bytes: 800,
            ..DatagramsReceived::default()
        };
        assert_eq!(ledger.total(), expected);
        assert!(!ledger.is_complete());
        ledger.note(&datagram(0, 2));
        ledger.note(&datagram(0, 3));
        assert!(ledger.is_complete());
        assert_eq!(ledger.total().reordered, 4);
    }

    #[test]
    fn a_datagram_with_one_bit_changed_is_corrupted() {
        let whole = datagram(0, 0);
        let mut ledger = Ledger::default();
        for place in 0..whole.len() {
            let mut other = whole.clone();
            other[place] ^= 1;
            ledger.note(&other);
        }
        ledger.note(&whole[..HEADER_BYTES + HASH_BYTES - 1]);
        assert_eq!(ledger.total(), DatagramsReceived { corrupted: 101, ..DatagramsReceived::default() });
    }
}
