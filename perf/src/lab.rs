//! A lab of `scripts/lab`, what its underlay is like, and the processes in it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take to be ready, or to end when asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// A site of the lab: a router and a host behind it. Addresses are those of `scripts/lab`.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) letter: char,
    /// The router's address on the underlay.
    pub(crate) underlay: &'static str,
    /// The router's address in a tunnel that does not bring addresses of its own.
    pub(crate) tunnel: &'static str,
    /// The host's address.
    pub(crate) host: &'static str,
    /// The networks behind the router, IPv4 and IPv6.
    pub(crate) networks: [&'static str; 2],
}

/// All sites a lab can have, in its order.
pub(crate) const SITES: [Site; 3] = [
    Site {
        letter: 'a',
        underlay: "10.201.0.1",
        tunnel: "10.202.0.1",
        host: "10.10.0.2",
        networks: ["10.10.0.0/16", "fd00:10::/64"],
    },
    Site {
        letter: 'b',
        underlay: "10.201.0.2",
        tunnel: "10.202.0.2",
        host: "10.20.0.2",
        networks: ["10.20.0.0/16", "fd00:20::/64"],
    },
    Site {
        letter: 'c',
        underlay: "10.201.0.3",
        tunnel: "10.202.0.3",
        host: "10.30.0.2",
        networks: ["10.30.0.0/16", "fd00:30::/64"],
    },
];

impl Site {
    /// Its router's namespace.
    pub(crate) fn router(&self) -> String {
        format!("router-{}", self.letter)
    }
}

/// What lies between the sites.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Underlay {
    /// MTU in bytes of everything but the tunnel: 1500 or 9000.
    pub(crate) mtu: u16,
    /// Whether real packets cross every link: senders cut super-segments, receivers merge them again. Otherwise veth
    /// passes them whole.
    pub(crate) cut: bool,
    /// Delay, loss and the like; none for a plain veth.
    pub(crate) link: Option<LinkSpec>,
}

/// What a link does to packets, in each direction by itself.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct LinkSpec {
    /// One way, in milliseconds.
    pub(crate) delay_ms: f64,
    /// At most this much more or less, in milliseconds. What is delayed differently still arrives in order.
    pub(crate) jitter_ms: f64,
    /// Share of packets that are lost, 0 to 1.
    pub(crate) loss: f64,
    /// Share of packets that overtake others, 0 to 1.
    pub(crate) reorder: f64,
    /// Bits per second; none for as fast as it goes.
    pub(crate) rate: Option<u64>,
    /// Same seed, same fate of the n-th packet.
    pub(crate) seed: u64,
}

impl Underlay {
    /// A veth with an MTU of 1500 bytes that cuts nothing.
    pub(crate) const PLAIN: Self = Self { mtu: 1500, cut: false, link: None };
}

/// Sites in namespaces. Dropping it ends every process in it and removes it.
#[derive(Debug)]
pub(crate) struct Lab {
    prefix: String,
    sites: usize,
}

impl Lab {
    /// Makes a lab; what an interrupted run left of it goes first. With `routed`, the sites reach each other over the
    /// bare underlay.
    pub(crate) fn up(prefix: &str, sites: usize, routed: bool, underlay: &Underlay) -> anyhow::Result<Self> {
        let lab = Self { prefix: prefix.into(), sites };
        run(&mut lab.script("down"))?;
        run(lab.script("up").args(["--sites", &sites.to_string()]).args(routed.then_some("--routed")))?;
        lab.shape(underlay)?;
        Ok(lab)
    }

    /// What its namespaces' names begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How many sites it has.
    pub(crate) fn sites(&self) -> usize {
        self.sites
    }

    /// Makes its links like that.
    fn shape(&self, underlay: &Underlay) -> anyhow::Result<()> {
        ensure!(underlay.link.is_none(), "links with delay or loss are not there yet");
        for (namespace, device) in self.devices() {
            self.run(&namespace, &format!("ip link set {device} mtu {}", underlay.mtu))?;
            if underlay.cut {
                // Receiving veths with GRO go through NAPI, as the driver of a network card does.
                let line = "ethtool -K {} tso off gso off tx-udp-segmentation off gro on".replace("{}", &device);
                self.run(&namespace, &line)?;
            }
        }
        Ok(())
    }

    /// Both ends of every veth pair, with their namespaces.
    fn devices(&self) -> Vec<(String, String)> {
        let mut devices = Vec::new();
        for Site { letter, .. } in &SITES[..self.sites] {
            devices.push((format!("host-{letter}"), "eth0".into()));
            devices.push((format!("router-{letter}"), "lan".into()));
            devices.push((format!("router-{letter}"), "underlay".into()));
            if self.sites > 2 {
                devices.push(("underlay".into(), format!("port-{letter}")));
            }
        }
        devices
    }

    /// A command that will run in one of the lab's namespaces; its process id is the program's own.
    pub(crate) fn command(&self, namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{namespace}", self.prefix)]).arg(program);
        command
    }

    /// Runs a line of words in a namespace and returns what it printed.
    pub(crate) fn run(&self, namespace: &str, line: &str) -> anyhow::Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty line names no program")?;
        run(self.command(namespace, program).args(words))
    }

    fn script(&self, action: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lab"));
        command.args([action, "--prefix", &self.prefix]);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.script("down")) {
            eprintln!("{error:#}");
        }
    }
}

/// A process in a lab. Dropping it asks it to end, and kills it when it does not.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts a command without a voice.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("{command:?}"))?))
    }
}

impl Process {
    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal and waits until it is gone; one that stays is killed.
    pub(crate) fn end(mut self, signal: Signal) {
        self.finish(signal);
    }

    fn finish(&mut self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
        if wait_for("the process to end", || self.0.try_wait().ok().flatten()).is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.finish(Signal::TERM);
        }
    }
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(printed)
}

/// Polls until `probe` yields something.
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("gave up waiting for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
