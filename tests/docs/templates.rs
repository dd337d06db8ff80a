//! Checks the templates of webhook bodies that the documentation shows.

use progress_hub::destinations::template::{Context, Kind, Template};
use serde_json::{Value, json};

use crate::markdown::{blocks, read};

const PAGE: &str = "docs/how-to/notify-slack-discord-ntfy.md";

/// Texts that try to change the structure of a body.
const HOSTILE: [&str; 4] = [
    "\"}, \"channel\": \"#general\", \"x\": {\"",
    "back\\slash \\\" and\r\nline\u{0}break",
    "@everyone <!channel> {{ 7 * 7 }}",
    "\u{FDD0}\u{FDD2}😀",
];

/// Returns the bodies in the examples of configuration, with the name of their endpoint.
fn bodies(text: &str) -> Vec<(String, String)> {
    let blocks = blocks(text).into_iter();
    let tables = blocks
        .filter(|block| block.language == "toml")
        .filter_map(|block| block.lines.join("\n").parse::<toml::Table>().ok());
    let webhooks = tables.filter_map(|table| table.get("webhooks")?.as_array().cloned());
    let body = |webhook: toml::Value| {
        let text = |key: &str| webhook.get(key)?.as_str().map(str::to_owned);
        Some((text("name")?, text("body")?))
    };
    webhooks.flatten().filter_map(body).collect()
}

/// Returns every text in a value.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.values().flat_map(texts).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// Renders a body for every event, with a text as the message of an error.
fn render(body: &str, message: &str) -> Vec<Value> {
    let template = Template::parse(body, Kind::Json).unwrap();
    let samples = Context::samples().into_iter();
    let samples = samples.map(|sample| {
        let error = json!({ "kind": "safety", "message": message });
        sample.with_job_field("error", error)
    });
    samples
        .map(|sample| serde_json::from_str(&template.render_in(&sample).unwrap()).unwrap())
        .collect()
}

#[test]
fn documented_bodies_are_json_whatever_a_text_contains() {
    let bodies = bodies(&read(PAGE));
    let names: Vec<_> = bodies.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["slack", "discord", "ntfy"]);
    for (name, body) in bodies {
        let keys = |value: &Value| Vec::from_iter(value.as_object().unwrap().keys().cloned());
        let plain = render(&body, "plain");
        for message in HOSTILE {
            let shown = message.replace(['\u{FDD0}', '\u{FDD2}'], "");
            for (hostile, plain) in render(&body, message).iter().zip(&plain) {
                assert_eq!(keys(hostile), keys(plain), "{name}");
                let is_shown = texts(hostile).iter().any(|text| text.contains(&shown));
                assert!(is_shown, "{name}: {hostile}");
            }
        }
    }
}
