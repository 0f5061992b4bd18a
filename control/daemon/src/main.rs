//! The `ringlane` binary.

mod cli;
mod commands;
mod host;
mod hyprspace;
mod notify;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|program| hyprspace::is_meant(&program)) {
        return hyprspace::run(words);
    }
    let result = match Cli::parse().command {
        Command::Init(arguments) => commands::init::run(&arguments),
        Command::Keygen(arguments) => commands::keygen::run(&arguments),
        Command::Check(arguments) => commands::check::run(&arguments),
        Command::Up(arguments) => commands::up::run(&arguments),
        Command::Down(arguments) => commands::down::run(&arguments),
        Command::Status(arguments) => commands::status::run(&arguments),
        Command::Metrics(arguments) => commands::metrics::run(&arguments),
        Command::Netcheck(arguments) => commands::netcheck::run(&arguments),
        Command::Ping(arguments) => commands::ping::run(&arguments),
        Command::Peers(arguments) => commands::peers::run(&arguments),
        Command::Route(arguments) => commands::route::run(&arguments),
        Command::Version(arguments) => commands::version::run(arguments),
        Command::Completions { shell } => commands::completions::run(shell),
    };
    result.unwrap_or_else(|error| {
        // Nobody may be left to read it.
        let _ = writeln!(std::io::stderr(), "ringlane: {error:#}");
        ExitCode::FAILURE
    })
}
