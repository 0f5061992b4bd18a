//! Why packets and records die: one counter per variant, and never a log line.

/// Why a packet or record was dropped.
///
/// Outbound reasons come first, then inbound ones. [`DropReason::name`] is what status and metrics print: it is
/// stable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// What the TUN gave us is not a well-formed IPv4 or IPv6 packet.
    OutboundMalformed,
    /// No peer has a route to the destination.
    NoRoute,
    /// The peer is known but has no carrier at the moment.
    NoLane,
    /// The packet does not fit a record on this lane, and is not to be cut, or the peer's stream; its sender is told.
    TooBig,
    /// Passing the packet to the worker that has a lane failed: that worker's queue was full.
    HandOverFull,
    /// No send buffer was free: the network is slower than the TUN.
    SendBufferFull,
    /// No room was left among the packets that wait to be sent.
    EgressFull,
    /// The packet's flow has kept a standing queue for too long (RFC 8289).
    EgressDelayed,
    /// Control had no room for packets that leave by a peer's stream, or to services.
    StreamFull,
    /// A lane's QUIC connection had no room left for DATAGRAM frames, because the peer has acknowledged nothing for long.
    /// Counts frames, each of which may hold several packets.
    QuicQueueFull,
    /// The kernel refused the datagram: the socket buffer is full, or the network said no.
    SendFailed,
    /// The lane's key has sealed as many records as it may.
    EpochExhausted,
    /// A datagram on a lane's socket that is neither record, QUIC nor sentinel, or too short to be one; or one of too many
    /// for the listener.
    InboundMalformed,
    /// A record whose lane id is not this lane's.
    UnknownLane,
    /// A record of an epoch we have no key for.
    UnknownEpoch,
    /// The record does not authenticate.
    Unauthentic,
    /// The record's counter was seen before, or is older than the replay window.
    Replayed,
    /// The record is authentic but its frames make no sense, or a super-segment that came by the peer's stream: the peer is
    /// broken.
    FrameMalformed,
    /// An echo request beyond those a lane answers: the peer asks too often.
    EchoLimited,
    /// A fragment of a packet whose other fragments did not arrive in time, or contradict it.
    FragmentIncomplete,
    /// The path has marked congestion on a record whose packet does not know of such marks (RFC 6040).
    CeNotEct,
    /// The inner packet is not a well-formed IPv4 or IPv6 packet.
    PacketMalformed,
    /// The inner source address is neither the peer's own nor in its routes, or is another peer's or a service's; or the
    /// destination is a service, which peers reach by streams only.
    SourceNotAllowed,
    /// The inner packet is larger than any may be, or a super-segment by stream stands for more packets.
    PacketTooBig,
    /// The TUN refused the packet: its queue is full or the interface is down.
    TunWriteFailed,
    /// The kernel dropped datagrams for us: the socket's receive buffer overflowed.
    ReceiveOverflow,
    /// A datagram of a lane that we relay for others, beyond what that lane or all such lanes may carry.
    ForwardRate,
}

impl DropReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 27] = [
        Self::OutboundMalformed,
        Self::NoRoute,
        Self::NoLane,
        Self::TooBig,
        Self::HandOverFull,
        Self::SendBufferFull,
        Self::EgressFull,
        Self::EgressDelayed,
        Self::StreamFull,
        Self::QuicQueueFull,
        Self::SendFailed,
        Self::EpochExhausted,
        Self::InboundMalformed,
        Self::UnknownLane,
        Self::UnknownEpoch,
        Self::Unauthentic,
        Self::Replayed,
        Self::FrameMalformed,
        Self::EchoLimited,
        Self::FragmentIncomplete,
        Self::CeNotEct,
        Self::PacketMalformed,
        Self::SourceNotAllowed,
        Self::PacketTooBig,
        Self::TunWriteFailed,
        Self::ReceiveOverflow,
        Self::ForwardRate,
    ];

    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The reason's stable name, as status and metrics print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OutboundMalformed => "outbound_malformed",
            Self::NoRoute => "no_route",
            Self::NoLane => "no_lane",
            Self::TooBig => "too_big",
            Self::HandOverFull => "hand_over_full",
            Self::SendBufferFull => "send_buffer_full",
            Self::EgressFull => "egress_full",
            Self::EgressDelayed => "egress_delayed",
            Self::StreamFull => "stream_full",
            Self::QuicQueueFull => "quic_queue_full",
            Self::SendFailed => "send_failed",
            Self::EpochExhausted => "epoch_exhausted",
            Self::InboundMalformed => "inbound_malformed",
            Self::UnknownLane => "unknown_lane",
            Self::UnknownEpoch => "unknown_epoch",
            Self::Unauthentic => "unauthentic",
            Self::Replayed => "replayed",
            Self::FrameMalformed => "frame_malformed",
            Self::EchoLimited => "echo_limited",
            Self::FragmentIncomplete => "fragment_incomplete",
            Self::CeNotEct => "ce_not_ect",
            Self::PacketMalformed => "packet_malformed",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::PacketTooBig => "packet_too_big",
            Self::TunWriteFailed => "tun_write_failed",
            Self::ReceiveOverflow => "receive_overflow",
            Self::ForwardRate => "forward_rate",
        }
    }

    /// The reason as a table position.
    pub fn position(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_position_and_has_its_own_name() {
        for (position, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.position(), position);
        }
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
