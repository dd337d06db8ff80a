//! The language of specs: MiniJinja templates for requests, MiniJinja expressions for responses.
//!
//! Templates and expressions are compiled when the spec is loaded and evaluated with a step limit.
//! A path that does not exist evaluates to `undefined` instead of an error, so specs can refer to
//! optional fields directly.

use std::collections::HashSet;
use std::sync::LazyLock;

use minijinja::{Environment, ErrorKind, Expression as Compiled, Value};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value as Json;

use super::filters;
use crate::template::{self, describe};

/// Names that templates and expressions can use. Any other name is an error when the spec is
/// loaded.
const NAMES: &str = "api_key aspect_ratio base_url body callback_url code count duration handle headers height \
    http image_url input message model negative_prompt now path payload prompt query reference references \
    resolution secret_key status task task_id tasks webhook_secret width";

static LANGUAGE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut language = template::environment();
    filters::register(&mut language);
    language
});

/// Checks that all names, filters, tests and functions exist.
///
/// MiniJinja reports unknown filters, tests and functions only when they are used. Therefore
/// `trial` is the result of an evaluation without any values.
fn check_names<T>(
    variables: &HashSet<String>,
    trial: Result<T, minijinja::Error>,
) -> Result<(), String> {
    use ErrorKind::{SyntaxError, UnknownFilter, UnknownFunction, UnknownMethod, UnknownTest};
    if let Err(error) = trial
        && matches!(
            error.kind(),
            SyntaxError | UnknownFilter | UnknownTest | UnknownFunction | UnknownMethod
        )
    {
        return Err(describe(&error));
    }
    let is_known = |name: &str| {
        NAMES.split(' ').any(|known| known == name)
            || LANGUAGE.globals().any(|(global, _)| global == name)
    };
    // The alphabetically first one, so that the message is deterministic.
    match variables.iter().filter(|name| !is_known(name)).min() {
        None => Ok(()),
        Some(name) => Err(format!(
            "unknown name: {name}; known names are {}",
            NAMES.replace(' ', ", ")
        )),
    }
}

/// A compiled expression such as `payload.data.id|default(payload.id)`.
pub(crate) struct Expression {
    source: String,
    uses_headers: bool,
    compiled: Compiled<'static, 'static>,
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Returns a description of the syntax error or the unknown name.
    pub(crate) fn new(source: &str) -> Result<Self, String> {
        // MiniJinja panics on text after an unmatched `}}`.
        if has_unmatched_brace(source) {
            return Err("syntax error: unmatched `}`".to_owned());
        }
        let compiled = LANGUAGE
            .compile_expression_owned(source.trim().to_owned())
            .map_err(|error| describe(&error))?;
        let names = compiled.undeclared_variables(false);
        check_names(&names, compiled.eval(()))?;
        Ok(Self {
            source: source.to_owned(),
            uses_headers: names.contains("headers"),
            compiled,
        })
    }

    /// Returns whether the expression uses the name `callback_url`.
    pub(crate) fn uses_callback_url(&self) -> bool {
        self.compiled
            .undeclared_variables(false)
            .contains("callback_url")
    }

    /// Returns whether the expression uses the name `headers`.
    pub(crate) fn uses_headers(&self) -> bool {
        self.uses_headers
    }

    /// Evaluates the expression with `payload` as its only name. Returns `undefined` on errors.
    pub(crate) fn evaluate(&self, payload: &Value) -> Value {
        self.evaluate_in(&Value::from_iter([("payload", payload.clone())]))
    }

    /// Evaluates the expression with the names of `context`. Returns `undefined` on errors.
    pub(crate) fn evaluate_in(&self, context: &Value) -> Value {
        self.compiled.eval(context).unwrap_or_else(|error| {
            tracing::debug!(
                expression = self.source,
                error = describe(&error),
                "expression failed"
            );
            Value::UNDEFINED
        })
    }

