//! `ringlane up`.

use std::process::ExitCode;

use super::load::load;
use crate::cli::UpArgs;

/// Runs the command.
pub(crate) fn run(arguments: &UpArgs) -> anyhow::Result<ExitCode> {
    let loaded = load(&arguments.config)?;
    anyhow::bail!("not built yet: {:?} {:?}", loaded.settings, loaded.keypair.public())
}
