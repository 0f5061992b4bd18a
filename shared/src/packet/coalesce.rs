//! Rebuilding super-segments: what arrived in pieces goes to the TUN as one packet, which the kernel takes through its
//! stack once (TSO, USO).
//!
//! Pieces gather in **runs**, one per flow. Those of a super-segment that the sender split are known to belong together
//! and come out as what went in. Other packets join only as the kernel itself would have joined them (its
//! `net/ipv4/tcp_offload.c`, `udp_offload.c` and `include/net/gro.h`), so that splitting the result gives the same
//! packets again, but for IPv4 ids that stood still, which count up then and mean nothing in packets that may not be
//! fragmented. Whatever does not join its flow's run ends it: order within a flow is always kept.
//!
//! Payloads stay where they are. Only headers are copied, and payload bytes read only to verify a complete checksum.

use super::checksum::PartialChecksum;
use super::headers::Transport;
use super::ip::PacketHeader;
use super::run::{Between, Flow, Joining, Lead, Run};
use crate::id::PeerIndex;
use crate::limits::COALESCE_RUNS_MAX;

pub use super::run::Span;

/// What goes to the TUN in one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joined<'a> {
    /// One packet as it stands.
    Whole {
        /// As given with the packet.
        owner: PeerIndex,
        /// All of it.
        packet: Span,
        /// Set when its checksum is partial.
        checksum: Option<PartialChecksum>,
    },
    /// A super-segment: new headers, and the payloads of its pieces in order.
    Super {
        /// As given with every piece.
        owner: PeerIndex,
        /// IP and transport header, at most [`crate::limits::COALESCE_HEADER_BYTES_MAX`] bytes.
        header: &'a [u8],
        /// Two to [`crate::limits::COALESCE_PIECES_MAX`], one per piece.
        payloads: &'a [Span],
        /// What it is made of.
        transport: Transport,
        /// IPv6 or IPv4.
        is_ipv6: bool,
        /// Payload bytes of each piece but the last, which may be shorter: the kernel's `gso_size`.
        segment_bytes: u16,
        /// Whether the first piece, and it alone, has TCP's CWR flag.
        has_cwr: bool,
        /// Its checksum, always partial.
        checksum: PartialChecksum,
        /// How many packets it stands for.
        packets: usize,
    },
}

/// Joins packets and segments into super-segments, [`COALESCE_RUNS_MAX`] flows at a time.
///
/// Owner: one worker, which flushes it at the end of every turn: nothing waits for company, and no [`Span`] outlives
/// the turn. Allocates nothing after `new`.
pub struct Coalescer {
    joins_tcp: bool,
    joins_udp: bool,
    runs: Box<[Run]>,
    flows: [Flow; COALESCE_RUNS_MAX],
    /// Numbers of all runs: first those that hold something, in the order they were begun, then the vacant ones.
    order: [u8; COALESCE_RUNS_MAX],
    begun: usize,
    /// The run whose super-segment's next piece may come.
    open_segments: Option<u8>,
}

impl Coalescer {
    /// A coalescer for a kernel that takes super-segments of TCP and UDP or not; packets and segments of what it does
    /// not take come out whole.
    pub fn new(joins_tcp: bool, joins_udp: bool) -> Self {
        Self {
            joins_tcp,
            joins_udp,
            runs: vec![Run::vacant(); COALESCE_RUNS_MAX].into_boxed_slice(),
            flows: [Flow::NONE; COALESCE_RUNS_MAX],
            order: std::array::from_fn(|number| number as u8),
            begun: 0,
            open_segments: None,
        }
    }

