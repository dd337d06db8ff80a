//! What every request body must be: JSON of the right shape, within the limit; and the checks that
//! several resources share.

use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::Problem;
use crate::config::ServerConfig;
use crate::job::MAX_METADATA_BYTES;
use crate::provider::{Provider, Providers};
use crate::store::IdempotencyKey;
use progress_hub_auth::jwt::Principal;

/// The raw bytes of a request, at most `server.max_body_bytes` of them.
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
                let detail = format!("the body has more than {limit} bytes");
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
            };
            if declared.is_some_and(|length: usize| length > limit) {
                return Err(too_large());
            }
            let mut body = web::BytesMut::new();
            while let Some(chunk) = payload.next().await {
                let chunk = chunk.map_err(|_| Problem::invalid("the body ended early"))?;
                if body.len() + chunk.len() > limit {
                    return Err(too_large());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Self(body.freeze()))
        })
    }
}

/// A JSON body, and the bytes it was read from.
pub struct JsonBody<T> {
    /// What it says.
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

/// What is wrong with a body, by its field where one is to blame: read alone, that field is wrong
/// in itself and not just without the others.
fn describe_json_error<T: DeserializeOwned>(raw: &[u8], error: &serde_json::Error) -> String {
    let fields: Map<String, Value> = serde_json::from_slice(raw).unwrap_or_default();
    let blamed = fields.into_iter().find_map(|(name, value)| {
        let alone = Value::Object(Map::from_iter([(name.clone(), value)]));
        let problem = serde_json::from_value::<T>(alone).err()?.to_string();
        (!problem.starts_with("missing field")).then(|| format!("{name}: {problem}"))
    });
    blamed.unwrap_or_else(|| error.to_string())
}

/// The `Idempotency-Key` of a request, tied to its owner, its path and its body.
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
        .filter(|key| (1..=255).contains(&key.len()));
    let key = key.ok_or_else(|| {
        Problem::invalid("Idempotency-Key: must have 1 to 255 visible characters")
    })?;
    let fingerprint = progress_hub_auth::signature::digest(&[request.path().as_bytes(), &body.raw]);
    Ok(Some(IdempotencyKey {
        caller: caller.subject().to_owned(),
        key: key.to_owned(),
        fingerprint,
    }))
}

/// Whether a caller's metadata is small enough to travel with every version.
pub fn validate_metadata(metadata: &Map<String, Value>) -> Result<(), Problem> {
    let length = serde_json::to_vec(metadata).map_or(usize::MAX, |text| text.len());
    if length > MAX_METADATA_BYTES {
        return Err(Problem::invalid(format!(
            "metadata: must have at most {MAX_METADATA_BYTES} bytes of JSON, has {length}"
        )));
    }
    Ok(())
}

/// Whether this can be an owner.
pub fn validate_owner(owner: &str) -> Result<(), Problem> {
    if owner.is_empty() || owner.len() > 255 {
        return Err(Problem::invalid("owner: must have 1 to 255 bytes"));
    }
    Ok(())
}

/// The configured provider of this name; otherwise the list of those there are.
pub fn find_provider<'p>(
    providers: &'p Providers,
    name: &str,
) -> Result<&'p Arc<Provider>, Problem> {
    providers.get(name).ok_or_else(|| {
        let known: Vec<&str> = providers.iter().map(|provider| provider.name()).collect();
        let known = known.join(", ");
        let detail = format!("provider: '{name}' is not configured; there are: {known}");
        Problem::new(StatusCode::BAD_REQUEST, "unknown_provider", detail)
    })
}
