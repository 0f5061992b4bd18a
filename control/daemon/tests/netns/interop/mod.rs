//! Networks of Ringlane and Hyprspace nodes: the acceptance scenarios, each with every mixture of nodes.
//!
//! A [`Member`] is a node's place in a network, with a configuration in Hyprspace's own format that all kinds read
//! unchanged; a [`Running`] is its process. A scenario is a function of the members' [`Kind`]s; [`matrix!`] makes a test
//! of it for each mixture. Mixtures of nothing but Ringlane always run. The others need Hyprspace's binaries, which are
//! looked for in `HYPRSPACE_BIN` (0.15.0, then as `hyprspace` on PATH) and `HYPRSPACE_OLD_BIN` (0.14.1, then
//! `hyprspace-0.14.1`); where one is missing the test says `SKIPPED` past the test harness and passes, unless
//! `RINGLANE_REQUIRE_HYPRSPACE=1` makes that a failure.

mod basics;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Write, stderr};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::lab::{Lab, Namespace, Site, wait_for};
use crate::node::{CONTROL_PORT, RINGLANE};

/// Lines of a node's log printed when its test fails.
const LOG_LINES_SHOWN: usize = 60;

/// What a member runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// This package's binary.
    Rust,
    /// Hyprspace 0.15.0.
    Go,
    /// Hyprspace 0.14.1: no `/hyprspace/1`, no mDNS, no configurable bootstrap list.
    OldGo,
}

impl Kind {
    /// The binary, if it is here. Another `hyprspace` than Hyprspace's own is none.
    fn program(self) -> Option<PathBuf> {
        let (variable, name) = match self {
            Self::Rust => return Some(RINGLANE.into()),
            Self::Go => ("HYPRSPACE_BIN", "hyprspace"),
            Self::OldGo => ("HYPRSPACE_OLD_BIN", "hyprspace-0.14.1"),
        };
        let on_path = || {
            let path = env::var_os("PATH")?;
            env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
        };
        let program = env::var_os(variable).map(PathBuf::from).or_else(on_path)?;
        let version = Command::new(&program).arg("version").stdin(Stdio::null()).output().ok()?;
        version.stdout.starts_with(b"hyprspace ").then_some(())?;
        (!version.stdout.windows(8).any(|word| word == b"ringlane")).then_some(program)
    }
}

/// A lab for members of these kinds, the first at [`Site::A`]. `None`, with the reason, where that is impossible.
pub(crate) fn lab_of<const N: usize>(kinds: [Kind; N]) -> Option<(Lab, [Member; N])> {
    for kind in kinds {
        if kind.program().is_none() {
            let test = thread::current().name().unwrap_or("a test").to_owned();
            let skipped =
                format!("SKIPPED: {test} needs {kind:?}: set HYPRSPACE_BIN (0.15.0), HYPRSPACE_OLD_BIN (0.14.1)\n");
            assert!(env::var_os("RINGLANE_REQUIRE_HYPRSPACE").is_none_or(|value| value != "1"), "{skipped}");
            // Not eprintln!, which is only shown of tests that fail.
            let _ = stderr().write_all(skipped.as_bytes());
            return None;
        }
    }
    let lab = Lab::up(N.max(2))?;
    let mut sites = [Site::A, Site::B, Site::C].into_iter();
    let members = kinds.map(|kind| Member::new(&lab, sites.next().expect("a lab has at most three sites"), kind));
    Some((lab, members))
}

/// As [`lab_of`]: each member trusts all others and is told their addresses, and all are up.
pub(crate) fn mesh_of<const N: usize>(kinds: [Kind; N]) -> Option<(Lab, [Member; N], [Running; N])> {
    let (lab, mut members) = lab_of(kinds)?;
    trust_all(&mut members);
    know_all(&mut members);
    let nodes = members.each_ref().map(Member::up);
    Some((lab, members, nodes))
}

/// Has each trust all others.
pub(crate) fn trust_all<const N: usize>(members: &mut [Member; N]) {
    for_each_pair(members, Member::trust);
}

/// Tells each the addresses of all others.
pub(crate) fn know_all<const N: usize>(members: &mut [Member; N]) {
    for_each_pair(members, Member::know);
}

fn for_each_pair<const N: usize>(members: &mut [Member; N], change: impl Fn(&mut Member, &Member)) {
    for ours in 0..N {
        for theirs in 0..N {
            if let Ok([ours, theirs]) = members.get_disjoint_mut([ours, theirs]) {
                change(ours, theirs);
            }
        }
    }
}

