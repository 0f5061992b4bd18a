//! How commands print: aligned tables and rounded figures for people, JSON for programs.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use ringlane_control::admin::relay::LoadStatus;
use ringlane_control::admin::socket_path;
use ringlane_control::admin::status::Carrier;
use serde::Serialize;

use crate::cli::OutputArgs;

/// What stands in a table where there is nothing to say.
const NOTHING: &str = "-";

/// The admin socket of the node that runs an interface.
pub(super) fn socket_of(interface: &str) -> anyhow::Result<PathBuf> {
    socket_path(interface).with_context(|| format!("{interface:?} cannot be the name of an interface"))
}

/// Prints an answer: as JSON if asked to, else as text for people. A reader that has seen enough is no error.
pub(super) fn print(
    output: OutputArgs,
    answer: &impl Serialize,
    people: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = if output.json { serde_json::to_string_pretty(answer)? + "\n" } else { people() };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to the standard output"),
    }
}

/// A table with a line of headings; columns are as wide as their widest cell.
pub(super) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(headings: [&str; COLUMNS]) -> Self {
        Self { rows: vec![headings.map(str::to_owned)] }
    }

    /// Adds a row. Names come from configurations: what could steer a terminal is replaced.
    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.map(|cell| match printable(&cell) {
            empty if empty.is_empty() => NOTHING.to_owned(),
            cell => cell,
        }));
    }
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        });
        for row in &self.rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
            writeln!(f, "{}", cells.collect::<String>().trim_end())?;
        }
        Ok(())
    }
}

/// The text without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character }).collect()
}

/// A peer's name, or its id if it has none.
pub(super) fn name_or_id(name: &str, id: &str) -> String {
    printable(if name.is_empty() { id } else { name })
}

/// A carrier as JSON spells it.
pub(super) fn carrier(carrier: Option<Carrier>) -> String {
    let name = match carrier {
        Some(Carrier::Lane) => "lane",
        Some(Carrier::Quic) => "quic",
        Some(Carrier::Stream) => "stream",
        None => NOTHING,
    };
    name.to_owned()
}

pub(super) fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A span of time by its two largest units: `3 d 4 h`, `5 min 6 s`, `7 s`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A round-trip time in the unit that suits it.
pub(super) fn rtt(rtt_us: Option<u64>) -> String {
    match rtt_us {
        None => NOTHING.to_owned(),
        Some(us @ 0..1_000) => format!("{us} us"),
        Some(us @ 1_000..1_000_000) => format!("{:.1} ms", us as f64 / 1e3),
        Some(us) => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// What a path loses, as the end of a line; nothing where it is nothing, or not known.
pub(super) fn loss(loss_percent: Option<u8>) -> String {
    loss_percent.filter(|percent| *percent > 0).map_or_else(String::new, |percent| format!(", loses {percent} %"))
}

/// How much of a relay is taken.
pub(super) fn relay_load(load: LoadStatus) -> String {
    format!("taken: {} % by lanes, {} % by circuits", load.lanes_percent, load.circuits_percent)
}

/// An amount of bytes in the unit that suits it.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded_to_what_a_person_reads() {
        let spans = [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3_661, "1 h 1 min"), (273_600, "3 d 4 h")];
        for (seconds, text) in spans {
            assert_eq!(span(seconds), text);
        }
        for (rtt_us, text) in [(0, "0 us"), (999, "999 us"), (1_234, "1.2 ms"), (2_500_000, "2.5 s")] {
            assert_eq!(rtt(Some(rtt_us)), text);
        }
        let amounts = [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (u64::MAX, "16.0 EiB")];
        for (amount, text) in amounts {
            assert_eq!(bytes(amount), text);
        }
    }

    #[test]
    fn a_table_is_aligned_and_neutralises_control_characters() {
        let mut table = Table::new(["NAME", "X"]);
        table.row(["größer".to_owned(), "1".to_owned()]);
        table.row(["\x1b[31m".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "NAME    X\ngrößer  1\n\u{fffd}[31m   -\n");
    }
}
