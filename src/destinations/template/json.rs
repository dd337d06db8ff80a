//! Templates that produce JSON.
//!
//! Whether a value is in a string is known only after the template is rendered. Therefore rendering
//! marks the values, and a second step inserts each of them in the form that its place requires.

use minijinja::{Error, ErrorKind, Output, State, Value};
use serde::de::IgnoredAny;

/// Marks, from the noncharacters that Unicode reserves for internal use: the start of a text, the
/// start of a JSON value, and the end of either. A JSON value without characters is a missing value.
pub(super) const MARKS: [char; 3] = [TEXT, JSON, END];

const TEXT: char = '\u{FDD0}';
const JSON: char = '\u{FDD1}';
const END: char = '\u{FDD2}';

/// Writes a value with its marks.
///
/// A text has marks of its own if it was rendered before, as by `{% set %}` with a block. They are
/// removed, so that the text is inserted as a whole.
pub(super) fn mark(out: &mut Output<'_>, _: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let (start, text) = match value.as_str() {
        // The output of `tojson`, or a text that the template declares to be JSON.
        Some(text) if value.is_safe() => (JSON, text.to_owned()),
        Some(text) => (TEXT, text.to_owned()),
        None if value.is_none() || value.is_undefined() => (JSON, String::new()),
        None => {
            let json = serde_json::to_string(value);
            let invalid = |_| Error::new(ErrorKind::BadSerialization, "value is not JSON");
            (JSON, json.map_err(invalid)?)
        }
    };
    write_marked(out, start, &text.replace(MARKS, "")).map_err(Error::from)
}

fn write_marked(out: &mut Output<'_>, start: char, text: &str) -> std::fmt::Result {
    write!(out, "{start}{text}{END}")
}

/// A position in JSON text.
#[derive(Clone, Copy)]
enum Position {
    Outside,
    InString,
    AfterBackslash,
}

/// Replaces marked values by their JSON, and returns the text if it is JSON then. Control characters
/// in strings, such as the line breaks of a template, are escaped.
pub(super) fn insert_marked(marked: &str) -> Result<String, String> {
    let mut json = String::with_capacity(marked.len());
    let mut position = Position::Outside;
    let mut rest = marked;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        if character == TEXT || character == JSON {
            let (value, after) = rest.split_once(END).ok_or(CUT)?;
            rest = after;
            match position {
                Position::Outside if character == TEXT => json.push_str(&quoted(value)),
                Position::Outside if value.is_empty() => json.push_str("null"),
                Position::Outside => json.push_str(value),
                Position::InString => json.push_str(&escaped(value)),
                // The backslash would escape the first character of the value.
                Position::AfterBackslash => {
                    return Err("a value must not follow a backslash".to_owned());
                }
            }
            continue;
        }
        position = match (position, character) {
            (Position::Outside, '"') | (Position::AfterBackslash, _) => Position::InString,
            (Position::Outside, _) | (Position::InString, '"') => Position::Outside,
            (Position::InString, '\\') => Position::AfterBackslash,
            (Position::InString, _) => Position::InString,
        };
        match position {
            Position::InString | Position::AfterBackslash if character.is_ascii_control() => {
                json.push_str(&escaped(&character.to_string()));
            }
            Position::InString | Position::AfterBackslash | Position::Outside => {
                json.push(character);
            }
        }
    }
    match serde_json::from_str::<IgnoredAny>(&json) {
        Ok(_) => Ok(json),
        Err(error) => Err(format!("output is not JSON: {error}")),
    }
}

/// The template cut a value that was rendered before.
const CUT: &str = "a rendered value was cut";

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Returns a text as it appears between the quotes of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = quoted(text);
    quoted[1..quoted.len() - 1].to_owned()
}
