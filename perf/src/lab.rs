//! A lab of `scripts/lab`, and the processes in it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take to be ready, or to end when asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two sites in namespaces. Dropping it ends every process in it and removes it.
#[derive(Debug)]
pub(crate) struct Lab {
    prefix: String,
}

impl Lab {
    /// Makes a lab; what an interrupted run left of it goes first. With `routed`, the sites reach each other over the
    /// bare underlay.
    pub(crate) fn up(prefix: &str, routed: bool) -> anyhow::Result<Self> {
        let lab = Self { prefix: prefix.into() };
        run(&mut lab.script("down"))?;
        run(lab.script("up").args(routed.then_some("--routed")))?;
        Ok(lab)
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

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        if wait_for("the process to end", || self.0.try_wait().ok().flatten()).is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
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