    /// Evaluates the expression to JSON. For requests, where an error must not be ignored.
    ///
    /// # Errors
    /// Returns a description of the error.
    pub(crate) fn json(&self, context: &Value) -> Result<Json, String> {
        let value = self.compiled.eval(context);
        let value = value.map_err(|error| describe(&error))?;
        serde_json::to_value(value).map_err(|_| "result is not JSON".to_owned())
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let source = String::deserialize(deserializer)?;
        Self::new(&source).map_err(de::Error::custom)
    }
}

/// A text with placeholders such as `{{ base_url }}/tasks/{{ task_id }}`.
#[derive(Clone)]
pub(crate) struct Template(String);

impl Template {
    /// Returns whether the template is a URL whose host is literal text.
    pub(crate) fn has_literal_host(&self) -> bool {
        let after_scheme = self.0.split_once("://").map_or("", |(_, rest)| rest);
        let host = after_scheme.split('/').next().unwrap_or_default();
        self.0.starts_with("http") && !host.is_empty() && !host.contains('{')
    }

    /// Returns whether the template uses the name `callback_url`.
    pub(crate) fn uses_callback_url(&self) -> bool {
        let template = LANGUAGE.template_from_str(&self.0);
        template.is_ok_and(|it| it.undeclared_variables(false).contains("callback_url"))
    }

    /// Renders the template.
    ///
    /// # Errors
    /// Returns a description of the error.
    pub(crate) fn render(&self, context: &Value) -> Result<String, String> {
        LANGUAGE
            .render_str(&self.0, context)
            .map_err(|error| describe(&error))
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let source = String::deserialize(deserializer)?;
        let template = LANGUAGE
            .template_from_str(&source)
            .map_err(|error| de::Error::custom(describe(&error)))?;
        check_names(&template.undeclared_variables(false), template.render(()))
            .map_err(de::Error::custom)?;
        Ok(Self(source))
    }
}

