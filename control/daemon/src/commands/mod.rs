//! What each subcommand does. Success is exit code 0, "no" and failure are 1; clap answers wrong usage with 2.

pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod down;
pub(crate) mod init;
pub(crate) mod keygen;
pub(crate) mod load;
mod mappings;
pub(crate) mod metrics;
mod nat;
pub(crate) mod netcheck;
pub(crate) mod peers;
pub(crate) mod ping;
pub(crate) mod route;
pub(crate) mod status;
pub(crate) mod text;
pub(crate) mod up;
pub(crate) mod version;

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

/// Prints a command's answer; a reader that has gone away, such as `head`, is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints a command's answer as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot encode the answer")?;
    print(&(text + "\n"))
}
