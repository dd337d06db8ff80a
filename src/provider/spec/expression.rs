//! The language of specs: MiniJinja templates for what is sent, its expressions for what is read.
//!
//! Invariant: compiled once, at load; evaluated with bounded fuel; a missing path is `undefined`
//! and never an error, so a spec asks for what may be there without asking first.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, ErrorKind, Expression as Compiled, UndefinedBehavior, Value};
use regex_lite::Regex;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value as Json;

/// Steps one evaluation may take: many times what any spec needs, and a bound for a hostile body.
const MAX_EVALUATION_STEPS: u64 = 100_000;

/// Bytes of a text, from its end, that are searched for a pattern: logs can be long, and what counts
/// is their newest line.
const MAX_SEARCHED_BYTES: usize = 64 << 10;

/// Patterns that are kept compiled; specs hold a handful.
const MAX_CACHED_PATTERNS: usize = 256;

/// Every name that is known somewhere in a spec. Nothing else can ever have a value, so it is a mistake.
const NAMES: [&str; 28] = [
    "api_key",
    "aspect_ratio",
    "base_url",
    "callback_url",
    "code",
    "duration",
    "handle",
    "headers",
    "height",
    "http",
    "image_url",
    "input",
    "message",
    "model",
    "negative_prompt",
    "now",
    "payload",
    "prompt",
    "reference",
    "references",
    "resolution",
    "secret_key",
    "status",
    "task",
    "task_id",
    "tasks",
    "webhook_secret",
    "width",
];

static LANGUAGE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut language = Environment::new();
    language.set_undefined_behavior(UndefinedBehavior::Chainable);
    language.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    language.set_fuel(Some(MAX_EVALUATION_STEPS));
    language.add_filter("default", default);
    language.add_filter("d", default);
    language.add_filter("merge", merge);
    language.add_filter("urlencode", urlencode);
    language.add_filter("find_all", find_all);
    language.add_filter("fromjson", from_json);
    language.add_filter("jwt", jwt);
    language.add_filter("media", media);
    language.add_filter("private", mark_private);
    language.add_test("containing", is_containing);
    language
});

/// `value|default(other)`: the other where the value is missing or null, which many providers write for
/// what they do not have.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the engine calls it with values"
)]
fn default(value: Value, other: Rest<Value>) -> Value {
    match value.is_undefined() || value.is_none() {
        true => other.first().cloned().unwrap_or_else(|| Value::from("")),
        false => value,
    }
}

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

/// `text|find_all(pattern)`: what the pattern matches, in order: its first group where it has one.
fn find_all(text: &Value, pattern: &str) -> Result<Vec<String>, minijinja::Error> {
    let pattern = compiled(pattern)?;
    let Some(text) = text.as_str() else {
        return Ok(Vec::new());
    };
    let tail = (text.len().saturating_sub(MAX_SEARCHED_BYTES)..text.len())
        .find_map(|begin| text.get(begin..))
        .unwrap_or_default();
    let found = pattern.captures_iter(tail).filter_map(|captures| {
        let whole = captures.get(0);
        let found = captures.get(1).or(whole)?;
        Some(found.as_str().to_owned())
    });
    Ok(found.collect())
}

fn compiled(pattern: &str) -> Result<Arc<Regex>, minijinja::Error> {
    static KNOWN: Mutex<BTreeMap<String, Arc<Regex>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(compiled) = known.get(pattern) {
        return Ok(Arc::clone(compiled));
    }
    let compiled = Regex::new(pattern).map(Arc::new).map_err(|error| {
        minijinja::Error::new(ErrorKind::SyntaxError, format!("find_all: {error}"))
    })?;
    if known.len() < MAX_CACHED_PATTERNS {
        known.insert(pattern.to_owned(), Arc::clone(&compiled));
    }
    Ok(compiled)
}

