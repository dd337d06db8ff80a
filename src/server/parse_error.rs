//! Parses bodies and query strings. An error names the invalid field and what it must be, without the
//! names of Rust types.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::protocol::is_json_object;

const NOT_AN_OBJECT: &str = "the body must be a JSON object";

/// Parses a JSON body.
///
/// # Errors
/// A text that begins with the invalid field, if there is one.
pub fn parse_json<T: DeserializeOwned>(raw: &[u8]) -> Result<T, String> {
    let body = serde_json::from_slice(raw).map_err(|error| describe_json::<T>(raw, &error))?;
    if is_json_object(raw) {
        Ok(body)
    } else {
        Err(NOT_AN_OBJECT.to_owned())
    }
}

/// Parses a query string.
///
/// # Errors
/// A text that begins with the invalid parameter.
pub fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, String> {
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
        .map_err(|error| describe_field(&error.path().to_string(), &error.inner().to_string()))
}

/// Describes why a body is not a valid `T`. Parses it again to find the field.
fn describe_json<T: DeserializeOwned>(raw: &[u8], error: &serde_json::Error) -> String {
    let body: Value = match serde_json::from_slice(raw) {
        Ok(body) => body,
        Err(error) => return format!("the body is not valid JSON: {error}"),
    };
    if let Err(error) = serde_path_to_error::deserialize::<_, T>(body) {
        return describe_field(&error.path().to_string(), &error.inner().to_string());
    }
    // A `Value` has only the last one of duplicate fields.
    let mut text = serde_json::Deserializer::from_slice(raw);
    let path = serde_path_to_error::deserialize::<_, T>(&mut text).err();
    let path = path.map_or(".".to_owned(), |error| error.path().to_string());
    let message = error.to_string();
    let location = format!(" at line {} column {}", error.line(), error.column());
    describe_field(&path, message.trim_end_matches(&location))
}

/// Turns a message of serde about the field at `path` (`.` is the body itself) into one for API users.
fn describe_field(path: &str, message: &str) -> String {
    let quoted = message.split('`').nth(1).unwrap_or_default();
    let inner = match path {
        "." => quoted.to_owned(),
        path => format!("{path}.{quoted}"),
    };
    if message.starts_with("missing field ") {
        return format!("{inner} is required");
    }
    if message.starts_with("duplicate field ") {
        return format!("{inner} must not occur more than once");
    }
    if message.starts_with("unknown field ") {
        let known = message.rsplit_once(", expected ");
        let known = known.map_or("", |(_, known)| known);
        return format!("{path} is not a known field; expected {known}");
    }
    if message.starts_with("must ") {
        return format!("{path} {message}");
    }
    match expected_value(message) {
        Some("an object") if path == "." => NOT_AN_OBJECT.to_owned(),
        // The content of an enum variant. All variants of the API are strings.
        Some("unit") => {
            let field = path.rsplit_once('.').map_or(path, |(field, _)| field);
            format!("{field} must be a string")
        }
        Some(expected) => format!("{path} must be {expected}"),
        None => format!("{path}: {message}"),
    }
}

