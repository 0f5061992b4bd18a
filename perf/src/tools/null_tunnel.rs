//! The null tunnel: super-segments from a TUN interface over UDP and back, with every offload and no cryptography.
//! What it reaches is what the machine lets any such tunnel reach.
//!
//! A super-segment leaves as a train of equal datagrams, the last one shorter, that the kernel cuts (UDP GSO) straight
//! from the read buffer. Each datagram has eight bytes before its piece, so that a receiver can tell trains apart
//! whatever the wire does to them:
//!
//! ```text
//! train number (u32, little endian) | index (u16) | datagrams of the train (u16) | piece
//! ```
//!
//! The pieces in order are the super-segment with its virtio network header. A train that comes in one piece (UDP GRO)
//! goes to the TUN straight from the receive buffer; one that the wire has cut is put together first. One that lost a
//! datagram is lost as a whole: over a lossy wire this tunnel is no limit of anything.
//!
//! Per queue there are one socket and two blocking threads, one per direction, or one polling thread for both. Which is
//! faster depends on the machine; the better of the two is the limit.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, setsockopt, sockopt};
use nix::sys::uio::writev;
use ringlane_dataplane::io::bare_tun::BareTun;
use serde::Serialize;

use super::{EndSignals, enlarge_buffers, print_line, print_ready};

/// A virtio network header and the longest IP packet.
const SUPER_SEGMENT_BYTES_MAX: usize = 10 + 65_535;
/// Train number, index and count.
const HEADER_BYTES: usize = 8;
/// What a datagram may be longer than the MTU: as much as a record with one packet is.
const OVERHEAD_BYTES: usize = 32;
/// Bytes of one send: the longest UDP payload over IPv4.
const SEND_BYTES_MAX: usize = 65_507;
/// Bytes of one receive: no merged datagrams are longer.
const RECEIVE_BYTES: usize = 1 << 16;
/// Super-segments one direction copies before the other has its turn, if they share a thread.
const TURNS_PER_DIRECTION: usize = 16;
/// Datagrams of a train: what the longest super-segment needs at the smallest MTU.
const DATAGRAMS_MAX: usize = SUPER_SEGMENT_BYTES_MAX.div_ceil(1280 + OVERHEAD_BYTES - HEADER_BYTES);
/// Trains that can be put together at the same time, of which the oldest gives way.
const REBUILDS_MAX: usize = 8;

// A rebuild keeps one bit per datagram.
const _: () = assert!(DATAGRAMS_MAX <= 64);

#[derive(Debug, clap::Args)]
pub(crate) struct NullTunnelArgs {
    /// Name of the TUN interface to create; addresses, MTU and routes are the caller's business
    #[arg(long)]
    interface: String,
    /// The interface's MTU: datagrams are up to 32 bytes longer; the same at both ends
    #[arg(long, default_value_t = 1420, value_parser = clap::value_parser!(u16).range(1280..=9000))]
    mtu: u16,
    /// Address of the first queue's socket; every further queue has the next port
    #[arg(long)]
    local: SocketAddr,
    /// Address of the other end's first socket
    #[arg(long)]
    remote: SocketAddr,
    /// TUN queues, each with a socket and threads of its own; the same at both ends
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    queues: u8,
    /// Run both directions of a queue on one polling thread rather than on a blocking thread each
    #[arg(long)]
    together: bool,
}