/// Waits until every member's packets reach every other, over IPv4 and IPv6.
pub(crate) fn wait_joined(members: &[Member]) {
    for ours in members {
        for theirs in members.iter().filter(|theirs| theirs.site != ours.site) {
            ours.wait_reaches(theirs);
        }
    }
}

/// A node's place in a network: where it runs, what it runs, and its configuration.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) kind: Kind,
    pub(crate) site: Site,
    /// The namespace it runs in.
    pub(crate) router: Namespace,
    /// Unique on the machine: Hyprspace's socket is named after it and is in no namespace.
    pub(crate) interface: String,
    pub(crate) file: PathBuf,
    pub(crate) id: &'static str,
    /// Hyprspace's JSON. As made: a key, no peers, no bootstrap list.
    pub(crate) config: Value,
    /// For the process.
    pub(crate) environment: BTreeMap<String, String>,
}

/// A public key pair of each site; those of A and B are the ones of Hyprspace's own tests, whose addresses are known.
fn identity(site: Site) -> (&'static str, &'static str, [&'static str; 2]) {
    match site {
        Site::A => (
            "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC",
            "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN",
            ["100.64.132.22", "fd00:6879:7072:7370:6163:6500:f26:ea70"],
        ),
        Site::B => (
            "z23jhTbwi6M5cGWn1GeC7eXV2TbJpFhgmtVpsUjKshKKrSCy2seByS6da3epoBtEsMc8HA5oToay8RVG2w9nACHdt5WUge",
            "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46",
            ["100.64.4.143", "fd00:6879:7072:7370:6163:6500:b497:d158"],
        ),
        Site::C => (
            "z23jhTc1e9XE6QxkBDA6LW9d42EhTR4h8T2i7jsKPeLBm3HccLzUUPxqR4xrYGuF14vx8jhdq5tsrgLXmNdGXwVu7diGZH",
            "12D3KooWPVztLFzcrArCCocHBRZqXo5xM9T16N8KDsLnC3o7TzMR",
            ["100.64.163.10", "fd00:6879:7072:7370:6163:6500:7751:b51b"],
        ),
    }
}

impl Member {
    fn new(lab: &Lab, site: Site, kind: Kind) -> Self {
        let interface = format!("{}{}", lab.prefix(), site.letter());
        let (key, id, _) = identity(site);
        Self {
            kind,
            site,
            router: lab.router(site),
            file: lab.directory().join(format!("{interface}.json")),
            interface,
            id,
            config: json!({ "privateKey": key, "bootstrapPeers": [], "peers": [] }),
            environment: BTreeMap::new(),
        }
    }

    /// As peers call it: `peera`, `peerb`, `peerc`.
    pub(crate) fn name(&self) -> String {
        format!("peer{}", self.site.letter())
    }

    /// Its built-in addresses: IPv4, then IPv6.
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        identity(self.site).2.map(|address| address.parse().expect("an address"))
    }

    /// Where it listens, for `bootstrapPeers`: TCP, then QUIC.
    pub(crate) fn multiaddrs(&self) -> [String; 2] {
        let (address, id) = (self.site.underlay(), self.id);
        [
            format!("/ip4/{address}/tcp/{CONTROL_PORT}/p2p/{id}"),
            format!("/ip4/{address}/udp/{CONTROL_PORT}/quic-v1/p2p/{id}"),
        ]
    }

    /// Adds a peer, without networks and addresses.
    pub(crate) fn trust(&mut self, peer: &Member) {
        self.push("peers", json!({ "name": peer.name(), "id": peer.id }));
    }

    /// Adds a peer's addresses.
    pub(crate) fn know(&mut self, peer: &Member) {
        for address in peer.multiaddrs() {
            self.push("bootstrapPeers", address.into());
        }
    }

    fn push(&mut self, key: &str, entry: Value) {
        self.config[key].as_array_mut().expect("a list").push(entry);
    }

    /// Sends nothing to and hears nothing from groups on the underlay from now on: no mDNS.
    pub(crate) fn without_multicast(&self) {
        self.router.run("ip link set dev underlay multicast off");
        self.router.run("ip link set dev lan multicast off");
    }

    /// Whether one packet to the peer is answered.
    pub(crate) fn reaches(&self, peer: &Member) -> bool {
        peer.addresses().iter().all(|address| {
            let mut ping = self.router.command("ping");
            ping.args(["-n", "-q", "-c", "1", "-W", "0.5", &address.to_string()]).stdin(Stdio::null());
            ping.output().is_ok_and(|answer| answer.status.success())
        })
    }

    pub(crate) fn wait_reaches(&self, peer: &Member) {
        wait_for(&format!("{} to reach {}", self.name(), peer.name()), || self.reaches(peer).then_some(()));
    }

    /// Starts it; returns before it is ready.
    pub(crate) fn up(&self) -> Running {
        fs::write(&self.file, self.config.to_string()).expect("the configuration can be written");
        // It holds a key.
        fs::set_permissions(&self.file, Permissions::from_mode(0o600)).expect("our own file can be locked");
        Running {
            child: self.spawn(),
            program: self.program(),
            log: self.log_file(),
            interface: self.interface.clone(),
        }
    }

    fn spawn(&self) -> Child {
        let log = || File::options().create(true).append(true).open(self.log_file()).expect("the log can be written");
        let mut command = self.router.command(self.program());
        match self.kind {
            Kind::Rust => command.arg("up").arg("-c").arg(&self.file),
            Kind::Go | Kind::OldGo => command.arg("up").arg("-c").arg(&self.file).args(["-i", &self.interface]),
        };
        command.envs(&self.environment).stdin(Stdio::null()).stdout(log()).stderr(log());
        command.spawn().expect("the node can be started")
    }

    fn program(&self) -> PathBuf {
        self.kind.program().expect("it was there when the lab was made")
    }

    fn log_file(&self) -> PathBuf {
        self.file.with_extension("log")
    }
}

