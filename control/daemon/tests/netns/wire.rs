//! What an attacker on the underlay can do: watch, inject, send garbage.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{Namespace, SILENCE};
use crate::node::LANE_PORT;
use crate::traffic::uninterrupted;

const CAPTURE_BYTES_MAX: usize = 256 << 20;
/// Packets still taken after the end of a capture was asked for, on a network that is never silent.
const LATE_PACKETS_MAX: usize = 10_000;

/// Every packet that any interface of a namespace carries, from its IP header on.
#[derive(Debug)]
pub(crate) struct Capture {
    stopped: Arc<AtomicBool>,
    reader: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    /// Captures from now on.
    pub(crate) fn start(at: &Namespace) -> Self {
        const ETH_P_ALL: u16 = 3;
        let socket = at.enter(|| {
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ETH_P_ALL.to_be()))))
                .expect("root may capture")
        });
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        socket.set_recv_buffer_size(8 << 20).expect("a buffer size can be asked for");
        let stopped = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let stopped = Arc::clone(&stopped);
            move || read_packets(socket, &stopped)
        });
        Self { stopped, reader }
    }

    /// Everything captured, including what waits in the socket.
    pub(crate) fn stop(self) -> Vec<Vec<u8>> {
        self.stopped.store(true, Ordering::Relaxed);
        self.reader.join().expect("the capture does not fail")
    }
}

fn read_packets(mut socket: Socket, stopped: &AtomicBool) -> Vec<Vec<u8>> {
    let (mut packets, mut bytes, mut late) = (Vec::new(), 0, 0);
    let mut packet = vec![0; 128 * 1024];
    loop {
        match socket.read(&mut packet) {
            Ok(length) => {
                bytes += length;
                assert!(bytes <= CAPTURE_BYTES_MAX, "a test captures more than it should move");
                packets.push(packet[..length].to_vec());
                late += usize::from(stopped.load(Ordering::Relaxed));
                if late == LATE_PACKETS_MAX {
                    return packets;
                }
                if late == 1 {
                    socket.set_nonblocking(true).expect("a socket can be made non-blocking");
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stopped.load(Ordering::Relaxed) {
                    return packets;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("capturing: {error}"),
        }
    }
}

/// A UDP datagram over IPv4, with the addresses a sender claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Datagram {
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    pub(crate) payload: Vec<u8>,
}

impl Datagram {
    /// Reads a captured packet; `None` unless it is an unfragmented UDP datagram over IPv4.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
        let (ip, udp) = (packet.get(..header_bytes)?, packet.get(header_bytes..)?);
        if ip.len() < 20 || ip[0] >> 4 != 4 || ip[9] != 17 || ip[6] & 0x3f != 0 || ip[7] != 0 || udp.len() < 8 {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        Some(Self {
            source: SocketAddrV4::new(address(12), port(0)),
            destination: SocketAddrV4::new(address(16), port(2)),
            payload: udp[8..].to_vec(),
        })
    }

    /// Whether this is a message of STUN (RFC 8489), by its magic cookie.
    pub(crate) fn is_stun(&self) -> bool {
        self.payload.get(4..8) == Some([0x21, 0x12, 0xa4, 0x42].as_slice())
    }

    /// Whether this is a record, by its first byte; at other ports than lanes', QUIC may look the same (RFC 9287).
    pub(crate) fn is_record(&self) -> bool {
        let is_lanes = (LANE_PORT..LANE_PORT + 64).contains(&self.destination.port());
        is_lanes && self.payload.len() > 28 && self.payload[0] >> 4 == 3
    }

    /// The packet that carries it, without a UDP checksum; the kernel fills in IP's.
    fn to_packet(&self) -> Vec<u8> {
        let udp_bytes = u16::try_from(8 + self.payload.len()).expect("a datagram fits its length field");
        let mut packet = vec![0x45, 0];
        packet.extend((20 + udp_bytes).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend(self.source.ip().octets());
        packet.extend(self.destination.ip().octets());
        packet.extend(self.source.port().to_be_bytes());
        packet.extend(self.destination.port().to_be_bytes());
        packet.extend(udp_bytes.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(&self.payload);
        packet
    }
}

/// Sends datagrams with any source address and port, those of a running node included.
#[derive(Debug)]
pub(crate) struct Injector(Socket);

impl Injector {
    pub(crate) fn open(at: &Namespace) -> Self {
        const IPPROTO_RAW: i32 = 255;
        let socket = at.enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW))));
        let socket = socket.expect("root may open a raw socket");
        socket.set_header_included_v4(true).expect("a raw socket may bring its own header");
        Self(socket)
    }

    pub(crate) fn send(&self, datagram: &Datagram) {
        self.0.send_to(&datagram.to_packet(), &SockAddr::from(datagram.destination)).expect("a packet can be injected");
    }
}

/// Sends `datagram` and panics if anything comes back within [`SILENCE`], be it an answer or "port unreachable".
pub(crate) fn expect_silence(socket: &UdpSocket, datagram: &[u8], what: &str) {
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout can be set");
    socket.send(datagram).unwrap_or_else(|error| panic!("{what} cannot be sent: {error}"));
    let mut answer = [0; 2048];
    match uninterrupted(|| socket.recv(&mut answer)) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        Err(error) => panic!("{what}: nobody listens there: {error}"),
        Ok(length) => panic!("{what} was answered with {:02x?}", &answer[..length]),
    }
}

#[test]
fn an_injected_datagram_arrives_and_is_captured_as_it_was_made() {
    use crate::lab::{Lab, PATIENCE, Site};
    let Some(lab) = Lab::up(2) else { return };
    let target = SocketAddrV4::new(Site::A.underlay(), 9000);
    let receiver = lab.router(Site::A).enter(|| UdpSocket::bind(target)).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let capture = Capture::start(&lab.router(Site::B));
    let injected = Datagram {
        source: SocketAddrV4::new(Site::B.underlay(), 8100),
        destination: target,
        payload: (0..200).collect(),
    };
    Injector::open(&lab.router(Site::B)).send(&injected);
    let mut payload = [0; 300];
    let (length, from) = uninterrupted(|| receiver.recv_from(&mut payload)).unwrap();
    assert_eq!((&payload[..length], from), (&injected.payload[..], injected.source.into()));
    assert!(capture.stop().iter().any(|packet| Datagram::parse(packet).as_ref() == Some(&injected)));
}
