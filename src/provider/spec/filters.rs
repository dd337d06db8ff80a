//! Filters and tests that templates and expressions can use beside those of MiniJinja.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use regex_lite::Regex;
use serde_json::Value as Json;

use super::value::{items, text};

/// `find_all` searches this many bytes at the end of a text: logs can be long, and their newest
/// lines matter.
const MAX_SEARCHED_BYTES: usize = 64 << 10;

/// Maximum number of compiled patterns that are kept. All specs together use a few.
const MAX_CACHED_PATTERNS: usize = 256;

/// Characters that are percent-encoded in a segment of a path.
const SEGMENT_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':')
    .remove(b'@');

/// Adds the filters and tests to an environment.
pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("merge", merge);
    environment.add_filter("find_all", find_all);
    environment.add_filter("fromjson", from_json);
    environment.add_filter("jwt", jwt);
    environment.add_filter("media", media);
    environment.add_filter("number", number);
    environment.add_filter("private", mark_private);
    environment.add_filter("segment", segment);
    environment.add_filter("segments", segments);
    environment.add_test("containing", is_containing);
}

/// `value|default(other)`: `other` if the value is missing or null. MiniJinja's own filter keeps
/// null.
#[expect(
    clippy::needless_pass_by_value,
    reason = "MiniJinja passes arguments by value"
)]
fn default(value: Value, other: Rest<Value>) -> Value {
    if value.is_undefined() || value.is_none() {
        other.first().cloned().unwrap_or_else(|| Value::from(""))
    } else {
        value
    }
}

/// `value|merge(other)`: a deep merge of two mappings. Values of `other` take precedence.
fn merge(value: &Value, other: &Value) -> Value {
    if value.kind() != ValueKind::Map || other.kind() != ValueKind::Map {
        let is_missing = other.is_undefined() || other.is_none();
        let merged = if is_missing { value } else { other };
        return merged.clone();
    }
    let mut merged: BTreeMap<String, Value> = BTreeMap::new();
    for side in [value, other] {
        for key in side.try_iter().into_iter().flatten() {
            let name = key.to_string();
            let new = side.get_item(&key).unwrap_or_default();
            let value = match merged.get(&name) {
                Some(old) => merge(old, &new),
                None => new,
            };
            merged.insert(name, value);
        }
    }
    Value::from_serialize(merged)
}

/// `text|find_all(pattern)`: all matches of a regular expression in order. Each is the first group
/// if the pattern has one.
fn find_all(text: &Value, pattern: &str) -> Result<Vec<String>, Error> {
    let pattern = compile_pattern(pattern)?;
    let Some(text) = text.as_str() else {
        return Ok(Vec::new());
    };
    let tail = (text.len().saturating_sub(MAX_SEARCHED_BYTES)..text.len())
        .find_map(|begin| text.get(begin..))
        .unwrap_or_default();
    let matches = pattern.captures_iter(tail).filter_map(|captures| {
        let found = captures.get(1).or(captures.get(0))?;
        Some(found.as_str().to_owned())
    });
    Ok(matches.collect())
}

fn compile_pattern(pattern: &str) -> Result<Arc<Regex>, Error> {
    static CACHE: Mutex<BTreeMap<String, Arc<Regex>>> = Mutex::new(BTreeMap::new());
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(compiled) = cache.get(pattern) {
        return Ok(Arc::clone(compiled));
    }
    let compiled = Regex::new(pattern)
        .map(Arc::new)
        .map_err(|error| Error::new(ErrorKind::SyntaxError, format!("find_all: {error}")))?;
    if cache.len() < MAX_CACHED_PATTERNS {
        cache.insert(pattern.to_owned(), Arc::clone(&compiled));
    }
    Ok(compiled)
}

/// `value|media`: every mapping with a `url` at any depth. If there is none, every HTTP URL. For
/// providers whose results differ between models.
fn media(value: &Value) -> Vec<Value> {
    let mappings = collect_matching(value, |item| {
        let url = item.get_attr("url");
        item.kind() == ValueKind::Map && url.is_ok_and(|url| url.as_str().is_some())
    });
    if !mappings.is_empty() {
        return mappings;
    }
    collect_matching(value, |item| {
        item.as_str()
            .is_some_and(|text| text.starts_with("https://") || text.starts_with("http://"))
    })
}