/// What has happened, over all queues.
#[derive(Debug, Default, Serialize)]
struct Counters {
    /// Super-segments read from the TUN.
    outbound: AtomicU64,
    /// Sends that the kernel refused.
    send_errors: AtomicU64,
    /// Super-segments written to the TUN.
    inbound: AtomicU64,
    /// Those of them that had to be put together.
    rebuilt: AtomicU64,
    /// Trains given up for want of a datagram.
    incomplete: AtomicU64,
    /// Datagrams that are part of no train.
    malformed: AtomicU64,
    /// Super-segments that the kernel refused.
    write_errors: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn run(arguments: &NullTunnelArgs) -> anyhow::Result<()> {
    let piece_bytes = usize::from(arguments.mtu) + OVERHEAD_BYTES - HEADER_BYTES;
    let signals = EndSignals::hold()?;
    let counters = Arc::new(Counters::default());
    let tun = BareTun::offloaded(&arguments.interface, arguments.queues)
        .with_context(|| format!("creating interface {}", arguments.interface))?;
    for (index, queue) in tun.queues.into_iter().enumerate() {
        let socket = connect(nth_port(arguments.local, index)?, nth_port(arguments.remote, index)?)?;
        let (tun, socket) = (Arc::new(queue), Arc::new(socket));
        let mut outbound = Outbound {
            tun: Arc::clone(&tun),
            socket: Arc::clone(&socket),
            counters: Arc::clone(&counters),
            piece_bytes,
            buffer: vec![0; SUPER_SEGMENT_BYTES_MAX],
            train: 0,
            offload: true,
        };
        let mut inbound = Inbound {
            tun,
            socket,
            counters: Arc::clone(&counters),
            piece_bytes,
            buffer: vec![0; RECEIVE_BYTES],
            control: nix::cmsg_space!(i32),
            rebuilds: Rebuilds::new(piece_bytes),
        };
        if arguments.together {
            spawn("both ways", move || run_together(outbound, inbound))?;
        } else {
            spawn("outbound", move || {
                loop {
                    outbound.turn()?;
                }
            })?;
            spawn("inbound", move || {
                loop {
                    inbound.turn()?;
                }
            })?;
        }
    }
    print_ready(None)?;
    signals.wait();
    print_line(&*counters)
}

fn nth_port(first: SocketAddr, index: usize) -> anyhow::Result<SocketAddr> {
    let port = u16::try_from(usize::from(first.port()) + index).context("the ports end before the queues")?;
    ensure!(first.port() != 0, "a tunnel needs ports that both ends know");
    Ok(SocketAddr::new(first.ip(), port))
}

fn connect(local: SocketAddr, remote: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(local).with_context(|| format!("binding {local}"))?;
    socket.connect(remote).with_context(|| format!("connecting to {remote}"))?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true).context("UDP GRO")?;
    enlarge_buffers(&socket)?;
    Ok(socket)
}

/// Starts a thread that ends only by failing, and the process with it.
fn spawn(name: &'static str, body: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        if let Err(error) = body() {
            eprintln!("Error: {name}: {error:#}");
            std::process::exit(1);
        }
    })?;
    Ok(())
}

/// One queue's way from the TUN to UDP.
struct Outbound {
    tun: Arc<OwnedFd>,
    socket: Arc<UdpSocket>,
    counters: Arc<Counters>,
    piece_bytes: usize,
    buffer: Vec<u8>,
    train: u32,
    /// Whether the kernel cuts trains; once it has refused, we do, for good.
    offload: bool,
}

impl Outbound {
    /// Copies one super-segment; `false` if there is none.
    fn turn(&mut self) -> anyhow::Result<bool> {
        let length = match nix::unistd::read(&*self.tun, &mut self.buffer) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error).context("reading the TUN"),
        };
        count(&self.counters.outbound);
        self.train = self.train.wrapping_add(1);
        let pieces = self.buffer[..length].chunks(self.piece_bytes);
        let datagrams = pieces.len();
        let mut headers = [[0; HEADER_BYTES]; DATAGRAMS_MAX];
        let mut slices = [IoSlice::new(&[]); 2 * DATAGRAMS_MAX];
        let places = headers.iter_mut().zip(slices.chunks_exact_mut(2));
        for ((index, piece), (header, slices)) in pieces.enumerate().zip(places) {
            *header = header_bytes(self.train, index, datagrams);
            slices[0] = IoSlice::new(header);
            slices[1] = IoSlice::new(piece);
        }
        let datagram_bytes = HEADER_BYTES + self.piece_bytes;
        for send in slices[..2 * datagrams].chunks(2 * (SEND_BYTES_MAX / datagram_bytes)) {
            if self.offload && send.len() > 2 {
                match send_train(&self.socket, send, datagram_bytes as u16) {
                    Err(Errno::EIO | Errno::EINVAL) => self.offload = false,
                    sent => {
                        sent.unwrap_or_else(|_| count(&self.counters.send_errors));
                        continue;
                    }
                }
            }
            for datagram in send.chunks(2) {
                let sent = sendmsg::<()>(self.socket.as_raw_fd(), datagram, &[], MsgFlags::empty(), None);
                sent.map_or_else(|_| count(&self.counters.send_errors), drop);
            }
        }
        Ok(true)
    }
}

