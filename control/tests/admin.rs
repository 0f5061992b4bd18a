//! The admin socket with both of its ends, on the real file system.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringlane_control::admin::{AdminCommand, AdminError, AdminRequest, AdminServer, ClientError, request};
use ringlane_shared::limits::{ADMIN_CLIENTS_MAX, ADMIN_REQUEST_BYTES_MAX};
use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(10);

fn socket_in(directory: &TempDir) -> PathBuf {
    directory.path().join("run").join("ring0.sock")
}

fn ask(socket: &Path, command: AdminCommand) -> JoinHandle<Result<String, ClientError>> {
    let socket = socket.to_owned();
    spawn_blocking(move || request(&socket, command))
}

async fn next(server: &mut AdminServer) -> AdminRequest {
    timeout(PATIENCE, server.next()).await.expect("a request arrives")
}

/// Sends raw bytes and returns all that comes back.
fn send_raw(socket: &Path, bytes: Vec<u8>) -> JoinHandle<String> {
    let socket = socket.to_owned();
    spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    })
}

#[tokio::test]
async fn a_command_reaches_the_loop_and_its_answer_the_client() {
    let directory = tempfile::tempdir().unwrap();
    let socket = socket_in(&directory);
    let mut server = AdminServer::bind(&socket).unwrap();

    for command in [AdminCommand::Status, AdminCommand::Peers, AdminCommand::Routes, AdminCommand::Stop] {
        let client = ask(&socket, command.clone());
        let request = next(&mut server).await;
        assert_eq!(request.command, command);
        request.reply.send("an answer\nof two lines");
        assert_eq!(client.await.unwrap().unwrap(), "an answer\nof two lines");
    }

    let client = ask(&socket, AdminCommand::Status);
    next(&mut server).await.reply.refuse("not now");
    assert!(matches!(client.await.unwrap(), Err(ClientError::Refused { message, .. }) if message == "not now"));
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_goes_with_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let socket = socket_in(&directory);
    let server = AdminServer::bind(&socket).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o660);
    assert_eq!(mode(socket.parent().unwrap()), 0o755);
    drop(server);
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = socket_in(&directory);
    std::fs::create_dir(socket.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    assert!(matches!(request::<()>(&socket, AdminCommand::Status), Err(ClientError::NoNode(_))));

    let mut server = AdminServer::bind(&socket).unwrap();
    let refused = AdminServer::bind(&socket).unwrap_err();
    assert!(matches!(&refused, AdminError::InUse(path) if *path == socket), "{refused}");

    let client = ask(&socket, AdminCommand::Status);
    next(&mut server).await.reply.send("still here");
    assert_eq!(client.await.unwrap().unwrap(), "still here");
}

#[tokio::test]
async fn what_is_not_ours_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = socket_in(&directory);
    let server = AdminServer::bind(&socket).unwrap();
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(directory.path().join("filler"), "takes the inode that was set free").unwrap();
    std::fs::write(&socket, "somebody else's").unwrap();
    drop(server);
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "somebody else's");
    assert!(matches!(AdminServer::bind(&socket), Err(AdminError::NotASocket(_))));
}

#[tokio::test]
async fn a_bad_request_gets_its_reason_and_never_reaches_the_loop() {
    let directory = tempfile::tempdir().unwrap();
    let socket = socket_in(&directory);
    let mut server = AdminServer::bind(&socket).unwrap();
    for (line, reason) in [
        (b"".to_vec(), "one line"),
        (b"\n".to_vec(), "not a request"),
        (b"\xff\xfe\n".to_vec(), "not a request"),
        (b"{\"version\":1}\n".to_vec(), "missing field `command`"),
        (b"{\"version\":1,\"command\":\"dance\"}\n".to_vec(), "unknown variant `dance`"),
        (b"{\"version\":2,\"command\":\"dance\"}\n".to_vec(), "speaks version 1"),
        (b"{\"version\":1,\"command\":\"status\"}".to_vec(), "one line"),
        (vec![b' '; ADMIN_REQUEST_BYTES_MAX], "one line"),
    ] {
        let answer = timeout(PATIENCE, send_raw(&socket, line)).await.unwrap().unwrap();
        assert!(answer.starts_with("{") && answer.ends_with("}\n") && answer.contains(reason), "{reason}: {answer}");
    }
    // Every bad request has been answered, so one that slipped through would be first in the queue.
    let client = ask(&socket, AdminCommand::Routes);
    let request = next(&mut server).await;
    assert_eq!(request.command, AdminCommand::Routes);
    request.reply.send("good");
    client.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_client_too_many_waits_until_another_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let socket = socket_in(&directory);
    let mut server = AdminServer::bind(&socket).unwrap();
    let mut clients = Vec::new();
    let mut requests = Vec::new();
    for _ in 0..ADMIN_CLIENTS_MAX {
        clients.push(ask(&socket, AdminCommand::Status));
        requests.push(next(&mut server).await);
    }
    let late = ask(&socket, AdminCommand::Peers);
    assert!(timeout(Duration::from_millis(100), server.next()).await.is_err(), "the bound holds");

    requests.pop().unwrap().reply.send("served");
    let request = next(&mut server).await;
    assert_eq!(request.command, AdminCommand::Peers);
    request.reply.send("served late");
    assert_eq!(late.await.unwrap().unwrap(), "served late");
    for request in requests {
        request.reply.send("served");
    }
    for client in clients {
        assert_eq!(client.await.unwrap().unwrap(), "served");
    }
}

#[tokio::test]
async fn closing_delivers_the_last_answer_and_then_removes_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = socket_in(&directory);
    let mut server = AdminServer::bind(&socket).unwrap();
    let stop = ask(&socket, AdminCommand::Stop);
    let unanswered = ask(&socket, AdminCommand::Status);
    let (mut a, mut b) = (next(&mut server).await, next(&mut server).await);
    if a.command != AdminCommand::Stop {
        std::mem::swap(&mut a, &mut b);
    }
    a.reply.send("stopping");
    drop(b);
    timeout(PATIENCE, server.close()).await.unwrap();
    assert!(!socket.exists());
    assert_eq!(stop.await.unwrap().unwrap(), "stopping");
    assert!(matches!(unanswered.await.unwrap(), Err(ClientError::Refused { .. })));
}
