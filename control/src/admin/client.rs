//! The command line's end of the admin socket: blocking, with a limit on everything.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringlane_shared::limits::ADMIN_RESPONSE_BYTES_MAX;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::{AdminCommand, PROTOCOL_VERSION, RequestLine};

/// How long a request may take from connecting to the answer's last byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request had no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens on it any more.
    #[error(
        "no node runs interface {} (looked for {}); start it with ringlane up", interface(.0), .0.display()
    )]
    NoNode(PathBuf),
    /// The socket is there and not for us.
    #[error("not permitted to talk to the node on {}: run as root or as a member of the socket's group", .0.display())]
    NotPermitted(PathBuf),
    /// The node did not answer in time.
    #[error("the node on {} did not answer within {} s", .0.display(), REQUEST_TIMEOUT.as_secs())]
    TimedOut(PathBuf),
    /// The node closed the connection without an answer: it is ending.
    #[error("the node on {} ended before it answered", .0.display())]
    Ended(PathBuf),
    /// The connection failed.
    #[error("cannot talk to the node on {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The node said no.
    #[error("the node on {} refused: {message}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its reason.
        message: String,
    },
    /// The node's answer makes no sense to us: it runs another version.
    #[error(
        "cannot read the answer of the node on {}: {message}; it may run another version of ringlane", path.display()
    )]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

fn interface(socket: &Path) -> String {
    socket.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Sends one command to the node that listens on `socket` and waits for its answer, `REQUEST_TIMEOUT` at most.
pub fn request<T: DeserializeOwned>(socket: &Path, command: AdminCommand) -> Result<T, ClientError> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let response = exchange(socket, command, deadline).map_err(|source| {
        let path = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoNode(path),
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted(path),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut(path),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                ClientError::Ended(path)
            }
            _ => ClientError::Io { path, source },
        }
    })?;
    read_response(socket, &response)
}

fn exchange(path: &Path, command: AdminCommand, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    // On a unix socket the write timeout also limits how long connecting waits for room in the backlog.
    socket.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    socket.connect(&SockAddr::unix(path)?)?;
    let mut line = serde_json::to_vec(&RequestLine { version: PROTOCOL_VERSION, command })?;
    line.push(b'\n');
    socket.write_all(&line)?;

    let mut response = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    while response.last() != Some(&b'\n') {
        if response.len() > ADMIN_RESPONSE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => response.extend_from_slice(&chunk[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(response)
}

fn read_response<T: DeserializeOwned>(socket: &Path, response: &[u8]) -> Result<T, ClientError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        error: Option<String>,
    }
    #[derive(Deserialize)]
    struct Body<T> {
        result: T,
    }
    let malformed = |message: String| ClientError::Malformed { path: socket.to_owned(), message };
    let head: Head = serde_json::from_slice(response).map_err(|error| malformed(error.to_string()))?;
    if let Some(message) = head.error {
        return Err(ClientError::Refused { path: socket.to_owned(), message });
    }
    if head.version != PROTOCOL_VERSION {
        return Err(malformed(format!("it speaks version {} of the admin protocol", head.version)));
    }
    let body: Body<T> = serde_json::from_slice(response).map_err(|error| malformed(error.to_string()))?;
    Ok(body.result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_answer_is_told_apart() {
        let read = |line: &str| read_response::<u8>(Path::new("/run/ringlane/ring0.sock"), line.as_bytes());
        assert_eq!(read(r#"{"version":1,"result":7}"#).unwrap(), 7);
        assert!(
            matches!(read(r#"{"version":1,"error":"no"}"#), Err(ClientError::Refused { message, .. }) if message == "no")
        );
        for malformed in ["", "{}", r#"{"version":2,"result":7}"#, r#"{"version":1}"#, r#"{"version":1,"result":"x"}"#]
        {
            assert!(matches!(read(malformed), Err(ClientError::Malformed { .. })), "{malformed}");
        }
    }

    #[test]
    fn a_missing_socket_names_the_interface_the_path_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ring7.sock");
        let error = request::<()>(&socket, AdminCommand::Status).unwrap_err().to_string();
        let expected =
            format!("no node runs interface ring7 (looked for {}); start it with ringlane up", socket.display());
        assert_eq!(error, expected);
    }
}
