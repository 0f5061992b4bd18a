//! The helper programs over loopback, as the harness runs them.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

/// A server tool that is ready; dropping it ends it.
struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start(tool: &str) -> Self {
        let mut child = command(tool, &["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its output is text");
        let ready: Value = serde_json::from_str(&line).expect("a JSON line");
        assert_eq!(ready["ready"], true);
        let address = ready["address"].as_str().expect("it says where it listens").to_owned();
        Self { child, output, address }
    }

    fn result(mut self) -> Value {
        let mut line = String::new();
        self.output.read_to_string(&mut line).expect("its output is text");
        assert!(self.child.wait().expect("it ends").success());
        serde_json::from_str(&line).expect("one JSON line")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(tool: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlane-perf"));
    command.args(["tool", tool]).args(arguments);
    command
}

fn run(tool: &str, arguments: &[&str]) -> Value {
    let output = command(tool, arguments).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON line")
}

#[test]
fn echoes_come_back_over_both_protocols() {
    let server = Server::start("echo-server");
    for protocol in ["tcp", "udp"] {
        let arguments = ["--server", &server.address, "--protocol", protocol, "--interval-us", "0", "--seconds", "0.1"];
        let latency = run("echo-client", &arguments);
        assert!(latency["count"].as_u64() > Some(0), "{protocol}: {latency}");
        assert_eq!(latency["lost"], 0, "{protocol}: {latency}");
        assert!(latency["min"].as_f64() > Some(0.0), "{protocol}: {latency}");
        assert!(latency["p99_9"].as_f64() <= latency["max"].as_f64(), "{protocol}: {latency}");
    }
}

#[test]
fn a_stream_arrives_whole() {
    let server = Server::start("receive");
    let sent = run("send", &["--connect", &server.address, "--bytes", "1000001", "--seed", "7"]);
    assert_eq!(sent["bytes"], 1_000_001);
    let received = server.result();
    assert_eq!((&received["bytes"], &received["ok"]), (&1_000_001.into(), &true.into()), "{received}");
}

#[test]
fn datagrams_arrive_whole_and_in_order() {
    let server = Server::start("udp-receive");
    // They fit into the smallest receive buffer there is by default.
    let sent = run("udp-send", &["--connect", &server.address, "--count", "20", "--flows", "2", "--size", "500"]);
    assert_eq!((&sent["sent"], &sent["refused"]), (&40.into(), &0.into()));
    let received = server.result();
    assert_eq!((&received["received"], &received["bytes"]), (&40.into(), &20_000.into()), "{received}");
    for fault in ["lost", "reordered", "duplicated", "corrupted"] {
        assert_eq!(received[fault], 0, "{received}");
    }
}

#[test]
fn a_tool_that_fails_says_so_on_the_error_output() {
    let output = command("send", &["--connect", "127.0.0.1:1", "--bytes", "1"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("connecting to 127.0.0.1:1"));
}
