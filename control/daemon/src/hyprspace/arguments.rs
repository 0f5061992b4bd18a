//! The grammar of Hyprspace's command lines.
//!
//! The first word is the subcommand. After it, flags and positionals mix in any order; a flag's value is the next
//! word, whatever that begins with. There is no `--flag=value`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::slice::Iter;

/// What Hyprspace can be told to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Subcommand {
    Help,
    Init,
    Keygen,
    Peers,
    Route,
    Status,
    Up,
    Version,
}

impl Subcommand {
    /// In the order of their names.
    pub(super) const ALL: [Self; 8] =
        [Self::Help, Self::Init, Self::Keygen, Self::Peers, Self::Route, Self::Status, Self::Up, Self::Version];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Help => "help",
            Self::Init => "init",
            Self::Keygen => "keygen",
            Self::Peers => "peers",
            Self::Route => "route",
            Self::Status => "status",
            Self::Up => "up",
            Self::Version => "version",
        }
    }

    /// A shorter name, or nothing.
    pub(super) fn alias(self) -> &'static str {
        match self {
            Self::Help => "?",
            Self::Init => "i",
            Self::Route => "r",
            Self::Status => "s",
            Self::Up => "up",
            Self::Keygen | Self::Peers | Self::Version => "",
        }
    }

    /// The one of this name or alias.
    pub(super) fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == word || (!it.alias().is_empty() && it.alias() == word))
    }

    /// How many positionals it takes: at least, at most.
    fn positionals(self) -> (usize, usize) {
        match self {
            Self::Help => (1, 1),
            Self::Route => (1, usize::MAX),
            _ => (0, 0),
        }
    }
}

/// What a command line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) subcommand: Subcommand,
    pub(super) positionals: Vec<String>,
    config: Option<String>,
    interface: Option<String>,
    /// `--name` of `init`.
    pub(super) name: Option<String>,
    /// `--private-key-file` of `keygen`.
    pub(super) private_key_file: Option<String>,
    /// `--public-key-file` of `keygen`.
    pub(super) public_key_file: Option<String>,
}

impl Line {
    /// The interface asked for; it names the node.
    pub(super) fn interface(&self) -> &str {
        self.interface.as_deref().unwrap_or("hyprspace")
    }

    /// The configuration asked for.
    pub(super) fn config(&self) -> PathBuf {
        match &self.config {
            Some(file) => file.into(),
            None => Path::new("/etc/hyprspace").join(format!("{}.json", self.interface())),
        }
    }

    /// Where the value of a flag goes, if there is such a flag.
    fn slot(&mut self, flag: &str) -> Option<&mut Option<String>> {
        match (self.subcommand, flag) {
            (_, "config") => Some(&mut self.config),
            (_, "interface") => Some(&mut self.interface),
            (Subcommand::Init, "name") => Some(&mut self.name),
            (Subcommand::Keygen, "private-key-file") => Some(&mut self.private_key_file),
            (Subcommand::Keygen, "public-key-file") => Some(&mut self.public_key_file),
            _ => None,
        }
    }
}

/// Why a command line is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Its first word names no subcommand, or there is none.
    NoSuchCommand,
    /// What follows does not fit the subcommand.
    Line(Subcommand, LineError),
}

/// What does not fit, in Hyprspace's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LineError {
    MissingArguments,
    TooManyArguments,
    MissingFlagName,
    MissingValue,
    EmptyArgument,
    ValueInGroup,
    NoSuchFlag(String),
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingArguments => "Missing argument(s)",
            Self::TooManyArguments => "too many arguments",
            Self::MissingFlagName => "missing flag name",
            Self::MissingValue => "missing value for field",
            Self::EmptyArgument => "Failed to parse arg '', reason: missing value for field",
            Self::ValueInGroup => "only the last short flag in a group can have an argument",
            Self::NoSuchFlag(name) => return write!(f, "invalid flag '{name}'"),
        })
    }
}

/// Reads the words after the program's name.
pub(super) fn parse(words: &[String]) -> Result<Line, Refusal> {
    let first = words.first().ok_or(Refusal::NoSuchCommand)?;
    // The last part of a path, as Hyprspace has it.
    let name = first.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let subcommand = Subcommand::named(name).ok_or(Refusal::NoSuchCommand)?;
    parse_rest(subcommand, &words[1..]).map_err(|error| Refusal::Line(subcommand, error))
}

fn parse_rest(subcommand: Subcommand, words: &[String]) -> Result<Line, LineError> {
    let mut line = Line {
        subcommand,
        positionals: Vec::new(),
        config: None,
        interface: None,
        name: None,
        private_key_file: None,
        public_key_file: None,
    };
    let (least, most) = subcommand.positionals();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if let Some(flag) = word.strip_prefix("--") {
            set(&mut line, flag, true, &mut words)?;
        } else if let Some(group) = word.strip_prefix('-') {
            let mut flags = group.chars().peekable();
            if flags.peek().is_none() {
                return Err(LineError::MissingFlagName);
            }
            while let Some(flag) = flags.next() {
                set_short(&mut line, flag, flags.peek().is_none(), &mut words)?;
            }
        } else if line.positionals.len() == most {
            return Err(LineError::TooManyArguments);
        } else if word.is_empty() && line.positionals.is_empty() {
            return Err(LineError::EmptyArgument);
        } else {
            line.positionals.push(word.clone());
        }
    }
    if line.positionals.len() < least {
        return Err(LineError::MissingArguments);
    }
    Ok(line)
}

