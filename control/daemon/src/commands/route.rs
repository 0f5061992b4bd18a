//! `ringlane route`.

use std::process::ExitCode;

use crate::cli::RouteArgs;

/// Runs the command.
pub(crate) fn run(arguments: &RouteArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet: {arguments:?}")
}