/// `value|media`: every mapping with a text `url`, at any depth, in order, and where there is none every
/// text that is an HTTP URL: for providers whose results have another shape for each model.
fn media(value: &Value) -> Vec<Value> {
    let named = collect_matching(value, |leaf| {
        let url = leaf.get_attr("url");
        leaf.kind() == ValueKind::Map && url.is_ok_and(|url| url.as_str().is_some())
    });
    if !named.is_empty() {
        return named;
    }
    collect_matching(value, |leaf| {
        leaf.as_str()
            .is_some_and(|text| text.starts_with("https://") || text.starts_with("http://"))
    })
}

/// What is wanted of a value and all that is in it, in order; nothing inside of what is wanted.
fn collect_matching(value: &Value, is_wanted: fn(&Value) -> bool) -> Vec<Value> {
    if is_wanted(value) {
        return vec![value.clone()];
    }
    // A text is no list, although it can be walked.
    let walked = value.as_str().is_none().then(|| value.try_iter());
    let walked = walked.into_iter().flatten().flatten();
    let inside: Vec<Value> = match value.kind() == ValueKind::Map {
        true => walked
            .map(|key| value.get_item(&key).unwrap_or_default())
            .collect(),
        false => walked.collect(),
    };
    inside
        .iter()
        .flat_map(|item| collect_matching(item, is_wanted))
        .collect()
}

/// `urls|private`: the same, each marked as one that only the provider's key can read.
fn mark_private(list: &Value) -> Vec<Value> {
    let marked = |item: Value| {
        let item = match item.as_str() {
            Some(url) => Value::from_iter([("url", url)]),
            None => item,
        };
        merge(&item, &Value::from_iter([("private", true)]))
    };
    items(list).into_iter().map(marked).collect()
}

/// `text|fromjson`: what a text holds that is JSON itself; undefined where it is none.
fn from_json(text: &Value) -> Value {
    let parsed = text
        .as_str()
        .and_then(|text| serde_json::from_str::<Json>(text).ok());
    parsed.map_or(Value::UNDEFINED, Value::from_serialize)
}

/// `claims|jwt(secret)`: an HS256 token, for providers that want one in the place of a key.
fn jwt(claims: &Value, secret: &str) -> Result<String, minijinja::Error> {
    progress_hub_auth::jwt::hs256(claims, secret)
        .ok_or_else(|| minijinja::Error::new(ErrorKind::InvalidOperation, "jwt: no claims"))
}

