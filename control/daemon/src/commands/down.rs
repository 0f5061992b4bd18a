//! `ringlane down`: stops the node that runs an interface and waits until it has cleaned up.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;
use ringlane_control::admin::{AdminCommand, ClientError, request};
use serde::Serialize;

use super::text;
use crate::cli::InterfaceArgs;

/// How long a node may take to close its lanes and remove its interface.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What `down --json` prints.
#[derive(Serialize)]
struct Stopped<'a> {
    interface: &'a str,
    stopped: bool,
}

pub(crate) fn run(args: &InterfaceArgs) -> anyhow::Result<ExitCode> {
    stop(&text::socket_of(&args.interface)?, STOP_TIMEOUT)?;
    let answer = Stopped { interface: &args.interface, stopped: true };
    text::print(args.output, &answer, || format!("{} is down\n", args.interface))?;
    Ok(ExitCode::SUCCESS)
}

/// A node removes its socket last, so its going is the sign that all else is gone. A new socket in its place, of a
/// node that a service manager started at once, is as good a sign.
fn stop(socket: &Path, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let inode = || std::fs::symlink_metadata(socket).ok().map(|found| found.ino());
    let before = inode();
    match request(socket, AdminCommand::Stop) {
        // It may be gone before its answer is on the way.
        Ok(()) | Err(ClientError::Ended(_)) => {}
        Err(error) => return Err(error.into()),
    }
    while before.is_some() && inode() == before {
        if Instant::now() > deadline {
            bail!(
                "the node on {} was told to stop and still runs after {} s; its log says what it waits for",
                socket.display(),
                patience.as_secs()
            );
        }
        sleep(POLL_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use ringlane_control::admin::AdminServer;

    use super::*;

    /// Runs a node's admin socket until it is told to stop; then it goes once `may_go` says so.
    fn with_node(socket: &Path, may_go: mpsc::Receiver<()>) -> thread::JoinHandle<()> {
        let (ready, is_ready) = mpsc::channel();
        let path = socket.to_owned();
        let node = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut server = AdminServer::bind(&path).unwrap();
                ready.send(()).unwrap();
                let request = server.next().await;
                assert_eq!(request.command, AdminCommand::Stop);
                request.reply.send(());
                tokio::task::spawn_blocking(move || may_go.recv()).await.unwrap().unwrap();
                server.close().await;
            });
        });
        is_ready.recv().unwrap();
        node
    }

    #[test]
    fn down_returns_when_the_socket_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ring0.sock");
        let (go, may_go) = mpsc::channel();
        let node = with_node(&socket, may_go);
        go.send(()).unwrap();
        stop(&socket, STOP_TIMEOUT).unwrap();
        assert!(!socket.exists());
        node.join().unwrap();
    }

    #[test]
    fn a_node_that_does_not_go_is_an_error_that_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ring0.sock");
        let (go, may_go) = mpsc::channel();
        let node = with_node(&socket, may_go);
        let error = stop(&socket, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("was told to stop and still runs after 0 s"), "{error}");
        go.send(()).unwrap();
        node.join().unwrap();
    }

    #[test]
    fn there_being_no_node_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = stop(&directory.path().join("ring0.sock"), STOP_TIMEOUT).unwrap_err().to_string();
        assert!(error.starts_with("no node runs interface ring0"), "{error}");
    }
}
