//! How many instructions each stage takes, compared with `baseline.toml`: counts do not mind a noisy machine.
//!
//! ```sh
//! cargo bench -p ringlane-benches --bench instructions                # compare
//! cargo bench -p ringlane-benches --bench instructions -- --update    # take today's counts as the baseline
//! ```
//! The program runs itself under callgrind, which dumps what it has counted whenever [`measured`] returns. What it
//! counts is independent of the machine, as far as that can be:
//!
//! - callgrind shows the program a CPU of its own making, the same on every x86-64 machine with AVX2;
//! - its name and environment are always the same, so that buffers lie at the same places, and each begins at a multiple
//!   of 64: how many instructions a copy takes depends on that;
//! - our crates are built with one codegen unit each: `profile.bench` in `Cargo.toml`;
//! - the ciphers of aws-lc are left out ([`CIPHERS`]): they are not ours, an emulated CPU without AVX-512 and VAES takes
//!   other code than a real one, and they would hide what we do around them. `packet_path` measures them by time.
//!
//! Instructions are not time. A stage that takes more of them is nearly always slower; one that misses the cache is not
//! seen here.
#![allow(missing_docs, reason = "a program, not a library")]
#![allow(clippy::unwrap_used, reason = "the inputs of the stages are our own")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

#[path = "instructions/stages.rs"]
mod stages;

/// What a count may differ from the baseline without being a difference: a share, and a few instructions for stages
/// that have hardly more.
const TOLERANCE_PERCENT: u64 = 3;
const TOLERANCE_INSTRUCTIONS: u64 = 3;

/// Names of the functions that count nothing while they run, as callgrind matches them: those through which aws-lc-rs
/// seals and opens.
const CIPHERS: [&str; 2] = ["*EVP_AEAD_CTX_seal_scatter", "*EVP_AEAD_CTX_open"];

/// The committed counts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    /// What `rustc --version` said: another compiler makes other code.
    compiler: String,
    /// Instructions of one operation, by stage.
    instructions: BTreeMap<String, u64>,
}

fn main() -> Result<ExitCode> {
    if !cfg!(target_arch = "x86_64") {
        println!("The baseline counts x86-64 instructions: nothing to compare with on {}, SKIPPED.", env::consts::ARCH);
        return Ok(ExitCode::SUCCESS);
    }
    // Cargo passes `--bench` to every bench.
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["--update"] => update(),
        ["--run-stages"] => {
            stages::run();
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("usage: cargo bench -p ringlane-benches --bench instructions [-- --update]"),
    }
}

fn baseline_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.toml")
}

fn update() -> Result<ExitCode> {
    let instructions = count()?.into_iter().collect();
    let text = toml::to_string(&Baseline { compiler: compiler()?, instructions })?;
    let comment = "# Instructions of one operation of each stage. Written by:\n\
                   # cargo bench -p ringlane-benches --bench instructions -- --update\n";
    fs::write(baseline_path(), format!("{comment}{text}"))?;
    println!("wrote {}", baseline_path().display());
    Ok(ExitCode::SUCCESS)
}

fn compare() -> Result<ExitCode> {
    let text = fs::read_to_string(baseline_path()).context("benches/baseline.toml")?;
    let mut baseline: Baseline = toml::from_str(&text).context("benches/baseline.toml")?;
    let mut verdicts = Vec::new();
    println!("{:<40} {:>8} {:>8} {:>7}", "instructions per operation", "baseline", "now", "ratio");
    for (stage, now) in count()? {
        let (verdict, before, ratio) = match baseline.instructions.remove(&stage) {
            Some(before) => {
                (Verdict::of(before, now), before.to_string(), format!("{:.3}", now as f64 / before as f64))
            }
            None => (Verdict::Unknown, String::new(), String::new()),
        };
        println!("{stage:<40} {before:>8} {now:>8} {ratio:>7}  {}", verdict.remark());
        verdicts.push(verdict);
    }
    for stage in baseline.instructions.keys() {
        println!("{stage:<40} is in the baseline, but no stage any more");
        verdicts.push(Verdict::Unknown);
    }
    let compiler = compiler()?;
    if compiler != baseline.compiler {
        println!("The baseline is of {}, this is {compiler}: differences do not count.", baseline.compiler);
        return Ok(ExitCode::SUCCESS);
    }
    if verdicts.iter().any(|verdict| *verdict != Verdict::Same) {
        println!("If that is meant: cargo bench -p ringlane-benches --bench instructions -- --update");
    }
    let failed = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Worse | Verdict::Unknown));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What a stage's count says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Same,
    Better,
    Worse,
    /// Stage and baseline do not belong together.
    Unknown,
}

impl Verdict {
    fn of(before: u64, now: u64) -> Self {
        let tolerance = (before * TOLERANCE_PERCENT / 100).max(TOLERANCE_INSTRUCTIONS);
        match now {
            _ if now > before + tolerance => Self::Worse,
            _ if now + tolerance < before => Self::Better,
            _ => Self::Same,
        }
    }

    fn remark(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Better => "fewer: update the baseline, so that they stay few",
            Self::Worse => "MORE",
            Self::Unknown => "NOT IN THE BASELINE",
        }
    }
}

/// Runs all stages once under callgrind. Returns each one's instructions per operation, in the order they ran.
fn count() -> Result<Vec<(String, u64)>> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&directory)?,
    }
    let counts = directory.join("counts");
    let program = env::current_exe()?;
    let (home, name) = program.parent().zip(program.file_name()).context("a program without a file")?;
    let mut valgrind = Command::new("valgrind");
    // Two patterns that say the same, for callgrind forgets all options of a pattern but the first.
    valgrind.args(["--tool=callgrind", "--quiet", "--dump-after=instructions::measured*"]);
    // Entering or leaving any of these turns counting on or off: on within `measured`, off again within a cipher.
    valgrind.arg("--toggle-collect=*::measured*");
    valgrind.args(CIPHERS.map(|cipher| format!("--toggle-collect={cipher}")));
    valgrind.arg(format!("--callgrind-out-file={}", counts.display()));
    valgrind.arg(Path::new(".").join(name)).arg("--run-stages").current_dir(home);
    valgrind.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    let output = valgrind.output().context("cannot run valgrind: scripts/setup installs it")?;
    ensure!(output.status.success(), "callgrind: {}", String::from_utf8_lossy(&output.stderr));

    let stages = String::from_utf8(output.stdout)?;
    let mut result = Vec::new();
    for (number, line) in (1..).zip(stages.lines()) {
        let (operations, stage) = line.split_once(' ').context("a line that names no stage")?;
        let operations: u64 = operations.parse()?;
        let dump = fs::read_to_string(directory.join(format!("counts.{number}"))).context(stage.to_owned())?;
        let total = dump.lines().find_map(|line| line.strip_prefix("totals: ")).context("a dump without a total")?;
        let total: u64 = total.trim().parse()?;
        ensure!(total >= operations, "callgrind has not seen {stage}");
        result.push((stage.to_owned(), (total + operations / 2) / operations));
    }
    Ok(result)
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("rustc --version")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Runs one stage; callgrind knows this function by its name.
#[inline(never)]
fn measured(stage: impl FnOnce()) {
    stage();
    // Keeps the call above from becoming a jump, which callgrind would take for the return.
    std::hint::black_box(());
}
