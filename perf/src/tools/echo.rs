//! Request and response: how long it takes until what was sent comes back.
//!
//! One request is out at a time. The next one leaves at its place in the schedule, or at once when the last answer came
//! later than that.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::{print_line, print_ready};

/// Longest UDP payload over IPv4.
const REQUEST_BYTES_MAX: usize = 65_507;
/// Each request begins with its number, so that a late answer is not taken for the right one.
const NUMBER_BYTES: usize = 8;
/// Round trips of one measurement, four bytes each: a measurement that has so many ends.
const SAMPLES_MAX: usize = 10_000_000;
/// How long a TCP connection may keep us waiting.
const TCP_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct EchoServerArgs {
    /// Where to listen, with TCP and UDP; port 0 is any port that both have free
    #[arg(long)]
    listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EchoClientArgs {
    /// The server's address
    #[arg(long)]
    server: SocketAddr,
    /// What to send requests with
    #[arg(long, value_enum, default_value_t = Protocol::Udp)]
    protocol: Protocol,
    /// Bytes of a request
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Microseconds from one request to the next; 0 is as fast as they come back
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(0..=60_000_000))]
    interval_us: u64,
    /// How long to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// After how many milliseconds a UDP request counts as lost
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=4000))]
    timeout_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

/// Round-trip times, in microseconds; none if no answer came.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
struct Latency {
    count: usize,
    lost: u64,
    min: Option<f64>,
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    p99_9: Option<f64>,
    max: Option<f64>,
}

impl Latency {
    /// Sums up round trips, in nanoseconds.
    fn of(mut samples: Vec<u32>, lost: u64) -> Self {
        samples.sort_unstable();
        // The smallest sample that at least this share of all is not above.
        let quantile = |share: f64| {
            let rank = (share * samples.len() as f64).ceil() as usize;
            samples.get(rank.max(1) - 1).map(|&nanoseconds| f64::from(nanoseconds) / 1e3)
        };
        Self {
            count: samples.len(),
            lost,
            min: quantile(0.0),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            max: quantile(1.0),
        }
    }
}

/// Answers until it is killed.
pub(super) fn serve(arguments: &EchoServerArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(arguments.listen).with_context(|| format!("listening on {}", arguments.listen))?;
    let address = listener.local_addr()?;
    let socket = UdpSocket::bind(address).with_context(|| format!("binding {address}"))?;
    print_ready(Some(address))?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; REQUEST_BYTES_MAX];
        loop {
            // Errors are about clients that have gone.
            if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], client);
            }
        }
    });
    loop {
        let (stream, _) = listener.accept().context("accepting")?;
        std::thread::spawn(move || send_back(stream));
    }
}

/// Sends back what comes, until the client has enough.
fn send_back(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// Sends requests and prints how long they took.
pub(super) fn measure(arguments: &EchoClientArgs) -> anyhow::Result<()> {
    ensure!(
        (NUMBER_BYTES..=REQUEST_BYTES_MAX).contains(&arguments.size),
        "a request is {NUMBER_BYTES} to {REQUEST_BYTES_MAX} bytes long"
    );
    ensure!(arguments.seconds > 0.0 && arguments.seconds <= 3600.0, "a measurement takes up to 3600 seconds");
    let mut exchange = Exchange::connect(arguments)?;
    let interval = Duration::from_micros(arguments.interval_us);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(arguments.seconds);
    let mut due = start;
    let mut request = vec![0; arguments.size];
    let mut answer = vec![0; REQUEST_BYTES_MAX];
    let (mut samples, mut lost) = (Vec::new(), 0);
    for number in 0_u64.. {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        if sent >= end || samples.len() == SAMPLES_MAX {
            break;
        }
        request[..NUMBER_BYTES].copy_from_slice(&number.to_le_bytes());
        if exchange.round_trip(&request, &mut answer)? {
            samples.push(u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX));
        } else {
            lost += 1;
        }
        due = (due + interval).max(Instant::now());
    }
    print_line(&Latency::of(samples, lost))
}

/// What requests go through.
#[derive(Debug)]
enum Exchange {
    Tcp(TcpStream),
    Udp(UdpSocket, Duration),
}

impl Exchange {
    fn connect(arguments: &EchoClientArgs) -> anyhow::Result<Self> {
        // The kernel may be this many nanoseconds late in waking us; its default would be in every schedule.
        nix::sys::prctl::set_timerslack(1).context("asking for precise timers")?;
        let server = arguments.server;
        if arguments.protocol == Protocol::Tcp {
            let stream = TcpStream::connect_timeout(&server, TCP_PATIENCE);
            let stream = stream.with_context(|| format!("connecting to {server}"))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TCP_PATIENCE))?;
            return Ok(Self::Tcp(stream));
        }
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server).with_context(|| format!("connecting to {server}"))?;
        Ok(Self::Udp(socket, Duration::from_millis(arguments.timeout_ms)))
    }

    /// Sends a request and waits for its answer; `false` if none came in time.
    fn round_trip(&mut self, request: &[u8], answer: &mut [u8]) -> anyhow::Result<bool> {
        match self {
            Self::Tcp(stream) => {
                stream.write_all(request).context("sending a request")?;
                let answer = &mut answer[..request.len()];
                stream.read_exact(answer).context("waiting for an answer")?;
                if answer != request {
                    bail!("the answer is not what was sent");
                }
                Ok(true)
            }
            Self::Udp(socket, timeout) => {
                let deadline = Instant::now() + *timeout;
                if socket.send(request).is_err() {
                    // Nobody listens there: what an earlier request has learnt.
                    std::thread::sleep(*timeout);
                    return Ok(false);
                }
                loop {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(false);
                    }
                    socket.set_read_timeout(Some(left))?;
                    // Late answers to earlier requests are passed over, and so are errors: the deadline ends it.
                    if socket.recv(answer).is_ok_and(|length| answer[..length] == *request) {
                        return Ok(true);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let latency = Latency::of((1..=1000).rev().map(|us| us * 1000).collect(), 3);
        let expected = Latency {
            count: 1000,
            lost: 3,
            min: Some(1.0),
            p50: Some(500.0),
            p90: Some(900.0),
            p99: Some(990.0),
            p99_9: Some(999.0),
            max: Some(1000.0),
        };
        assert_eq!(latency, expected);
    }

    #[test]
    fn without_an_answer_there_are_no_quantiles() {
        assert_eq!(Latency::of(Vec::new(), 7), Latency { lost: 7, ..Latency::default() });
    }
}
