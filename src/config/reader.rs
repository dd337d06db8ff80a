//! Reads settings section by section, and collects errors.

use std::collections::{BTreeMap, BTreeSet};

use super::ConfigError;
use super::layers::{Keys, Layers, ReadValue};

/// The values that are not read yet, and the errors so far.
pub(super) struct Reader {
    unread: Layers,
    known_keys: BTreeMap<String, BTreeSet<String>>,
    errors: Vec<ConfigError>,
}

/// One section of a [`Reader`].
pub(super) struct SectionReader<'a> {
    pub(super) reader: &'a mut Reader,
    pub(super) name: &'a str,
}

impl Reader {
    pub(super) fn new(mut layers: Layers) -> Self {
        Self {
            errors: std::mem::take(&mut layers.errors),
            unread: layers,
            known_keys: BTreeMap::new(),
        }
    }

    /// Returns `<name>` of every section `<parent>.<name>`.
    pub(super) fn names_in(&self, parent: &str) -> Vec<String> {
        let name = |section: &String| {
            let name = section.strip_prefix(parent)?.strip_prefix('.')?;
            Some(name.to_owned())
        };
        self.unread.sections.keys().filter_map(name).collect()
    }

    /// Adds an error about a key or a section.
    pub(super) fn push_error(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.errors.push(ConfigError {
            key: key.into(),
            message: message.into(),
        });
    }

    /// Returns whether there is an error about a key, or about a key of a section.
    pub(super) fn has_error_for(&self, name: &str) -> bool {
        self.errors.iter().any(|error| error.is_about(name))
    }

    /// Returns all errors. Those about unknown keys are last.
    pub(super) fn finish(mut self) -> Vec<ConfigError> {
        let sections = std::mem::take(&mut self.unread.sections);
        for (section, keys) in &sections {
            self.report_unknown(section, keys);
        }
        self.errors
    }

    fn report_unknown(&mut self, section: &str, keys: &Keys) {
        if let Some(known) = self.known_keys.get(section).cloned() {
            for key in keys.keys() {
                let similar = nearest(key, &known).or_else(|| self.in_other_section(key));
                self.push_error(format!("{section}.{key}"), unknown("key", similar));
            }
        } else if section.is_empty() {
            for key in keys.keys() {
                let is_section = self.known_keys.contains_key(key) || is_parent(key);
                let message = if is_section {
                    MUST_BE_SECTION.to_owned()
                } else {
                    unknown("key", self.in_other_section(key))
                };
                self.push_error(key, message);
            }
        } else if is_parent(section) {
            for name in keys.keys() {
                self.push_error(format!("{section}.{name}"), MUST_BE_SECTION);
            }
        } else {
            let parents = PARENTS.map(str::to_owned);
            let similar = nearest(section, self.known_keys.keys().chain(&parents));
            self.push_error(section, unknown("section", similar));
        }
    }

    /// Returns the dotted key of a section that has this key.
    fn in_other_section(&self, key: &str) -> Option<String> {
        let mut sections = self.known_keys.iter();
        let (section, _) = sections.find(|(_, keys)| keys.contains(key))?;
        Some(format!("{section}.{key}"))
    }
}

impl SectionReader<'_> {
    /// Takes the value of a key. Returns `None` if it is absent or empty.
    pub(super) fn take(&mut self, key: &str) -> Option<ReadValue> {
        let known = self.reader.known_keys.entry(self.name.to_owned());
        known.or_default().insert(key.to_owned());
        let keys = self.reader.unread.sections.get_mut(self.name)?;
        keys.remove(key).flatten()
    }

    /// Adds an error about a key of this section.
    pub(super) fn push_error(&mut self, key: &str, message: String) {
        self.reader
            .push_error(format!("{}.{key}", self.name), message);
    }
}

const MUST_BE_SECTION: &str = "must be a section, not a value";

/// Sections that have a section for each name.
const PARENTS: [&str; 2] = ["providers", "webhooks"];

fn is_parent(section: &str) -> bool {
    PARENTS.contains(&section)
}

fn unknown(what: &str, similar: Option<String>) -> String {
    match similar {
        Some(similar) => format!("unknown {what}; did you mean {similar}?"),
        None => format!("unknown {what}"),
    }
}

/// Returns the name with the smallest edit distance to `name`, if it is close enough to be a
/// misspelling.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a String>,
) -> Option<String> {
    let candidates = candidates.into_iter();
    let (distance, nearest) = candidates
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .min()?;
    (distance <= 1 + name.chars().count() / 5).then(|| nearest.clone())
}
