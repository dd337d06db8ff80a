//! The language of specs: MiniJinja templates for what is sent, its expressions for what is read.
//!
//! Invariant: compiled once, at load; evaluated with bounded fuel; a missing path is `undefined`
//! and never an error, so a spec asks for what may be there without asking first.

use std::sync::LazyLock;

use minijinja::value::ValueKind;
use minijinja::{Environment, Expression as Compiled, UndefinedBehavior, Value};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value as Json;

/// Steps one evaluation may take: many times what any spec needs, and a bound for a hostile body.
const FUEL: u64 = 100_000;

static LANGUAGE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut language = Environment::new();
    language.set_undefined_behavior(UndefinedBehavior::Chainable);
    language.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    language.set_fuel(Some(FUEL));
    language.add_filter("merge", merge);
    language.add_filter("urlencode", urlencode);
    language.add_test("containing", is_containing);
    language
});

/// `value|merge(other)`: both mappings as one, level by level; `other` wins.
fn merge(value: &Value, other: &Value) -> Value {
    if value.kind() != ValueKind::Map || other.kind() != ValueKind::Map {
        return if other.is_undefined() || other.is_none() {
            value.clone()
        } else {
            other.clone()
        };
    }
    let mut merged: std::collections::BTreeMap<String, Value> = std::collections::BTreeMap::new();
    for side in [value, other] {
        for key in side.try_iter().into_iter().flatten() {
            let name = key.to_string();
            let theirs = side.get_item(&key).unwrap_or_default();
            let both = merged.get(&name).map(|ours| merge(ours, &theirs));
            merged.insert(name, both.unwrap_or(theirs));
        }
    }
    Value::from_serialize(merged)
}

/// `value|urlencode`: safe as one segment of a path or one value of a query. Jinja's own leaves `/`
/// as it is, so does this one: a model's name may be a path.
fn urlencode(value: &Value) -> String {
    let mut encoded = String::new();
    for byte in value.to_string().bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A name that the language does not have shows only when it is used, so everything is used once,
/// with nothing at hand, when it is read.
fn check_names<T>(tried: Result<T, minijinja::Error>) -> Result<(), String> {
    use minijinja::ErrorKind::{UnknownFilter, UnknownFunction, UnknownMethod, UnknownTest};
    match tried {
        Err(error)
            if matches!(
                error.kind(),
                UnknownFilter | UnknownTest | UnknownFunction | UnknownMethod
            ) =>
        {
            Err(explain(&error))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// `text is containing(['a', 'b'])`: whether any of the words is in it, in either case.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the engine calls it with values"
)]
fn is_containing(text: Value, words: Vec<String>) -> bool {
    let text = text.as_str().unwrap_or_default().to_lowercase();
    words.iter().any(|word| text.contains(&word.to_lowercase()))
}

/// An expression over a payload, as `payload.data.id|default(payload.id)`.
pub(super) struct Expression {
    source: String,
    compiled: Compiled<'static, 'static>,
}

impl Expression {
    /// # Errors
    /// What the engine says of a text that is no expression.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        let compiled = LANGUAGE.compile_expression_owned(source.trim().to_owned());
        let compiled = compiled.map_err(|error| explain(&error))?;
        check_names(compiled.eval(()))?;
        Ok(Self {
            source: source.to_owned(),
            compiled,
        })
    }

    /// The value for a payload; `undefined` where the payload has no such thing.
    pub(super) fn evaluate(&self, payload: &Value) -> Value {
        self.evaluate_in(&Value::from_iter([("payload", payload.clone())]))
    }

    /// The value with these names known.
    pub(super) fn evaluate_in(&self, names: &Value) -> Value {
        self.compiled.eval(names).unwrap_or_else(|error| {
            tracing::debug!(expression = self.source, reason = %explain(&error), "no value");
            Value::UNDEFINED
        })
    }

    /// The value for a context, as JSON: for what is sent, where nothing is no answer.
    ///
    /// # Errors
    /// What the engine says of it.
    pub(super) fn json(&self, names: &Value) -> Result<Json, String> {
        let value = self.compiled.eval(names).map_err(|error| explain(&error))?;
        serde_json::to_value(value).map_err(|_| "is not JSON".to_owned())
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let source = String::deserialize(deserializer)?;
        Self::new(&source).map_err(de::Error::custom)
    }
}

/// A text with values in it, as `{{ base_url }}/tasks/{{ task_id }}`.
#[derive(Clone)]
pub(super) struct Template(String);

impl Template {
    /// The text with its values filled in.
    ///
    /// # Errors
    /// What the engine says of it.
    pub(super) fn render(&self, names: &Value) -> Result<String, String> {
        LANGUAGE
            .render_str(&self.0, names)
            .map_err(|error| explain(&error))
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let source = String::deserialize(deserializer)?;
        let template = LANGUAGE
            .template_from_str(&source)
            .map_err(|error| de::Error::custom(explain(&error)))?;
        check_names(template.render(())).map_err(de::Error::custom)?;
        Ok(Self(source))
    }
}

/// Kind and detail, without the values that were at hand.
fn explain(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Text or a number as text; anything else, and the empty text, is nothing.
pub(super) fn text(value: &Value) -> Option<String> {
    let is_text = matches!(value.kind(), ValueKind::String | ValueKind::Number);
    is_text
        .then(|| value.to_string())
        .filter(|text| !text.is_empty())
}

/// What a list holds; a mapping or a text is a list of one, anything else of none.
pub(super) fn items(value: &Value) -> Vec<Value> {
    if matches!(value.kind(), ValueKind::Map | ValueKind::String) {
        return vec![value.clone()];
    }
    value.try_iter().map(Iterator::collect).unwrap_or_default()
}

/// The JSON without what was left open: nulls in mappings go, and mappings that this empties.
pub(super) fn lean(value: Json) -> Json {
    match value {
        Json::Object(entries) => {
            let entries = entries.into_iter().map(|(name, value)| (name, lean(value)));
            Json::Object(entries.filter(|(_, value)| !is_nothing(value)).collect())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(lean).collect()),
        other @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_)) => other,
    }
}

