//! The programs that measurements are made of: what carries packets and what makes them, as subcommands of this binary
//! so that the harness can start them in namespaces.
//!
//! Each prints one JSON object per line on its output: `{"ready":true}` when others may start, and at its end its
//! result. What goes wrong goes to the error output, with exit status 1. All of them end at SIGTERM and SIGINT.

mod echo;
mod emulator;
mod null_tunnel;
mod transfer;

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

/// Receive and send buffers of the tools' UDP sockets: what 10 Gbit/s bring in 13 ms.
const SOCKET_BUFFER_BYTES: usize = 16 << 20;

/// How long a thread may be blocked before it looks whether it should end.
const STOP_LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct ToolArgs {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Copy packets between a TUN interface and UDP with every offload and no cryptography
    NullTunnel(null_tunnel::NullTunnelArgs),
    /// Be a link with delay, loss, reordering and a bottleneck between two TUN interfaces
    Emulate(emulator::EmulateArgs),
    /// Send back whatever comes, over TCP and UDP
    EchoServer(echo::EchoServerArgs),
    /// Measure how long requests take to come back
    EchoClient(echo::EchoClientArgs),
    /// Send a seeded stream and its hash over TCP
    Send(transfer::SendArgs),
    /// Take one stream over TCP and say whether its hash is right
    Receive(transfer::ReceiveArgs),
    /// Send numbered, hashed datagrams
    UdpSend(transfer::UdpSendArgs),
    /// Take numbered, hashed datagrams and count those lost, reordered, duplicated and corrupted
    UdpReceive(transfer::UdpReceiveArgs),
}

/// Runs one tool to its end.
pub(crate) fn run(arguments: ToolArgs) -> anyhow::Result<()> {
    match arguments.tool {
        Tool::NullTunnel(arguments) => null_tunnel::run(&arguments),
        Tool::Emulate(arguments) => emulator::run(&arguments),
        Tool::EchoServer(arguments) => echo::serve(&arguments),
        Tool::EchoClient(arguments) => echo::measure(&arguments),
        Tool::Send(arguments) => transfer::send(&arguments),
        Tool::Receive(arguments) => transfer::receive(&arguments),
        Tool::UdpSend(arguments) => transfer::udp_send(&arguments),
        Tool::UdpReceive(arguments) => transfer::udp_receive(&arguments),
    }
}

/// Says that others may start.
#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    /// Where a server listens: the port is its own choice if it was given none.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
}

fn print_ready(address: Option<SocketAddr>) -> anyhow::Result<()> {
    print_line(&Ready { ready: true, address })
}

/// Prints one JSON line, at once.
fn print_line(result: &impl Serialize) -> anyhow::Result<()> {
    let line = serde_json::to_string(result)?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).context("writing the result")
}

/// SIGTERM and SIGINT, held back from the calling thread and all that it starts from then on.
#[derive(Debug)]
struct EndSignals(SigSet);

impl EndSignals {
    fn hold() -> anyhow::Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        signals.thread_block().context("holding signals back")?;
        Ok(Self(signals))
    }

    /// Blocks until one of them comes.
    fn wait(&self) {
        // It fails only for a set that cannot be waited for; this one can.
        let _ = self.0.wait();
    }

    /// A flag that is raised when one of them comes.
    fn into_flag(self) -> Arc<AtomicBool> {
        let stop = Arc::new(AtomicBool::new(false));
        let raised = Arc::clone(&stop);
        std::thread::spawn(move || {
            self.wait();
            raised.store(true, Ordering::Relaxed);
        });
        stop
    }
}

/// Gives a socket big buffers: as asked if we are privileged, else as big as the system lets us.
fn enlarge_buffers(socket: impl AsFd) -> anyhow::Result<()> {
    use rustix::net::sockopt;
    let socket = socket.as_fd();
    sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    Ok(())
}