fn send_train(socket: &UdpSocket, slices: &[IoSlice<'_>], datagram_bytes: u16) -> nix::Result<()> {
    let segment = [ControlMessage::UdpGsoSegments(&datagram_bytes)];
    sendmsg::<()>(socket.as_raw_fd(), slices, &segment, MsgFlags::empty(), None).map(drop)
}

/// One queue's way from UDP to the TUN.
struct Inbound {
    tun: Arc<OwnedFd>,
    socket: Arc<UdpSocket>,
    counters: Arc<Counters>,
    piece_bytes: usize,
    buffer: Vec<u8>,
    control: Vec<u8>,
    rebuilds: Rebuilds,
}

impl Inbound {
    /// Copies what one receive yields; `false` if there is nothing.
    fn turn(&mut self) -> anyhow::Result<bool> {
        let (length, stride) = match receive(&self.socket, &mut self.buffer, &mut self.control) {
            Ok(received) => received,
            // Nothing there; or the other end is not there yet, or not any more.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => return Ok(false),
            Err(error) => return Err(error).context("receiving"),
        };
        let write = |slices: &[IoSlice<'_>]| match writev(&*self.tun, slices) {
            Ok(_) => count(&self.counters.inbound),
            Err(_) => count(&self.counters.write_errors),
        };
        let mut rest = &self.buffer[..length];
        while !rest.is_empty() {
            let whole = leading_train(rest, stride, self.piece_bytes);
            let (datagrams, after) = rest.split_at(rest.len().min(stride * whole.unwrap_or(1)));
            rest = after;
            if let Some(count) = whole {
                let mut slices = [IoSlice::new(&[]); DATAGRAMS_MAX];
                for (slice, datagram) in slices.iter_mut().zip(datagrams.chunks(stride)) {
                    *slice = IoSlice::new(&datagram[HEADER_BYTES..]);
                }
                write(&slices[..count]);
                continue;
            }
            match self.rebuilds.add(datagrams) {
                Added::Complete(super_segment) => {
                    count(&self.counters.rebuilt);
                    write(&[IoSlice::new(super_segment)]);
                }
                Added::Kept { gave_up: true } => count(&self.counters.incomplete),
                Added::Kept { gave_up: false } => {}
                Added::Malformed => count(&self.counters.malformed),
            }
        }
        Ok(true)
    }
}

/// Runs both directions of a queue on the calling thread.
fn run_together(mut outbound: Outbound, mut inbound: Inbound) -> anyhow::Result<()> {
    let (tun, socket) = (Arc::clone(&outbound.tun), Arc::clone(&outbound.socket));
    rustix::io::ioctl_fionbio(&*tun, true)?;
    socket.set_nonblocking(true)?;
    loop {
        let mut worked = false;
        for _ in 0..TURNS_PER_DIRECTION {
            if !outbound.turn()? {
                break;
            }
            worked = true;
        }
        for _ in 0..TURNS_PER_DIRECTION {
            if !inbound.turn()? {
                break;
            }
            worked = true;
        }
        if !worked {
            let readable = &mut [tun.as_fd(), socket.as_fd()].map(|source| PollFd::new(source, PollFlags::POLLIN));
            // Interrupted or not, the next round finds out what there is to do.
            let _ = poll(readable, PollTimeout::NONE);
        }
    }
}

/// Receives one datagram or several that the kernel has merged: all of them `.1` bytes long, the last one perhaps less.
fn receive(socket: &UdpSocket, buffer: &mut [u8], control: &mut [u8]) -> nix::Result<(usize, usize)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(control), MsgFlags::empty())?;
    let merged = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(bytes) => usize::try_from(bytes).ok().filter(|&bytes| bytes > 0),
        _ => None,
    });
    Ok((received.bytes, merged.unwrap_or(received.bytes)))
}

