//! The listeners: one unconnected socket per address of ours and worker.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use ringlane_shared::limits::LISTEN_ADDRESSES_MAX;
use thiserror::Error;
use tokio::net::UdpSocket;

use super::socket;

/// Sockets whose port we remember to have found unused. Addresses come and go, with IPv6 privacy daily.
const CHECKED_MAX: usize = 4096;

/// Why we do not listen at an address.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Somebody else holds the port.
    #[error(
        "UDP port {} at {} is in use by another program: stop it, or choose another `dataplane.port`",
        .0.port(), .0.ip()
    )]
    InUse(SocketAddr),
    /// The kernel refused: most often the address has gone again, or is not ready yet.
    #[error("cannot listen at UDP {address}: {error}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// More than [`LISTEN_ADDRESSES_MAX`] addresses; the rest is not used.
    #[error("{0} addresses to listen at, only the first {LISTEN_ADDRESSES_MAX} are used")]
    TooMany(usize),
}

/// All listeners. Owner: control.
#[derive(Debug)]
pub(super) struct Listeners {
    port: u16,
    workers: u8,
    sockets: BTreeMap<SocketAddr, UdpSocket>,
    /// Ports of lanes that another node relays, beside the workers'.
    passages: BTreeMap<SocketAddr, UdpSocket>,
    /// Addresses we listen at with at least one worker's port.
    ips: Vec<IpAddr>,
    /// Ports that were found unused, and since then shared with nobody but our own lanes' sockets.
    checked: BTreeSet<SocketAddr>,
}

impl Listeners {
    pub(super) fn new(port: u16, workers: u8) -> Self {
        Self {
            port,
            workers,
            sockets: BTreeMap::new(),
            passages: BTreeMap::new(),
            ips: Vec::new(),
            checked: BTreeSet::new(),
        }
    }

    /// Opens what is missing at `ips` and closes what is elsewhere.
    pub(super) fn set_ips(&mut self, ips: impl IntoIterator<Item = IpAddr>) -> Result<(), Vec<ListenError>> {
        let wanted: BTreeSet<IpAddr> = ips.into_iter().collect();
        let mut errors = Vec::new();
        if wanted.len() > LISTEN_ADDRESSES_MAX {
            errors.push(ListenError::TooMany(wanted.len()));
        }
        let wanted: BTreeSet<IpAddr> = wanted.into_iter().take(LISTEN_ADDRESSES_MAX).collect();
        self.sockets.retain(|local, _| wanted.contains(&local.ip()));
        let first = self.port;
        let ports = (0..self.workers).filter_map(move |worker| first.checked_add(worker.into()));
        for local in wanted.iter().flat_map(|&ip| ports.clone().map(move |port| SocketAddr::new(ip, port))) {
            if let Err(error) = self.open(local) {
                errors.push(error);
            }
        }
        self.ips = wanted.into_iter().filter(|ip| self.sockets.keys().any(|local| local.ip() == *ip)).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn open(&mut self, local: SocketAddr) -> Result<(), ListenError> {
        if self.sockets.contains_key(&local) {
            return Ok(());
        }
        // An address that comes back may still have lanes of ours: the port is in use then, but by us.
        if !self.checked.contains(&local) {
            socket::check_unused(local).map_err(|error| refused(local, error))?;
        }
        let socket = socket::listener(local).map_err(|error| refused(local, error))?;
        self.sockets.insert(local, socket);
        if self.checked.len() >= CHECKED_MAX {
            self.checked.retain(|local| self.sockets.contains_key(local));
        }
        self.checked.insert(local);
        Ok(())
    }

    /// Addresses we listen at.
    pub(super) fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    pub(super) fn get(&self, local: SocketAddr) -> Option<&UdpSocket> {
        self.sockets.get(&local).or_else(|| self.passages.get(&local))
    }

    /// Opens a port of its own for a relayed lane.
    pub(super) fn open_passage(&mut self, ip: IpAddr) -> io::Result<SocketAddr> {
        let (local, socket) = socket::on_free_port(ip)?;
        self.passages.insert(local, socket);
        Ok(local)
    }

    pub(super) fn close_passage(&mut self, local: SocketAddr) {
        self.passages.remove(&local);
    }

    /// The ports of relayed lanes.
    pub(super) fn passages(&self) -> impl Iterator<Item = SocketAddr> {
        self.passages.keys().copied()
    }

    pub(super) fn locals(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.keys().copied()
    }
}

fn refused(address: SocketAddr, error: io::Error) -> ListenError {
    match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        _ => ListenError::Refused { address, error },
    }
}
