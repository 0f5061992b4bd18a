//! Without io_uring: the same packets by other system calls, and a node that finds out by itself.
#![allow(unsafe_code, reason = "no safe library installs a seccomp filter")]

use std::process::Command;
use std::thread;

use nix::libc;

use crate::lab::{Lab, Site};
use crate::node::{Node, Setup, mesh, two_direct_on};
use crate::offload::traffic_is_whole;

/// Traffic between nodes on these engines is whole and was moved in super-segments and trains.
fn carry_between(engines: [&str; 2], workers: [u8; 2]) {
    let Some(lab) = Lab::up(2) else { return };
    let (_setups, nodes) = two_direct_on(&lab, workers, engines);
    for (near, addresses) in [(Site::A, Site::B.host()), (Site::B, Site::A.host())] {
        addresses.into_iter().for_each(|address| lab.host(near).ping(address));
    }
    traffic_is_whole(&lab);
    for node in &nodes {
        let status = node.status();
        for counter in ["super_segments_read", "super_segments_written"] {
            assert!(status.sum(counter) > 0, "{counter} in {status:?}");
        }
        for [trains, records] in [["trains_sent", "records_sent"], ["trains_received", "records_received"]] {
            assert!(2 * status.sum(trains) < status.sum(records), "{trains} in {status:?}");
        }
        for reason in ["unauthentic", "replayed", "frame_malformed", "packet_malformed", "inbound_malformed"] {
            assert_eq!(status.dropped(reason), 0, "{reason} without an attacker: {status:?}");
        }
        let sleeps = status.sum("sleeps");
        assert!(sleeps > 0 && status.workers("turns").iter().all(|&turns| turns > 0), "{status:?}");
    }
}

#[test]
fn traffic_crosses_between_epoll_and_epoll() {
    carry_between(["epoll", "epoll"], [2, 3]);
}

#[test]
fn traffic_crosses_between_epoll_and_io_uring() {
    carry_between(["epoll", "io_uring"], [1, 2]);
}

/// Starts a command in a process that may not set up an io_uring.
fn without_io_uring<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let filtered = scope.spawn(|| {
            // Of this thread alone, and of the processes that it starts.
            forbid_io_uring();
            start()
        });
        filtered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes `io_uring_setup` fail with `EPERM` for this thread and what it starts, as a container's seccomp profile does.
fn forbid_io_uring() {
    let step = |code: u32, jt, jf, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        // The system call's number is what `seccomp_data` begins with.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program is four steps that live until the call returns; the kernel copies them.
    let installed = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    assert_eq!(installed, 0, "root may install a filter: {}", std::io::Error::last_os_error());
}

fn with_engine(mut setup: Setup, engine: &str) -> Setup {
    setup.set("dataplane", "engine", engine);
    setup.write();
    setup
}

#[test]
fn a_node_that_may_not_use_io_uring_says_why_and_runs_on_epoll() {
    let Some(lab) = Lab::up(2) else { return };
    let [a, b] = mesh(&lab, [(Site::A, 2), (Site::B, 2)]).map(|setup| with_engine(setup, "auto"));
    let mut nodes = [without_io_uring(|| Node::up(&a)), Node::up(&b)];
    nodes[0].wait_direct(&[Site::B], 2);
    nodes[1].wait_direct(&[Site::A], 2);
    let engines = nodes.each_ref().map(|node| node.status().engines().join(" "));
    assert_eq!(engines, ["epoll epoll", "io_uring io_uring"]);
    let logs = nodes.each_ref().map(Node::log);
    let said: Vec<_> = logs[0].lines().filter(|line| line.contains("io_uring cannot be used")).collect();
    assert!(matches!(said[..], [line] if line.contains("WARN") && line.contains("seccomp")), "{said:?}");
    assert!(!logs[1].contains("io_uring"), "{}", logs[1]);
    traffic_is_whole(&lab);
}

#[test]
fn a_node_told_to_use_io_uring_does_not_start_without() {
    let Some(lab) = Lab::up(2) else { return };
    let setup = with_engine(Setup::init(&lab, Site::A), "io_uring");
    let before = setup.router.kernel_state();
    let ended = without_io_uring(|| Command::output(&mut setup.up_command()).expect("the node can be started"));
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    for word in ["engine = \"io_uring\"", "seccomp", "engine = \"auto\""] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    assert_eq!(setup.router.kernel_state(), before, "it left nothing behind");
}
