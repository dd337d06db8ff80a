//! Rules for the caller's `input` in the body of a submission.
//!
//! Invariant: `input` adds keys to the body. It never replaces a value that the definition or the
//! hub sets, unless the definition lists the key as replaceable.

use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json};

/// Prefixes of keys that only the hub sets, in lower case without separators. Providers use them
/// for the URL that receives the results.
const HUB_KEY_PREFIXES: [&str; 2] = ["callback", "webhook"];

/// Keys that only the hub sets. Providers use them for the reference to the job.
const HUB_KEYS: [&str; 2] = ["externalid", "externaltaskid"];

/// The `input` table of `[submit]`. Its paths are those in the caller's `input`, with dots between
/// the keys. A path includes everything below it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InputRules {
    /// Keys that change neither the price nor the size of the output. Only these are accepted while
    /// a budget or a tier applies.
    allowed: Vec<KeyPath>,
    /// Keys that may replace values of the definition.
    replaceable: Vec<KeyPath>,
}

/// A path of keys, such as `settings.audio`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyPath(Vec<String>);

impl KeyPath {
    fn child(&self, key: &str) -> Self {
        let mut path = self.0.clone();
        path.push(key.to_owned());
        Self(path)
    }

    fn starts_with(&self, prefix: &Self) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// Returns the longest suffix of this path of the body that is a path in `input`. A definition
    /// may merge `input` at any depth.
    fn in_input(&self, input: &Map<String, Json>) -> Option<Self> {
        let ends = (0..self.0.len()).map(|start| &self.0[start..]);
        let mut known = ends.filter(|end| contains(input, end));
        known.next().map(|end| Self(end.to_vec()))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl From<&str> for KeyPath {
    fn from(path: &str) -> Self {
        Self(path.split('.').map(str::to_owned).collect())
    }
}

impl<'de> Deserialize<'de> for KeyPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|path| path.as_str().into())
    }
}

fn unknown_key_in(
    fields: &Map<String, Json>,
    allowed: &[&KeyPath],
    path: &KeyPath,
) -> Option<KeyPath> {
    fields.iter().find_map(|(key, value)| {
        let path = path.child(key);
        if allowed.iter().any(|allowed| path.starts_with(allowed)) {
            return None;
        }
        match value {
            Json::Object(fields) => unknown_key_in(fields, allowed, &path),
            Json::Null => None,
            Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => Some(path),
        }
    })
}

fn contains(input: &Map<String, Json>, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    match input.get(first) {
        Some(_) if rest.is_empty() => true,
        Some(Json::Object(fields)) => contains(fields, rest),
        Some(_) | None => false,
    }
}

impl InputRules {
    /// Checks the effect of `input` on a body. `own` is the body without `input`, `merged` the body
    /// with it.
    ///
    /// # Errors
    /// Returns a description if `input` contains a key that only the hub sets, or replaces a value
    /// that the definition sets.
    pub(crate) fn check_merge(
        &self,
        input: &Map<String, Json>,
        own: &Json,
        merged: &Json,
    ) -> Result<(), String> {
        if let Some(path) = self.hub_key(input, &KeyPath::default()) {
            return Err(format!("input.{path}: is set by the hub"));
        }
        match self.replaced_key(input, own, merged, &KeyPath::default()) {
            None => Ok(()),
            Some(path) => Err(match path.in_input(input) {
                Some(key) => format!(
                    "input.{key}: would replace a value that the request or the provider definition sets"
                ),
                None => format!(
                    "input: would replace '{path}', which the request or the provider definition sets"
                ),
            }),
        }
    }

    /// Returns the first key of `input` that neither the definition nor `also_allowed`, the keys
    /// that the operator allows, contains. Such a key may change the price or the size of the
    /// output.
    pub(crate) fn unknown_key(
        &self,
        input: &Map<String, Json>,
        also_allowed: &[KeyPath],
    ) -> Option<KeyPath> {
        let allowed: Vec<&KeyPath> = self.allowed.iter().chain(also_allowed).collect();
        unknown_key_in(input, &allowed, &KeyPath::default())
    }

    fn is_replaceable(&self, path: &KeyPath) -> bool {
        self.replaceable.iter().any(|open| path.starts_with(open))
    }

    fn hub_key(&self, fields: &Map<String, Json>, path: &KeyPath) -> Option<KeyPath> {
        fields.iter().find_map(|(key, value)| {
            let path = path.child(key);
            if self.is_replaceable(&path) {
                return None;
            }
            let name = normalized(key);
            let is_hub_key = HUB_KEYS.contains(&name.as_str())
                || HUB_KEY_PREFIXES
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
            if is_hub_key {
                return Some(path);
            }
            self.hub_key_in(value, &path)
        })
    }

