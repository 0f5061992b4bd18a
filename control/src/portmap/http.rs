//! One request to a gateway's HTTP server, bounded in time and bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::join;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ringlane_shared::wire::upnp::Location;
use socket2::Type;
use thiserror::Error;
use tokio::net::TcpSocket;

use crate::underlay;

/// How long one request may take, from the connection to the last byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Header lines of an answer.
const HEADERS_MAX: usize = 64;
/// Bytes of an answer that are held before they are looked at, its header among them.
const BUFFER_BYTES: usize = 16 * 1024;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// The connection.
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    /// Not HTTP as we know it, or too much of it.
    #[error("HTTP: {0}")]
    Http(String),
    /// Nothing in time.
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
}

/// A SOAP action.
pub(super) struct Soap {
    /// `"urn#name"`, with the quotation marks.
    pub(super) action: String,
    pub(super) body: String,
}

/// Asks `gateway`, from `ours`: with GET, or with POST if there is an action. The body of an answer of any status; at
/// most `limit` bytes, or none.
pub(super) async fn request(
    ours: Ipv4Addr,
    gateway: Ipv4Addr,
    location: &Location,
    soap: Option<Soap>,
    limit: usize,
) -> Result<(StatusCode, Bytes), HttpError> {
    let asked = exchange(ours, gateway, location, soap, limit);
    tokio::time::timeout(REQUEST_TIMEOUT, asked).await.map_err(|_| HttpError::TimedOut)?
}

async fn exchange(
    ours: Ipv4Addr,
    gateway: Ipv4Addr,
    location: &Location,
    soap: Option<Soap>,
    limit: usize,
) -> Result<(StatusCode, Bytes), HttpError> {
    let failed = |error: &dyn std::error::Error| HttpError::Http(error.to_string());
    let remote = SocketAddr::from((gateway, location.port));
    let socket = underlay::socket(remote, Type::STREAM.nonblocking()).map_err(HttpError::Connect)?;
    socket.bind(&SocketAddr::from((ours, 0)).into()).map_err(HttpError::Connect)?;
    let socket = TcpSocket::from_std_stream(socket.into()).connect(remote).await.map_err(HttpError::Connect)?;

    let method = if soap.is_some() { Method::POST } else { Method::GET };
    let request = Request::builder()
        .method(method)
        .uri(&location.path)
        .header(HOST, format!("{gateway}:{}", location.port))
        .header(CONNECTION, "close");
    let request = match &soap {
        Some(soap) => request.header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"").header("SOAPAction", &soap.action),
        None => request,
    };
    let body = Full::new(Bytes::from(soap.map(|soap| soap.body).unwrap_or_default()));
    let request = request.body(body).map_err(|error| failed(&error))?;
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_headers(HEADERS_MAX).max_buf_size(BUFFER_BYTES);
    let (mut sender, connection) = client.handshake(TokioIo::new(socket)).await.map_err(|error| failed(&error))?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit).collect().await;
        let body = body.map_err(|error| HttpError::Http(error.to_string()))?.to_bytes();
        Ok((status, body))
    };
    // The connection moves the bytes of the exchange, and ends with it.
    let (answer, _) = join(answer, connection).await;
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
    const LIMIT: usize = 1000;

    /// Asks a server that answers with `head`, then with `x` as long as anybody reads, if `endless`, and keeps the
    /// connection.
    async fn asked(head: String, endless: bool) -> Result<(StatusCode, Bytes), HttpError> {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let location = Location { port: listener.local_addr().unwrap().port(), path: "/x".to_owned() };
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut question = [0; 4096];
            let _ = socket.read(&mut question).await;
            let _ = socket.write_all(head.as_bytes()).await;
            while endless && socket.write_all(&[b'x'; 4096]).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = request(LOCAL, LOCAL, &location, None, LIMIT) => answer,
            () = serve => unreachable!("it never ends"),
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_length_and_not_beyond_the_limit() {
        let (status, body) = asked("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno".into(), false).await.unwrap();
        assert_eq!((status.as_u16(), &body[..]), (500, &b"no"[..]), "a refusal has a body too");
        for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"] {
            let answer = asked(head.into(), true).await;
            assert!(matches!(answer, Err(HttpError::Http(_))), "{answer:?}");
        }
        let endless_head = format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(10_000));
        assert!(matches!(asked(endless_head, true).await, Err(HttpError::Http(_))));
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_more_is_given_up() {
        for head in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"] {
            assert!(matches!(asked(head.into(), false).await, Err(HttpError::TimedOut)), "{head:?}");
        }
    }
}
