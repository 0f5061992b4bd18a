//! A host with many TCP connections, on a stack of its own.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ringlane_shared::plane::PacketBatch;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::super::stack::Stack;

const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6879, 0x7072, 0x7370, 0x6163, 0x6500, 1, 2);
const FIRST_PORT: u16 = 1024;
/// How often connections with which nothing is done are looked at.
const TIMERS_EVERY: Duration = Duration::from_millis(50);
const BUFFER_BYTES: usize = 8192;

pub(super) struct Host {
    stack: Stack,
    connections: Vec<(SocketSet<'static>, SocketHandle)>,
    /// Position by port.
    ports: HashMap<u16, usize>,
    /// Those something was done with since they were last looked at.
    touched: BTreeSet<usize>,
    all_looked_at: Instant,
    /// ICMPv6 packets that arrived.
    pub(super) icmp: Vec<Vec<u8>>,
}

impl Host {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            stack: Stack::new(7, now),
            connections: Vec::new(),
            ports: HashMap::new(),
            touched: BTreeSet::new(),
            all_looked_at: now,
            icmp: Vec::new(),
        }
    }

    pub(super) fn connect(&mut self, to: Ipv6Addr, port: u16) -> usize {
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        let own_port = FIRST_PORT + self.connections.len() as u16;
        let from = IpEndpoint::new(IpAddress::Ipv6(ADDRESS), own_port);
        socket.connect(self.stack.context(), (IpAddress::Ipv6(to), port), from).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        self.ports.insert(own_port, self.connections.len());
        self.touched.insert(self.connections.len());
        self.connections.push((sockets, handle));
        self.connections.len() - 1
    }

    /// What it has to send, a batch at a time.
    pub(super) fn packets(&mut self, now: Instant) -> Option<PacketBatch> {
        if now >= self.all_looked_at + TIMERS_EVERY {
            self.all_looked_at = now;
            self.touched = (0..self.connections.len()).collect();
        }
        while self.stack.has_room() {
            let Some(connection) = self.touched.pop_first() else { break };
            self.stack.flush(&mut self.connections[connection].0, now);
            if !self.stack.has_room() {
                self.touched.insert(connection);
            }
        }
        self.stack.take(Vec::new())
    }

    pub(super) fn deliver(&mut self, batch: &PacketBatch, now: Instant) {
        for item in batch.items() {
            if item.packet[6] == 58 {
                self.icmp.push(item.packet.to_vec());
                continue;
            }
            let port = u16::from_be_bytes([item.packet[42], item.packet[43]]);
            let connection = self.ports[&port];
            self.touched.insert(connection);
            let (sockets, _) = &mut self.connections[connection];
            self.stack.feed(sockets, item.packet, now);
        }
    }

    fn socket(&mut self, connection: usize) -> &mut Socket<'static> {
        self.touched.insert(connection);
        let (sockets, handle) = &mut self.connections[connection];
        sockets.get_mut(*handle)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn state(&self, connection: usize) -> State {
        let (sockets, handle) = &self.connections[connection];
        sockets.get::<Socket<'_>>(*handle).state()
    }

    pub(super) fn states(&self) -> impl Iterator<Item = State> {
        self.connections.iter().map(|(sockets, handle)| sockets.get::<Socket<'_>>(*handle).state())
    }

    /// Both sides have said all, and know it of each other.
    pub(super) fn is_over(&mut self, connection: usize) -> bool {
        matches!(self.state(connection), State::TimeWait | State::Closed)
    }

    pub(super) fn send(&mut self, connection: usize, bytes: &[u8]) -> usize {
        self.socket(connection).send_slice(bytes).unwrap_or(0)
    }

    pub(super) fn receive(&mut self, connection: usize, into: &mut Vec<u8>) {
        let socket = self.socket(connection);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), into.extend_from_slice(bytes))).unwrap();
        }
    }

    pub(super) fn close(&mut self, connection: usize) {
        self.socket(connection).close();
    }

    pub(super) fn abort(&mut self, connection: usize) {
        self.socket(connection).abort();
    }
}
