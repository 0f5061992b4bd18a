//! `ringlane up`: runs a node in the foreground.

use std::process::ExitCode;
use std::thread;

use anyhow::{Context, anyhow};
use ringlane_control::runtime::{self, ControlConfig, Notice, Workers};
use ringlane_dataplane::{Dataplane, Tun};
use ringlane_shared::limits::WORKERS_MAX;
use tracing::error;
use tracing_subscriber::EnvFilter;

use super::load::{Loaded, load};
use crate::cli::UpArgs;
use crate::notify;

/// What is logged unless `RINGLANE_LOG` says otherwise.
const DEFAULT_FILTER: &str = "ringlane=info,ringlane_control=info,ringlane_dataplane=info,warn";

pub(crate) fn run(args: &UpArgs) -> anyhow::Result<ExitCode> {
    start_logging(args.json)?;
    let Loaded { settings, keypair, .. } = load(&args.config)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    // Before anything is touched; creating the interface will look again.
    Tun::check(&settings.interface).with_context(|| format!("{}: interface", settings.file.display()))?;
    let workers = settings.dataplane.workers.unwrap_or_else(available_cores);

    let (interface, mtu) = (settings.interface.clone(), settings.dataplane.mtu);
    let (dataplane, started) = std::sync::mpsc::channel::<Dataplane>();
    let config = ControlConfig {
        settings,
        keypair,
        workers,
        version: env!("CARGO_PKG_VERSION"),
        start_workers: Box::new(move |events| {
            let tun = Tun::create(&interface, workers)?;
            let spawned = ringlane_dataplane::spawn(tun, mtu, hash_seed(), &events)?;
            let seen = Workers { commands: spawned.commands.clone(), counters: spawned.counters.clone() };
            dataplane.send(spawned)?;
            Ok(seen)
        }),
        notify: Box::new(|notice| match notice {
            Notice::Ready(status) => notify::ready(&status),
            Notice::Stopping => notify::stopping(),
            Notice::Watchdog => notify::watchdog(),
        }),
        watchdog: notify::watchdog_interval(),
    };
    let control = thread::Builder::new()
        .name("ringlane-control".to_owned())
        .spawn(move || runtime::run(config))
        .context("cannot start the control thread")?;
    let ended = control.join();
    match ended {
        Ok(ended) => {
            // If a worker has not stopped, which is an error, the process ends without it, and the kernel takes the
            // interface away.
            if ended.is_ok()
                && let Ok(dataplane) = started.try_recv()
            {
                dataplane.join();
            }
            ended?;
            Ok(ExitCode::SUCCESS)
        }
        Err(_) => {
            error!("the control thread has panicked");
            Err(anyhow!("the control thread has panicked: this is a bug, please report it with the message above"))
        }
    }
}

fn available_cores() -> u8 {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.clamp(1, WORKERS_MAX) as u8
}

/// The seed of the flow hash: as unpredictable as the standard library's own.
fn hash_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

fn start_logging(json: bool) -> anyhow::Result<()> {
    let filter = match std::env::var("RINGLANE_LOG") {
        Ok(filter) => EnvFilter::try_new(&filter).with_context(|| {
            format!("RINGLANE_LOG={filter} is no filter; write one such as debug or ringlane_control=debug,info")
        })?,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    // Whoever read our log may have gone; telling of that on the same stream would panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .log_internal_errors(false);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
    Ok(())
}
