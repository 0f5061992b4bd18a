//! One gateway, asked from one of our addresses: the socket and the requests of a [`Book`].

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use aws_lc_rs::hmac;
use ringlane_shared::limits::PCP_BYTES_MAX;
use ringlane_shared::wire::pcp::{self, Answer, Nonce, SERVER_PORT};
use socket2::{SockRef, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tracing::debug;

use super::book::{Ask, Book, Method, Port, Question, Reply};
use super::igd::{self, Igd};
use crate::netlink::Gateway;
use crate::underlay;

/// Datagrams read in one poll.
const DATAGRAMS_PER_POLL: usize = 16;

type Asking = Pin<Box<dyn Future<Output = (Reply, Option<Igd>)> + Send>>;

/// See the module.
pub(super) struct Session {
    pub(super) gateway: Gateway,
    pub(super) ours: IpAddr,
    pub(super) book: Book,
    /// Connected, so that the kernel takes answers from the gateway's port only. None if it cannot be had.
    socket: Option<UdpSocket>,
    igd: Option<Igd>,
    asking: Option<Asking>,
    key: hmac::Key,
    /// Answers that were to nothing we asked, or made no sense.
    pub(super) strange_answers: u64,
}

impl Session {
    pub(super) fn new(gateway: Gateway, ours: IpAddr, key: hmac::Key, now: Instant) -> Self {
        let methods: &'static [Method] = if ours.is_ipv4() { &Method::ALL } else { &Method::IPV6 };
        let book = Book::new(methods, now);
        Self { gateway, ours, book, socket: None, igd: None, asking: None, key, strange_answers: 0 }
    }

    /// Does what there is to be done; pending when there is nothing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) {
        for _ in 0..DATAGRAMS_PER_POLL {
            if let Some(asking) = &mut self.asking
                && let Poll::Ready((reply, igd)) = asking.as_mut().poll(cx)
            {
                self.asking = None;
                self.igd = igd;
                self.book.handle(reply, now);
                continue;
            }
            if let Some(ask) = self.book.poll(now) {
                self.perform(ask, now);
                continue;
            }
            match self.poll_socket(cx) {
                Poll::Ready(Some(reply)) => self.book.handle(reply, now),
                Poll::Ready(None) => {}
                Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    /// An answer to what is asked, or something that is none.
    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<Option<Reply>> {
        let Some(socket) = &self.socket else { return Poll::Pending };
        let mut bytes = [0; PCP_BYTES_MAX + 1];
        let mut buffer = ReadBuf::new(&mut bytes);
        let received = ready!(socket.poll_recv(cx, &mut buffer));
        let Some(ask) = self.book.pending().filter(|ask| ask.method != Method::Upnp) else {
            return Poll::Ready(None);
        };
        if let Err(error) = received {
            return Poll::Ready(refusal_of(&error));
        }
        let answer = match pcp::parse(buffer.filled()) {
            Ok(answer) => answer,
            Err(error) => {
                debug!(gateway = %self.gateway.ip, %error, "an answer of the gateway is refused");
                self.strange_answers += 1;
                return Poll::Ready(None);
            }
        };
        let reply = self.match_answer(ask, answer);
        if reply.is_none() {
            self.strange_answers += 1;
        }
        Poll::Ready(reply)
    }

    /// What an answer means to the question under way; none if it is to another one.
    fn match_answer(&self, ask: Ask, answer: Answer) -> Option<Reply> {
        let refused = |reason: &str, code: u16, seconds| {
            Some(Reply::Refused { reason: format!("{reason} (code {code})"), seconds })
        };
        match (ask.method, ask.question, answer) {
            (Method::Pcp | Method::NatPmp, _, Answer::UnsupportedVersion) => Some(Reply::Unsupported),
            (Method::Pcp, Question::Check, Answer::Announced { epoch }) => {
                Some(Reply::Alive { epoch: Some(epoch), external: None })
            }
            (
                Method::Pcp,
                Question::Map { port, .. } | Question::Unmap { port, .. },
                Answer::PcpMapped { nonce, transport, internal, epoch, outcome },
            ) if (transport, internal) == (port.transport, port.internal) && nonce == self.nonce(port) => {
                match (ask.question, outcome) {
                    (Question::Unmap { .. }, _) => Some(Reply::Unmapped),
                    // Of the other family it would be another protocol's mapping, which we did not ask for.
                    (_, Ok(grant)) if grant.ip.is_ipv4() == self.ours.is_ipv4() => {
                        let external = (Some(grant.ip), grant.port);
                        Some(Reply::Mapped { external, lifetime: grant.lifetime, epoch: Some(epoch) })
                    }
                    (_, Ok(_)) => None,
                    (_, Err(refusal)) => refused(refusal.pcp_name(), refusal.code, refusal.seconds),
                }
            }
            (Method::NatPmp, Question::Check, Answer::NatPmpExternal { epoch, outcome }) => {
                Some(Reply::Alive { epoch: Some(epoch), external: outcome.ok().map(IpAddr::V4) })
            }
            (
                Method::NatPmp,
                Question::Map { port, .. } | Question::Unmap { port, .. },
                Answer::NatPmpMapped { epoch, transport, internal, outcome },
            ) if transport == port.transport && internal.is_none_or(|internal| internal == port.internal) => {
                match (ask.question, outcome) {
                    (Question::Unmap { .. }, _) => Some(Reply::Unmapped),
                    (_, Ok((external, lifetime))) => {
                        Some(Reply::Mapped { external: (None, external), lifetime, epoch: Some(epoch) })
                    }
                    (_, Err(refusal)) => refused(refusal.nat_pmp_name(), refusal.code, 0),
                }
            }
            _ => None,
        }
    }

    fn perform(&mut self, ask: Ask, now: Instant) {
        if ask.method == Method::Upnp {
            if let (IpAddr::V4(ours), IpAddr::V4(gateway)) = (self.ours, self.gateway.ip) {
                // A look at whether it is still there is a look at what it is, too, once it has not answered.
                self.asking = Some(Box::pin(igd::ask(ours, gateway, self.igd.take(), ask.question)));
            } else {
                self.book.handle(Reply::Unsupported, now);
            }
            return;
        }
        let datagram = self.datagram(ask);
        let sent = self.send(&datagram);
        if let Err(error) = sent {
            debug!(gateway = %self.gateway.ip, ours = %self.ours, %error, "cannot ask the gateway");
            if let Some(reply) = refusal_of(&error) {
                self.book.handle(reply, now);
            }
        }
    }

    fn datagram(&self, ask: Ask) -> Vec<u8> {
        match (ask.method, ask.question) {
            (Method::Pcp, Question::Check) => pcp::announce(self.ours).to_vec(),
            (Method::Pcp, Question::Map { port, external, lifetime }) => {
                pcp::map(self.ours, self.nonce(port), port.transport, port.internal, external, lifetime).to_vec()
            }
            (Method::Pcp, Question::Unmap { port, .. }) => {
                pcp::map(self.ours, self.nonce(port), port.transport, port.internal, (None, 0), 0).to_vec()
            }
            (_, Question::Check) => pcp::nat_pmp_external().to_vec(),
            (_, Question::Map { port, external, lifetime }) => {
                pcp::nat_pmp_map(port.transport, port.internal, external.1, lifetime).to_vec()
            }
            (_, Question::Unmap { port, .. }) => pcp::nat_pmp_map(port.transport, port.internal, 0, 0).to_vec(),
        }
    }

    /// The mapping's name for life: made of our key, so that a node that was killed can take over what it left behind
    /// without a file, and nobody else can guess it.
    fn nonce(&self, port: Port) -> Nonce {
        let text = format!("pcp nonce {} {} {}", self.ours, port.transport.name(), port.internal);
        let tag = hmac::sign(&self.key, text.as_bytes());
        tag.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Sends without asking the runtime whether there is room, which it does not know of a new socket.
    fn send(&mut self, datagram: &[u8]) -> io::Result<usize> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connected(&self.gateway, self.ours)?,
        };
        let sent = SockRef::from(&socket).send(datagram);
        self.socket = Some(socket);
        sent
    }
}

/// Nobody listens there: no need to wait. Other errors may pass, and end in silence if they do not.
fn refusal_of(error: &io::Error) -> Option<Reply> {
    (error.kind() == io::ErrorKind::ConnectionRefused).then_some(Reply::Unsupported)
}

fn connected(gateway: &Gateway, ours: IpAddr) -> io::Result<UdpSocket> {
    let remote = match gateway.ip {
        IpAddr::V4(ip) => SocketAddr::from((ip, SERVER_PORT)),
        IpAddr::V6(ip) => {
            let scope = if ip.is_unicast_link_local() { gateway.interface } else { 0 };
            SocketAddrV6::new(ip, SERVER_PORT, 0, scope).into()
        }
    };
    let socket = underlay::socket(remote, Type::DGRAM.nonblocking())?;
    socket.bind(&SocketAddr::from((ours, 0)).into())?;
    socket.connect(&remote.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use ringlane_shared::wire::pcp::{PcpGrant, Transport};

    use super::*;

    const OURS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn session(key: &[u8]) -> Session {
        // The port is the protocol's: every test process has an address of its own.
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        let gateway = Gateway { interface: 1, interface_name: "lo".to_owned(), ip: [127, 77, high, low].into() };
        Session::new(gateway, OURS, hmac::Key::new(hmac::HMAC_SHA256, key), Instant::now())
    }

    #[test]
    fn only_an_answer_to_the_question_under_way_counts() {
        let ours = session(b"ours");
        let port = Port { transport: Transport::Udp, internal: 8100 };
        let question = Question::Map { port, external: (None, 8100), lifetime: 7200 };
        let ask = Ask { method: Method::Pcp, question };
        let answer = |nonce, transport, internal, ip: &str| {
            let grant = PcpGrant { lifetime: 60, port: 9100, ip: ip.parse().unwrap() };
            Answer::PcpMapped { nonce, transport, internal, epoch: 1, outcome: Ok(grant) }
        };
        let nonce = ours.nonce(port);
        let external = (Some("203.0.113.1".parse().unwrap()), 9100);
        let granted = Some(Reply::Mapped { external, lifetime: 60, epoch: Some(1) });
        assert_eq!(ours.match_answer(ask, answer(nonce, Transport::Udp, 8100, "203.0.113.1")), granted);
        for strange in [
            answer([0; 12], Transport::Udp, 8100, "203.0.113.1"),
            answer(nonce, Transport::Tcp, 8100, "203.0.113.1"),
            answer(nonce, Transport::Udp, 8101, "203.0.113.1"),
            answer(nonce, Transport::Udp, 8100, "2001:db8::1"),
            Answer::Announced { epoch: 1 },
            Answer::NatPmpMapped { epoch: 1, transport: Transport::Udp, internal: Some(8100), outcome: Ok((1, 1)) },
        ] {
            assert_eq!(ours.match_answer(ask, strange), None, "{strange:?}");
        }
        assert_eq!(session(b"ours").nonce(port), nonce, "the next start takes the mapping over");
        assert_ne!(session(b"theirs").nonce(port), nonce);
    }

    #[tokio::test]
    async fn answers_from_another_address_are_never_seen() {
        let mut session = session(b"ours");
        session.book.set_wanted([Port { transport: Transport::Udp, internal: 8100 }], Instant::now());
        let gateway = UdpSocket::bind((session.gateway.ip, SERVER_PORT)).await.expect("nobody else is there");
        let elsewhere = UdpSocket::bind((OURS, 0)).await.expect("there is a port");
        let turn = async |session: &mut Session| {
            std::future::poll_fn(|cx| {
                session.poll(cx, Instant::now());
                Poll::Ready(())
            })
            .await;
        };
        turn(&mut session).await;
        let mut bytes = [0; 64];
        let (length, asker) = gateway.recv_from(&mut bytes).await.expect("it asks");
        let mut answer = bytes[..length].to_vec();
        answer[1] |= 0x80;
        elsewhere.send_to(&answer, asker).await.expect("it can be sent");
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            turn(&mut session).await;
        }
        assert_eq!((session.book.method(), session.strange_answers), (None, 0));
        gateway.send_to(&answer, asker).await.expect("it can be sent");
        while session.book.method().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            turn(&mut session).await;
        }
    }
}
