//! Child processes, each with a limit on how long it may take, and the signals that end a run early.
//!
//! Every child has a process group of its own: a Ctrl-C reaches this process alone, which then ends its children in
//! order. Their output goes to files without a name, so that no reader can be kept waiting by a grandchild.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long anything may take to be ready, or to end when asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// How much of the end of a process's log is worth showing, in bytes.
const LOG_BYTES_SHOWN: usize = 2000;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on SIGINT, SIGTERM and SIGHUP make whatever waits here fail, so that labs are taken down. They are caught
/// and not held back, as children would inherit that.
pub(crate) fn end_on_signals() -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED)).context("a signal's handler")?;
    }
    Ok(())
}

static DEADLINE: OnceLock<Instant> = OnceLock::new();

/// From then on nothing waits here any more but what cleans up. The first call counts.
pub(crate) fn end_waiting_at(deadline: Instant) {
    DEADLINE.get_or_init(|| deadline);
}

/// As much of `limit` as is left until the deadline, if there is one.
fn until_deadline(limit: Duration) -> Duration {
    let left = DEADLINE.get().map(|deadline| deadline.saturating_duration_since(Instant::now()));
    left.map_or(limit, |left| left.min(limit))
}

/// Fails once the run is to end early.
pub(crate) fn ensure_not_interrupted() -> anyhow::Result<()> {
    ensure!(!is_interrupted(), "interrupted");
    Ok(())
}

/// Whether the run is to end early.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A process in a lab. Dropping it asks it to end, and kills it when it does not.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: File,
}

impl Process {
    /// Starts a command. What it says is kept for [`Self::log`].
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let log = tempfile::tempfile().context("a temporary file")?;
        let copy = || log.try_clone().context("a temporary file");
        let child = command.stdin(Stdio::null()).stdout(copy()?).stderr(copy()?).process_group(0).spawn();
        Ok(Self { child: child.with_context(|| format!("{command:?}"))?, log })
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The end of what it has said so far.
    pub(crate) fn log(&self) -> String {
        let said = self.whole_log();
        let start = said.len().saturating_sub(LOG_BYTES_SHOWN);
        String::from_utf8_lossy(&said.as_bytes()[start..]).trim().to_owned()
    }

    /// All it has said so far.
    pub(crate) fn whole_log(&self) -> String {
        whole(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = pid_of(&self.child).context("a process has an id")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to process {}", self.id()))
    }

    /// Sends it a signal and waits until it is gone; one that stays is killed.
    pub(crate) fn end(mut self, signal: Signal) {
        self.finish(signal);
    }

    fn finish(&mut self, signal: Signal) {
        if let Some(pid) = pid_of(&self.child) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
        if poll(PATIENCE, || self.child.try_wait().ok().flatten()).is_none() {
            kill(&mut self.child);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.finish(Signal::TERM);
        }
    }
}

/// A command whose output is wanted. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    shown: String,
    started: Instant,
}

impl Running {
    /// Starts a command.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let shown = shown(command);
        let stdout = tempfile::tempfile().context("a temporary file")?;
        let stderr = tempfile::tempfile().context("a temporary file")?;
        command.stdin(Stdio::null()).process_group(0);
        command.stdout(stdout.try_clone().context("a temporary file")?);
        command.stderr(stderr.try_clone().context("a temporary file")?);
        let child = command.spawn().with_context(|| shown.clone())?;
        Ok(Self { child, stdout, stderr, shown, started: Instant::now() })
    }

    /// Waits for its end, at most until it has run that long, and returns what it printed.
    pub(crate) fn finish(mut self, limit: Duration) -> anyhow::Result<String> {
        let left = until_deadline(limit.saturating_sub(self.started.elapsed()));
        let status = poll(left, || match self.child.try_wait() {
            Ok(None) if is_interrupted() => Some(Err(anyhow::anyhow!("interrupted"))),
            Ok(None) => None,
            Ok(Some(status)) => Some(Ok(status)),
            Err(error) => Some(Err(error.into())),
        });
        let Some(status) = status else {
            bail!("{} took longer than {} s", self.shown, self.started.elapsed().as_secs())
        };
        self.output(status?)
    }

    /// The same, but not ended early by a signal: for what cleans up.
    fn finish_in_any_case(mut self) -> anyhow::Result<String> {
        let Some(status) = poll(PATIENCE, || self.child.try_wait().ok().flatten()) else {
            bail!("{} took longer than {} s", self.shown, PATIENCE.as_secs())
        };
        self.output(status)
    }

    fn output(&mut self, status: ExitStatus) -> anyhow::Result<String> {
        let printed = whole(&self.stdout)?;
        ensure!(status.success(), "{} ended with {status}\n{printed}{}", self.shown, whole(&self.stderr)?);
        Ok(printed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            kill(&mut self.child);
        }
    }
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    Running::start(command)?.finish(PATIENCE)
}

/// The same for commands that clean up: a signal does not end them.
pub(crate) fn run_in_any_case(command: &mut Command) -> anyhow::Result<String> {
    Running::start(command)?.finish_in_any_case()
}

/// Polls until `probe` yields something.
pub(crate) fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    wait_at_most(PATIENCE, what, probe)
}

/// Polls until `probe` yields something, at most that long.
pub(crate) fn wait_at_most<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let limit = until_deadline(limit);
    let found = poll(limit, || if is_interrupted() { Some(None) } else { probe().map(Some) });
    ensure_not_interrupted()?;
    found.flatten().with_context(|| format!("gave up waiting for {what} after {} s", limit.as_secs()))
}

fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// The words of a command, as one would type them.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// All that is in a file. Its position is the child's too, and stays where it is: else the child would write over what
/// it has said.
fn whole(file: &File) -> anyhow::Result<String> {
    let mut bytes = vec![0; usize::try_from(file.metadata().context("a temporary file")?.len())?];
    file.read_exact_at(&mut bytes, 0).context("a temporary file")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Kills a child that has not been waited for, and the group it leads.
fn kill(child: &mut Child) {
    if let Some(pid) = pid_of(child) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let started = Instant::now();
        let running = Running::start(Command::new("sh").args(["-c", "sleep 60 & sleep 60"])).unwrap();
        let error = running.finish(Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("sh -c"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_command_that_fails_says_what_it_printed() {
        let error = run(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("one\ntwo") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_process_ends_when_it_is_asked_to() {
        end_on_signals().unwrap();
        let started = Instant::now();
        Process::start(Command::new("sleep").arg("60")).unwrap().end(Signal::TERM);
        assert!(started.elapsed() < PATIENCE, "it was killed");
    }

    #[test]
    fn only_the_end_of_a_long_log_is_shown() {
        let mut process = Process::start(Command::new("sh").args(["-c", "yes | head -c 9000; echo end"])).unwrap();
        wait_for("the end", || process.child.try_wait().unwrap()).unwrap();
        let log = process.log();
        assert!(log.ends_with("end") && log.len() <= LOG_BYTES_SHOWN, "{log}");
    }
}