fn set_short(line: &mut Line, flag: char, is_last: bool, words: &mut Iter<'_, String>) -> Result<(), LineError> {
    match flag {
        'c' => set(line, "config", is_last, words),
        'i' => set(line, "interface", is_last, words),
        other => Err(LineError::NoSuchFlag(other.to_string())),
    }
}

fn set(line: &mut Line, flag: &str, is_last: bool, words: &mut Iter<'_, String>) -> Result<(), LineError> {
    if flag.is_empty() {
        return Err(LineError::MissingFlagName);
    }
    let slot = line.slot(flag).ok_or_else(|| LineError::NoSuchFlag(flag.to_owned()))?;
    if !is_last {
        return Err(LineError::ValueInGroup);
    }
    let value = words.next().filter(|value| !matches!(value.as_str(), "" | "-"));
    *slot = Some(value.ok_or(LineError::MissingValue)?.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Line, Refusal> {
        parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_first_word_is_the_subcommand_or_its_alias() {
        let line = |words: &[&str]| read(words).map(|line| line.subcommand);
        for (words, subcommand) in [
            (&["status"][..], Subcommand::Status),
            (&["s"], Subcommand::Status),
            (&["i"], Subcommand::Init),
            (&["r", "show"], Subcommand::Route),
            (&["?", "up"], Subcommand::Help),
            (&["help", "up"], Subcommand::Help),
            (&["up"], Subcommand::Up),
            (&["keygen"], Subcommand::Keygen),
            (&["/some/where/peers"], Subcommand::Peers),
            (&["version"], Subcommand::Version),
        ] {
            assert_eq!(line(words), Ok(subcommand), "{words:?}");
        }
        for words in [&[][..], &[""], &["-i", "gr0", "status"], &["--version"], &["-h"], &["nosuch"], &["down"], &["S"]]
        {
            assert_eq!(line(words), Err(Refusal::NoSuchCommand), "{words:?}");
        }
    }

    #[test]
    fn flags_and_positionals_mix_in_any_order_and_the_last_of_a_flag_counts() {
        for words in [
            &["route", "add", "10.0.0.0/8", "@b", "-i", "hs0", "-c", "x"][..],
            &["route", "-c", "x", "add", "--interface", "hs0", "10.0.0.0/8", "@b"],
            &["r", "-i", "first", "-i", "hs0", "add", "10.0.0.0/8", "--config", "x", "@b"],
        ] {
            let line = read(words).unwrap();
            assert_eq!(line.positionals, ["add", "10.0.0.0/8", "@b"], "{words:?}");
            assert_eq!((line.interface(), line.config()), ("hs0", "x".into()), "{words:?}");
        }
        let line = read(&["status", "-i", "--interface"]).unwrap();
        assert_eq!(line.interface(), "--interface", "a value may look like a flag");
        let line = read(&["keygen", "--public-key-file", "p", "--private-key-file", "q"]).unwrap();
        assert_eq!((line.private_key_file.as_deref(), line.public_key_file.as_deref()), (Some("q"), Some("p")));
        assert_eq!(read(&["init", "--name", "n"]).unwrap().name.as_deref(), Some("n"));
    }

    #[test]
    fn interface_and_configuration_have_hyprspaces_defaults() {
        let line = read(&["up"]).unwrap();
        assert_eq!((line.interface(), line.config()), ("hyprspace", "/etc/hyprspace/hyprspace.json".into()));
        let line = read(&["up", "-i", "hs0"]).unwrap();
        assert_eq!((line.interface(), line.config()), ("hs0", "/etc/hyprspace/hs0.json".into()));
    }

    #[test]
    fn what_does_not_fit_is_told_in_hyprspaces_words() {
        for (words, text) in [
            (&["help"][..], "Missing argument(s)"),
            (&["route"], "Missing argument(s)"),
            (&["route", "-i", "gr0"], "Missing argument(s)"),
            (&["route", ""], "Failed to parse arg '', reason: missing value for field"),
            (&["status", "extra"], "too many arguments"),
            (&["help", "up", "extra"], "too many arguments"),
            (&["init", "extra"], "too many arguments"),
            (&["status", "-i"], "missing value for field"),
            (&["status", "-i", ""], "missing value for field"),
            (&["status", "-i", "-"], "missing value for field"),
            (&["init", "--name"], "missing value for field"),
            (&["status", "--interface=gr0"], "invalid flag 'interface=gr0'"),
            (&["status", "--i", "gr0"], "invalid flag 'i'"),
            (&["status", "-x"], "invalid flag 'x'"),
            (&["status", "-igr0"], "only the last short flag in a group can have an argument"),
            (&["status", "-ci", "gr0"], "only the last short flag in a group can have an argument"),
            (&["status", "--nope", "v"], "invalid flag 'nope'"),
            (&["status", "--name", "v"], "invalid flag 'name'"),
            (&["status", "-"], "missing flag name"),
            (&["status", "--"], "missing flag name"),
        ] {
            match read(words) {
                Err(Refusal::Line(_, error)) => assert_eq!(error.to_string(), text, "{words:?}"),
                other => panic!("{words:?}: {other:?}"),
            }
        }
    }
}
