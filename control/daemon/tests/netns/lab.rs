//! A lab of namespaces that vanishes with its owner, and threads that enter a namespace.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

/// How long any condition may take to come true before a test gives up. Far above what is needed: a busy machine
/// with two cores runs two labs at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long silence must last to count as silence.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls until `probe` yields something; panics with `what` when [`PATIENCE`] is over.
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up after {PATIENCE:?} waiting for {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// One of the lab's sites: a router that runs a node, and a host behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Site {
    A,
    B,
    C,
    /// Third peers at addresses that everybody reaches. Only a lab with an internet has them, and no host behind them.
    R,
    S,
}

impl Site {
    pub(crate) fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
            Self::C => 'c',
            Self::R => 'r',
            Self::S => 's',
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::C => 3,
            Self::R => 4,
            Self::S => 5,
        }
    }

    /// The router's underlay address.
    pub(crate) fn underlay(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 201, 0, self.number())
    }

    /// The host's inner IPv4 address.
    pub(crate) fn host_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number() * 10, 0, 2)
    }

    /// The host's inner IPv6 address.
    pub(crate) fn host_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, u16::from(self.number()) * 0x10, 0, 0, 0, 0, 0, 2)
    }

    /// The host's inner addresses.
    pub(crate) fn host(self) -> [IpAddr; 2] {
        [self.host_v4().into(), self.host_v6().into()]
    }

    /// The networks behind the router.
    pub(crate) fn networks(self) -> [String; 2] {
        let number = self.number();
        [format!("10.{number}0.0.0/16"), format!("fd00:{number}0::/64")]
    }
}

/// A running lab. Dropping it ends every process in it and removes it, also when a test panics.
#[derive(Debug)]
pub(crate) struct Lab {
    prefix: String,
    directory: TempDir,
    /// Namespaces that `scripts/lab` has not made.
    added: Vec<Namespace>,
}

impl Lab {
    /// Makes a lab of 2 or 3 sites. `None`, with the reason on stderr, where that is impossible and not required.
    pub(crate) fn up(sites: usize) -> Option<Self> {
        Self::with_arguments(&["--sites", &sites.to_string()])
    }

    /// As [`Lab::up`], with routes between two sites over the bare underlay instead of nodes.
    pub(crate) fn up_routed() -> Option<Self> {
        Self::with_arguments(&["--sites", "2", "--routed"])
    }

    fn with_arguments(arguments: &[&str]) -> Option<Self> {
        let lab = Self::empty()?;
        succeed(lab.script("up").args(arguments));
        Some(lab)
    }

    /// A lab without namespaces, for [`Lab::add`]. `None` as [`Lab::up`].
    pub(crate) fn empty() -> Option<Self> {
        if let Err(missing) = namespaces_available() {
            assert!(env::var_os("RINGLANE_REQUIRE_NETNS").is_none_or(|value| value != "1"), "{missing}");
            eprintln!("skipped: {missing}");
            return None;
        }
        static LABS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("rlt{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Some(Self { prefix, directory, added: Vec::new() })
    }

    /// Makes a namespace of this name that forwards packets, with nothing but its loopback interface.
    pub(crate) fn add(&mut self, name: &str) -> Namespace {
        let namespace = self.namespace(name);
        succeed(Command::new("ip").args(["netns", "add", namespace.name()]));
        self.added.push(namespace.clone());
        // Duplicate address detection would keep every IPv6 address unusable for a second.
        namespace.run(
            "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 \
             net.ipv6.conf.default.accept_dad=0",
        );
        namespace.run("ip link set lo up");
        namespace
    }

    /// The router of a site, where its node runs.
    pub(crate) fn router(&self, site: Site) -> Namespace {
        self.namespace(&format!("router-{}", site.letter()))
    }

    /// The host behind a site's router.
    pub(crate) fn host(&self, site: Site) -> Namespace {
        self.namespace(&format!("host-{}", site.letter()))
    }

    /// The bridge between the routers; only a lab of three sites has it.
    pub(crate) fn underlay(&self) -> Namespace {
        self.namespace("underlay")
    }

    /// Unique on this machine, and short enough to start an interface name.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where the lab's files go; removed with it.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn namespace(&self, name: &str) -> Namespace {
        Namespace { name: format!("{}-{name}", self.prefix) }
    }