fn header_bytes(train: u32, index: usize, datagrams: usize) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&train.to_le_bytes());
    bytes[4..6].copy_from_slice(&(index as u16).to_le_bytes());
    bytes[6..].copy_from_slice(&(datagrams as u16).to_le_bytes());
    bytes
}

/// Train number, index and count of a datagram that can be part of a train of such pieces: all but the last are full,
/// and none is empty.
fn parse(datagram: &[u8], piece_bytes: usize) -> Option<(u32, usize, usize)> {
    let (header, piece) = datagram.split_first_chunk::<HEADER_BYTES>()?;
    let train = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let index = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let datagrams = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let fits =
        if index + 1 < datagrams { piece.len() == piece_bytes } else { (1..=piece_bytes).contains(&piece.len()) };
    (index < datagrams && datagrams <= DATAGRAMS_MAX && fits).then_some((train, index, datagrams))
}

/// How many datagrams the train has that `received` begins with, if all of them are there and in order.
fn leading_train(received: &[u8], stride: usize, piece_bytes: usize) -> Option<usize> {
    let mut datagrams = received.chunks(stride);
    let (train, 0, count) = parse(datagrams.next()?, piece_bytes)? else { return None };
    let follows = |index| datagrams.next().and_then(|next| parse(next, piece_bytes)) == Some((train, index, count));
    (1..count).all(follows).then_some(count)
}

/// A train of which some datagrams are there.
#[derive(Debug)]
struct Rebuild {
    train: u32,
    datagrams: usize,
    /// One bit for each that is there.
    present: u64,
    /// Their pieces, each at its place.
    bytes: Vec<u8>,
}

/// What became of a datagram.
#[derive(PartialEq, Eq, Debug)]
enum Added<'r> {
    /// It was the last one missing: the super-segment.
    Complete(&'r [u8]),
    /// It waits for others; an older train may have had to give up.
    Kept { gave_up: bool },
    /// It is part of no train.
    Malformed,
}

/// The trains that are being put together, oldest first.
#[derive(Debug)]
struct Rebuilds {
    piece_bytes: usize,
    trains: VecDeque<Rebuild>,
    /// The last one completed; its buffer serves the next.
    done: Vec<u8>,
}

impl Rebuilds {
    fn new(piece_bytes: usize) -> Self {
        Self { piece_bytes, trains: VecDeque::new(), done: Vec::new() }
    }

