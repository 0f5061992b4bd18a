//! Networks of Ringlane and Hyprspace nodes: the acceptance scenarios, each with every mixture of nodes.
//!
//! A [`Member`] is a node's place in a network, with a configuration in Hyprspace's own format that all kinds read
//! unchanged; a [`Running`] is its process. A scenario is a function of the members' [`Kind`]s; [`matrix!`] makes a test
//! of it for each mixture. Mixtures of nothing but Ringlane always run. The others need Hyprspace's binaries, which are
//! looked for in `HYPRSPACE_BIN` (0.15.0, then as `hyprspace` on PATH) and `HYPRSPACE_OLD_BIN` (0.14.1, then
//! `hyprspace-0.14.1`); where one is missing the test says `SKIPPED` past the test harness and passes, unless
//! `RINGLANE_REQUIRE_HYPRSPACE=1` makes that a failure.

mod basics;
mod commands;
mod discovery;
mod names;
mod relay;
mod services;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Write, stderr};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use toml::{Table, Value as Toml};

use crate::lab::{Lab, Namespace, Site, wait_for};
use crate::node::{CONTROL_PORT, RINGLANE};

/// Lines of a node's log printed when its test fails.
const LOG_LINES_SHOWN: usize = 40;

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
            Self::Rust => return Some(as_hyprspace()),
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

/// This package's binary by the name `hyprspace`, so that it takes the same command lines.
fn as_hyprspace() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("as-hyprspace");
        fs::create_dir_all(&directory).expect("the directory for tests can be written");
        let link = directory.join("hyprspace");
        // Left by an earlier run; every run's is the same.
        let made = symlink(RINGLANE, &link);
        assert!(made.is_ok() || link.is_symlink(), "a link can be made: {made:?}");
        link
    });
    made.clone()
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
    /// Keys of `[control]`, for what Hyprspace's format has none; with any, the configuration is written as TOML.
    pub(crate) control: Table,
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
        Site::R | Site::S => unreachable!("these networks have at most three members"),
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
            control: Table::new(),
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

    /// Routes the networks behind a peer that is trusted to it.
    pub(crate) fn route(&mut self, peer: &Member) {
        let peers = self.config["peers"].as_array_mut().expect("a list");
        let entry = peers.iter_mut().find(|entry| entry["id"] == peer.id).expect("a trusted peer");
        entry["routes"] = peer.site.networks().iter().map(|net| json!({ "net": net })).collect();
    }

    fn push(&mut self, key: &str, entry: Value) {
        self.config[key].as_array_mut().expect("a list").push(entry);
    }

    /// Hears no mDNS from now on.
    pub(crate) fn without_mdns(&self) {
        self.router.run("nft add table inet interop");
        self.router.run("nft add chain inet interop input { type filter hook input priority 0 ; }");
        self.router.run("nft add rule inet interop input udp dport 5353 drop");
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
        let (file, text) = self.configuration();
        write_secret(&file, &text);
        Running {
            child: self.spawn(&file),
            program: self.program(),
            log: self.log_file(),
            interface: self.interface.clone(),
        }
    }

    fn configuration(&self) -> (PathBuf, String) {
        if self.control.is_empty() {
            return (self.file.clone(), self.config.to_string());
        }
        // The same in Ringlane's format, with the key in a file beside it.
        let key_file = self.file.with_extension("key");
        write_secret(&key_file, self.config["privateKey"].as_str().expect("a key is text"));
        let text = |key: &str| Toml::try_from(&self.config[key]).expect("a list");
        let mut control = Table::from_iter([("bootstrap".to_owned(), text("bootstrapPeers"))]);
        control.extend(self.control.clone());
        let identity = Table::from_iter([("key_file".to_owned(), key_file.display().to_string().into())]);
        let sections = [("identity", identity.into()), ("control", control.into()), ("peers", text("peers"))];
        let sections = sections.map(|(name, section): (_, Toml)| (name.to_owned(), section));
        (self.file.with_extension("toml"), Table::from_iter(sections).to_string())
    }

    fn spawn(&self, file: &Path) -> Child {
        let log = || File::options().create(true).append(true).open(self.log_file()).expect("the log can be written");
        let mut command = self.router.command(self.program());
        command.arg("up").arg("-c").arg(file).args(["-i", &self.interface]);
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

/// Writes what only its owner may read, a key.
fn write_secret(file: &Path, text: &str) {
    fs::write(file, text).expect("the lab's directory can be written");
    fs::set_permissions(file, Permissions::from_mode(0o600)).expect("our own file can be locked");
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
        self.child = member.spawn(&member.configuration().0);
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.end_by(Signal::TERM)
    }

    /// A signal, and how it ended.
    pub(crate) fn end_by(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
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

    /// Runs its binary with the words of a line and its interface, and returns what that printed; else the exit code
    /// and what it printed to stderr.
    pub(crate) fn ask(&self, line: &str) -> Result<String, (Option<i32>, String)> {
        let mut command = Command::new(&self.program);
        command.args(line.split(' ')).args(["-i", &self.interface]).stdin(Stdio::null());
        let output = command.output().expect("the binary can be run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err((output.status.code(), text(&output.stderr)))
        }
    }

    /// As [`Self::ask`]; panics when it fails.
    pub(crate) fn answer(&self, line: &str) -> String {
        self.ask(line).unwrap_or_else(|(code, told)| panic!("{line}: {code:?}: {told}"))
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
            log.lines().skip(skipped).for_each(|line| eprintln!("{line:.200}"));
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
            rust_go [Rust, Go],
            go_rust [Go, Rust],
        );
    };
}
pub(crate) use matrix;