    fn hub_key_in(&self, value: &Json, path: &KeyPath) -> Option<KeyPath> {
        match value {
            Json::Object(fields) => self.hub_key(fields, path),
            Json::Array(items) => items.iter().find_map(|item| self.hub_key_in(item, path)),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => None,
        }
    }

    /// Returns the first path at which `merged` lacks or changes a value of `own`, or adds a key
    /// that differs from one of `own` only in case or separators. Some servers treat such keys as
    /// equal.
    fn replaced_key(
        &self,
        input: &Map<String, Json>,
        own: &Json,
        merged: &Json,
        path: &KeyPath,
    ) -> Option<KeyPath> {
        if own == merged {
            return None;
        }
        let is_open = path
            .in_input(input)
            .is_some_and(|key| self.is_replaceable(&key));
        if is_open {
            return None;
        }
        let (Json::Object(own), Json::Object(merged)) = (own, merged) else {
            return Some(path.clone());
        };
        let changed = own.iter().find_map(|(key, value)| {
            let merged = merged.get(key).unwrap_or(&Json::Null);
            self.replaced_key(input, value, merged, &path.child(key))
        });
        let respelled = || {
            let added = merged.keys().filter(|key| !own.contains_key(*key));
            let mut respelled =
                added.filter(|added| own.keys().any(|key| normalized(key) == normalized(added)));
            respelled.next().map(|key| path.child(key))
        };
        changed.or_else(respelled)
    }
}

/// Returns a key in lower case without separators.
fn normalized(key: &str) -> String {
    let letters = key.chars().filter(|letter| !matches!(letter, '_' | '-'));
    letters.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(text: &str) -> InputRules {
        toml::from_str(text).unwrap()
    }

    fn fields(value: &Json) -> Map<String, Json> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn input_adds_to_the_body_and_replaces_nothing() {
        let own = json!({ "model": "m", "settings": { "duration": 5 }, "list": [1] });
        let rules = rules("replaceable = ['list']");
        for (input, merged, problem) in [
            (
                json!({ "settings": { "audio": true } }),
                json!({ "model": "m", "settings": { "duration": 5, "audio": true }, "list": [1] }),
                None,
            ),
            (
                json!({ "list": [2] }),
                json!({ "model": "m", "settings": { "duration": 5 }, "list": [2] }),
                None,
            ),
            (
                json!({ "settings": { "duration": 60 } }),
                json!({ "model": "m", "settings": { "duration": 60 }, "list": [1] }),
                Some("input.settings.duration: "),
            ),
            (
                json!({ "settings": null }),
                json!({ "model": "m", "list": [1] }),
                Some("input.settings: "),
            ),
            (
                json!({ "Model": "dear" }),
                json!({ "model": "m", "Model": "dear", "settings": { "duration": 5 }, "list": [1] }),
                Some("input.Model: "),
            ),
            (
                json!({ "a": { "model": "dear" } }),
                json!({ "model": "dear", "settings": { "duration": 5 }, "list": [1] }),
                Some("input: would replace 'model'"),
            ),
            (
                json!({ "a": [{ "callBackUrl": 1 }] }),
                own.clone(),
                Some("input.a.callBackUrl: is set by the hub"),
            ),
            (
                json!({ "options": { "External-Task_Id": 1 } }),
                own.clone(),
                Some("input.options.External-Task_Id: is set by the hub"),
            ),
        ] {
            let checked = rules.check_merge(&fields(&input), &own, &merged);
            let expected = problem.map_or("", |problem| problem);
            let actual = checked.err().unwrap_or_default();
            assert!(actual.starts_with(expected), "{input}: {actual}");
            assert_eq!(actual.is_empty(), problem.is_none(), "{input}: {actual}");
        }
    }

    #[test]
    fn keys_are_unknown_unless_listed() {
        let rules = rules("allowed = ['seed', 'camera.move']");
        for (input, unknown) in [
            (
                json!({ "seed": 1, "camera": { "move": { "x": [1] } } }),
                None,
            ),
            (json!({ "seed": { "deep": 1 } }), None),
            (json!({ "camera": {}, "mode": null }), None),
            (json!({ "camera": { "zoom": 1 } }), Some("camera.zoom")),
            (json!({ "camera.move": 1 }), Some("camera.move")),
            (json!({ "Seed": 1 }), Some("Seed")),
            (json!({ "list": [] }), Some("list")),
            (json!({ "operator": { "a": 1 } }), None),
        ] {
            let actual = rules
                .unknown_key(&fields(&input), &["operator".into()])
                .map(|path| path.to_string());
            assert_eq!(actual.as_deref(), unknown, "{input}");
        }
    }
}
