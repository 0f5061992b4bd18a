//! Reads a configuration and the key it names, and checks all that can be checked without touching the system.

use std::num::NonZero;
use std::path::Path;
use std::thread;

use multiaddr::PeerId;
use ringlane_control::store::{self, Keypair, StoreError};
use ringlane_shared::config::{self, ConfigError, IdentitySettings, METRICS_PORT_VARIABLE, Problem, Settings};
use ringlane_shared::limits::{CONFIG_BYTES_MAX, WORKERS_MAX};

use crate::host;

/// A configuration that may be started.
pub(crate) struct Loaded {
    /// What it says.
    pub(crate) settings: Settings,
    /// Our key.
    pub(crate) keypair: Keypair,
    /// Who we are.
    pub(crate) peer_id: PeerId,
}

/// Reads and checks a configuration. The error is a [`ConfigError`], and names all that is wrong.
pub(crate) fn load(file: &Path) -> anyhow::Result<Loaded> {
    Ok(try_load(file)?)
}

/// As [`load`], for whoever needs the problems one by one.
pub(crate) fn try_load(file: &Path) -> Result<Loaded, ConfigError> {
    let settings = config::parse(&read(file)?, file)?;
    complete(settings)
}

/// As [`load`], for a node whose interface, and so network, has another name than its file.
pub(crate) fn load_as(file: &Path, interface: &str) -> Result<Loaded, ConfigError> {
    let text = read(file)?;
    // To the reader, a file of the interface's name; to people, the file that it is.
    let ending = file.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    let named = file.with_file_name(format!("{interface}{ending}"));
    let mut settings = config::parse(&text, &named).map_err(|error| ConfigError { file: file.to_owned(), ..error })?;
    for warning in &mut settings.warnings {
        *warning = warning.replace(&named.display().to_string(), &file.display().to_string());
    }
    settings.interface = interface.to_owned();
    settings.file = file.to_owned();
    complete(settings)
}

fn read(file: &Path) -> Result<String, ConfigError> {
    store::read_text(file, CONFIG_BYTES_MAX)
        .map_err(|error| ConfigError::new(file, Problem::new("", None, unreadable(&error), error.remedy())))
}

fn complete(mut settings: Settings) -> Result<Loaded, ConfigError> {
    let port = std::env::var_os(METRICS_PORT_VARIABLE);
    settings.set_metrics_port(port.as_ref().map(|port| port.to_string_lossy()).as_deref())?;
    let keypair = keypair(&mut settings)?;
    let peer_id = keypair.public().to_peer_id();
    settings.own_peer_checks(&peer_id)?;
    settings.worker_port_checks(workers(&settings))?;
    if let Some(allowed) = host::allowed_cores() {
        settings.core_checks(&allowed)?;
    }
    Ok(Loaded { settings, keypair, peer_id })
}

/// The file is named by the message this goes into.
fn unreadable(error: &StoreError) -> String {
    match error {
        StoreError::Io { source, .. } => format!("cannot be read: {source}"),
        other => other.to_string(),
    }
}

/// How many workers to start: as configured, or one per core they are to run on, or one per core this process may use.
pub(crate) fn workers(settings: &Settings) -> u8 {
    let cores = || match settings.dataplane.cores.len() {
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        cores => cores,
    };
    settings.dataplane.workers.unwrap_or_else(|| cores().min(WORKERS_MAX) as u8)
}

fn keypair(settings: &mut Settings) -> Result<Keypair, ConfigError> {
    match &settings.identity {
        IdentitySettings::Inline(keypair) => {
            let keypair = keypair.clone();
            if store::readable_by_others(&settings.file) == Some(true) {
                let file = settings.file.display();
                settings
                    .warnings
                    .push(format!("{file}: holds the private key and others can read it; run: chmod 600 {file}"));
            }
            Ok(keypair)
        }
        IdentitySettings::KeyFile(path) => store::read_key(path).map_err(|error| {
            let value = Some(format!("{:?}", path.display().to_string()));
            ConfigError::new(
                &settings.file,
                Problem::new("identity.key_file", value, error.to_string(), error.remedy()),
            )
        }),
    }
}
