//! The `ringlane` binary.

mod cli;
mod commands;
#[cfg_attr(not(test), expect(dead_code, reason = "`up` is its only user"))]
mod notify;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    run(&Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("ringlane: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Down(args) => commands::down::run(args),
        Command::Status(args) => commands::status::run(args),
        Command::Peers(args) => commands::peers::run(args),
        Command::Route(args) => commands::route::run(args),
        other => anyhow::bail!("{other:?} is not there yet"),
    }
}
