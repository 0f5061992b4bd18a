//! Hyprspace's help texts, on stdout as there. Headings are bold on terminals only, and no line of it goes to stderr.

use std::fmt::Write;

use super::arguments::Subcommand;

/// Name, argument and description of a flag, or of an argument its name, type and description.
type Row = [&'static str; 3];

const GLOBAL_FLAGS: [Row; 2] =
    [["-c, --config", "STRING", "Specify a custom config path."], ["-i, --interface", "STRING", "Interface name."]];

fn short(subcommand: Subcommand) -> &'static str {
    match subcommand {
        Subcommand::Help => "Get help with a specific subcommand",
        Subcommand::Init => "Initialize An Interface Config",
        Subcommand::Keygen => "Generate a new keypair",
        Subcommand::Peers => "List peer connections",
        Subcommand::Route => "Control routing",
        Subcommand::Status => "Display Hyprspace daemon status",
        Subcommand::Up => "Create and Bring Up a Hyprspace Interface.",
        Subcommand::Version => "Print the version of this command",
    }
}

/// How its arguments stand in a line, and what they are.
fn arguments(subcommand: Subcommand) -> (&'static str, &'static [Row]) {
    match subcommand {
        Subcommand::Help => (" <Subcommand>", &[["Subcommand", "STRING", "Command to get help for"]]),
        Subcommand::Route => (" <Action> [Args...]", &[["Action", "STRING", ""], ["Args", "[]STRING", ""]]),
        _ => ("", &[]),
    }
}

fn flags(subcommand: Subcommand) -> &'static [Row] {
    match subcommand {
        Subcommand::Init => &[["--name", "STRING", "Name to include in the suggested peer entry."]],
        Subcommand::Keygen => &[
            ["--private-key-file", "STRING", "Path to private key file."],
            ["--public-key-file", "STRING", "Path to public key file. If not specified, prints to stdout."],
        ],
        _ => &[],
    }
}

/// Of the program.
pub(super) fn of_all(bold: bool) -> String {
    let mut text = heading(bold, "USAGE:") + " hyprspace CMD [OPTIONS]\n\n";
    text += &(heading(bold, "DESCRIPTION:") + " Hyprspace Distributed Network\n\n");
    let rows = Subcommand::ALL.map(|it| [it.name(), it.alias(), short(it)]);
    table(&mut text, bold, "COMMANDS", ["NAME", "ALIAS", "DESCRIPTION"], &rows);
    table(&mut text, bold, "GLOBAL FLAGS", ["NAME", "ARG", "DESCRIPTION"], &GLOBAL_FLAGS);
    text
}

/// Of one subcommand.
pub(super) fn of(subcommand: Subcommand, bold: bool) -> String {
    let (in_line, rows) = arguments(subcommand);
    let mut text = heading(bold, "USAGE:") + &format!(" hyprspace {} [OPTIONS]{in_line}\n\n", subcommand.name());
    text += &format!("{} {}\n\n", heading(bold, "DESCRIPTION:"), short(subcommand));
    table(&mut text, bold, "ARGUMENTS", ["NAME", "TYPE", "DESCRIPTION"], rows);
    let own = format!("{} FLAGS", subcommand.name().to_uppercase());
    table(&mut text, bold, &own, ["NAME", "ARG", "DESCRIPTION"], flags(subcommand));
    table(&mut text, bold, "GLOBAL FLAGS", ["NAME", "ARG", "DESCRIPTION"], &GLOBAL_FLAGS);
    text
}

fn heading(bold: bool, text: &str) -> String {
    if bold { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// A titled table; none if it has no rows.
fn table(text: &mut String, bold: bool, title: &str, headings: Row, rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let width =
        |column: usize| rows.iter().chain([&headings]).map(|row| row[column].len()).max().unwrap_or_default() + 2;
    let (first, second) = (width(0), width(1));
    let line = |row: &Row| format!("    {:first$}{:second$}{}", row[0], row[1], row[2]);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}\n\n{}", heading(bold, &format!("{title}:")), heading(bold, &line(&headings)));
    for row in rows {
        let _ = writeln!(text, "{}", line(row).trim_end());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_of_all_is_hyprspaces() {
        assert_eq!(
            of_all(false),
            "\
USAGE: hyprspace CMD [OPTIONS]

DESCRIPTION: Hyprspace Distributed Network

COMMANDS:

    NAME     ALIAS  DESCRIPTION
    help     ?      Get help with a specific subcommand
    init     i      Initialize An Interface Config
    keygen          Generate a new keypair
    peers           List peer connections
    route    r      Control routing
    status   s      Display Hyprspace daemon status
    up       up     Create and Bring Up a Hyprspace Interface.
    version         Print the version of this command

GLOBAL FLAGS:

    NAME             ARG     DESCRIPTION
    -c, --config     STRING  Specify a custom config path.
    -i, --interface  STRING  Interface name.

"
        );
        assert!(of_all(true).starts_with("\x1b[1mUSAGE:\x1b[0m hyprspace CMD"));
    }

    #[test]
    fn the_usage_of_one_names_its_arguments_and_flags() {
        assert_eq!(
            of(Subcommand::Route, false),
            "\
USAGE: hyprspace route [OPTIONS] <Action> [Args...]

DESCRIPTION: Control routing

ARGUMENTS:

    NAME    TYPE      DESCRIPTION
    Action  STRING
    Args    []STRING

GLOBAL FLAGS:

    NAME             ARG     DESCRIPTION
    -c, --config     STRING  Specify a custom config path.
    -i, --interface  STRING  Interface name.

"
        );
        assert!(of(Subcommand::Keygen, false).contains(
            "\
KEYGEN FLAGS:

    NAME                ARG     DESCRIPTION
    --private-key-file  STRING  Path to private key file.
    --public-key-file   STRING  Path to public key file. If not specified, prints to stdout.

GLOBAL FLAGS:
"
        ));
    }
}
