//! A parsed file of either format as a tree of values that know where they stand, and typed reads from it that
//! report what does not fit.

use std::ops::RangeInclusive;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Switch;
use super::error::Report;

/// Characters of a value that a message repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// What the text of every Ed25519 private key begins with; wherever one was pasted, no message repeats it.
const PRIVATE_KEY_START: &str = "z23jh";

/// Where a value stands, and how to show it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Place {
    /// The key path, for example `peers[1].routes[0]`.
    pub(super) key: String,
    /// The value as a message shows it.
    pub(super) value: Option<String>,
    /// Where it begins in the text, in bytes.
    pub(super) offset: Option<usize>,
}

impl Place {
    /// The place of a value that the file does not contain.
    pub(super) fn default_of(key: &str, value: impl ToString) -> Self {
        Self { key: key.to_owned(), value: Some(shorten(&value.to_string())), offset: None }
    }
}

/// A value together with where it was read.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> Placed<T> {
    pub(super) fn new(value: T, place: Place) -> Self {
        Self { value, place }
    }
}

/// One value of the file and all below it.
pub(super) struct Node {
    value: Value,
    offset: Option<usize>,
}

enum Value {
    Null,
    Boolean(bool),
    /// The number, if 64 bits hold it, and its text.
    Integer(Option<i64>, String),
    /// A float or a date: nothing a configuration has use for.
    Other(&'static str, String),
    String(String),
    Array(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "a boolean",
            Self::Integer(..) => "an integer",
            Self::Other(kind, _) => kind,
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }

    fn shown(&self) -> Option<String> {
        match self {
            Self::Null => Some("null".to_owned()),
            Self::Boolean(value) => Some(value.to_string()),
            Self::Integer(_, text) | Self::Other(_, text) => Some(shorten(text)),
            Self::String(text) if text.trim_start().starts_with(PRIVATE_KEY_START) => None,
            // A URL with a password in it, under whatever key.
            Self::String(text) if text.split_once("://").is_some_and(|(_, rest)| rest.contains('@')) => None,
            Self::String(text) => Some(shorten(&format!("{text:?}"))),
            Self::Array(_) | Self::Table(_) => None,
        }
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Parses TOML; every syntax error is reported.
pub(super) fn parse_toml(text: &str, report: &mut Report<'_>) -> Option<Node> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = Place { offset: error.span().map(|span| span.start), ..Place::default() };
        report.refuse(&place, format!("is not TOML: {}", error.message()), "correct the syntax");
    }
    errors.is_empty().then(|| Node { value: toml_table(root.get_ref()), offset: None })
}

fn toml_table(table: &DeTable<'_>) -> Value {
    let entry = |(key, value): (&Spanned<_>, &Spanned<_>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        (key.clone().into_owned(), toml_node(value))
    };
    Value::Table(table.iter().map(entry).collect())
}

fn toml_node(spanned: &Spanned<DeValue<'_>>) -> Node {
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(integer) => {
            Value::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).ok(), integer.to_string())
        }
        DeValue::Float(float) => Value::Other("a float", float.to_string()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(datetime) => Value::Other("a date or time", datetime.to_string()),
        DeValue::Array(array) => Value::Array(array.iter().map(toml_node).collect()),
        DeValue::Table(table) => toml_table(table),
    };
    Node { value, offset: Some(spanned.span().start) }
}

/// Parses JSON, of which only the place of a syntax error is known.
pub(super) fn parse_json(text: &str, report: &mut Report<'_>) -> Option<Node> {
    match serde_json::from_str(text) {
        Ok(json) => Some(json_node(json)),
        Err(error) => {
            let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
            let offset = lines.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
            let place = Place { offset: Some(offset), ..Place::default() };
            report.refuse(&place, format!("is not JSON: {error}"), "correct the syntax");
            None
        }
    }
}

fn json_node(json: Json) -> Node {
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Boolean(value),
        Json::Number(number) if number.is_f64() => Value::Other("a float", number.to_string()),
        Json::Number(number) => Value::Integer(number.as_i64(), number.to_string()),
        Json::String(text) => Value::String(text),
        Json::Array(items) => Value::Array(items.into_iter().map(json_node).collect()),
        Json::Object(entries) => {
            Value::Table(entries.into_iter().map(|(key, value)| (key, json_node(value))).collect())
        }
    };
    Node { value, offset: None }
}

/// A value and the key path that leads to it.
#[derive(Clone)]
pub(super) struct Item<'n> {
    node: &'n Node,
    key: String,
    secret: bool,
}

impl<'n> Item<'n> {
    pub(super) fn root(node: &'n Node) -> Self {
        Self { node, key: String::new(), secret: false }
    }

