//! `ringlane metrics`: what Prometheus reads, without a server.

use std::process::ExitCode;

use ringlane_control::admin::{AdminCommand, request};

use super::text;
use crate::cli::InterfaceArgs;

/// Prints the text; with `--json`, as one JSON string.
pub(crate) fn run(args: &InterfaceArgs) -> anyhow::Result<ExitCode> {
    let metrics: String = request(&text::socket_of(&args.interface)?, AdminCommand::Metrics)?;
    text::print(args.output, &metrics, || metrics.clone())?;
    Ok(ExitCode::SUCCESS)
}
