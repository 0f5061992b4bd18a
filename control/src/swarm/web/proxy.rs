//! Dialling through an HTTP proxy: a marked socket to the proxy, CONNECT on it, and from then on it leads to the peer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringlane_shared::config::ProxySettings;
use ringlane_shared::wire::connect::{AnswerReader, ConnectError, Reading, request};
use socket2::Type;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::swarm::names::Resolver;
use crate::underlay;

/// How long a connection to one of the proxy's addresses may take, so that there is time for the next.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of the proxy's name that are tried, one after the other.
const ADDRESSES_MAX: usize = 3;
/// Bytes looked at at a time.
const PEEK_BYTES: usize = 512;

/// The proxy of a node.
#[derive(Clone)]
pub struct Proxy {
    settings: Arc<ProxySettings>,
    resolver: Resolver,
}

/// Why there is no connection through the proxy. Every text names the proxy, as the peer's address stands before it.
#[derive(Debug, Error)]
enum ProxyError {
    /// The proxy itself cannot be reached.
    #[error("the proxy {proxy} cannot be reached: {error}")]
    Unreachable { proxy: String, error: String },
    /// It says no.
    #[error("the proxy {proxy}: {answer}")]
    Refused { proxy: String, answer: ConnectError },
    /// It ends the connection instead of answering.
    #[error("the proxy {proxy} ended the connection: {error}")]
    Broken { proxy: String, error: String },
}

impl Proxy {
    /// One that is reached as `settings` say; `resolver` looks up its own name.
    pub fn new(settings: ProxySettings, resolver: Resolver) -> Self {
        Self { settings: Arc::new(settings), resolver }
    }

    /// Connects to a host, a name or an IP address, by way of the proxy. Takes as long as the proxy does: the caller ends it.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let proxy = self.settings.to_string();
        let broken = |error: io::Error| ProxyError::Broken { proxy: proxy.clone(), error: error.to_string() };
        let refused = |answer| io::Error::other(ProxyError::Refused { proxy: proxy.clone(), answer });
        let request = request(host, port, self.settings.credentials.as_deref()).map_err(refused)?;
        let mut socket = self
            .reach()
            .await
            .map_err(|error| io::Error::other(ProxyError::Unreachable { proxy: proxy.clone(), error }))?;
        socket.write_all(&request).await.map_err(|error| io::Error::other(broken(error)))?;
        let mut reader = AnswerReader::default();
        let mut bytes = [0; PEEK_BYTES];
        loop {
            // Looked at before it is taken: what follows the answer is not ours to take.
            let seen = socket.peek(&mut bytes).await.map_err(|error| io::Error::other(broken(error)))?;
            if seen == 0 {
                return Err(io::Error::other(broken(io::ErrorKind::UnexpectedEof.into())));
            }
            let reading = reader.read(&bytes[..seen]).map_err(refused)?;
            let taken = match reading {
                Reading::Going => seen,
                Reading::Ended(end) => end,
            };
            socket.read_exact(&mut bytes[..taken]).await.map_err(|error| io::Error::other(broken(error)))?;
            if reading != Reading::Going {
                return Ok(socket);
            }
        }
    }

    async fn reach(&self) -> Result<TcpStream, String> {
        let ProxySettings { host, port, .. } = &*self.settings;
        let ips = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.resolver.ips(host).await?,
        };
        let mut last = "its name has no address".to_owned();
        for ip in ips.into_iter().take(ADDRESSES_MAX) {
            match tokio::time::timeout(REACH_TIMEOUT, connect((ip, *port).into())).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = "no answer in time".to_owned(),
            }
        }
        Err(last)
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Proxy").field(&self.settings).finish()
    }
}

async fn connect(proxy: SocketAddr) -> io::Result<TcpStream> {
    let socket = underlay::socket(proxy, Type::STREAM.nonblocking())?;
    socket.set_tcp_nodelay(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(proxy).await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What comes of an answer in these pieces: the error, or what was read behind it.
    async fn through(
        credentials: Option<&str>,
        answer: &'static [&'static [u8]],
    ) -> (Vec<u8>, Result<Vec<u8>, String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(socket.read_u8().await.unwrap());
            }
            for piece in answer {
                socket.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            asked
        });
        let credentials = credentials.map(str::to_owned);
        let settings = ProxySettings { host: "proxy.example".into(), port, credentials };
        let proxy = Proxy::new(settings, Resolver::new(|_| Ok(vec![[127, 0, 0, 1].into()])));
        let connected = proxy.connect("b.example", 443).await;
        let asked = serving.await.unwrap();
        let rest = match connected {
            Ok(mut socket) => {
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest).await.unwrap();
                Ok(rest)
            }
            Err(error) => Err(error.to_string()),
        };
        (asked, rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_left_to_the_peer() {
        let pieces: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\nVi", b"a: x\r\n\r", b"\n", b"hello"];
        let (asked, rest) = through(Some("me:secret"), pieces).await;
        assert!(asked.starts_with(b"CONNECT b.example:443 HTTP/1.1\r\n"), "the name is passed on as it is");
        assert!(String::from_utf8(asked).unwrap().contains("Basic bWU6c2VjcmV0"));
        assert_eq!(rest, Ok(b"hello".to_vec()));
        assert_eq!(through(None, &[b"HTTP/1.0 200 OK\r\n\r\nhello"]).await.1, Ok(b"hello".to_vec()));
    }

    #[tokio::test]
    async fn an_operator_reads_which_proxy_it_was_and_what_it_wants_and_no_secret() {
        const ANSWERS: [(&[&[u8]], &str); 4] = [
            (&[b"HTTP/1.1 407 No\r\n\r\n"], "407"),
            (&[b"HTTP/1.1 403 No\r\n\r\n"], "does not allow"),
            (&[b"SSH-2.0-x\r\n"], "does not speak HTTP"),
            (&[b"HTTP/1.1 200 OK\r\n"], "ended the connection"),
        ];
        for (answer, expected) in ANSWERS {
            let error = through(Some("me:secret"), answer).await.1.unwrap_err();
            assert!(error.contains(expected) && error.contains("http://proxy.example:"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
