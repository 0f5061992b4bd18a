//! The signals that end a node, and the one that makes it look for its peers.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Catches the signals that ask the process to end. From its making until the process ends, none of them kills it.
///
/// SIGHUP is among them: a node in a terminal that is closed must take its socket away too.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    quit: Signal,
    rediscover: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    /// To end; by the signal of this name.
    Stop(&'static str),
    /// To look for all peers at once.
    Rediscover,
}

impl Signals {
    /// Needs a tokio runtime with I/O.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            rediscover: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.hang_up.recv() => Told::Stop("SIGHUP"),
            _ = self.quit.recv() => Told::Stop("SIGQUIT"),
            _ = self.rediscover.recv() => Told::Rediscover,
        }
    }

    /// The name of the next one that asks the process to end; for when there is nobody yet to look for. Cancel-safe.
    pub(crate) async fn stop(&mut self) -> &'static str {
        loop {
            if let Told::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}
