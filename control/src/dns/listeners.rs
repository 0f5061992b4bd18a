//! The name server's sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringlane_shared::dns::{Transport, Zone};
use ringlane_shared::limits::{DNS_CLIENTS_MAX, DNS_QUERY_BYTES_MAX};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

/// How long a client may take for one question, or be silent before the next.
const CLIENT_SILENCE: Duration = Duration::from_secs(5);
/// How long a client may stay, so that those who wait get their turn.
const CLIENT_STAY: Duration = Duration::from_secs(30);
/// How long to leave a socket alone after it failed: out of descriptors, most likely.
const RETRY: Duration = Duration::from_millis(200);
/// Clients that wait for their turn in the kernel.
const BACKLOG: i32 = 64;

/// Opens both sockets at one address. As Hyprspace's, they may share it with those of another process, so that one node can
/// follow another without a gap.
pub(super) fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = open(address, Type::DGRAM, Protocol::UDP)?;
    let udp = UdpSocket::from_std(udp.into())?;
    let tcp = open(udp.local_addr()?, Type::STREAM, Protocol::TCP)?;
    tcp.listen(BACKLOG)?;
    Ok((udp, TcpListener::from_std(tcp.into())?))
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Answers datagrams, for ever.
pub(super) async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    // One byte more than is read, so that a question that is too long shows.
    let mut query = vec![0; DNS_QUERY_BYTES_MAX + 1];
    loop {
        match socket.recv_from(&mut query).await {
            Ok((bytes, from)) => {
                let answer = query.get(..bytes).and_then(|query| zone.answer(query, Transport::Udp));
                if let Some(answer) = answer {
                    // A socket that is full loses an answer; who asked will ask again.
                    let _ = socket.try_send_to(&answer, from);
                }
            }
            Err(error) => {
                debug!(%error, "the name server's socket");
                sleep(RETRY).await;
            }
        }
    }
}

/// Answers clients, at most [`DNS_CLIENTS_MAX`] at once, for ever.
pub(super) async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if clients.len() < DNS_CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    let zone = Arc::clone(&zone);
                    clients.spawn(async move {
                        // Whatever ends it, nobody but the client is concerned.
                        let _ = timeout(CLIENT_STAY, serve(stream, &zone)).await;
                    });
                }
                Err(error) => {
                    debug!(%error, "the name server's listener");
                    sleep(RETRY).await;
                }
            },
        }
    }
}

/// Answers one client's questions, in their order, each behind its length (RFC 1035, section 4.2.2).
async fn serve(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    loop {
        let exchange = async {
            let length: usize = stream.read_u16().await?.into();
            if length > DNS_QUERY_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut query = vec![0; length];
            stream.read_exact(&mut query).await?;
            // One that deserves no answer comes from nobody worth listening to.
            let answer = zone.answer(&query, Transport::Tcp).ok_or(io::ErrorKind::InvalidData)?;
            let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await
        };
        timeout(CLIENT_SILENCE, exchange).await??;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ringlane_shared::dns::ZoneConfig;
    use ringlane_shared::identity::parse_peer_id;

    use super::*;
    use crate::dns::NameServer;

    const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    /// `hs0.hyprspace. IN SOA`.
    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03hs0\x09hyprspace\x00\x00\x06\x00\x01";

    fn server() -> NameServer {
        let own = parse_peer_id("12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN").unwrap();
        let config = ZoneConfig { interface: "hs0", domain: "hyprspace", host_name: "", own };
        NameServer::bind(ANYWHERE, Zone::new(config, []).unwrap()).unwrap()
    }

    async fn read_answer(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    fn is_answer(answer: &[u8]) -> bool {
        // The id; an authoritative answer without error; one record.
        answer.starts_with(b"\x12\x34\x85\x00\x00\x01\x00\x01")
    }

    #[tokio::test]
    async fn a_question_is_answered_over_udp_also_after_garbage() {
        let server = server();
        let socket = UdpSocket::bind(ANYWHERE).await.unwrap();
        socket.connect(server.address()).await.unwrap();
        for garbage in [&b""[..], b"x", &[0xff; 600]] {
            socket.send(garbage).await.unwrap();
        }
        socket.send(QUERY).await.unwrap();
        let mut answer = [0; 512];
        let bytes = timeout(CLIENT_SILENCE, socket.recv(&mut answer)).await.unwrap().unwrap();
        assert!(is_answer(&answer[..bytes]), "{:?}", &answer[..bytes]);
    }

    #[tokio::test]
    async fn questions_on_a_stream_are_answered_one_after_the_other() {
        let server = server();
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let framed = [&(QUERY.len() as u16).to_be_bytes()[..], QUERY].concat();
        stream.write_all(&framed.repeat(3)).await.unwrap();
        for _ in 0..3 {
            assert!(is_answer(&read_answer(&mut stream).await.unwrap()));
        }
        // In pieces.
        for byte in framed {
            stream.write_all(&[byte]).await.unwrap();
        }
        assert!(is_answer(&read_answer(&mut stream).await.unwrap()));
        // What is too long is not waited for.
        stream.write_all(&[0xff, 0xff]).await.unwrap();
        assert!(read_answer(&mut stream).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_beyond_the_bound_have_their_turn_when_silent_ones_are_sent_away() {
        let server = server();
        let mut silent = Vec::new();
        for _ in 0..DNS_CLIENTS_MAX {
            silent.push(TcpStream::connect(server.address()).await.unwrap());
        }
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(&[&(QUERY.len() as u16).to_be_bytes()[..], QUERY].concat()).await.unwrap();
        assert!(is_answer(&read_answer(&mut stream).await.unwrap()));
        assert!(read_answer(&mut silent[0]).await.is_err());
    }

    #[tokio::test]
    async fn a_dropped_server_leaves_its_address_free() {
        let server = server();
        let address = server.address();
        drop(server);
        let socket = loop {
            // Its tasks end when the runtime next runs.
            match UdpSocket::bind(address).await {
                Ok(socket) => break socket,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(socket.local_addr().unwrap(), address);
    }
}