/// Returns the matching values in document order. Does not descend into a value that matches.
fn collect_matching(value: &Value, is_match: fn(&Value) -> bool) -> Vec<Value> {
    if is_match(value) {
        return vec![value.clone()];
    }
    // MiniJinja can iterate over the characters of a string.
    if value.as_str().is_some() {
        return Vec::new();
    }
    let is_map = value.kind() == ValueKind::Map;
    let elements = value.try_iter().into_iter().flatten();
    elements
        .map(|element| {
            if is_map {
                value.get_item(&element).unwrap_or_default()
            } else {
                element
            }
        })
        .flat_map(|element| collect_matching(&element, is_match))
        .collect()
}

/// `urls|private`: marks each output as readable only with the provider's API key.
fn mark_private(list: &Value) -> Vec<Value> {
    let mark = |item: Value| {
        let item = match item.as_str() {
            Some(url) => Value::from_iter([("url", url)]),
            None => item,
        };
        merge(&item, &Value::from_iter([("private", true)]))
    };
    items(list).into_iter().map(mark).collect()
}

/// `value|number`: a non-negative number, or a text such as `5`, `5.0` or `5s` as a number.
/// Undefined if the value is missing. Any other value is an error, because prices can depend on it.
fn number(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() || value.is_none() {
        return Ok(Value::UNDEFINED);
    }
    let text = matches!(value.kind(), ValueKind::Number | ValueKind::String)
        .then(|| value.to_string())
        .unwrap_or_default();
    let digits = text.strip_suffix('s').unwrap_or(&text);
    let is_plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: Option<f64> = digits.parse().ok().filter(|_| is_plain);
    let invalid = || Error::new(ErrorKind::InvalidOperation, "number: value is not a number");
    Ok(number.ok_or_else(invalid)?.into())
}

/// `value|segment`: one segment of a URL path. All characters except letters, digits and `-._~:@`
/// are percent-encoded.
///
/// Empty values and values with an empty, `.` or `..` part between slashes are errors: a server
/// that decodes the segment would resolve them to another path.
fn segment(value: &Value) -> Result<String, Error> {
    let text = text(value).unwrap_or_default();
    if text
        .split(['/', '\\'])
        .any(|part| matches!(part, "" | "." | ".."))
    {
        let message = "segment: value is empty or contains an empty, '.' or '..' part";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(utf8_percent_encode(&text, SEGMENT_ESCAPES).to_string())
}

/// `value|segments`: a text with slashes as several [`segment`]s, for models and task ids that are
/// paths.
fn segments(value: &Value) -> Result<String, Error> {
    let text = text(value).unwrap_or_default();
    let segments: Result<Vec<String>, Error> = text
        .split('/')
        .map(|part| segment(&Value::from(part)))
        .collect();
    Ok(segments?.join("/"))
}

/// `text|fromjson`: the parsed JSON, or undefined if the text is not JSON.
fn from_json(text: &Value) -> Value {
    let parsed = text
        .as_str()
        .and_then(|text| serde_json::from_str::<Json>(text).ok());
    parsed.map_or(Value::UNDEFINED, Value::from_serialize)
}

/// `claims|jwt(secret)`: a JWT signed with HS256, for providers that expect one in place of an API
/// key.
fn jwt(claims: &Value, secret: &str) -> Result<String, Error> {
    progress_hub_auth::jwt::hs256(claims, secret)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "jwt: claims must be a mapping"))
}

/// `text is containing(['a', 'b'])`: whether the text contains any of the strings, ignoring case.
#[expect(
    clippy::needless_pass_by_value,
    reason = "MiniJinja passes arguments by value"
)]
fn is_containing(text: Value, needles: Vec<String>) -> bool {
    let text = text.as_str().unwrap_or_default().to_lowercase();
    needles
        .iter()
        .any(|needle| text.contains(&needle.to_lowercase()))
}
