//! Request bodies, and checks that several resources share.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::error::{ErrorCode, Problem};
use super::limits::ConnectionLimits;
use crate::config::ServerConfig;
use crate::job::MAX_METADATA_BYTES;
use crate::provider::{Provider, Providers};
use crate::store::IdempotencyKey;
use crate::telemetry::Limit;
use progress_hub_auth::jwt::Principal;

/// Minimum average rate of a body, after `server.request_timeout`.
const MIN_BODY_BYTES_PER_SECOND: u32 = 64 << 10;

/// A request body that has not been read. A handler with this argument decides first whether to read it.
pub struct UnreadBody {
    payload: Payload,
    declared_length: Option<usize>,
    max_bytes: usize,
    timeout: Duration,
    limits: web::Data<ConnectionLimits>,
}

impl FromRequest for UnreadBody {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let mut body = || {
            let server = request.app_data::<web::Data<ServerConfig>>()?;
            let length = request.headers().get("content-length");
            Some(Self {
                payload: payload.take(),
                declared_length: length.and_then(|length| length.to_str().ok()?.parse().ok()),
                max_bytes: server.max_body_bytes,
                timeout: server.request_timeout,
                limits: request.app_data::<web::Data<ConnectionLimits>>()?.clone(),
            })
        };
        ready(body().ok_or_else(|| Problem::not_found("resource")))
    }
}

impl UnreadBody {
    /// Reads the body of an authenticated caller.
    ///
    /// # Errors
    /// `payload_too_large`, `request_timeout`, or `invalid_request` if the body is incomplete.
    pub async fn read(self) -> Result<web::Bytes, Problem> {
        self.limit(None)?.read_chunks(|_| Ok(())).await
    }

    /// Reduces the maximum size, and checks the size that the head declares.
    ///
    /// # Errors
    /// `payload_too_large`.
    pub fn limit(self, max_bytes: Option<usize>) -> Result<Self, Problem> {
        let max_bytes = max_bytes.unwrap_or(usize::MAX).min(self.max_bytes);
        if self.declared_length.unwrap_or(0) > max_bytes {
            return Err(too_large(max_bytes));
        }
        Ok(Self { max_bytes, ..self })
    }

    /// Reads the body of a sender that is not verified. Its memory counts for the node while the returned
    /// permit exists.
    ///
    /// # Errors
    /// As [`UnreadBody::read`], and `over_capacity`.
    pub async fn read_unverified(self) -> Result<(web::Bytes, BodyPermit), Problem> {
        let limits = self.limits.clone();
        let mut permit = BodyPermit(None);
        let reserve = |bytes| {
            let more = limits.reserve_body(bytes)?;
            match &mut permit.0 {
                Some(permit) => permit.merge(more),
                none => *none = Some(more),
            }
            Ok(())
        };
        let body = self.read_chunks(reserve).await?;
        Ok((body, permit))
    }

    async fn read_chunks(
        mut self,
        mut reserve: impl FnMut(usize) -> Result<(), Problem>,
    ) -> Result<web::Bytes, Problem> {
        let started_at = Instant::now();
        let mut body = web::BytesMut::new();
        loop {
            let received = u32::try_from(body.len()).unwrap_or(u32::MAX);
            let earned = Duration::from_secs(received.into()) / MIN_BODY_BYTES_PER_SECOND;
            let deadline = started_at + self.timeout + earned;
            let Ok(chunk) = timeout_at(deadline, self.payload.next()).await else {
                let reached = self
                    .limits
                    .reached(Limit::RequestTime, Duration::from_secs(1));
                return Err(reached.into());
            };
            let Some(chunk) = chunk else {
                return Ok(body.freeze());
            };
            let chunk = chunk.map_err(|_| Problem::invalid("the body is incomplete"))?;
            if body.len() + chunk.len() > self.max_bytes {
                return Err(too_large(self.max_bytes));
            }
            reserve(chunk.len())?;
            body.extend_from_slice(&chunk);
        }
    }
}

fn too_large(max_bytes: usize) -> Problem {
    let detail = format!("the body is larger than the limit of {max_bytes} bytes");
    Problem::new(ErrorCode::PayloadTooLarge, detail)
}

/// The memory of an unverified body. Dropping it releases the memory for others.
pub struct BodyPermit(Option<OwnedSemaphorePermit>);

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
        let unread = UnreadBody::from_request(request, payload);
        Box::pin(async move {
            let raw = unread.await?.read().await?;
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
