//! Reads the layers key by key and keeps what is wrong with them.
//!
//! Invariant: every key that was given is either asked for by somebody or reported as unknown,
//! and no mistake repeats the value of a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use secrecy::SecretString;
use toml::Value;

use super::layers::{Layers, RawValue};
use super::{ConfigError, Price, duration, parse};

/// The layers not read so far, and the mistakes found in those that were.
pub(super) struct Reader {
    left: Layers,
    known_keys: BTreeMap<String, BTreeSet<String>>,
    errors: Vec<ConfigError>,
}

/// One section of a [`Reader`]. What is absent or wrong reads as `None` or empty; what is wrong
/// is a mistake besides.
pub(super) struct Section<'a> {
    reader: &'a mut Reader,
    name: String,
}

impl Reader {
    pub(super) fn new(layers: Layers) -> Self {
        Self {
            left: layers,
            known_keys: BTreeMap::new(),
            errors: Vec::new(),
        }
    }

    /// Opens a section, given or not.
    pub(super) fn section(&mut self, name: &str) -> Section<'_> {
        self.known_keys.entry(name.to_owned()).or_default();
        Section {
            reader: self,
            name: name.to_owned(),
        }
    }

    /// The names of the given sections `<parent>.<name>`.
    pub(super) fn names_in(&self, parent: &str) -> Vec<String> {
        let of = |section: &String| {
            let rest = section.strip_prefix(parent)?.strip_prefix('.')?;
            Some(rest.to_owned())
        };
        self.left.sections.keys().filter_map(of).collect()
    }

    /// Adds a mistake that concerns more than one key.
    pub(super) fn push_error(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.errors.push(ConfigError {
            key: key.into(),
            message: problem.into(),
        });
    }

    /// Whether something about this key or section was wrong before.
    pub(super) fn has_error_for(&self, start: &str) -> bool {
        self.errors
            .iter()
            .any(|mistake| mistake.key.starts_with(start))
    }

    /// All mistakes, those about keys that nobody asked for last.
    pub(super) fn finish(mut self) -> Vec<ConfigError> {
        for (section, keys) in &self.left.sections {
            let Some(asked) = self.known_keys.get(section) else {
                self.errors.extend(self.unknown_section(section, keys));
                continue;
            };
            for key in keys.keys() {
                let near = nearest(key, asked.iter())
                    .cloned()
                    .or_else(|| self.elsewhere(key));
                self.errors.push(ConfigError {
                    key: format!("{section}.{key}"),
                    message: unknown("key", near),
                });
            }
        }
        self.errors
    }

    fn unknown_section(
        &self,
        section: &str,
        keys: &BTreeMap<String, RawValue>,
    ) -> Vec<ConfigError> {
        let stray = |(key, _): (&String, &RawValue)| match section {
            "" if self.known_keys.contains_key(key) || key == "providers" => ConfigError {
                key: key.clone(),
                message: "is a section, not a value".to_owned(),
            },
            "" => ConfigError {
                key: key.clone(),
                message: unknown("key", self.elsewhere(key)),
            },
            _ => ConfigError {
                key: format!("{section}.{key}"),
                message: "is a section, not a value".to_owned(),
            },
        };
        if section.is_empty() || section == "providers" {
            return keys.iter().map(stray).collect();
        }
        let known = ["providers".to_owned()];
        let near = nearest(section, self.known_keys.keys().chain(&known)).cloned();
        vec![ConfigError {
            key: section.to_owned(),
            message: unknown("section", near),
        }]
    }

    /// The same key in another section.
    fn elsewhere(&self, key: &str) -> Option<String> {
        let (section, _) = self
            .known_keys
            .iter()
            .find(|(_, keys)| keys.contains(key))?;
        Some(format!("{section}.{key}"))
    }
}

