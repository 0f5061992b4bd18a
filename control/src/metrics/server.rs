//! The HTTP server that Prometheus asks: `GET /metrics`, and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ringlane_shared::limits::{METRICS_CLIENTS_MAX, METRICS_REQUEST_BYTES_MAX};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::MEDIA_TYPE;

/// How long a client may take for its request's headers.
const HEADERS_LIMIT: Duration = Duration::from_secs(5);
/// How long a client may stay: Prometheus keeps its connection from one scrape to the next.
const CLIENT_STAY: Duration = Duration::from_secs(150);
/// How long to leave the listener alone after it failed: out of descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// Clients that wait for their turn in the kernel.
const BACKLOG: i32 = 16;

/// One client's wish, to be answered by the control loop. Dropping it tells the client that there is nothing to be had.
#[derive(Debug)]
pub struct ScrapeRequest(oneshot::Sender<String>);

impl ScrapeRequest {
    /// Answers. A client that has gone away is no error.
    pub fn send(self, text: String) {
        let _ = self.0.send(text);
    }
}

/// Serves a node's metrics. Owner: the control loop; its tasks, one per client and at most [`METRICS_CLIENTS_MAX`], run on
/// control's runtime and end when it is dropped. All that reaches the loop are whole requests.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    requests: mpsc::Receiver<ScrapeRequest>,
    _tasks: JoinSet<()>,
}

impl MetricsServer {
    /// Listens.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let address = listener.local_addr()?;
        let (sender, requests) = mpsc::channel(METRICS_CLIENTS_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, sender));
        Ok(Self { address, requests, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request to a server, if there is one. Cancel-safe.
    pub async fn next(server: Option<&mut Self>) -> ScrapeRequest {
        match server {
            Some(server) => match server.requests.recv().await {
                Some(request) => request,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

async fn accept(listener: TcpListener, requests: mpsc::Sender<ScrapeRequest>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if clients.len() < METRICS_CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(serve(stream, requests.clone()));
                }
                Err(error) => {
                    debug!(%error, "the metrics' listener");
                    sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

async fn serve(stream: TcpStream, requests: mpsc::Sender<ScrapeRequest>) {
    let answering = service_fn(|request| {
        let requests = requests.clone();
        async move { Ok::<_, Infallible>(answer(&request, &requests).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_LIMIT)
        .max_buf_size(METRICS_REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answering);
    // Whatever ends it, nobody but the client is concerned.
    let _ = timeout(CLIENT_STAY, connection).await;
}

async fn answer<B>(request: &Request<B>, requests: &mpsc::Sender<ScrapeRequest>) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let (sender, text) = oneshot::channel();
    let text = match requests.send(ScrapeRequest(sender)).await {
        Ok(()) => text.await.ok(),
        Err(_) => None,
    };
    let Some(text) = text else { return plain(StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n") };
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn server() -> MetricsServer {
        MetricsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
    }

    /// Sends a request and reads until the server closes.
    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    /// Answers every request with the same text, for ever.
    async fn answer_all(mut server: MetricsServer) -> Infallible {
        loop {
            MetricsServer::next(Some(&mut server)).await.send("figure 1\n# EOF\n".to_owned());
        }
    }

    #[tokio::test]
    async fn only_get_and_only_the_metrics_are_served() {
        let server = server();
        let address = server.address();
        let cases = [
            ("GET /metrics HTTP/1.1", "HTTP/1.1 200 OK", "figure 1\n# EOF\n"),
            ("GET /metrics?name=x HTTP/1.1", "HTTP/1.1 200 OK", "# EOF\n"),
            ("GET / HTTP/1.1", "HTTP/1.1 404 Not Found", "at /metrics\n"),
            ("GET /metrics/x HTTP/1.1", "HTTP/1.1 404 Not Found", "at /metrics\n"),
            ("POST /metrics HTTP/1.1", "HTTP/1.1 405 Method Not Allowed", "only GET\n"),
            ("DELETE /x HTTP/1.1", "HTTP/1.1 404 Not Found", "at /metrics\n"),
            ("nonsense", "HTTP/1.1 400 Bad Request", ""),
        ];
        let asking = async {
            for (request, status, end) in cases {
                let response = exchange(address, &format!("{request}\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
                assert!(response.starts_with(status) && response.ends_with(end), "{request}: {response}");
                if status.ends_with("OK") {
                    assert!(response.contains(&format!("content-type: {MEDIA_TYPE}\r\n")), "{response}");
                }
            }
        };
        tokio::select! {
            () = asking => {}
            never = answer_all(server) => match never {},
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_beyond_the_bound_have_their_turn_when_silent_ones_are_sent_away() {
        let server = server();
        let address = server.address();
        let asking = async {
            let mut silent = Vec::new();
            for _ in 0..METRICS_CLIENTS_MAX {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let response = exchange(address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            assert!(response.contains("figure 1"), "{response}");
        };
        tokio::select! {
            () = asking => {}
            never = answer_all(server) => match never {},
        }
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_says_that_the_node_stops() {
        let mut server = server();
        let address = server.address();
        let asking = exchange(address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let (response, ()) = tokio::join!(asking, async { drop(MetricsServer::next(Some(&mut server)).await) });
        assert!(response.starts_with("HTTP/1.1 503"), "{response}");
    }
}
