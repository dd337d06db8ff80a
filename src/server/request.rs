//! Request bodies, and checks that several resources share.

use std::future::{Ready, ready};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::content;
use super::error::{ErrorCode, Problem};
use super::parse_error;
use crate::config::ServerConfig;
use crate::job::MAX_METADATA_BYTES;
use crate::provider::{Provider, Providers};
use crate::store::IdempotencyKey;
use progress_hub_auth::jwt::Principal;

/// The bytes of a request body without a content encoding, at most `server.max_body_bytes`.
pub struct RawBody(pub web::Bytes);

impl FromRequest for RawBody {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let encoding = content::require_identity(request.headers());
        let limit = request
            .app_data::<web::Data<ServerConfig>>()
            .map_or(0, |server| server.max_body_bytes);
        let declared = request
            .headers()
            .get("content-length")
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let mut payload = payload.take();
        Box::pin(async move {
            encoding?;
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
        let content_type = content::require_json(request.headers());
        let raw = RawBody::from_request(request, payload);
        Box::pin(async move {
            content_type?;
            let RawBody(raw) = raw.await?;
            let value = parse_error::parse_json(&raw).map_err(Problem::invalid)?;
            Ok(Self { value, raw })
        })
    }
}

/// The parameters of the query string.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let query = parse_error::parse_query(request.query_string());
        ready(query.map(Self).map_err(Problem::invalid))
    }
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
