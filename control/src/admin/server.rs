//! The control thread's end of the admin socket.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringlane_shared::limits::{ADMIN_CLIENTS_MAX, ADMIN_REQUEST_BYTES_MAX, ADMIN_RESPONSE_BYTES_MAX};
use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{AdminCommand, PROTOCOL_VERSION, RequestLine};

/// How long a client may take to send its request, and again to take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to leave the listener alone after it failed: out of descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// How long [`AdminServer::close`] waits for answers under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the admin socket could not be opened.
#[derive(Debug, Error)]
pub enum AdminError {
    /// Somebody answers there.
    #[error("a node is already running on {}: stop it first (ringlane down)", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket stands in the way.
    #[error("{} exists and is not a socket: remove it", .0.display())]
    NotASocket(PathBuf),
    /// The file system or the kernel said no.
    #[error("cannot open the admin socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// One request of a client, to be answered by the control loop.
#[derive(Debug)]
pub struct AdminRequest {
    /// What it asks for.
    pub command: AdminCommand,
    /// Takes the answer.
    pub reply: AdminReply,
}

/// Takes the answer to one request. Dropping it tells the client that the node is stopping.
#[derive(Debug)]
pub struct AdminReply(oneshot::Sender<Vec<u8>>);

impl AdminReply {
    /// Answers with a struct of [`status`](super::status). A client that has gone away is no error.
    pub fn send(self, result: impl Serialize) {
        let line = match serde_json::to_vec(&ResultLine { version: PROTOCOL_VERSION, result }) {
            Ok(line) if line.len() < ADMIN_RESPONSE_BYTES_MAX => line,
            Ok(_) => error_line("the answer is too long"),
            Err(error) => error_line(&format!("the answer cannot be written as JSON: {error}")),
        };
        let _ = self.0.send(line);
    }

    /// Answers that it cannot be done, and why.
    pub fn refuse(self, message: &str) {
        let _ = self.0.send(error_line(message));
    }
}

#[derive(Serialize)]
struct ResultLine<T> {
    version: u32,
    result: T,
}

fn error_line(message: &str) -> Vec<u8> {
    serde_json::json!({ "version": PROTOCOL_VERSION, "error": message }).to_string().into_bytes()
}

/// Listens on a node's admin socket and hands its clients' requests to the control loop.
///
/// Owner: the control thread. A task of its runtime accepts, one more per client, at most [`ADMIN_CLIENTS_MAX`], reads
/// and writes; all that reaches the loop are whole requests. The socket is removed when this is dropped, unless another
/// has taken its place.
#[derive(Debug)]
pub struct AdminServer {
    path: PathBuf,
    inode: u64,
    clients: Arc<Semaphore>,
    requests: mpsc::Receiver<AdminRequest>,
    accepting: JoinHandle<()>,
}

impl AdminServer {
    /// Opens the socket, mode 0660, in a directory that is created if need be, mode 0755. What a killed node left there
    /// is replaced; a socket that somebody listens on is an error.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
        }
        remove_stale(path)?;