fn is_nothing(value: &Json) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(expression: &str, payload: &Json) -> Json {
        let names = Value::from_serialize(json!({ "payload": payload }));
        Expression::new(expression).unwrap().json(&names).unwrap()
    }

    #[test]
    fn a_missing_path_is_no_error() {
        assert_eq!(
            value("payload.a.b.c|default(payload.d)", &json!({"d": 1})),
            json!(1)
        );
        assert_eq!(value("payload.a.b.c", &json!({})), json!(null));
        assert_eq!(value("payload.a.b|lower", &json!("text")), json!(""));
    }

    #[test]
    fn integers_keep_every_digit() {
        assert_eq!(
            value("payload.id", &json!({"id": 893_605_946_402_811_985_u64})),
            json!(893_605_946_402_811_985_u64)
        );
    }

    #[test]
    fn merging_goes_level_by_level_and_open_values_are_left_out() {
        let merged = value(
            "{'a': {'x': 1, 'y': payload.none}, 'b': {'c': payload.none}}|merge(payload)",
            &json!({"a": {"x": 2}, "z": [1]}),
        );
        assert_eq!(lean(merged), json!({"a": {"x": 2}, "z": [1]}));
    }

    #[test]
    fn a_loop_without_end_is_stopped() {
        let names = json!({"payload": {"n": 100_000_000}});
        let template = Template(
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}".into(),
        );
        assert!(template.render(&Value::from_serialize(names)).is_err());
    }

    #[test]
    fn what_is_no_expression_is_refused_when_it_is_read() {
        assert!(Expression::new("payload.").is_err());
        assert!(Expression::new("a b").is_err());
        for unknown in [
            "payload|capitalise_all",
            "payload is brave",
            "fetch(payload)",
        ] {
            let problem = Expression::new(unknown).err().unwrap();
            assert!(problem.contains("unknown"), "{problem}");
        }
    }

    #[test]
    fn what_stands_in_a_url_cannot_leave_its_place() {
        let encoded = value("payload|urlencode", &json!("a/b?c=d&e#f g%é"));
        assert_eq!(encoded, json!("a/b%3Fc%3Dd%26e%23f%20g%25%C3%A9"));
        let listed = value("payload|map('urlencode')|join(',')", &json!([1, "2,&3"]));
        assert_eq!(listed, json!("1,2%2C%263"));
    }
}
