//! The sources of settings: file, environment and flags.
//!
//! The last non-empty value of a key wins. Empty values are kept as `None`, so that a misspelled key
//! is reported even if its value is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use secrecy::zeroize::Zeroizing;
use toml::{Table, Value};

use super::ConfigError;

/// Prefix of the environment variables that contain settings.
const ENVIRONMENT_PREFIX: &str = "PROGRESS_HUB__";

/// Suffix of the environment variables that name a file with the value. No key of a setting ends with
/// it, as a test checks.
pub(super) const FILE_SUFFIX: &str = "_file";

/// A value that is not parsed yet.
pub(super) enum RawValue {
    /// Text from the environment or a flag. The kind of the setting determines its type.
    Text(String),
    /// TOML from the file.
    Toml(Value),
}

impl RawValue {
    /// Parses text as TOML. Text that is not a TOML value becomes a string.
    pub(super) fn into_toml(self) -> Value {
        match self {
            Self::Text(text) => text.trim().parse().unwrap_or(Value::String(text)),
            Self::Toml(value) => value,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) | Self::Toml(Value::String(text)) => text.is_empty(),
            Self::Toml(_) => false,
        }
    }
}

/// A value, or the reason why it could not be read.
pub(super) type ReadValue = Result<RawValue, String>;

/// The keys of a section and their values. An empty value is `None`.
pub(super) type Keys = BTreeMap<String, Option<ReadValue>>;

/// All values by section (`server`, `providers.kling`, `webhooks.app`, or an empty string for none)
/// and key.
#[derive(Default)]
pub(super) struct Layers {
    pub(super) sections: BTreeMap<String, Keys>,
    /// Dotted keys of the file that a later source overrides.
    pub(super) overridden: BTreeSet<String>,
    /// Errors in the structure of the file.
    pub(super) errors: Vec<ConfigError>,
}

impl Layers {
    /// Adds the values of a TOML file, or returns all of its syntax errors.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), Vec<ConfigError>> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| {
            vec![ConfigError {
                key: name.to_string(),
                message: format!("failed to read the file: {error}"),
            }]
        })?;
        let text = Zeroizing::new(text);
        let table = parse(&text).map_err(|mut errors| {
            errors.sort_by_key(|error| error.span().map(|span| span.start));
            let located = |error: &toml::de::Error| {
                let (line, column) = position(&text, error.span().map_or(0, |span| span.start));
                ConfigError {
                    key: format!("{name}:{line}:{column}"),
                    // `Display` would quote the line, which may contain a secret.
                    message: error.message().to_owned(),
                }
            };
            errors.iter().map(located).collect::<Vec<_>>()
        })?;
        self.add_table(table);
        Ok(())
    }

    fn add_table(&mut self, table: Table) {
        for (section, value) in table {
            match (section.as_str(), value) {
                ("providers", Value::Table(providers)) => self.add_providers(providers),
                ("webhooks", Value::Array(webhooks)) => self.add_webhooks(webhooks),
                ("webhooks", _) => self.push_error("webhooks", "must be written as [[webhooks]]"),
                (_, Value::Table(keys)) => self.add_keys(&section, keys),
                (_, value) => self.add("", section, Ok(RawValue::Toml(value))),
            }
        }
    }

    fn add_providers(&mut self, providers: Table) {
        for (name, value) in providers {
            if let Value::Table(keys) = value {
                self.add_keys(&format!("providers.{name}"), keys);
            } else {
                self.add("providers", name, Ok(RawValue::Toml(value)));
            }
        }
    }

    /// Adds the entries of `[[webhooks]]`. The section of an entry is `webhooks.<name>`.
    fn add_webhooks(&mut self, webhooks: Vec<Value>) {
        for (index, value) in webhooks.into_iter().enumerate() {
            let entry = index + 1;
            let Value::Table(mut keys) = value else {
                self.push_error("webhooks", format!("entry {entry} must be a table"));
                continue;
            };
            let Some(Value::String(name)) = keys.remove("name") else {
                self.push_error("webhooks", format!("entry {entry} must have a name"));
                continue;
            };
            let section = format!("webhooks.{name}");
            if self.sections.contains_key(&section) {
                self.push_error(section, "more than one entry has this name");
            } else {
                self.add_keys(&section, keys);
            }
        }
    }

    fn push_error(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.errors.push(ConfigError {
            key: key.into(),
            message: message.into(),
        });
    }

    fn add_keys(&mut self, section: &str, keys: Table) {
        self.sections.entry(section.to_owned()).or_default();
        for (key, value) in keys {
            self.add(section, key, Ok(RawValue::Toml(value)));
        }
    }

    /// Adds environment variables of the form `PROGRESS_HUB__SECTION__KEY`,
    /// `PROGRESS_HUB__PROVIDERS__NAME__KEY` or `PROGRESS_HUB__WEBHOOKS__NAME__KEY`. In a name, `_`
    /// represents `-`. A variable with the suffix `_FILE` names a file that contains the value.
    pub(super) fn add_environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        let mut seen = BTreeSet::new();
        for (name, value) in variables {
            let path = match name.strip_prefix(ENVIRONMENT_PREFIX) {
                Some("") | None => continue,
                Some(path) => path.to_lowercase(),
            };
            let file = path.strip_suffix(FILE_SUFFIX);
            let path = file.unwrap_or(&path);
            let value = if value.is_empty() {
                Ok(value)
            } else if !seen.insert(path.to_owned()) {
                Err("set by more than one environment variable".to_owned())
            } else if file.is_some() {
                // The error omits the path, because the variable may contain the secret by mistake.
                read_value(Path::new(&value))
                    .map_err(|error| format!("failed to read the file in {name}: {error}"))
            } else {
                Ok(value)
            };
            let (section, key) = path.rsplit_once("__").unwrap_or(("", path));
            let section = match section.split_once("__") {
                Some((parent @ ("providers" | "webhooks"), name)) => {
                    format!("{parent}.{}", name.replace('_', "-"))
                }
                Some(_) | None => section.replace("__", "."),
            };
            self.add(&section, key.to_owned(), value.map(RawValue::Text));
        }
    }

    /// Adds flags, as dotted keys and values.
    pub(super) fn add_flags(&mut self, flags: Vec<(String, String)>) {
        for (dotted, value) in flags {
            let (section, key) = dotted.rsplit_once('.').unwrap_or(("", &dotted));
            self.add(section, key.to_owned(), Ok(RawValue::Text(value)));
        }
    }

    fn add(&mut self, section: &str, key: String, value: ReadValue) {
        let keys = self.sections.entry(section.to_owned()).or_default();
        if value.as_ref().is_ok_and(RawValue::is_empty) {
            keys.entry(key).or_insert(None);
        } else {
            let dotted = format!("{section}.{key}");
            let previous = keys.insert(key, Some(value));
            if let Some(Some(Ok(RawValue::Toml(_)))) = previous {
                self.overridden.insert(dotted);
            }
        }
    }
}

/// Reads a value from a file, without the line break at its end.
fn read_value(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(io::Error::other("file is empty")),
        value => Ok(value.to_owned()),
    }
}

/// Parses a TOML document, or returns all of its syntax errors.
fn parse(text: &str) -> Result<Table, Vec<toml::de::Error>> {
    let (_, errors) = toml::de::DeTable::parse_recoverable(text);
    if errors.is_empty() {
        // Values are checked only here, for example the size of a number.
        text.parse::<Table>().map_err(|error| vec![error])
    } else {
        Err(errors)
    }
}

/// Returns line and column of a byte offset. Both count from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[start..].chars().count() + 1;
    (line, column)
}
