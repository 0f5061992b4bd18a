//! The tables of `docs/nat.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::kinds::{Kind, Pair};
use super::matrix::{Expect, Row};

const FILE: &str = "../../docs/nat.md";

/// One row of the table, as Markdown.
pub(crate) fn line(row: &Row) -> String {
    let (a, b) = names(row.pair);
    let [first, direct, lanes] = [row.first_packet, row.direct, row.lanes].map(milliseconds);
    format!(
        "| {a} | {b} | {} | {first} | {direct} | {lanes} |",
        if row.found() == Expect::Unreachable { "none".into() } else { row.way.to_string() }
    )
}

/// What the places of a pair are called.
pub(crate) fn names(pair: Pair) -> (&'static str, &'static str) {
    match pair {
        Pair::Apart(a, b) => (a.name(), b.name()),
        Pair::SameLan => ("one LAN", "the same"),
        Pair::SameNat { hairpins: true } => ("a NAT that hairpins", "the same"),
        Pair::SameNat { hairpins: false } => ("a NAT that does not hairpin", "the same"),
    }
}

fn milliseconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "–".into(), |time| time.as_millis().to_string())
}

/// Which kinds reach which, at a glance.
fn overview(rows: &[Row]) -> String {
    let mut text = String::from("| |");
    text.extend((1..=Kind::ALL.len()).map(|number| format!(" {number} |")));
    text += "\n|---|";
    text += &"---|".repeat(Kind::ALL.len());
    text.push('\n');
    for (at, a) in Kind::ALL.into_iter().enumerate() {
        let _ = write!(text, "| {} {} |", at + 1, a.name());
        for b in Kind::ALL {
            let row = rows.iter().find(|row| row.pair == Pair::Apart(a, b) || row.pair == Pair::Apart(b, a));
            let cell = match row.map(Row::found) {
                None => "",
                Some(Expect::DirectLanes) => "lanes",
                Some(Expect::DirectStream) => "stream",
                Some(Expect::RelayedLanes) => "relayed lanes",
                Some(Expect::RelayedStream) => "relayed stream",
                Some(Expect::Unreachable) => "–",
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

/// Writes all rows to the documentation.
pub(crate) fn write(rows: &[Row]) {
    replace("overview", &overview(rows));
    let mut text = String::from(
        "| A | B | Path | First packet, ms | Direct, ms | All lanes, ms |\n|---|---|---|---:|---:|---:|\n",
    );
    for row in rows {
        text += &line(row);
        text.push('\n');
    }
    replace("pairs", &text);
}

/// Replaces what stands between the marks of a table.
pub(crate) fn replace(table: &str, text: &str) {
    // Two tests write tables, perhaps at once.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock().expect("nobody has panicked here");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let old = fs::read_to_string(&file).expect("the documentation is there");
    fs::write(&file, replaced(&old, table, text)).expect("the documentation can be written");
}

fn replaced(old: &str, table: &str, text: &str) -> String {
    let [begin, end] = ["begin", "end"].map(|mark| format!("<!-- {mark} {table}: written by the harness -->\n"));
    let from = old.find(&begin).expect("the table's beginning is marked") + begin.len();
    let to = from + old[from..].find(&end).expect("the table's end is marked");
    [&old[..from], text, &old[to..]].concat()
}

#[test]
fn a_table_is_replaced_and_nothing_else() {
    let old = "above\n<!-- begin t: written by the harness -->\nold\n<!-- end t: written by the harness -->\nbelow\n";
    assert_eq!(replaced(old, "t", "new\n"), old.replace("old", "new"));
}
