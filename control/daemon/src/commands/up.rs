//! `ringlane up`: runs a node in the foreground.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use ringlane_control::environment::Environment;
use ringlane_control::runtime::{self, ControlConfig, Notice, Workers};
use ringlane_dataplane::{Dataplane, Tun};
use ringlane_shared::config::{DataplaneSettings, Switch};
use ringlane_shared::plane::{Offload, WorkerSettings};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use super::load::{self, Loaded, load};
use crate::cli::UpArgs;
use crate::{host, notify};

/// What is logged unless `RINGLANE_LOG` says otherwise.
/// `stun_types` would warn of every malformed datagram; they are counted.
const DEFAULT_FILTER: &str = "ringlane=info,ringlane_control=info,ringlane_dataplane=info,stun_types=off,warn";

pub(crate) fn run(args: &UpArgs) -> anyhow::Result<ExitCode> {
    start_logging(args.json)?;
    run_node(load(&args.config)?, || ())
}

/// Runs a node until it ends. `ready` is called once, when it is up.
pub(crate) fn run_node(loaded: Loaded, ready: impl Fn() + Send + 'static) -> anyhow::Result<ExitCode> {
    let Loaded { settings, keypair, .. } = loaded;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    // Before anything is touched; creating the interface will look again.
    Tun::check(&settings.interface).with_context(|| format!("{}: interface", settings.file.display()))?;
    let workers = load::workers(&settings);
    let worker_settings = worker_settings(&settings.dataplane);

    let interface = settings.interface.clone();
    let (dataplane, started) = std::sync::mpsc::channel::<Dataplane>();
    let config = ControlConfig {
        settings,
        keypair,
        workers,
        version: env!("CARGO_PKG_VERSION"),
        start_workers: Box::new(move |to_control| {
            let tun = Tun::create(&interface, workers, worker_settings.offloads)?;
            let spawned = ringlane_dataplane::spawn(tun, &worker_settings, &to_control)?;
            let seen = Workers {
                commands: spawned.commands.clone(),
                deliveries: spawned.deliveries.clone(),
                counters: spawned.counters.clone(),
            };
            dataplane.send(spawned)?;
            Ok(seen)
        }),
        notify: Box::new(move |notice| match notice {
            Notice::Ready(status) => {
                ready();
                notify::ready(&status);
            }
            Notice::Stopping => notify::stopping(),
            Notice::Watchdog => notify::watchdog(),
        }),
        watchdog: notify::watchdog_interval(),
        environment: Environment::read(|name| std::env::var_os(name)),
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

/// The workers' settings, on this machine.
fn worker_settings(settings: &DataplaneSettings) -> WorkerSettings {
    let release = host::kernel_release();
    let needs_sentinel = host::needs_sentinel(&release);
    let offloads = settings.offloads_on(needs_sentinel);
    if needs_sentinel && settings.udp_sentinel == Switch::Auto && offloads.has(Offload::UdpSentinel) {
        info!(kernel = release, "some drivers of this kernel spoil trains of equal datagrams: udp_sentinel is on");
    }
    WorkerSettings {
        mtu: settings.mtu,
        hash_seed: hash_seed(),
        offloads,
        cores: match settings.cores.as_slice() {
            [] => host::allowed_cores().unwrap_or_default(),
            cores => cores.to_vec(),
        },
        busy_poll: Duration::from_micros(settings.busy_poll_us.into()),
        engine: settings.engine,
        rekey: settings.rekey,
        rate_bits_per_s: settings.rate_mbit.map(|rate| u64::from(rate) * 1_000_000),
        fragments: settings.fragments,
        outer_marks: settings.outer_marks,
        keep_alive: Duration::from_secs(settings.keep_alive_seconds.into()),
    }
}

/// The seed of the flow hash: as unpredictable as the standard library's own.
fn hash_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// As `RINGLANE_LOG` says.
pub(crate) fn start_logging(json: bool) -> anyhow::Result<()> {
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
