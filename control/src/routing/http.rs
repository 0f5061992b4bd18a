//! One request to an HTTP server on a connection of its own: HTTP/1.1, with or without TLS 1.3, bounded in time and bytes.
//! Redirects are not followed: an answer is 200 or none.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ringlane_shared::config::{RouterSettings, RouterUrl};
use ringlane_shared::limits::ROUTING_ANSWER_BYTES_MAX;
use rustls::pki_types::ServerName;
use socket2::Type;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::pin;
use crate::swarm::Resolver;
use crate::swarm::web::Proxy;
use crate::underlay;

/// How long one request may take, from the name's look-up to the last byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may take, so that an address that does not answer leaves time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Addresses of one name that are tried, one after the other.
const ADDRESSES_MAX: usize = 4;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// The name or the connection.
    #[error("{0}")]
    Connect(String),
    /// The certificate, or TLS otherwise.
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// Our side of TLS.
    #[error("TLS cannot be set up: {0}")]
    TlsSetUp(String),
    /// Not HTTP as we know it.
    #[error("HTTP: {0}")]
    Http(String),
    /// An answer, but not the one asked for.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// Nothing in time.
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
}

/// From a marked socket: whom the answer helps to reach may be the one that routes everything, this connection too.
async fn connect(remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = underlay::socket(remote, Type::STREAM.nonblocking())?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(remote);
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// A server and how to reach it.
#[derive(Clone)]
pub(super) struct Server {
    url: Arc<RouterUrl>,
    tls: Option<TlsConnector>,
    resolver: Resolver,
    proxy: Option<Proxy>,
}

impl Server {
    pub(super) fn new(settings: &RouterSettings, resolver: Resolver, proxy: Option<Proxy>) -> Self {
        let url = Arc::new(settings.url.clone());
        let tls = url.https.then(|| pin::client_config(settings.pin)).and_then(|config| {
            config.inspect_err(|error| tracing::error!(%error, %url, "no TLS for this router")).ok()
        });
        Self { url, tls: tls.map(TlsConnector::from), resolver, proxy }
    }

    pub(super) fn url(&self) -> &RouterUrl {
        &self.url
    }

    /// The body of a 200; empty for a 404, which says that nothing is known.
    pub(super) async fn get(&self, path: &str, accept: &str) -> Result<Vec<u8>, HttpError> {
        self.request(Method::GET, path, accept).await
    }

    /// The same for an empty form.
    pub(super) async fn post(&self, path: &str) -> Result<Vec<u8>, HttpError> {
        self.request(Method::POST, path, "application/json").await
    }

    async fn request(&self, method: Method, path: &str, accept: &str) -> Result<Vec<u8>, HttpError> {
        let asked = async {
            let socket = self.connect().await?;
            if !self.url.https {
                return self.exchange(socket, method, path, accept).await;
            }
            let tls = self.tls.as_ref().ok_or_else(|| HttpError::TlsSetUp("see the log of the start".into()))?;
            let name = ServerName::try_from(self.url.host.clone());
            let name = name.map_err(|error| HttpError::TlsSetUp(error.to_string()))?;
            let secured = tls.connect(name, socket).await.map_err(HttpError::Tls)?;
            self.exchange(secured, method, path, accept).await
        };
        tokio::time::timeout(REQUEST_TIMEOUT, asked).await.map_err(|_| HttpError::TimedOut)?
    }

    async fn connect(&self) -> Result<TcpStream, HttpError> {
        if let Some(proxy) = &self.proxy {
            let connected = proxy.connect(&self.url.host, self.url.port).await;
            return connected.map_err(|error| HttpError::Connect(error.to_string()));
        }
        let ips = match self.url.host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.resolver.ips(&self.url.host).await.map_err(HttpError::Connect)?,
        };
        let mut last = HttpError::Connect("the name has no address".into());
        for ip in ips.into_iter().take(ADDRESSES_MAX) {
            match connect((ip, self.url.port).into()).await {
                Ok(socket) => return Ok(socket),
                Err(error) => last = HttpError::Connect(format!("{ip}: {error}")),
            }
        }
        Err(last)
    }

    async fn exchange<S>(&self, socket: S, method: Method, path: &str, accept: &str) -> Result<Vec<u8>, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: &dyn std::error::Error| HttpError::Http(error.to_string());
        let (host, port) = (&self.url.host, self.url.port);
        let host = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.path))
            .header(HOST, host)
            .header(ACCEPT, accept)
            .header(USER_AGENT, concat!("ringlane/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(|error| failed(&error))?;
        let answer = async move {
            let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Ok(Vec::new()),
                status => return Err(HttpError::Status(status)),
            }
            let body = Limited::new(response.into_body(), ROUTING_ANSWER_BYTES_MAX).collect().await;
            Ok(body.map_err(|error| HttpError::Http(error.to_string()))?.to_bytes().to_vec())
        };
        // The connection moves the bytes of the exchange, and ends with it.
        let (answer, _) = join(answer, connection).await;
        answer
    }
}