/// Returns whether an expression has a `}` without a `{` before it, outside of its strings.
fn has_unmatched_brace(source: &str) -> bool {
    let mut depth = 0_usize;
    let mut characters = source.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' | '\'' => {
                while let Some(inside) = characters.next()
                    && inside != character
                {
                    if inside == '\\' {
                        characters.next();
                    }
                }
            }
            '{' => depth += 1,
            '}' if depth == 0 => return true,
            '}' => depth -= 1,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::value::without_nulls;
    use super::*;

    fn evaluate(expression: &str, payload: &Json) -> Json {
        let names = Value::from_serialize(json!({ "payload": payload }));
        Expression::new(expression).unwrap().json(&names).unwrap()
    }

    #[test]
    fn missing_path_evaluates_to_undefined() {
        assert_eq!(
            evaluate("payload.a.b.c|default(payload.d)", &json!({"d": 1})),
            json!(1)
        );
        let null = json!({"a": null, "b": 0});
        assert_eq!(
            evaluate("payload.a|default(payload.b)|default(1)", &null),
            json!(0)
        );
        assert_eq!(evaluate("payload.a.b.c", &json!({})), json!(null));
        assert_eq!(evaluate("payload.a.b|lower", &json!("text")), json!(""));
    }

    #[test]
    fn integers_keep_every_digit() {
        assert_eq!(
            evaluate("payload.id", &json!({"id": 893_605_946_402_811_985_u64})),
            json!(893_605_946_402_811_985_u64)
        );
    }

    #[test]
    fn merge_is_deep_and_drops_nulls() {
        let merged = evaluate(
            "{'a': {'x': 1, 'y': payload.none}, 'b': {'c': payload.none}}|merge(payload)",
            &json!({"a": {"x": 2}, "z": [1]}),
        );
        assert_eq!(without_nulls(merged), json!({"a": {"x": 2}, "z": [1]}));
    }

    #[test]
    fn find_all_extracts_matches_from_text() {
        let logs = "seed 7\n 0%|     | 0/5\n 40%|##  | 2/5\n80%|### | 4/5 100% of it";
        let percent = r"payload|find_all('(?m)^\s*(\d+)%\|')|last";
        assert_eq!(evaluate(percent, &json!(logs)), json!("80"));
        assert_eq!(evaluate(percent, &json!("nothing yet")), json!(null));
        assert_eq!(evaluate(percent, &json!(null)), json!(null));
        let long_text = format!("{}é{}9%|", "1%|\n".repeat(30_000), "\n".repeat(5));
        assert_eq!(evaluate(percent, &json!(long_text)), json!("9"));
        let problem = Expression::new("payload|find_all('(')").err().unwrap();
        assert!(problem.contains("find_all"), "{problem}");
    }

    #[test]
    fn media_filter_finds_urls_at_any_depth() {
        let nested = json!({"seed": 1, "video": {"url": "v", "meta": {"url": "no"}},
            "more": [{"image": {"url": "i"}}, {"url": 5}, "text"]});
        let found = evaluate("payload|media|map(attribute='url')|list", &nested);
        assert_eq!(found, json!(["i", "v"]));
        let urls = json!({"seed": 1, "clips": ["https://a/b", {"c": "http://d"}], "text": "no"});
        assert_eq!(
            evaluate("payload|media", &urls),
            json!(["https://a/b", "http://d"])
        );
        assert_eq!(evaluate("payload|media", &json!(null)), json!([]));
        assert_eq!(evaluate("payload.none|media", &json!({})), json!([]));
    }

    #[test]
    fn fromjson_parses_json_in_a_string() {
        let task = json!({"data": "{\"urls\": [\"https://a/b\"], \"seed\": 18446744073709551615}"});
        let urls = evaluate("(payload.data|fromjson).urls", &task);
        assert_eq!(urls, json!(["https://a/b"]));
        let seed = evaluate("(payload.data|fromjson).seed", &task);
        assert_eq!(seed, json!(u64::MAX));
        for invalid in [
            json!(null),
            json!(""),
            json!("{"),
            json!(5),
            json!({"urls": 1}),
        ] {
            let urls = evaluate(
                "(payload.data|fromjson).urls|default('none')",
                &json!({"data": invalid}),
            );
            assert_eq!(urls, json!("none"), "{invalid}");
        }
    }

    #[test]
    fn jwt_filter_signs_the_given_claims() {
        let token = evaluate(
            "{'iss': payload.key, 'exp': 1800, 'nbf': -5}|jwt('secret')",
            &json!({"key": "ak"}),
        );
        let token = token.as_str().unwrap();
        // The header {"typ":"JWT","alg":"HS256"}.
        assert!(token.starts_with("eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9."));
        assert_eq!(token.split('.').count(), 3);
    }

    #[test]
    fn infinite_loop_is_stopped_by_fuel() {
        let template = Template(
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}".into(),
        );
        assert!(template.render(&Value::UNDEFINED).is_err());
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
    fn unmatched_brace_is_rejected_at_load() {
        for source in [
            "payload }} x",
            "payload|m}}|list",
            "{'a': 1}} y",
            "'\\'' }} z",
        ] {
            let problem = Expression::new(source).err().unwrap();
            assert!(problem.contains("unmatched"), "{problem}");
        }
        let nested = "{'a': {'b': '}}', 'c': \"it's }}\"}}.a.b";
        assert_eq!(evaluate(nested, &json!(null)), json!("}}"));
    }

    #[test]
    fn unknown_names_in_templates_are_rejected() {
        let read = |text: &str| {
            let table = toml::Table::from_iter([("url".to_owned(), text.into())]);
            table.try_into::<BTreeMap<String, Template>>()
        };
        let valid =
            "{% set a = tasks %}{% for i in range(2) %}{{ a }}{{ i }}{{ loop.index }}{% endfor %}";
        assert!(read(valid).is_ok());
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
        let encoded = evaluate("payload|urlencode", &json!("a/b?c=d&e#f g%é"));
        assert_eq!(encoded, json!("a/b%3Fc%3Dd%26e%23f%20g%25%C3%A9"));
        let listed = evaluate("payload|map('urlencode')|join(',')", &json!([1, "2,&3"]));
        assert_eq!(listed, json!("1,2%2C%263"));
    }
}
