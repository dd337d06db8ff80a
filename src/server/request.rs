//! Request bodies, and checks that several resources share.

use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;

use super::error::{ErrorCode, Problem};
use crate::config::ServerConfig;
use crate::job::MAX_METADATA_BYTES;
use crate::provider::{Provider, Providers};
use crate::store::IdempotencyKey;
use progress_hub_auth::jwt::Principal;

/// The bytes of a request body, at most `server.max_body_bytes`.
pub struct RawBody(pub web::Bytes);

impl FromRequest for RawBody {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let limit = request
            .app_data::<web::Data<ServerConfig>>()
            .map_or(0, |server| server.max_body_bytes);
        let declared = request
            .headers()
            .get("content-length")
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let mut payload = payload.take();
        Box::pin(async move {
            let too_large = || {
                let detail = format!("the body is larger than the limit of {limit} bytes");
                Problem::new(ErrorCode::PayloadTooLarge, detail)
            };
            if declared.is_some_and(|length: usize| length > limit) {
                return Err(too_large());
            }
            let mut body = web::BytesMut::new();
            while let Some(chunk) = payload.next().await {
                let chunk = chunk.map_err(|_| Problem::invalid("the body is incomplete"))?;
                if body.len() + chunk.len() > limit {
                    return Err(too_large());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Self(body.freeze()))
        })
    }
}

/// A JSON body with the bytes that it was parsed from.
pub struct JsonBody<T> {
    /// The parsed body.
    pub value: T,
    raw: web::Bytes,
}

impl<T: DeserializeOwned + 'static> FromRequest for JsonBody<T> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let raw = RawBody::from_request(request, payload);
        Box::pin(async move {
            let RawBody(raw) = raw.await?;
            let value = serde_json::from_slice(&raw)
                .map_err(|error| Problem::invalid(describe_json_error::<T>(&raw, &error)))?;
            Ok(Self { value, raw })
        })
    }
}

/// Describes why a body is not a valid `T`. The text begins with the invalid field, if there is one.
fn describe_json_error<T: DeserializeOwned>(raw: &[u8], error: &serde_json::Error) -> String {
    let body: Value = match serde_json::from_slice(raw) {
        Ok(body) => body,
        Err(error) => return format!("the body is not valid JSON: {error}"),
    };
    if !body.is_object() {
        return "the body must be a JSON object".to_owned();
    }
    match serde_path_to_error::deserialize::<_, T>(body) {
        Err(error) => describe_field_error(&error.path().to_string(), &error.inner().to_string()),
        // An error that parsing into a `Value` hides, such as a duplicate field.
        Ok(_) => error.to_string(),
    }
}

/// Turns a message of serde about the field at `path` (`.` is the body itself) into one for API users.
fn describe_field_error(path: &str, message: &str) -> String {
    let quoted = message.split('`').nth(1).unwrap_or_default();
    if message.starts_with("missing field ") {
        return match path {
            "." => format!("{quoted} is required"),
            path => format!("{path}.{quoted} is required"),
        };
    }
    let Some((problem, expected)) = message.rsplit_once(", expected ") else {
        return format!("{path}: {message}");
    };
    if problem.starts_with("unknown field ") {
        return format!("{path} is not a known field; expected {expected}");
    }
    let expected = match expected {
        "a map" => "an object",
        "a sequence" => "an array",
        "string or map" => "a string",
        "f64" => "a number",
        "u32" | "u64" | "usize" => "a non-negative integer",
        name if name.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{path} must be {expected}")
}

/// Returns the `Idempotency-Key` of a request, bound to the caller, the path and the body.
pub fn idempotency<T>(
    request: &HttpRequest,
    caller: &Principal,
    body: &JsonBody<T>,
) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(header) = request.headers().get("idempotency-key") else {
        return Ok(None);
    };
    let key = header
        .to_str()
        .ok()
        .filter(|key| (1..=255).contains(&key.len()))
        .ok_or_else(|| Problem::invalid("Idempotency-Key must have 1 to 255 visible characters"))?;
    let fingerprint = progress_hub_auth::signature::digest(&[request.path().as_bytes(), &body.raw]);
    Ok(Some(IdempotencyKey {
        caller: caller.subject().to_owned(),
        key: key.to_owned(),
        fingerprint,
    }))
}

/// Checks the size of a job's metadata, which is part of every version of the document.
pub fn validate_metadata(metadata: &Map<String, Value>) -> Result<(), Problem> {
    let length = serde_json::to_vec(metadata).map_or(usize::MAX, |text| text.len());
    if length > MAX_METADATA_BYTES {
        return Err(Problem::invalid(format!(
            "metadata must have at most {MAX_METADATA_BYTES} bytes of JSON, has {length}"
        )));
    }
    Ok(())
}

/// Checks the length of a job owner or token subject; `field` is its name in the body.
pub fn validate_owner(field: &str, owner: &str) -> Result<(), Problem> {
    if !(1..=255).contains(&owner.len()) {
        return Err(Problem::invalid(format!(
            "{field} must have 1 to 255 bytes"
        )));
    }
    Ok(())
}

/// Returns whether a text is an http(s) URL. A parser of URLs would remove tabs and newlines.
pub fn is_web_url(text: &str) -> bool {
    let is_http = |url: Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    !text.contains(char::is_control) && Url::parse(text).is_ok_and(is_http)
}

/// Returns the provider with this name. The error lists the configured ones.
pub fn find_provider<'p>(
    providers: &'p Providers,
    name: &str,
) -> Result<&'p Arc<Provider>, Problem> {
    providers.get(name).ok_or_else(|| {
        let configured: Vec<&str> = providers.iter().map(|provider| provider.name()).collect();
        let configured = configured.join(", ");
        let detail = format!("provider '{name}' is not configured; configured: {configured}");
        Problem::new(ErrorCode::UnknownProvider, detail)
    })
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::job::VideoRequest;

    fn describe(body: &str) -> String {
        let error = serde_json::from_str::<VideoRequest>(body).unwrap_err();
        describe_json_error::<VideoRequest>(body.as_bytes(), &error)
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
        let described: Vec<String> = bodies.map(describe).into();
        assert_snapshot!(described.join("\n"), @r"
        duration must be a number
        metadata must be an object
        model must be a string
        model is required
        promt is not a known field; expected one of `provider`, `model`, `prompt`, `negative_prompt`, `image_url`, `duration`, `aspect_ratio`, `resolution`, `width`, `height`, `platform`, `input`, `metadata`
        duplicate field `model` at line 1 column 20
        the body must be a JSON object
        the body is not valid JSON: EOF while parsing an object at line 1 column 1
        ");
    }

    #[test]
    fn errors_of_nested_fields_have_their_path() {
        let described = [
            describe_field_error("outputs[0]", "missing field `url`"),
            describe_field_error("status", "unknown variant `x`, expected one of `a`, `b`"),
            describe_field_error(
                "queue_position",
                "invalid value: integer `-1`, expected u32",
            ),
            describe_field_error(
                "error",
                r#"invalid type: string "no", expected struct Error"#,
            ),
            describe_field_error("error.kind", "any other message"),
        ];
        assert_snapshot!(described.join("\n"), @r"
        outputs[0].url is required
        status must be one of `a`, `b`
        queue_position must be a non-negative integer
        error must be an object
        error.kind: any other message
        ");
    }
}