/// Returns the expected type or value of the field, or `None` if the form of the message is
/// unknown.
fn expected_value(message: &str) -> Option<&str> {
    let of_serde = [
        "invalid type: ",
        "invalid value: ",
        "invalid length ",
        "unknown variant ",
    ];
    let expected = if of_serde.iter().any(|start| message.starts_with(start)) {
        message.rsplit_once(", expected ")?.1
    } else if message.contains("float literal") || message.contains("parse float") {
        // Messages of the standard library about a query parameter.
        "f64"
    } else if message.contains("invalid digit")
        || message.contains("parse integer")
        || message.contains("number too large")
    {
        "u64"
    } else {
        return None;
    };
    Some(match expected {
        "a map" | "map" => "an object",
        "a sequence" | "sequence" => "an array",
        "string or map" | "map with a single key" => "a string",
        "unit" | "unit variant" => "unit",
        "f32" | "f64" => "a number",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "a non-negative integer",
        name if name.starts_with("struct ") => "an object",
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use serde_json::{Map, json};

    use super::*;
    use crate::job::VideoRequest;
    use crate::server::api::jobs::{ListParams, LongPollQuery};
    use crate::server::api::tokens::TokenRequest;
    use crate::server::api::workers::{Registration, UpdateRequest};

    fn describe<T: DeserializeOwned>(body: &str) -> Option<String> {
        parse_json::<T>(body.as_bytes()).err()
    }

    #[test]
    fn fields_in_a_list_are_rejected() {
        let body = r#"["alice"]"#;
        assert_eq!(describe::<TokenRequest>(body).unwrap(), NOT_AN_OBJECT);
        let body = r#"["alice",null,null,null]"#;
        assert_eq!(describe::<TokenRequest>(body).unwrap(), NOT_AN_OBJECT);
    }

    #[test]
    fn invalid_bodies_are_described_by_field() {
        let bodies = [
            r#"{"model":"m","duration":"5"}"#,
            r#"{"model":"m","metadata":[]}"#,
            r#"{"model":5}"#,
            "{}",
            r#"{"model":"m","promt":"a typo"}"#,
            r#"{"model":"m","model":"n"}"#,
            "[]",
            "{",
        ];
        let described = bodies.map(|body| describe::<VideoRequest>(body).unwrap());
        assert_snapshot!(described.join("\n"), @r"
        duration must be a number
        metadata must be an object
        model must be a string
        model is required
        promt is not a known field; expected one of `provider`, `model`, `prompt`, `negative_prompt`, `image_url`, `duration`, `aspect_ratio`, `resolution`, `width`, `height`, `platform`, `input`, `metadata`, `owner_email`, `webhook_url`
        model must not occur more than once
        the body must be a JSON object
        the body is not valid JSON: EOF while parsing an object at line 1 column 1
        ");
    }

    #[test]
    fn nested_fields_are_described_with_their_path() {
        let bodies = [
            r#"{"outputs":[{"type":"video"}]}"#,
            r#"{"outputs":[{"type":"video","url":"a","expires_at":"soon"}]}"#,
            r#"{"status":"done"}"#,
            r#"{"status":{"running":1}}"#,
            r#"{"status":{}}"#,
            r#"{"queue_position":-1}"#,
            r#"{"queue_position":99999999999}"#,
            r#"{"error":"no"}"#,
            r#"{"error":{"kind":5}}"#,
            r#"{"error":{"kind":"technical","kind":"auth"}}"#,
        ];
        let described = bodies.map(|body| describe::<UpdateRequest>(body).unwrap());
        assert_snapshot!(described.join("\n"), @r"
        outputs[0].url is required
        outputs[0].expires_at must be an RFC 3339 timestamp such as 2026-01-31T12:00:00Z
        status must be one of `accepted`, `queued`, `running`, `succeeded`, `failed`, `cancelled`
        status must be a string
        status must be a string
        queue_position must be an integer from 0 to 4294967295
        queue_position must be an integer from 0 to 4294967295
        error must be an object
        error.kind must be a string
        error.kind must not occur more than once
        ");
    }

    #[test]
    fn invalid_parameters_are_described_by_name() {
        let list = [
            "limit=abc",
            "limit=-1",
            "limit=",
            "limit=1&limit=2",
            "limit=99999999999999999999",
        ];
        let list = list.map(|query| parse_query::<ListParams>(query).err().unwrap());
        let wait = ["wait=long", "wait=", "since=1.5"];
        let wait = wait.map(|query| parse_query::<LongPollQuery>(query).err().unwrap());
        assert_snapshot!([list.join("\n"), wait.join("\n")].join("\n"), @r"
        limit must be a non-negative integer
        limit must be a non-negative integer
        limit must be a non-negative integer
        limit must not occur more than once
        limit must be a non-negative integer
        wait must be a number
        wait must be a number
        since must be a non-negative integer
        ");
    }

    /// Tries values of every JSON type in every field.
    fn assert_no_internals<T: DeserializeOwned>(fields: &[&str]) {
        let values = [
            json!(true),
            json!(-1),
            json!(1.5),
            json!(1e300),
            json!("x"),
            json!([]),
            json!([1]),
            json!([[]]),
            json!({}),
            json!({ "a": 1 }),
            json!([{}]),
            json!([{ "a": 1 }]),
            json!({ "running": {} }),
            json!({ "kind": {} }),
        ];
        for field in fields {
            for value in &values {
                let mut body = Map::new();
                body.insert((*field).to_owned(), value.clone());
                let body = Value::Object(body).to_string();
                let Some(described) = describe::<T>(&body) else {
                    continue;
                };
                for internal in [
                    "struct", "variant", "invalid ", "f64", "u32", "line ", "sequence", "map",
                ] {
                    let is_in_list = described.contains("expected one of");
                    assert!(
                        is_in_list || !described.contains(internal),
                        "{body}: {described}"
                    );
                }
            }
        }
    }

    #[test]
    fn descriptions_name_no_rust_types() {
        assert_no_internals::<VideoRequest>(&[
            "model",
            "prompt",
            "provider",
            "duration",
            "width",
            "platform",
            "input",
            "metadata",
            "owner_email",
        ]);
        assert_no_internals::<Registration>(&["owner", "provider", "metadata", "deadline_seconds"]);
        assert_no_internals::<UpdateRequest>(&[
            "status",
            "progress",
            "stage",
            "queue_position",
            "eta_seconds",
            "outputs",
            "error",
        ]);
        assert_no_internals::<TokenRequest>(&["sub", "jobs", "scope", "ttl_seconds", "email"]);
    }

    #[test]
    fn text_of_an_unknown_form_is_kept() {
        assert_eq!(
            describe_field("error.kind", "any other message"),
            "error.kind: any other message"
        );
    }
}