    /// The same item, whose value is never shown.
    pub(super) fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    pub(super) fn place(&self) -> Place {
        let value = self.node.value.shown().filter(|_| !self.secret);
        Place { key: self.key.clone(), value, offset: self.node.offset }
    }

    pub(super) fn string(&self, report: &mut Report<'_>) -> Option<&'n str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            _ => self.refuse_kind("a string", "write it in double quotes", report),
        }
    }

    pub(super) fn boolean(&self, report: &mut Report<'_>) -> Option<bool> {
        match self.node.value {
            Value::Boolean(value) => Some(value),
            _ => self.refuse_kind("a boolean", "write true or false, without quotes", report),
        }
    }

    /// A boolean, or `"auto"`.
    pub(super) fn switch(&self, report: &mut Report<'_>) -> Option<Switch> {
        match &self.node.value {
            Value::Boolean(true) => return Some(Switch::On),
            Value::Boolean(false) => return Some(Switch::Off),
            Value::String(text) if text == "auto" => return Some(Switch::Auto),
            _ => {}
        }
        report.refuse(&self.place(), "is neither a boolean nor \"auto\"", "write true, false or \"auto\"");
        None
    }

    /// One of `words`, each with what it stands for.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)], report: &mut Report<'_>) -> Option<T> {
        let text = self.string(report)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            report.refuse(&self.place(), "is not a known word", format!("write one of {}", known.join(", ")));
        }
        found
    }

    /// An integer within `bounds`; `unit` is what it counts.
    pub(super) fn integer<T>(&self, bounds: RangeInclusive<T>, unit: &str, report: &mut Report<'_>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let (min, max) = (bounds.start(), bounds.end());
        let Value::Integer(number, _) = self.node.value else {
            return self.refuse_kind(
                "an integer",
                &format!("write a number from {min} to {max}, without quotes"),
                report,
            );
        };
        let fitting = number.and_then(|number| T::try_from(number).ok()).filter(|number| bounds.contains(number));
        if fitting.is_none() {
            report.refuse(&self.place(), "is out of range", format!("write {unit} from {min} to {max}"));
        }
        fitting
    }

    /// The items of a list of at most `max`.
    pub(super) fn list(&self, max: usize, report: &mut Report<'_>) -> Option<Vec<Item<'n>>> {
        let Value::Array(nodes) = &self.node.value else {
            return self.refuse_kind("a list", "write [...], with commas between the items", report);
        };
        if nodes.len() > max {
            report.refuse(&self.place(), format!("has {} items", nodes.len()), format!("keep it to at most {max}"));
            return None;
        }
        let item = |(index, node)| Item { node, key: format!("{}[{index}]", self.key), secret: self.secret };
        Some(nodes.iter().enumerate().map(item).collect())
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.node.value, Value::Table(_))
    }

    pub(super) fn table(&self, report: &mut Report<'_>) -> Option<Table<'n>> {
        match &self.node.value {
            Value::Table(entries) => Some(Table { entries, key: self.key.clone() }),
            _ => self.refuse_kind("a table", "write a table of keys and values", report),
        }
    }

    /// The tables among the values of a table; none if it is not one.
    pub(super) fn tables(&self) -> impl Iterator<Item = Table<'n>> {
        let entries = match &self.node.value {
            Value::Table(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().filter_map(|(name, node)| match &node.value {
            Value::Table(entries) => Some(Table { entries, key: format!("{}.{name}", self.key) }),
            _ => None,
        })
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self.node.value, Value::String(_))
    }

    fn refuse_kind<T>(&self, expected: &str, remedy: &str, report: &mut Report<'_>) -> Option<T> {
        let problem = format!("must be {expected}, not {}", self.node.value.kind());
        report.refuse(&self.place(), problem, remedy);
        None
    }
}

/// A table and the key path that leads to it.
pub(super) struct Table<'n> {
    entries: &'n [(String, Node)],
    key: String,
}

impl<'n> Table<'n> {
    /// The value of `name`, if it is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<Item<'n>> {
        self.items()
            .find(|(key, _)| *key == name)
            .map(|(_, item)| item)
            .filter(|item| !matches!(item.node.value, Value::Null))
    }

    /// Every key with its value.
    pub(super) fn items(&self) -> impl Iterator<Item = (&'n str, Item<'n>)> {
        self.entries.iter().map(|(name, node)| (name.as_str(), Item { node, key: self.path(name), secret: false }))
    }

    /// The place a missing `name` would have.
    pub(super) fn missing(&self, name: &str) -> Place {
        Place { key: self.path(name), ..Place::default() }
    }

    fn path(&self, name: &str) -> String {
        if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) }
    }
}
