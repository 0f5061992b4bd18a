//! `ringlane version`.

use std::process::ExitCode;

use serde::Serialize;

use super::{print, print_json};
use crate::cli::OutputArgs;

#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
}

/// Prints the version.
pub(crate) fn run(output: OutputArgs) -> anyhow::Result<ExitCode> {
    let version = Version { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") };
    if output.json {
        print_json(&version)?;
    } else {
        print(&format!("{} {}\n", version.name, version.version))?;
    }
    Ok(ExitCode::SUCCESS)
}