/// Refuses names that mean nothing: values that nobody gives, and filters, tests and functions that the
/// language does not have. These show only when they are used, so everything is used once, with nothing
/// at hand, when it is read.
fn check_names<T>(
    values: &HashSet<String>,
    tried: Result<T, minijinja::Error>,
) -> Result<(), String> {
    use ErrorKind::{SyntaxError, UnknownFilter, UnknownFunction, UnknownMethod, UnknownTest};
    if let Err(error) = tried
        && matches!(
            error.kind(),
            SyntaxError | UnknownFilter | UnknownTest | UnknownFunction | UnknownMethod
        )
    {
        return Err(explain(&error));
    }
    let is_known =
        |name: &str| NAMES.contains(&name) || LANGUAGE.globals().any(|(global, _)| global == name);
    // The first by the alphabet, so that the same mistake is always told alike.
    let unknown = values.iter().filter(|name| !is_known(name)).min();
    unknown.map_or(Ok(()), |name| {
        let known = NAMES.join(", ");
        Err(format!("unknown name: {name} (there are {known})"))
    })
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
pub(in crate::provider) struct Expression {
    source: String,
    compiled: Compiled<'static, 'static>,
}

impl Expression {
    /// # Errors
    /// What the engine says of a text that is no expression.
    pub(in crate::provider) fn new(source: &str) -> Result<Self, String> {
        let compiled = LANGUAGE.compile_expression_owned(source.trim().to_owned());
        let compiled = compiled.map_err(|error| explain(&error))?;
        check_names(&compiled.undeclared_variables(false), compiled.eval(()))?;
        Ok(Self {
            source: source.to_owned(),
            compiled,
        })
    }

    /// The value for a payload; `undefined` where the payload has no such thing.
    pub(in crate::provider) fn evaluate(&self, payload: &Value) -> Value {
        self.evaluate_in(&Value::from_iter([("payload", payload.clone())]))
    }

    /// The value with these names known.
    pub(in crate::provider) fn evaluate_in(&self, names: &Value) -> Value {
        self.compiled.eval(names).unwrap_or_else(|error| {
            tracing::debug!(expression = self.source, reason = %explain(&error), "no value");
            Value::UNDEFINED
        })
    }

    /// The value for a context, as JSON: for what is sent, where nothing is no answer.
    ///
    /// # Errors
    /// What the engine says of it.
    pub(in crate::provider) fn json(&self, names: &Value) -> Result<Json, String> {
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
pub(in crate::provider) struct Template(String);

impl Template {
    /// Whether it is a URL whose host stands there in so many words.
    pub(in crate::provider) fn names_its_host(&self) -> bool {
        let after = self.0.split_once("://").map_or("", |(_, after)| after);
        let host = after.split('/').next().unwrap_or_default();
        self.0.starts_with("http") && !host.is_empty() && !host.contains('{')
    }

    /// The text with its values filled in.
    ///
    /// # Errors
    /// What the engine says of it.
    pub(in crate::provider) fn render(&self, names: &Value) -> Result<String, String> {
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
        check_names(&template.undeclared_variables(false), template.render(()))
            .map_err(de::Error::custom)?;
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
pub(in crate::provider) fn text(value: &Value) -> Option<String> {
    let is_text = matches!(value.kind(), ValueKind::String | ValueKind::Number);
    is_text
        .then(|| value.to_string())
        .filter(|text| !text.is_empty())
}

/// What a list holds; a mapping or a text is a list of one, anything else of none.
pub(in crate::provider) fn items(value: &Value) -> Vec<Value> {
    if matches!(value.kind(), ValueKind::Map | ValueKind::String) {
        return vec![value.clone()];
    }
    value.try_iter().map(Iterator::collect).unwrap_or_default()
}

/// The JSON without what was left open: nulls in mappings go, and mappings that this empties.
pub(in crate::provider) fn without_nulls(value: Json) -> Json {
    match value {
        Json::Object(entries) => {
            let entries = entries
                .into_iter()
                .map(|(name, value)| (name, without_nulls(value)));
            Json::Object(entries.filter(|(_, value)| !is_nothing(value)).collect())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(without_nulls).collect()),
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
    fn missing_path_evaluates_to_undefined() {
        assert_eq!(
            value("payload.a.b.c|default(payload.d)", &json!({"d": 1})),
            json!(1)
        );
        let null = json!({"a": null, "b": 0});
        assert_eq!(
            value("payload.a|default(payload.b)|default(1)", &null),
            json!(0)
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
    fn merge_is_deep_and_drops_nulls() {
        let merged = value(
            "{'a': {'x': 1, 'y': payload.none}, 'b': {'c': payload.none}}|merge(payload)",
            &json!({"a": {"x": 2}, "z": [1]}),
        );
        assert_eq!(without_nulls(merged), json!({"a": {"x": 2}, "z": [1]}));
    }

    #[test]
    fn find_all_extracts_matches_from_text() {
        let logs = "seed 7\n 0%|     | 0/5\n 40%|##  | 2/5\n80%|### | 4/5 100% of it";
        let percent = r"payload|find_all('(?m)^\s*(\d+)%\|')|last";
        assert_eq!(value(percent, &json!(logs)), json!("80"));
        assert_eq!(value(percent, &json!("nothing yet")), json!(null));
        assert_eq!(value(percent, &json!(null)), json!(null));
        let long = format!("{}é{}9%|", "1%|\n".repeat(30_000), "\n".repeat(5));
        assert_eq!(value(percent, &json!(long)), json!("9"));
        let problem = Expression::new("payload|find_all('(')").err().unwrap();
        assert!(problem.contains("find_all"), "{problem}");
    }

    #[test]
    fn media_filter_finds_urls_at_any_depth() {
        let result = json!({"seed": 1, "video": {"url": "v", "meta": {"url": "no"}},
            "more": [{"image": {"url": "i"}}, {"url": 5}, "text"]});
        let found = value("payload|media|map(attribute='url')|list", &result);
        assert_eq!(found, json!(["i", "v"]));
        let bare = json!({"seed": 1, "clips": ["https://a/b", {"c": "http://d"}], "text": "no"});
        assert_eq!(
            value("payload|media", &bare),
            json!(["https://a/b", "http://d"])
        );
        assert_eq!(value("payload|media", &json!(null)), json!([]));
        assert_eq!(value("payload.none|media", &json!({})), json!([]));
    }

    #[test]
    fn json_within_a_text_is_read() {
        let packed =
            json!({"data": "{\"urls\": [\"https://a/b\"], \"seed\": 18446744073709551615}"});
        let urls = value("(payload.data|fromjson).urls", &packed);
        assert_eq!(urls, json!(["https://a/b"]));
        let seed = value("(payload.data|fromjson).seed", &packed);
        assert_eq!(seed, json!(u64::MAX));
        for odd in [
            json!(null),
            json!(""),
            json!("{"),
            json!(5),
            json!({"urls": 1}),
        ] {
            let read = value(
                "(payload.data|fromjson).urls|default('none')",
                &json!({"data": odd}),
            );
            assert_eq!(read, json!("none"), "{odd}");
        }
    }

    #[test]
    fn jwt_filter_signs_the_given_claims() {
        let token = value(
            "{'iss': payload.key, 'exp': 1800, 'nbf': -5}|jwt('secret')",
            &json!({"key": "ak"}),
        );
        let token = token.as_str().unwrap();
        // {"typ":"JWT","alg":"HS256"}, and the claims in the order of their names.
        assert!(token.starts_with("eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9."));
        assert_eq!(token.split('.').count(), 3);
    }

    #[test]
    fn infinite_loop_is_stopped_by_fuel() {
        let names = json!({"payload": {"n": 100_000_000}});
        let template = Template(
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}".into(),
        );
        assert!(template.render(&Value::from_serialize(names)).is_err());
    }

    #[test]
    fn invalid_expression_is_rejected_at_load() {
        assert!(Expression::new("payload.").is_err());
        assert!(Expression::new("a b").is_err());
        for unknown in [
            "payload|capitalise_all",
            "payload is brave",
            "fetch(payload)",
            "paylod.id",
            "'x' if payload else durration",
            "(durration * 2)|round",
        ] {
            let problem = Expression::new(unknown).err().unwrap();
            assert!(problem.contains("unknown"), "{problem}");
        }
    }

    #[test]
    fn unknown_names_in_templates_are_rejected() {
        let read = |text: &str| {
            let table = toml::Table::from_iter([("url".to_owned(), text.into())]);
            table.try_into::<BTreeMap<String, Template>>()
        };
        let good =
            "{% set a = tasks %}{% for i in range(2) %}{{ a }}{{ i }}{{ loop.index }}{% endfor %}";
        assert!(read(good).is_ok());
        let problem = read("{{ base_url }}/{{ task }}?key={{ api_kye }}")
            .err()
            .unwrap();
        assert!(
            problem.to_string().contains("unknown name: api_kye"),
            "{problem}"
        );
    }

    #[test]
    fn urlencode_escapes_path_separators() {
        let encoded = value("payload|urlencode", &json!("a/b?c=d&e#f g%é"));
        assert_eq!(encoded, json!("a/b%3Fc%3Dd%26e%23f%20g%25%C3%A9"));
        let listed = value("payload|map('urlencode')|join(',')", &json!([1, "2,&3"]));
        assert_eq!(listed, json!("1,2%2C%263"));
    }
}
