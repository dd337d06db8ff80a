//! The places a setting can come from, laid over each other.
//!
//! Invariant: of the values given for one key the last non-empty one stands; an empty one is
//! remembered only to say that the key was named, so a misspelt key is found even when empty.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use toml::{Table, Value};

use super::ConfigError;

/// What begins the name of every environment variable that is a setting.
const ENVIRONMENT: &str = "PROGRESS_HUB__";

/// One value as it was given.
pub(super) enum RawValue {
    /// An empty text: as if absent.
    Empty,
    /// From the environment or a flag: text that the key's type gives its meaning.
    Text(String),
    /// From the file.
    Toml(Value),
}

/// What was given, by section (`server`, `providers.kling`, and `""` for what stands in none)
/// and key.
#[derive(Default)]
pub(super) struct Layers {
    pub(super) sections: BTreeMap<String, BTreeMap<String, RawValue>>,
}

impl Layers {
    /// Lays the TOML file on top.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), Vec<ConfigError>> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| {
            vec![ConfigError {
                key: name.to_string(),
                message: format!("can't be read: {error}"),
            }]
        })?;
        let table = parse(&text).map_err(|mut errors| {
            errors.sort_by_key(|error| error.span().map(|span| span.start));
            let mistake = |error: &toml::de::Error| {
                let (line, column) = position(&text, error.span().map_or(0, |span| span.start));
                ConfigError {
                    key: format!("{name}:{line}:{column}"),
                    // Not `Display`, which quotes the line, and a secret may stand in it.
                    message: error.message().to_owned(),
                }
            };
            errors.iter().map(mistake).collect::<Vec<_>>()
        })?;
        self.add_table(table);
        Ok(())
    }

    fn add_table(&mut self, table: Table) {
        for (section, value) in table {
            match as_table(value) {
                Ok(providers) if section == "providers" => self.add_providers(providers),
                Ok(keys) => self.add_keys(&section, keys),
                Err(value) => self.add("", section, RawValue::Toml(value)),
            }
        }
    }

    fn add_providers(&mut self, providers: Table) {
        for (name, value) in providers {
            match as_table(value) {
                Ok(keys) => self.add_keys(&format!("providers.{name}"), keys),
                Err(value) => self.add("providers", name, RawValue::Toml(value)),
            }
        }
    }

    fn add_keys(&mut self, section: &str, keys: Table) {
        self.sections.entry(section.to_owned()).or_default();
        for (key, value) in keys {
            self.add(section, key, RawValue::Toml(value));
        }
    }

    /// Lays the environment on top: `PROGRESS_HUB__SECTION__KEY`, and
    /// `PROGRESS_HUB__PROVIDERS__NAME__KEY` with `_` for a `-` in the provider's name, which can
    /// hold no `_` itself.
    pub(super) fn add_environment(&mut self, env: impl Iterator<Item = (String, String)>) {
        for (name, value) in env {
            let words = match name.strip_prefix(ENVIRONMENT) {
                Some("") | None => continue,
                Some(words) => words.to_lowercase(),
            };
            let (section, key) = words.rsplit_once("__").unwrap_or(("", &words));
            let section = match section.split_once("__") {
                Some(("providers", name)) => format!("providers.{}", name.replace('_', "-")),
                Some(_) | None => section.replace("__", "."),
            };
            self.add(&section, key.to_owned(), RawValue::Text(value));
        }
    }

    /// Lays the flags on top, each by its dotted key.
    pub(super) fn add_flags(&mut self, flags: Vec<(String, String)>) {
        for (dotted, value) in flags {
            let (section, key) = dotted.rsplit_once('.').unwrap_or(("", &dotted));
            self.add(section, key.to_owned(), RawValue::Text(value));
        }
    }

    fn add(&mut self, section: &str, key: String, given: RawValue) {
        let keys = self.sections.entry(section.to_owned()).or_default();
        let empty = match &given {
            RawValue::Empty => true,
            RawValue::Text(text) => text.is_empty(),
            RawValue::Toml(value) => value.as_str() == Some(""),
        };
        if empty {
            keys.entry(key).or_insert(RawValue::Empty);
        } else {
            keys.insert(key, given);
        }
    }
}

/// The file as a table, or all of its syntax errors.
fn parse(text: &str) -> Result<Table, Vec<toml::de::Error>> {
    let (_, errors) = toml::de::DeTable::parse_recoverable(text);
    if errors.is_empty() {
        // The values themselves (a number's size, say) are only looked at here.
        text.parse::<Table>().map_err(|error| vec![error])
    } else {
        Err(errors)
    }
}

fn as_table(value: Value) -> Result<Table, Value> {
    if let Value::Table(table) = value {
        Ok(table)
    } else {
        Err(value)
    }
}

/// Line and column of a byte, both from 1, the column in characters.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[start..].chars().count() + 1;
    (line, column)
}