    fn add(&mut self, datagram: &[u8]) -> Added<'_> {
        let Some((train, index, datagrams)) = parse(datagram, self.piece_bytes) else { return Added::Malformed };
        let mut gave_up = false;
        let place = match self.trains.iter().position(|rebuild| rebuild.train == train) {
            Some(place) if self.trains[place].datagrams != datagrams => return Added::Malformed,
            Some(place) => place,
            None => {
                let mut bytes = std::mem::take(&mut self.done);
                if self.trains.len() == REBUILDS_MAX {
                    bytes = self.trains.pop_front().map(|rebuild| rebuild.bytes).unwrap_or_default();
                    gave_up = true;
                }
                bytes.resize(DATAGRAMS_MAX * self.piece_bytes, 0);
                self.trains.push_back(Rebuild { train, datagrams, present: 0, bytes });
                self.trains.len() - 1
            }
        };
        let rebuild = &mut self.trains[place];
        if rebuild.present & 1 << index != 0 {
            return Added::Kept { gave_up };
        }
        let (start, piece) = (index * self.piece_bytes, &datagram[HEADER_BYTES..]);
        rebuild.bytes[start..start + piece.len()].copy_from_slice(piece);
        rebuild.present |= 1 << index;
        if index + 1 == datagrams {
            // Only the last piece knows where the super-segment ends; no other can be beyond it.
            rebuild.bytes.truncate(start + piece.len());
        }
        if rebuild.present.count_ones() as usize != datagrams {
            return Added::Kept { gave_up };
        }
        self.done = self.trains.remove(place).map(|rebuild| rebuild.bytes).unwrap_or_default();
        Added::Complete(&self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 10;

    fn train(number: u32, super_segment: &[u8]) -> Vec<Vec<u8>> {
        let pieces = super_segment.chunks(PIECE);
        let datagrams = pieces.len();
        let datagram = |(index, piece): (usize, &[u8])| [&header_bytes(number, index, datagrams)[..], piece].concat();
        pieces.enumerate().map(datagram).collect()
    }

    fn bytes(length: u8) -> Vec<u8> {
        (0..length).collect()
    }

    #[test]
    fn merged_trains_are_told_apart_where_they_are_whole() {
        let (one, two) = (train(1, &bytes(20)).concat(), train(2, &bytes(13)).concat());
        let stride = HEADER_BYTES + PIECE;
        let merged = [one.clone(), two.clone()].concat();
        assert_eq!(leading_train(&merged, stride, PIECE), Some(2));
        assert_eq!(leading_train(&merged[2 * stride..], stride, PIECE), Some(2));
        assert_eq!(leading_train(&one[..stride], stride, PIECE), None, "its end is missing");
        assert_eq!(leading_train(&one[stride..], stride, PIECE), None, "its beginning is missing");
        assert_eq!(leading_train(&two[..stride + HEADER_BYTES], stride, PIECE), None, "its last piece is empty");
    }

    #[test]
    fn a_cut_train_is_put_together_in_any_order_and_beside_others() {
        let (one, two) = (train(1, &bytes(25)), train(2, &bytes(40)));
        let mut rebuilds = Rebuilds::new(PIECE);
        let longer = [&header_bytes(1, 2, 3)[..], &bytes(9)].concat();
        for datagram in [&one[2], &longer, &two[3], &two[0], &one[0], &two[1], &two[1]] {
            assert_eq!(rebuilds.add(datagram), Added::Kept { gave_up: false });
        }
        assert_eq!(rebuilds.add(&one[1]), Added::Complete(&bytes(25)));
        assert_eq!(rebuilds.add(&two[2]), Added::Complete(&bytes(40)));
    }

    #[test]
    fn a_train_that_lost_a_datagram_gives_way_in_the_end() {
        let mut rebuilds = Rebuilds::new(PIECE);
        for number in 0..REBUILDS_MAX as u32 {
            assert_eq!(rebuilds.add(&train(number, &bytes(20))[0]), Added::Kept { gave_up: false });
        }
        assert_eq!(rebuilds.add(&train(100, &bytes(20))[0]), Added::Kept { gave_up: true });
        assert_eq!(rebuilds.add(&train(100, &bytes(20))[1]), Added::Complete(&bytes(20)));
        assert_eq!(rebuilds.trains.len(), REBUILDS_MAX - 1);
    }

    #[test]
    fn what_no_train_can_contain_is_malformed() {
        let mut rebuilds = Rebuilds::new(PIECE);
        let long = [&header_bytes(1, 0, 1)[..], &bytes(11)].concat();
        let short = [&header_bytes(1, 0, 2)[..], &bytes(9)].concat();
        let beyond = [&header_bytes(1, 2, 2)[..], &bytes(10)].concat();
        let many = [&header_bytes(1, 0, DATAGRAMS_MAX + 1)[..], &bytes(10)].concat();
        for datagram in [&bytes(5), &header_bytes(1, 0, 1).to_vec(), &long, &short, &beyond, &many] {
            assert_eq!(rebuilds.add(datagram), Added::Malformed);
        }
        assert_eq!(rebuilds.add(&train(1, &bytes(20))[0]), Added::Kept { gave_up: false });
        assert_eq!(rebuilds.add(&train(1, &bytes(30))[1]), Added::Malformed, "another count than before");
    }
}
