//! Conversions from values of expressions to plain types.
//!
//! A value of another type yields `None` or an empty list, never an error.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde_json::Value as Json;

use crate::time::Time;

/// Numbers from here on are milliseconds since the epoch, smaller ones are seconds.
const MILLISECONDS_THRESHOLD: f64 = 1e11;

/// Returns a non-empty string, or a number as text.
pub(crate) fn text(value: &Value) -> Option<String> {
    let is_text = matches!(value.kind(), ValueKind::String | ValueKind::Number);
    is_text
        .then(|| value.to_string())
        .filter(|text| !text.is_empty())
}

/// Returns a finite number, which may be written as text.
pub(crate) fn number(value: &Value) -> Option<f64> {
    let number: f64 = text(value)?.trim().parse().ok()?;
    number.is_finite().then_some(number)
}

/// Returns a non-negative integer, which may be written as text.
pub(super) fn integer(value: &Value) -> Option<u32> {
    text(value)?.trim().parse().ok()
}

/// Returns a boolean.
pub(super) fn boolean(value: &Value) -> Option<bool> {
    (value.kind() == ValueKind::Bool).then(|| value.is_true())
}

/// Returns an RFC 3339 time, or seconds or milliseconds since the epoch.
pub(super) fn timestamp(value: &Value) -> Option<Time> {
    if let Ok(time) = text(value)?.parse() {
        return Some(time);
    }
    let number = number(value)?;
    let millis = if number < MILLISECONDS_THRESHOLD {
        number * 1000.0
    } else {
        number
    };
    #[expect(clippy::cast_possible_truncation, reason = "clamped by Time")]
    Some(Time::from_millis(millis as i64))
}

/// Returns the elements of a list. A mapping or a string counts as a list with one element.
pub(crate) fn items(value: &Value) -> Vec<Value> {
    if matches!(value.kind(), ValueKind::Map | ValueKind::String) {
        return vec![value.clone()];
    }
    value.try_iter().map(Iterator::collect).unwrap_or_default()
}

/// Removes nulls from mappings, and the mappings that become empty by it. Nulls in lists stay.
pub(crate) fn without_nulls(value: Json) -> Json {
    match value {
        Json::Object(entries) => {
            let entries = entries
                .into_iter()
                .map(|(name, value)| (name, without_nulls(value)));
            Json::Object(entries.filter(|(_, value)| !is_empty(value)).collect())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(without_nulls).collect()),
        other @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_)) => other,
    }
}

fn is_empty(value: &Json) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn timestamps_accept_seconds_milliseconds_and_rfc3339() {
        let at = |value: Json| timestamp(&Value::from_serialize(value)).map(Time::millis);
        assert_eq!(at(json!(1_800_000_000)), Some(1_800_000_000_000));
        assert_eq!(at(json!(1_800_000_000_000_i64)), Some(1_800_000_000_000));
        assert_eq!(at(json!("1800000000.5")), Some(1_800_000_000_500));
        assert_eq!(at(json!("2027-01-15T08:00:00Z")), Some(1_800_000_000_000));
        assert_eq!(at(json!("tomorrow")), None);
    }
}