        let listener = listen(path).map_err(failed)?;
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        let clients = Arc::new(Semaphore::new(ADMIN_CLIENTS_MAX));
        let (sender, requests) = mpsc::channel(ADMIN_CLIENTS_MAX);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&clients), sender));
        Ok(Self { path: path.to_owned(), inode, clients, requests, accepting })
    }

    /// The next request. Cancel-safe.
    pub async fn next(&mut self) -> AdminRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // The accepting task ends only by panic or with the runtime; either way no request comes any more.
            None => std::future::pending().await,
        }
    }

    /// Takes no new clients, lets answers under way finish (bounded), and removes the socket.
    ///
    /// `ringlane down` returns when the socket is gone: call this when all else is taken down.
    pub async fn close(mut self) {
        self.accepting.abort();
        self.requests.close();
        while self.requests.try_recv().is_ok() {}
        let _ = timeout(CLOSE_TIMEOUT, self.clients.acquire_many(ADMIN_CLIENTS_MAX as u32)).await;
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.accepting.abort();
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a node that was killed. Whether one still listens is asked without ever waiting for it.
fn remove_stale(path: &Path) -> Result<(), AdminError> {
    let failed = |source| AdminError::Io { path: path.to_owned(), source };
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed)?,
    };
    if !found.file_type().is_socket() {
        return Err(AdminError::NotASocket(path.to_owned()));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(failed)?;
    match probe.connect(&SockAddr::unix(path).map_err(failed)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        // Connected, or a backlog so full that we would have to wait: somebody owns it.
        Ok(()) => Err(AdminError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(AdminError::InUse(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

/// Binds, sets the mode and only then listens, so that nobody connects before the mode is right.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    socket.listen(ADMIN_CLIENTS_MAX as i32)?;
    UnixListener::from_std(socket.into())
}

async fn accept(listener: UnixListener, clients: Arc<Semaphore>, requests: mpsc::Sender<AdminRequest>) {
    // The semaphore is never closed: the loop runs until the server aborts this task.
    while let Ok(permit) = Arc::clone(&clients).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, requests.clone(), permit))),
            Err(error) => {
                warn!(%error, "cannot accept an admin client");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, requests: mpsc::Sender<AdminRequest>, _permit: OwnedSemaphorePermit) {
    let (reader, mut writer) = stream.split();
    let mut line = match timeout(CLIENT_TIMEOUT, read_request(reader)).await {
        Ok(Ok(command)) => answer(command, &requests).await,
        Ok(Err(message)) => error_line(&message),
        Err(_) => error_line("no request came in time"),
    };
    line.push(b'\n');
    if !matches!(timeout(CLIENT_TIMEOUT, writer.write_all(&line)).await, Ok(Ok(()))) {
        debug!("an admin client went away before it had its answer");
    }
}

/// Waits for the control loop without a limit of its own: the loop is what the process lives by.
async fn answer(command: AdminCommand, requests: &mpsc::Sender<AdminRequest>) -> Vec<u8> {
    let (sender, receiver) = oneshot::channel();
    let stopping = || error_line("the node is stopping");
    match requests.send(AdminRequest { command, reply: AdminReply(sender) }).await {
        Ok(()) => receiver.await.unwrap_or_else(|_| stopping()),
        Err(_) => stopping(),
    }
}

async fn read_request(reader: impl tokio::io::AsyncRead + Unpin) -> Result<AdminCommand, String> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(ADMIN_REQUEST_BYTES_MAX as u64));
    reader.read_until(b'\n', &mut line).await.map_err(|error| format!("the request cannot be read: {error}"))?;
    if line.last() != Some(&b'\n') {
        return Err(format!("a request is one line of at most {ADMIN_REQUEST_BYTES_MAX} bytes"));
    }
    // The version first, so that a newer client hears about that and not about a command we do not know.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    match serde_json::from_slice::<Version>(&line) {
        Ok(Version { version: PROTOCOL_VERSION }) => {}
        Ok(Version { version }) => {
            return Err(format!("this node speaks version {PROTOCOL_VERSION} of the admin protocol, not {version}"));
        }
        Err(error) => return Err(format!("not a request: {error}")),
    }
    let request: RequestLine = serde_json::from_slice(&line).map_err(|error| format!("not a request: {error}"))?;
    Ok(request.command)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client makes of it is seen in `control/tests/admin.rs`; writing so much takes an unoptimized build seconds.
    #[test]
    fn an_answer_that_is_too_long_for_a_client_becomes_a_refusal() {
        let answer = |text: &str| {
            let (sender, mut answer) = oneshot::channel();
            AdminReply(sender).send(text);
            answer.try_recv().unwrap()
        };
        let around = answer("").len();
        let mut text = "x".repeat(ADMIN_RESPONSE_BYTES_MAX - around);
        assert_eq!(answer(&text), error_line("the answer is too long"));
        text.pop();
        assert_eq!(answer(&text).len(), ADMIN_RESPONSE_BYTES_MAX - 1);
    }
}