    /// Takes an admitted packet, `bytes`, trimmed to its IP length, which `header` was parsed from and which lies at
    /// `span`. It joins its flow's run by the kernel's rules, or starts one, or comes out whole.
    ///
    /// A packet that has no ports (a fragment, ICMP, ESP) may belong to any flow between its two addresses, so all
    /// their runs come out before it; those of others do not, lest one host's pings cost everybody the joining.
    pub fn add(
        &mut self,
        owner: PeerIndex,
        bytes: &[u8],
        header: &PacketHeader,
        span: Span,
        checksum: Option<PartialChecksum>,
        mut emit: impl FnMut(Joined<'_>),
    ) {
        let whole = Joined::Whole { owner, packet: span, checksum };
        let Some(flow) = Flow::of(bytes, header) else {
            self.emit_between(Between::of(bytes, header), &mut emit);
            return emit(whole);
        };
        let transport = flow.transport();
        let mut is_sound = self.joins(transport);
        if let Some(position) = self.position(&flow) {
            let number = self.order[position];
            match self.runs[usize::from(number)].join(owner, bytes, header, span, checksum) {
                Joining::Joined => {
                    if self.runs[usize::from(number)].is_ended {
                        self.emit_at(position, &mut emit);
                    }
                    return;
                }
                Joining::Unsound => is_sound = false,
                Joining::Apart => {}
            }
            self.emit_at(position, &mut emit);
        }
        let lead = is_sound.then(|| Lead::of_packet(bytes, header, transport, checksum)).flatten();
        match lead {
            Some(lead) => _ = self.begin(flow, owner, lead, bytes, span, &mut emit),
            None => emit(whole),
        }
    }

    /// Takes the first piece at hand of a super-segment that the sender split: an admitted TCP or UDP packet, as for
    /// [`Self::add`], whose own checksum is partial. It ends its flow's run and starts one.
    pub fn begin_segments(
        &mut self,
        owner: PeerIndex,
        bytes: &[u8],
        header: &PacketHeader,
        span: Span,
        mut emit: impl FnMut(Joined<'_>),
    ) {
        self.open_segments = None;
        let whole = Joined::Whole { owner, packet: span, checksum: PartialChecksum::of_transport(header) };
        let Some(flow) = Flow::of(bytes, header) else {
            self.emit_between(Between::of(bytes, header), &mut emit);
            return emit(whole);
        };
        if let Some(position) = self.position(&flow) {
            self.emit_at(position, &mut emit);
        }
        let transport = flow.transport();
        let lead = self.joins(transport).then(|| Lead::of_segments(bytes, header, transport)).flatten();
        match lead {
            Some(lead) => self.open_segments = Some(self.begin(flow, owner, lead, bytes, span, &mut emit)),
            None => emit(whole),
        }
    }

    /// Takes the next piece of the super-segment begun last, as the record's counter and the frame's flag tell.
    ///
    /// It was not parsed or admitted: only its payload counts, behind the first piece's headers, and whether TCP's FIN
    /// or PSH is set. False if it cannot belong there, as when that run has come out or ended, or is full; then nothing
    /// was taken, and it is to be treated as a first piece.
    pub fn continue_segments(&mut self, bytes: &[u8], span: Span) -> bool {
        self.open_segments.is_some_and(|number| self.runs[usize::from(number)].continue_segments(bytes, span))
    }

    /// The next segment does not continue the super-segment begun last: a record between them was lost.
    pub fn break_segments(&mut self) {
        self.open_segments = None;
    }

    /// Gives out what an admitted packet, as for [`Self::add`], must not overtake, because the packet itself goes another
    /// way.
    pub fn end_flow(&mut self, bytes: &[u8], header: &PacketHeader, mut emit: impl FnMut(Joined<'_>)) {
        match Flow::of(bytes, header) {
            Some(flow) => {
                if let Some(position) = self.position(&flow) {
                    self.emit_at(position, &mut emit);
                }
            }
            None => self.emit_between(Between::of(bytes, header), &mut emit),
        }
    }

    /// Gives out everything, in the order in which the runs were begun. Called at the end of a worker's turn.
    pub fn flush(&mut self, mut emit: impl FnMut(Joined<'_>)) {
        while self.begun > 0 {
            self.emit_at(0, &mut emit);
        }
    }

    /// Whether the kernel takes super-segments of this.
    pub fn joins(&self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self.joins_tcp,
            Transport::Udp => self.joins_udp,
        }
    }

    /// The flow's place in `order`.
    fn position(&self, flow: &Flow) -> Option<usize> {
        self.order[..self.begun].iter().position(|&number| self.flows[usize::from(number)] == *flow)
    }

    /// Begins a run and returns its number. The oldest one makes room.
    fn begin(
        &mut self,
        flow: Flow,
        owner: PeerIndex,
        lead: Lead,
        bytes: &[u8],
        span: Span,
        emit: &mut impl FnMut(Joined<'_>),
    ) -> u8 {
        if self.begun == COALESCE_RUNS_MAX {
            self.emit_at(0, emit);
        }
        let number = self.order[self.begun];
        self.begun += 1;
        self.flows[usize::from(number)] = flow;
        self.runs[usize::from(number)].begin(owner, lead, bytes, span);
        number
    }

    /// Gives out what goes from one address to another.
    fn emit_between(&mut self, between: Option<Between>, emit: &mut impl FnMut(Joined<'_>)) {
        let mut position = 0;
        while position < self.begun {
            if Some(self.flows[usize::from(self.order[position])].between) == between {
                self.emit_at(position, emit);
            } else {
                position += 1;
            }
        }
    }

    /// Gives out the run at a place in `order`, which is below `begun`, and makes it vacant.
    fn emit_at(&mut self, position: usize, emit: &mut impl FnMut(Joined<'_>)) {
        let number = self.order[position];
        self.order[position..self.begun].rotate_left(1);
        self.begun -= 1;
        self.open_segments = self.open_segments.filter(|&open| open != number);
        emit(self.runs[usize::from(number)].finish());
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum::{Sum, complete};
    use super::super::segment::Split;
    use super::*;

    const TCP_PARTIAL: PartialChecksum = PartialChecksum { start: 20, offset: 16 };

    /// A TCP super-segment over IPv4, ports 1000 to `port`, whose payload counts its bytes.
    fn super_segment(port: u8, payload_bytes: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0x12, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let length = (40 + payload_bytes) as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        let checksum = !Sum::default().plus(&packet).fold();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend([3, 232, 0, port, 0xff, 0xff, 0xff, 0, 0, 0, 0, 9, 0x50, 0x19, 1, 0, 0, 0, 0, 0]);
        let seed = Sum::default().plus(&packet[12..20]).plus(&[0, 6]).plus(&(length - 20).to_be_bytes()).fold();
        packet[36..38].copy_from_slice(&seed.to_be_bytes());
        packet.extend((0..payload_bytes).map(|at| at as u8));
        packet
    }

    fn split(packet: &[u8], segment_bytes: u16) -> Vec<Vec<u8>> {
        let header = PacketHeader::parse(packet).unwrap();
        let split = Split::new(packet, &header, Transport::Tcp, segment_bytes).unwrap();
        let piece = |index| {
            let mut piece = vec![0; split.piece_bytes(index)];
            split.write_piece(packet, index, &mut piece);
            piece
        };
        (0..split.pieces()).map(piece).collect()
    }

    /// Receive buffers, one packet each, and what came out as bytes, with the number of packets in it.
    #[derive(Default)]
    struct Kernel {
        buffers: Vec<Vec<u8>>,
        taken: Vec<(Vec<u8>, usize)>,
    }

    impl Kernel {
        fn receive(&mut self, packet: &[u8]) -> (PacketHeader, Span) {
            let span = Span { buffer: self.buffers.len() as u16, offset: 0, bytes: packet.len() as u32 };
            self.buffers.push(packet.to_vec());
            (PacketHeader::parse(packet).unwrap(), span)
        }
    }

    fn take(buffers: &[Vec<u8>], joined: Joined<'_>) -> (Vec<u8>, usize) {
        let bytes = |span: &Span| &buffers[usize::from(span.buffer)][span.offset as usize..][..span.bytes as usize];
        match joined {
            Joined::Whole { packet, .. } => (bytes(&packet).to_vec(), 1),
            Joined::Super { header, payloads, packets, .. } => {
                assert_eq!(packets, payloads.len());
                ([header].into_iter().chain(payloads.iter().map(bytes)).flatten().copied().collect(), packets)
            }
        }
    }

    #[test]
    fn a_super_segment_that_was_split_comes_out_as_it_went_in() {
        let packet = super_segment(80, 10_000);
        let (mut coalescer, mut kernel) = (Coalescer::new(true, true), Kernel::default());
        for (index, piece) in split(&packet, 1400).iter().enumerate() {
            let (header, span) = kernel.receive(piece);
            if index == 0 {
                coalescer.begin_segments(PeerIndex(1), piece, &header, span, |_| panic!("nothing is done yet"));
            } else {
                assert!(coalescer.continue_segments(piece, span));
            }
        }
        coalescer.flush(|joined| {
            let Joined::Super { segment_bytes, has_cwr, checksum, .. } = joined else { panic!("{joined:?}") };
            assert_eq!((segment_bytes, has_cwr, checksum), (1400, false, TCP_PARTIAL));
            kernel.taken.push(take(&kernel.buffers, joined));
        });
        assert_eq!(kernel.taken, [(packet, 8)]);
        coalescer.flush(|joined| panic!("{joined:?} came out twice"));
    }

    #[test]
    fn packets_of_two_flows_join_each_in_its_own_order_whether_partial_or_complete() {
        let packets = [super_segment(80, 4200), super_segment(81, 4200)];
        let pieces = packets.each_ref().map(|packet| split(packet, 1400));
        let (mut coalescer, mut kernel) = (Coalescer::new(true, true), Kernel::default());
        for index in 0..3 {
            for (flow, pieces) in pieces.iter().enumerate() {
                let mut piece = pieces[index].clone();
                let partial = (flow == 0).then_some(TCP_PARTIAL);
                if partial.is_none() {
                    complete(&mut piece, TCP_PARTIAL).unwrap();
                    // The last piece has FIN as well, which ordinary packets do not join with.
                    piece[33] &= !1;
                }
                let (header, span) = kernel.receive(&piece);
                let Kernel { buffers, taken } = &mut kernel;
                coalescer.add(PeerIndex(1), &piece, &header, span, partial, |j| taken.push(take(buffers, j)));
            }
        }
        let Kernel { buffers, taken } = &mut kernel;
        coalescer.flush(|joined| taken.push(take(buffers, joined)));
        let counts: Vec<_> = kernel.taken.iter().map(|(packet, packets)| (packet.len(), *packets)).collect();
        // Partial: two pieces, and the one with FIN. Complete: two, and one that became wrong without its FIN.
        assert_eq!(counts, [(2840, 2), (1440, 1), (2840, 2), (1440, 1)]);
    }

    #[test]
    fn a_lost_piece_ends_the_super_segment_and_what_follows_makes_another() {
        let pieces = split(&super_segment(80, 7000), 1400);
        let (mut coalescer, mut kernel) = (Coalescer::new(true, true), Kernel::default());
        for index in [0, 1, 3, 4] {
            let (header, span) = kernel.receive(&pieces[index]);
            let Kernel { buffers, taken } = &mut kernel;
            if index == 3 {
                coalescer.break_segments();
                assert!(!coalescer.continue_segments(&pieces[index], span));
            }
            if index % 3 == 0 {
                coalescer.begin_segments(PeerIndex(1), &pieces[index], &header, span, |j| taken.push(take(buffers, j)));
            } else {
                assert!(coalescer.continue_segments(&pieces[index], span));
            }
        }
        let Kernel { buffers, taken } = &mut kernel;
        coalescer.flush(|joined| taken.push(take(buffers, joined)));
        let again: Vec<_> = kernel.taken.iter().flat_map(|(packet, _)| split(packet, 1400)).collect();
        assert_eq!(kernel.taken.len(), 2);
        assert_eq!(again, [0, 1, 3, 4].map(|index| pieces[index].clone()));
    }

    #[test]
    fn a_partial_checksum_that_is_not_the_transports_own_joins_nothing() {
        let pieces = split(&super_segment(80, 4200), 1400);
        let foreign = PartialChecksum { start: 20, offset: 18 };
        let (mut coalescer, mut kernel, mut taken) = (Coalescer::new(true, true), Kernel::default(), Vec::new());
        for (piece, checksum) in pieces.iter().zip([TCP_PARTIAL, foreign]) {
            let (header, span) = kernel.receive(piece);
            coalescer.add(PeerIndex(1), piece, &header, span, Some(checksum), |joined| match joined {
                Joined::Whole { checksum, .. } => taken.push(checksum),
                Joined::Super { .. } => panic!("{joined:?}"),
            });
        }
        assert_eq!(taken, [Some(TCP_PARTIAL), Some(foreign)]);
    }
}
