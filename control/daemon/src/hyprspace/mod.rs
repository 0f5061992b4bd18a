//! This binary in the place of Hyprspace's: invoked by the name `hyprspace`, it takes Hyprspace's command lines and
//! prints its formats, so that units and scripts go on working.
//!
//! What Hyprspace does is in its own words in the tests of each module. What is done better is listed in
//! `docs/cli.md`: secrets are written for their owner alone, usage is in bold on terminals only, and one thing that
//! `init` replaces stays beside it.
//!
//! | Module | What it is |
//! |---|---|
//! | [`arguments`] | the grammar of command lines |
//! | [`usage`] | the help texts |
//! | [`format`](mod@format) | what `status`, `peers` and `route show` print |
//! | [`route`] | what `route` is asked for |
//! | [`keys`] | `init` and `keygen` |
//! | [`up`] | `up` |

mod arguments;
mod format;
pub(crate) mod keys;
mod route;
mod up;
mod usage;

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use ringlane_control::admin::status::{ConnectionStatus, NodeStatus, RouteStatus};
use ringlane_control::admin::{AdminCommand, ClientError, request, socket_path};
use serde::de::DeserializeOwned;
use thiserror::Error;

use self::arguments::{Line, Refusal, Subcommand};
use crate::commands::print;

/// The release whose command lines these are.
const RELEASE: &str = "0.15.0";

/// Why a command came to nothing; printed as Hyprspace prints it.
#[derive(Debug, Error)]
enum Failure {
    /// There is no node, or none for us.
    #[error("[!] Failed to connect to RPC server: dial unix {}: connect: {reason}", socket.display())]
    NoNode { socket: PathBuf, reason: &'static str },
    /// The node, or what stands for it here, says no.
    #[error("[!] RPC call failed: {0}")]
    Refused(String),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// Whether the name this process was started by asks for Hyprspace.
pub(crate) fn is_meant(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new("hyprspace"))
}

/// Runs the command line that follows the program's name.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let bold = stdout().is_terminal();
    let usage = |text: String| {
        // There is nothing to add to it.
        let _ = print(&text);
        ExitCode::FAILURE
    };
    let line = match arguments::parse(&words) {
        Ok(line) => line,
        Err(Refusal::NoSuchCommand) => return usage(usage::of_all(bold)),
        Err(Refusal::Line(subcommand, error)) => {
            return usage(format!("Error: {error}\n\n{}", usage::of(subcommand, bold)));
        }
    };
    if line.subcommand == Subcommand::Help {
        let asked = line.positionals.first().map(String::as_str).unwrap_or_default();
        return match Subcommand::named(asked) {
            None => usage(format!("ERROR: '{asked}' is not a valid subcommand\n{}", usage::of_all(bold))),
            Some(subcommand) => {
                usage(usage::of(subcommand, bold));
                ExitCode::SUCCESS
            }
        };
    }
    match act(&line) {
        Ok(code) => code,
        Err(failure) => {
            // Nobody may be left to read it.
            let _ = writeln!(stderr(), "{} {failure}", timestamp(SystemTime::now()));
            ExitCode::FAILURE
        }
    }
}

fn act(line: &Line) -> Result<ExitCode, Failure> {
    match line.subcommand {
        // Dealt with already.
        Subcommand::Help => {}
        Subcommand::Version => {
            print(&format!("hyprspace {RELEASE} ({} {})\n", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")))?;
        }
        Subcommand::Init => keys::init(&line.config(), line.name.as_deref())?,
        Subcommand::Keygen => match &line.private_key_file {
            Some(private) => keys::keygen(private.as_ref(), line.public_key_file.as_deref().map(Path::new))?,
            None => return Err(anyhow::anyhow!("--private-key-file is required").into()),
        },
        Subcommand::Up => return Ok(up::run(&line.config(), line.interface())?),
        Subcommand::Status => {
            let node: NodeStatus = ask(line, AdminCommand::Status)?;
            let connections: Vec<ConnectionStatus> = ask(line, AdminCommand::Peers)?;
            print(&format::status(&node, &connections, stdout().is_terminal()))?;
        }
        Subcommand::Peers => print(&format::peers(&ask::<Vec<_>>(line, AdminCommand::Peers)?))?,
        Subcommand::Route => act_on_routes(line)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn act_on_routes(line: &Line) -> Result<(), Failure> {
    let routes: Vec<RouteStatus> = ask(line, AdminCommand::Routes)?;
    let node: NodeStatus = ask(line, AdminCommand::Status)?;
    let peers = node.peers.iter().map(|peer| (peer.name.as_str(), peer.id.as_str()));
    match route::asked(&line.positionals, &peers.collect::<Vec<_>>(), &routes).map_err(Failure::Refused)? {
        route::Asked::Show => {
            let connections: Vec<ConnectionStatus> = ask(line, AdminCommand::Peers)?;
            // Hyprspace knows one router of a network.
            let active: Vec<RouteStatus> = routes.into_iter().filter(|route| route.active).collect();
            print(&format::routes(&active, &connections))?;
        }
        route::Asked::Add { prefix, peer } => {
            ask::<()>(line, AdminCommand::RouteAdd { net: prefix.to_string(), peer, metric: None })?;
        }
        route::Asked::Del { prefix } => {
            ask::<()>(line, AdminCommand::RouteDel { net: prefix.to_string(), peer: None })?;
        }
    }
    Ok(())
}

fn ask<T: DeserializeOwned>(line: &Line, command: AdminCommand) -> Result<T, Failure> {
    let interface = line.interface();
    let missing = || PathBuf::from(format!("/run/ringlane/{interface}.sock"));
    let no_node = |socket, reason| Failure::NoNode { socket, reason };
    let Some(socket) = socket_path(interface) else {
        return Err(no_node(missing(), "no such file or directory"));
    };
    request(&socket, command).map_err(|error| match error {
        ClientError::NoNode(socket) => no_node(socket, "no such file or directory"),
        ClientError::NotPermitted(socket) => no_node(socket, "permission denied"),
        ClientError::Refused { message, .. } => Failure::Refused(message),
        other => Failure::Refused(other.to_string()),
    })
}

/// As Hyprspace's errors begin, in UTC: `2026/11/22 23:32:58`.
fn timestamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their odd day at the end; 400 of them have 146097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}/{month:02}/{day_of_month:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_the_exact_name_asks_for_hyprspace() {
        for (program, meant) in [
            ("hyprspace", true),
            ("/usr/bin/hyprspace", true),
            ("./hyprspace", true),
            ("ringlane", false),
            ("/opt/hyprspace/ringlane", false),
            ("hyprspace-0.14.1", false),
            ("", false),
        ] {
            assert_eq!(is_meant(OsStr::new(program)), meant, "{program}");
        }
    }

    #[test]
    fn failures_are_told_in_hyprspaces_words() {
        let socket = "/run/ringlane/hs0.sock".into();
        let failure = Failure::NoNode { socket, reason: "no such file or directory" };
        assert_eq!(
            failure.to_string(),
            "[!] Failed to connect to RPC server: dial unix /run/ringlane/hs0.sock: connect: no such file or directory"
        );
        assert_eq!(Failure::Refused("no such peer".into()).to_string(), "[!] RPC call failed: no such peer");
    }

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970/01/01 00:00:00"),
            (68_169_599, "1972/02/28 23:59:59"),
            (68_169_600, "1972/02/29 00:00:00"),
            (951_868_799, "2000/02/29 23:59:59"),
            (951_868_800, "2000/03/01 00:00:00"),
            (1_795_390_378, "2026/11/22 23:32:58"),
            (4_107_542_400, "2100/03/01 00:00:00"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
