//! Packets of any shape: nothing a host sends can crash the stack, or make it hold more than it may.

use std::io;
use std::net::Ipv6Addr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::{AsyncRead, AsyncWrite};
use proptest::prelude::*;
use ringlane_shared::plane::{BatchEnd, BatchItemForm, PacketBatch};

use super::super::ByteStream;
use super::*;

const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6879, 0x7072, 0x7370, 0x6163, 0x6500, 0, 1);
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

fn packet(next_header: u8, to: Ipv6Addr, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((transport.len() as u16).to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend(CLIENT.octets());
    packet.extend(to.octets());
    packet.extend(transport);
    let checksum_at = match next_header {
        TCP => 56,
        ICMPV6 => 42,
        _ => return packet,
    };
    if packet.len() >= checksum_at + 2 {
        packet[checksum_at..checksum_at + 2].fill(0);
        // The pseudo-header is the addresses, the length and the protocol.
        let pseudo = [&packet[8..40], &(transport.len() as u32).to_be_bytes(), &u32::from(next_header).to_be_bytes()];
        let all = [&pseudo.concat(), &packet[40..]].concat();
        let sum: u32 = all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// A segment whose sequence numbers are relative to those of the connection.
#[derive(Clone, Debug)]
struct Segment {
    port: u16,
    flags: u8,
    sequence: i32,
    acknowledged: i32,
    window: u16,
    options: Vec<u8>,
    payload: usize,
}

impl Segment {
    fn bytes(&self, to: Ipv6Addr, theirs: u32) -> Vec<u8> {
        let options = self.options.len().next_multiple_of(4).min(40);
        let mut bytes = Vec::new();
        bytes.extend((40_000 + self.port).to_be_bytes());
        bytes.extend(80u16.to_be_bytes());
        bytes.extend(1000u32.wrapping_add_signed(self.sequence).to_be_bytes());
        bytes.extend(theirs.wrapping_add_signed(self.acknowledged).to_be_bytes());
        bytes.extend([((20 + options) * 4) as u8, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.options.iter().chain([0; 40].iter()).take(options));
        bytes.extend(vec![0xab; self.payload]);
        packet(TCP, to, &bytes)
    }
}

fn segment() -> impl Strategy<Value = Segment> {
    let near = || prop_oneof![4 => -2..3i32, 2 => -3000..3000i32, 1 => any::<i32>()];
    let flags = prop_oneof![Just(0x02), Just(0x10), Just(0x10), Just(0x18), Just(0x11), Just(0x04), any::<u8>()];
    let options = prop::collection::vec(prop_oneof![2 => 0..9u8, 1 => any::<u8>()], 0..24);
    let payload = prop_oneof![2 => Just(0), 1 => 0..1300usize];
    (0..2u16, flags, near(), near(), any::<u16>(), options, payload).prop_map(
        |(port, flags, sequence, acknowledged, window, options, payload)| Segment {
            port,
            flags,
            sequence,
            acknowledged,
            window,
            options,
            payload,
        },
    )
}

/// A peer that says yes and a little more, takes everything, and then ends or is silent.
struct Script {
    says: &'static [u8],
    ends: bool,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let bytes = buffer.len().min(self.says.len());
        if bytes == 0 && !self.ends {
            return Poll::Pending;
        }
        let (said, left) = self.says.split_at(bytes);
        buffer[..bytes].copy_from_slice(said);
        self.says = left;
        Poll::Ready(Ok(bytes))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl ByteStream for Script {}

/// Gives a packet to the network and returns, of the newest segment it answers with, what the next one would begin with.
fn give(network: &mut ServiceNetwork, packet: &[u8], ends: bool) -> Option<u32> {
    let mut batch = PacketBatch::new(BatchEnd::Services, Vec::new());
    batch.push(BatchItemForm::Packet { is_partial: false }, packet);
    network.handle_packets(batch, Instant::now());
    let mut newest = None;
    for _ in 0..1000 {
        match network.next().now_or_never() {
            Some(ServiceIntent::Deliver(batch)) => {
                for item in batch.items().filter(|item| item.packet[6] == TCP) {
                    let sequence = item.packet[44..48].try_into().unwrap();
                    newest = Some(u32::from_be_bytes(sequence).wrapping_add(1));
                }
            }
            Some(ServiceIntent::Open { key, .. }) => {
                network.handle_stream(key, Ok(Box::new(Script { says: b"\xf1hello", ends })));
            }
            None => return newest,
        }
    }
    panic!("it never comes to rest");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_segments_crashes_the_stack(
        segments in prop::collection::vec(segment(), 1..40),
        opens in any::<bool>(),
        ends in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mesh = Mesh::new(vec![], vec![]);
            let (mut network, to) = (mesh.a, service_address(&mesh.ids[1], "example"));
            let mut theirs = [0; 2];
            if opens {
                let syn = Segment { port: 0, flags: 2, sequence: -1, acknowledged: 0, window: 9000, options: vec![], payload: 0 };
                theirs[0] = give(&mut network, &syn.bytes(to, 0), ends).unwrap();
                let ack = Segment { flags: 16, sequence: 0, ..syn };
                give(&mut network, &ack.bytes(to, theirs[0]), ends);
            }
            for segment in segments {
                let theirs = &mut theirs[usize::from(segment.port)];
                let newest = give(&mut network, &segment.bytes(to, *theirs), ends);
                *theirs = newest.unwrap_or(*theirs);
            }
            assert!(network.clients.len() <= 2 && network.flows.len() == network.clients.len());
            assert!(network.deadlines.len() <= 2);
        });
    }

    #[test]
    fn no_packet_crashes_the_stack(
        packets in prop::collection::vec((
            prop_oneof![Just(TCP), Just(17), Just(ICMPV6), Just(0), Just(44), any::<u8>()],
            prop::collection::vec(any::<u8>(), 0..120),
            any::<bool>(),
        ), 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mesh = Mesh::new(vec![], vec![]);
            let (mut network, to) = (mesh.a, service_address(&mesh.ids[1], "example"));
            for (next_header, bytes, has_header) in packets {
                give(&mut network, &if has_header { packet(next_header, to, &bytes) } else { bytes }, false);
            }
        });
    }
}

#[tokio::test]
async fn an_echo_request_to_a_service_of_ours_and_a_udp_packet_are_answered() {
    let own = service("example", ServiceTarget::Unix("/nowhere".into()));
    let mesh = Mesh::new(vec![own], vec![]);
    let mut network = mesh.a;
    let answer = |network: &mut ServiceNetwork, packet: &[u8]| {
        let mut batch = PacketBatch::new(BatchEnd::Services, Vec::new());
        batch.push(BatchItemForm::Packet { is_partial: false }, packet);
        network.handle_packets(batch, Instant::now());
        match network.next().now_or_never() {
            Some(ServiceIntent::Deliver(batch)) => batch.items().next().map(|item| item.packet.to_vec()),
            _ => None,
        }
    };
    let own = service_address(&mesh.ids[0], "example");
    let reply = answer(&mut network, &packet(ICMPV6, own, &[128, 0, 0, 0, 1, 2, 3, 4, 5])).unwrap();
    assert_eq!((reply[40], &reply[44..]), (129, &[1, 2, 3, 4, 5][..]));
    assert_eq!((&reply[8..24], &reply[24..40]), (&own.octets()[..], &CLIENT.octets()[..]));
    let unknown = service_address(&mesh.ids[0], "unknown");
    assert_eq!(answer(&mut network, &packet(ICMPV6, unknown, &[128, 0, 0, 0, 1, 2, 3, 4])), None);
    let unreachable = answer(&mut network, &packet(17, own, &[1, 2, 3, 4, 0, 8, 0, 0])).unwrap();
    assert_eq!(unreachable[40..42], [1, 4], "the port is unreachable");
    assert_eq!(unreachable[48 + 40..], [1, 2, 3, 4, 0, 8, 0, 0]);
}

#[tokio::test]
async fn packets_the_worker_had_no_room_for_are_offered_again() {
    let own = service("example", ServiceTarget::Unix("/nowhere".into()));
    let mesh = Mesh::new(vec![own], vec![]);
    let mut network = mesh.a;
    let mut batch = PacketBatch::new(BatchEnd::Services, Vec::new());
    let echo = packet(ICMPV6, service_address(&mesh.ids[0], "example"), &[128, 0, 0, 0, 1, 2, 3, 4]);
    batch.push(BatchItemForm::Packet { is_partial: false }, &echo);
    network.handle_packets(batch, Instant::now());
    let ServiceIntent::Deliver(first) = network.next().await else { panic!("nothing else is to be done") };
    network.handle_full(first.clone());
    assert!(network.next().now_or_never().is_none());
    let ServiceIntent::Deliver(again) = network.next().await else { panic!("nothing else is to be done") };
    assert_eq!(first, again);
}