impl Section<'_> {
    /// Adds a mistake about one key.
    pub(super) fn wrong(&mut self, key: &str, problem: impl Into<String>) {
        let key = format!("{}.{key}", self.name);
        self.reader.push_error(key, problem);
    }

    /// A text, as it is.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            RawValue::Empty => None,
            RawValue::Text(text) | RawValue::Toml(Value::String(text)) => Some(text),
            RawValue::Toml(other) => {
                self.wrong(key, format!("must be text, found {}", kind(&other)));
                None
            }
        }
    }

    /// A text that `parse` gives its meaning; its error must not repeat the text.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let text = self.text(key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong(key, problem);
                None
            }
        }
    }

    /// A secret of at least `min` bytes.
    pub(super) fn secret(&mut self, key: &str, min: usize) -> Option<SecretString> {
        let text = self.text(key)?;
        match secret(text, min) {
            Ok(secret) => Some(secret),
            Err(problem) => {
                self.wrong(key, problem);
                None
            }
        }
    }

    /// Any number of secrets, each of at least `min` bytes.
    pub(super) fn secrets(&mut self, key: &str, min: usize) -> Vec<SecretString> {
        self.items(key, |text| secret(text, min))
    }

    /// Any number of texts, each understood by `parse`, whose error must not repeat the text.
    pub(super) fn items<T>(
        &mut self,
        key: &str,
        parse: impl Fn(String) -> Result<T, String>,
    ) -> Vec<T> {
        let items = match self.take(key) {
            None | Some(RawValue::Empty) => return Vec::new(),
            Some(RawValue::Toml(Value::Array(items))) => items,
            Some(RawValue::Toml(other)) => {
                self.wrong(key, format!("must be a list, found {}", kind(&other)));
                return Vec::new();
            }
            Some(RawValue::Text(text)) if text.trim_start().starts_with('[') => {
                let Ok(Value::Array(items)) = text.parse() else {
                    self.wrong(key, "begins with '[' but is not a TOML list");
                    return Vec::new();
                };
                items
            }
            Some(RawValue::Text(text)) => {
                let text_item = |item: &str| Value::String(item.trim().to_owned());
                text.split(',').map(text_item).collect()
            }
        };
        let mut read = Vec::with_capacity(items.len());
        for (n, item) in items.into_iter().enumerate() {
            let kind = kind(&item);
            let value = if let Value::String(text) = item {
                let text = Some(text).filter(|text| !text.is_empty());
                text.ok_or("is empty".to_owned()).and_then(&parse)
            } else {
                Err(format!("must be text, found {kind}"))
            };
            match value {
                Ok(value) => read.push(value),
                Err(problem) => self.wrong(key, format!("item {} {problem}", n + 1)),
            }
        }
        read
    }

    /// A whole number within `range`.
    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        let value = match self.take(key)? {
            RawValue::Empty => return None,
            RawValue::Text(text) => text.trim().parse().unwrap_or(Value::String(text)),
            RawValue::Toml(value) => value,
        };
        let Value::Integer(number) = value else {
            self.wrong(
                key,
                format!("must be a whole number, found {}", kind(&value)),
            );
            return None;
        };
        let fits = usize::try_from(number).ok().filter(|n| range.contains(n));
        if fits.is_none() {
            let (min, max) = (range.start(), range.end());
            self.wrong(
                key,
                format!("must be between {min} and {max}, found {number}"),
            );
        }
        fits
    }

    /// A sum of money: a number from nothing to [`check::MOST`].
    pub(super) fn sum(&mut self, key: &str) -> Option<f64> {
        let value = match self.take(key)? {
            RawValue::Empty => return None,
            RawValue::Text(text) => text.trim().parse().unwrap_or(Value::String(text)),
            RawValue::Toml(value) => value,
        };
        let sum = parse::sum(&value);
        if sum.is_none() {
            self.wrong(key, parse::INVALID_SUM_MESSAGE);
        }
        sum
    }

    /// Names, and what each costs.
    pub(super) fn prices(&mut self, key: &str) -> BTreeMap<String, Price> {
        let given = match self.take(key) {
            None | Some(RawValue::Empty) => return BTreeMap::new(),
            Some(RawValue::Toml(value)) => value,
            Some(RawValue::Text(text)) => text.trim().parse().unwrap_or(Value::String(text)),
        };
        let Value::Table(given) = given else {
            self.wrong(key, format!("must be a table, found {}", kind(&given)));
            return BTreeMap::new();
        };
        let mut prices = BTreeMap::new();
        for (name, value) in given {
            match (parse::sum(&value), value) {
                (Some(sum), _) => {
                    prices.insert(name, Price::Fixed(sum));
                }
                (None, Value::String(text)) if !text.is_empty() => {
                    prices.insert(name, Price::Expression(text));
                }
                (None, _) => self.wrong(
                    &format!("{key}.{name}"),
                    format!("{}, or an expression as text", parse::INVALID_SUM_MESSAGE),
                ),
            }
        }
        prices
    }

    /// A duration within `range`.
    pub(super) fn duration(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let text = match self.take(key)? {
            RawValue::Empty => return None,
            RawValue::Text(text) | RawValue::Toml(Value::String(text)) => text,
            RawValue::Toml(other) => other.to_string(),
        };
        let Some(found) = duration::parse(text.trim()) else {
            self.wrong(
                key,
                "must be a duration such as \"500ms\", \"20s\" or \"1h30m\"",
            );
            return None;
        };
        if range.contains(&found) {
            return Some(found);
        }
        let [min, max, found] = [*range.start(), *range.end(), found].map(duration::text);
        self.wrong(
            key,
            format!("must be between {min} and {max}, found {found}"),
        );
        None
    }

    fn take(&mut self, key: &str) -> Option<RawValue> {
        let asked = self.reader.known_keys.entry(self.name.clone()).or_default();
        asked.insert(key.to_owned());
        let keys = self.reader.left.sections.get_mut(&self.name)?;
        keys.remove(key)
    }
}

fn secret(text: String, min: usize) -> Result<SecretString, String> {
    if text.trim() != text {
        Err("begins or ends with white space".to_owned())
    } else if text.len() < min {
        Err(format!(
            "must have at least {min} bytes, found {}",
            text.len()
        ))
    } else {
        Ok(text.into())
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

fn unknown(what: &str, near: Option<String>) -> String {
    match near {
        Some(near) => format!("unknown {what}, did you mean {near}?"),
        None => format!("unknown {what}"),
    }
}

/// The name nearest to a misspelt one, if it is near enough to be meant.
pub(super) fn nearest<'a>(
    word: &str,
    names: impl Iterator<Item = &'a String>,
) -> Option<&'a String> {
    let (distance, name) = names.map(|name| (osa_distance(word, name), name)).min()?;
    (distance <= 1 + word.chars().count() / 5).then_some(name)
}

/// Letters to change, add, drop or swap with the next one (optimal string alignment distance).
fn osa_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut fewest = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                fewest = fewest.min(before[j - 2] + 1);
            }
            row.push(fewest);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
