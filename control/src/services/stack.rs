//! The TCP stack: smoltcp, with as many sets of one socket as there are connections.
//!
//! smoltcp looks at every socket of a set for every packet. With a set for each connection, found by its flow, a packet
//! costs the same whether there is one connection or thousands, and each can be polled by itself.

use std::time::Instant;

use ringlane_shared::limits::{BATCH_BYTES_MAX, SERVICE_SEGMENTS_PER_VISIT, STREAM_PACKET_BYTES_MAX};
use ringlane_shared::plane::{BatchEnd, BatchItemForm, PacketBatch};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv6Address};

/// Room that only answers to packets may use: each may have one.
const ANSWER_ROOM_BYTES: usize = BATCH_BYTES_MAX / 4;
/// The stack's own address, as Hyprspace's; nothing is sent from it.
const OWN_ADDRESS: Ipv6Address = Ipv6Address::new(0xfd00, 0x6879, 0x7072, 0x7370, 0x696e, 0x7465, 0x726e, 0x616c);

/// The stack, and the packets that leave it. Owner: the service network.
pub(super) struct Stack {
    interface: Interface,
    seam: Seam,
    epoch: Instant,
    /// For packets of no connection: a set without sockets resets whatever it gets.
    nobody: SocketSet<'static>,
}

impl Stack {
    /// `seed` is random: initial sequence numbers are made from it.
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        let mut seam = Seam {
            inbound: Vec::with_capacity(STREAM_PACKET_BYTES_MAX),
            outbound: PacketBatch::new(BatchEnd::Services, Vec::new()),
            scratch: Vec::with_capacity(STREAM_PACKET_BYTES_MAX),
            dropped: 0,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut seam, StackInstant::ZERO);
        // Everybody is a neighbour, and every address is ours: what comes here was found to be for a service.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            // The list is empty, and has room for at least one.
            let _ = addresses.push(IpCidr::new(OWN_ADDRESS.into(), 0));
        });
        Self { interface, seam, epoch: now, nobody: SocketSet::new(Vec::new()) }
    }

    /// Gives a packet to a connection.
    pub(super) fn feed(&mut self, sockets: &mut SocketSet<'static>, packet: &[u8], now: Instant) {
        let now = self.at(now);
        self.seam.take_in(packet);
        self.interface.poll_ingress_single(now, &mut self.seam, sockets);
        self.seam.inbound.clear();
    }

    /// Resets the connection that a packet belongs to or asks for.
    pub(super) fn refuse(&mut self, packet: &[u8], now: Instant) {
        let now = self.at(now);
        self.seam.take_in(packet);
        self.interface.poll_ingress_single(now, &mut self.seam, &mut self.nobody);
        self.seam.inbound.clear();
    }

    /// Sends what a connection has to send, within its share and the room there is. Returns how many segments.
    pub(super) fn flush(&mut self, sockets: &mut SocketSet<'static>, now: Instant) -> usize {
        let now = self.at(now);
        let is_sent =
            |_: &usize| self.interface.poll_egress(now, &mut self.seam, sockets) == PollResult::SocketStateChanged;
        (0..SERVICE_SEGMENTS_PER_VISIT).take_while(is_sent).count()
    }

    /// When a connection wants to be flushed again.
    pub(super) fn deadline(&mut self, sockets: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(self.at(now), sockets)?;
        Some(self.epoch + std::time::Duration::from_micros(at.total_micros().try_into().unwrap_or(0)))
    }

    /// Sends a packet that was made elsewhere.
    pub(super) fn push(&mut self, packet: &[u8]) {
        self.seam.push(packet);
    }

    /// Whether connections can send.
    pub(super) fn has_room(&self) -> bool {
        self.seam.has_room()
    }

    /// What is to leave, if there is anything; `memory` is that of an earlier batch.
    pub(super) fn take(&mut self, memory: Vec<u8>) -> Option<PacketBatch> {
        let is_empty = self.seam.outbound.is_empty();
        (!is_empty).then(|| std::mem::replace(&mut self.seam.outbound, PacketBatch::new(BatchEnd::Services, memory)))
    }

    /// Packets for which there was no room. TCP sends them again.
    pub(super) fn dropped(&self) -> u64 {
        self.seam.dropped
    }

    /// What it takes for a socket to connect from here.
    #[cfg(test)]
    pub(super) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }

    fn at(&self, now: Instant) -> StackInstant {
        let since = now.saturating_duration_since(self.epoch).as_micros();
        StackInstant::from_micros(i64::try_from(since).unwrap_or(i64::MAX))
    }
}

/// Where packets enter and leave the stack.
struct Seam {
    /// The packet that enters; empty if none does.
    inbound: Vec<u8>,
    outbound: PacketBatch,
    scratch: Vec<u8>,
    dropped: u64,
}

impl Seam {
    fn take_in(&mut self, packet: &[u8]) {
        self.inbound.clear();
        self.inbound.extend_from_slice(packet);
    }

    fn has_room(&self) -> bool {
        self.outbound.bytes() + ANSWER_ROOM_BYTES <= BATCH_BYTES_MAX
    }

    fn push(&mut self, packet: &[u8]) {
        if !self.outbound.push(BatchItemForm::Packet { is_partial: false }, packet) {
            self.dropped += 1;
        }
    }
}

impl Device for Seam {
    type RxToken<'a> = Entering<'a>;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Entering<'_>, Leaving<'_>)> {
        let Self { inbound, outbound, scratch, dropped } = self;
        (!inbound.is_empty()).then_some((Entering(inbound), Leaving { outbound, scratch, dropped }))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Leaving<'_>> {
        let has_room = self.has_room();
        let Self { outbound, scratch, dropped, .. } = self;
        has_room.then_some(Leaving { outbound, scratch, dropped })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = STREAM_PACKET_BYTES_MAX;
        capabilities
    }
}

struct Entering<'a>(&'a [u8]);

impl RxToken for Entering<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Leaving<'a> {
    outbound: &'a mut PacketBatch,
    scratch: &'a mut Vec<u8>,
    dropped: &'a mut u64,
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, f: F) -> R {
        self.scratch.resize(bytes, 0);
        let result = f(self.scratch);
        if !self.outbound.push(BatchItemForm::Packet { is_partial: false }, self.scratch) {
            *self.dropped += 1;
        }
        result
    }
}