    fn script(&self, action: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/lab"));
        command.args([action, "--prefix", &self.prefix]);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A failure here must not hide the panic that may be under way.
        self.added.iter().for_each(Namespace::end_processes);
        self.added.iter().for_each(Namespace::remove);
        if !self.script("down").status().is_ok_and(|status| status.success()) {
            eprintln!("lab {} could not be removed; try: scripts/lab down --prefix {}", self.prefix, self.prefix);
        }
    }
}

fn namespaces_available() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    let ip = Command::new("ip").arg("-Version").stdout(Stdio::null()).status();
    if !ip.is_ok_and(|status| status.success()) {
        return Err("`ip` is missing: run scripts/setup".into());
    }
    Ok(())
}

/// One network namespace of a lab.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Its name, as `ip netns` knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. The sockets it makes stay there, whichever thread uses them.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(PathBuf::from("/run/netns").join(&self.name)).expect("the namespace exists");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace; its process id is the program's own.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a line of words inside the namespace and returns what it printed; panics when it fails.
    pub(crate) fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a line has a first word");
        let output = succeed(self.command(program).args(words));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn end_processes(&self) {
        let Ok(listed) = Command::new("ip").args(["netns", "pids", &self.name]).output() else { return };
        let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
        for id in ids.split_whitespace().filter_map(|id| id.parse().ok()).filter_map(Pid::from_raw) {
            // It may have ended by itself since.
            let _ = kill_process(id, Signal::KILL);
        }
    }

    fn remove(&self) {
        let removed = Command::new("ip").args(["netns", "delete", &self.name]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("namespace {} could not be removed", self.name);
        }
    }

    /// Whether an interface of this name exists.
    pub(crate) fn has_interface(&self, name: &str) -> bool {
        self.command("ip").args(["link", "show", "dev", name]).output().is_ok_and(|output| output.status.success())
    }

    /// Links, addresses, routes and rules as the kernel lists them: what a node must leave as it found it.
    pub(crate) fn kernel_state(&self) -> String {
        let mut state = String::new();
        for listing in [
            "ip -brief link",
            "ip -brief address",
            "ip route show table all",
            "ip -6 route show table all",
            "ip rule",
            "ip -6 rule",
        ] {
            state += &self.run(listing);
        }
        state
    }

    /// Pings with three packets 50 ms apart; panics unless all are answered.
    pub(crate) fn ping(&self, address: IpAddr) {
        self.run(&format!("ping -n -c 3 -i 0.05 -W 5 {address}"));
    }
}

/// Runs a command to its end; panics with what it printed when it fails.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

#[test]
fn a_lab_joins_its_sites_and_leaves_nothing_behind() {
    let Some(lab) = Lab::up_routed() else { return };
    for address in Site::B.host() {
        lab.host(Site::A).ping(address);
    }
    let left_running = lab.host(Site::B).command("sleep").arg("600").spawn();
    let mut left_running = left_running.expect("sleep can be started");
    let name = lab.router(Site::A).name;
    drop(lab);
    left_running.wait().expect("the lab ended the process");
    assert!(!Path::new("/run/netns").join(name).exists());
}

#[test]
fn namespaces_added_to_a_lab_vanish_with_it_and_with_their_processes() {
    let Some(mut lab) = Lab::empty() else { return };
    let added = lab.add("added");
    let mut left_running = added.command("sleep").arg("600").spawn().expect("sleep can be started");
    drop(lab);
    left_running.wait().expect("the lab ended the process");
    assert!(!Path::new("/run/netns").join(added.name()).exists());
}
