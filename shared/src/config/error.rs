//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::tree::Place;
use crate::limits::CONFIG_PROBLEMS_MAX;

/// A refused configuration: whoever wrote the file is at fault, and this says where. Has at least one problem.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// All that is wrong with it, in the order found; at most [`CONFIG_PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How many more problems there are.
    pub omitted: usize,
}

/// One thing that is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// Which key, for example `peers[1].routes[0]`; empty when the file as a whole is meant.
    pub key: String,
    /// The offending value as written, shortened; `None` when there is none, or when it is secret.
    pub value: Option<String>,
    /// Line in the file, from 1, where known.
    pub line: Option<usize>,
    /// Column in that line in characters, from 1, where known.
    pub column: Option<usize>,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl ConfigError {
    /// An error with one problem whose place in the file is not known.
    pub fn new(file: &Path, problem: Problem) -> Self {
        Self { file: file.to_owned(), problems: vec![problem], omitted: 0 }
    }
}

impl Problem {
    /// A problem whose line is not known.
    pub fn new(
        key: impl Into<String>,
        value: Option<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { key: key.into(), value, line: None, column: None, problem: problem.into(), remedy: remedy.into() }
    }
}

impl std::error::Error for ConfigError {}

/// One line per problem, each naming file, position, key, value, problem and remedy; a heading if there are several.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        let total = self.problems.len() + self.omitted;
        if total > 1 {
            write!(f, "{file}: {total} problems")?;
        }
        for problem in &self.problems {
            f.write_str(if total > 1 { "\n  " } else { "" })?;
            write!(f, "{file}{problem}")?;
        }
        if self.omitted > 0 {
            write!(f, "\n  and {} more", self.omitted)?;
        }
        Ok(())
    }
}

/// The problem as it follows a file's name: `:3:11: dataplane.workers = 0: must be ...; write ...`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        match (self.key.is_empty(), &self.value) {
            (true, _) => {}
            (false, None) => write!(f, ": {}", self.key)?,
            (false, Some(value)) => write!(f, ": {} = {value}", self.key)?,
        }
        write!(f, ": {}; {}", self.problem, self.remedy)
    }
}

/// Collects what is found while one file is read.
pub(super) struct Report<'t> {
    file: &'t Path,
    text: &'t str,
    problems: Vec<Problem>,
    omitted: usize,
    warnings: Vec<String>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t Path, text: &'t str) -> Self {
        Self { file, text, problems: Vec::new(), omitted: 0, warnings: Vec::new() }
    }

    /// The value at `place` makes the file unusable.
    pub(super) fn refuse(&mut self, place: &Place, problem: impl Into<String>, remedy: impl Into<String>) {
        if self.problems.len() == CONFIG_PROBLEMS_MAX {
            self.omitted += 1;
            return;
        }
        let (line, column) = place.offset.map(|offset| position(self.text, offset)).unzip();
        let key = place.key.clone();
        let value = place.value.clone();
        self.problems.push(Problem { key, value, line, column, problem: problem.into(), remedy: remedy.into() });
    }

    /// The value at `place` does less than its writer may expect.
    pub(super) fn warn(&mut self, place: &Place, consequence: impl fmt::Display) {
        if self.warnings.len() < CONFIG_PROBLEMS_MAX {
            let value = place.value.as_ref().map(|value| format!(" = {value}")).unwrap_or_default();
            self.warnings.push(format!("{}: {}{value}: {consequence}", self.file.display(), place.key));
        }
    }

    pub(super) fn file(&self) -> &'t Path {
        self.file
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// The refusal, when there is anything to refuse.
    pub(super) fn into_error(self) -> ConfigError {
        ConfigError { file: self.file.to_owned(), problems: self.problems, omitted: self.omitted }
    }

    /// The warnings of a file that is not refused.
    pub(super) fn into_warnings(self) -> Result<Vec<String>, ConfigError> {
        if self.is_clean() { Ok(self.warnings) } else { Err(self.into_error()) }
    }
}

/// Line and column of a byte offset, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