/// A member's process. Dropping it kills it and takes away what it left; when its test fails, its log is printed.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    program: PathBuf,
    log: PathBuf,
    interface: String,
}

impl Running {
    /// Ends it and starts it again.
    pub(crate) fn restart(&mut self, member: &Member) {
        let ended = self.terminate();
        assert!(ended.success(), "SIGTERM is an orderly end: {ended}");
        self.child = member.spawn();
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        wait_for("the node to end", || self.child.try_wait().expect("a child can be waited for"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        kill_process(pid, signal).expect("a child that was not waited for can be signalled");
    }

    /// All it has printed and logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs its binary with the words and its interface, and returns what that printed; panics when it fails.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let output =
            Command::new(&self.program).args(words).args(["-i", &self.interface]).stdin(Stdio::null()).output();
        let output = output.expect("the binary can be run");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Panics if it has ended.
    pub(crate) fn expect_alive(&mut self) {
        let ended = self.child.try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "{} ended with {ended:?}", self.interface);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // All fail harmlessly where there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let left =
            [format!("/run/hyprspace-rpc.{}.sock", self.interface), format!("/run/ringlane/{}.sock", self.interface)];
        let _ = left.map(fs::remove_file);
        let _ = fs::remove_dir_all(Path::new("/var/lib/ringlane").join(&self.interface));
        if thread::panicking() {
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
            eprintln!("---- log of {} ({}), first {skipped} lines left out", self.interface, self.program.display());
            log.lines().skip(skipped).for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Whether the long forms of scenarios are asked for: `RINGLANE_TEST_LONG=1`.
pub(crate) fn long() -> bool {
    env::var_os("RINGLANE_TEST_LONG").as_deref() == Some(OsStr::new("1"))
}

/// Tests of a scenario, one for each mixture: `matrix!(scenario: rust_go [Rust, Go], ...)`, or `matrix!(scenario)` for
/// all of two members that can work.
macro_rules! matrix {
    ($scenario:ident: $($(#[$attribute:meta])* $name:ident [$($kind:ident),+]),+ $(,)?) => {
        mod $scenario {
            $(
                #[test]
                $(#[$attribute])*
                fn $name() {
                    super::$scenario([$(crate::interop::Kind::$kind),+]);
                }
            )+
        }
    };
    ($scenario:ident) => {
        crate::interop::matrix!($scenario:
            rust_rust [Rust, Rust],
            #[ignore = "waits for /hyprspace/1"] rust_go [Rust, Go],
            #[ignore = "waits for /hyprspace/1"] go_rust [Go, Rust],
        );
    };
}
pub(crate) use matrix;
