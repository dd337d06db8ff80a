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
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::content;
use super::error::{ErrorCode, Problem};
use super::limits::{BodyPermit, ClientAddress, ConnectionLimits};
use super::parse_error;
use crate::config::ServerConfig;
use crate::destinations::email::is_address;
use crate::job::MAX_METADATA_BYTES;
use crate::provider::{Provider, Providers};
use crate::store::IdempotencyKey;
use crate::telemetry::Limit;
use progress_hub_auth::jwt::Principal;

/// Minimum average rate at which a body must arrive after `server.request_timeout`.
const MIN_BODY_BYTES_PER_SECOND: u32 = 64 << 10;

/// A request body that has not been read. A handler with this argument can reject the request
/// before it reads the body.
pub struct UnreadBody {
    payload: Payload,
    declared_length: Option<usize>,
    max_bytes: usize,
    timeout: Duration,
    address: ClientAddress,
    limits: web::Data<ConnectionLimits>,
}

impl FromRequest for UnreadBody {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        if let Err(error) = content::require_identity(request.headers()) {
            return ready(Err(error));
        }
        let mut body = || {
            let server = request.app_data::<web::Data<ServerConfig>>()?;
            let length = request.headers().get("content-length");
            Some(Self {
                payload: payload.take(),
                declared_length: length.and_then(|length| length.to_str().ok()?.parse().ok()),
                max_bytes: server.max_body_bytes,
                timeout: server.request_timeout,
                address: request.conn_data::<ClientAddress>().cloned()?,
                limits: request.app_data::<web::Data<ConnectionLimits>>()?.clone(),
            })
        };
        ready(body().ok_or_else(|| Problem::not_found("resource")))
    }
}

impl UnreadBody {
    /// Reads the body of an authenticated caller. Its bytes count for the memory of the node and of
    /// the address until the returned permit is dropped.
    ///
    /// # Errors
    /// `payload_too_large`, `request_timeout`, `over_capacity`, or `invalid_request` if the body is
    /// incomplete.
    pub async fn read(self) -> Result<(web::Bytes, BodyPermit), Problem> {
        let permit = BodyPermit::new(self.address.clone(), true);
        self.limit(None)?.read_chunks(permit).await
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

    /// Reads the body of a sender that is not verified. Its bytes count for
    /// `limits.unverified_body_bytes` until the returned permit is dropped.
    ///
    /// # Errors
    /// As [`UnreadBody::read`].
    pub async fn read_unverified(self) -> Result<(web::Bytes, BodyPermit), Problem> {
        let permit = BodyPermit::new(self.address.clone(), false);
        self.read_chunks(permit).await
    }

    async fn read_chunks(
        mut self,
        mut permit: BodyPermit,
    ) -> Result<(web::Bytes, BodyPermit), Problem> {
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
                return Ok((body.freeze(), permit));
            };
            let chunk = chunk.map_err(|_| Problem::invalid("the body is incomplete"))?;
            if body.len() + chunk.len() > self.max_bytes {
                return Err(too_large(self.max_bytes));
            }
            self.limits.reserve_body(&mut permit, chunk.len())?;
            body.extend_from_slice(&chunk);
        }
    }
}

fn too_large(max_bytes: usize) -> Problem {
    let detail = format!("the body is larger than the limit of {max_bytes} bytes");
    Problem::new(ErrorCode::PayloadTooLarge, detail)
}

/// A JSON body with the bytes that it was parsed from.
pub struct JsonBody<T> {
    /// The parsed body.
    pub value: T,
    raw: web::Bytes,
    _memory: BodyPermit,
}

impl<T: DeserializeOwned + 'static> FromRequest for JsonBody<T> {
    type Error = Problem;
    type Future = LocalBoxFuture<'static, Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let content_type = content::require_json(request.headers());
        let unread = UnreadBody::from_request(request, payload);
        Box::pin(async move {
            content_type?;
            let (raw, memory) = unread.await?.read().await?;
            let value = parse_error::parse_json(&raw).map_err(Problem::invalid)?;
            Ok(Self {
                value,
                raw,
                _memory: memory,
            })
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

/// Returns the mail address of the owner of a new job: the one in the body, which requires
/// `jobs:publish`, or the one in the caller's own token.
pub fn owner_email(
    caller: &Principal,
    owner: &str,
    given: Option<String>,
) -> Result<Option<String>, Problem> {
    match given {
        Some(_) if !caller.may_publish() => Err(Problem::forbidden("jobs:publish")),
        Some(address) if is_address(&address) => Ok(Some(address)),
        Some(_) => Err(Problem::invalid("owner_email must be a mail address")),
        None => {
            let claim = caller.email().filter(|_| owner == caller.subject());
            Ok(claim.filter(|it| is_address(it)).map(str::to_owned))
        }
    }
}

/// Returns whether a text is an http or https URL without control characters. [`Url::parse`] would
/// remove tabs and newlines instead of rejecting them.
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
