//! `ringlane peers`.

use std::process::ExitCode;

use crate::cli::InterfaceArgs;

/// Runs the command.
pub(crate) fn run(arguments: &InterfaceArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet: {arguments:?}")
}
