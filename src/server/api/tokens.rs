//! `POST /v1/tokens`: mints tokens for browsers.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use crate::destinations::email::is_address;
use crate::job::JobId;
use crate::server::caller::Caller;
use crate::server::error::{ErrorCode, Problem};
use crate::server::limits::ConnectionLimits;
use crate::server::request::{JsonBody, validate_owner};
use crate::server::security_log::token_minted;
use crate::time::Time;
use progress_hub_auth::jwt::{Minter, Scope, TokenError};

/// Lifetime of a token, by default and at most.
const DEFAULT_TTL_SECONDS: u64 = 15 * 60;
const MAX_TTL_SECONDS: u64 = 24 * 60 * 60;

/// Maximum number of jobs that a token is limited to; the token must fit into a header.
const MAX_JOBS: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    sub: String,
    jobs: Option<Vec<String>>,
    scope: Option<String>,
    ttl_seconds: Option<u64>,
    email: Option<String>,
}

/// Mints a token with the first configured HS256 secret. A token with the scope `admin` expires no
/// later than the caller's token, so that minting cannot extend the lifetime of an admin token.
pub async fn mint(
    caller: Caller,
    minter: web::Data<Option<Minter>>,
    limits: web::Data<ConnectionLimits>,
    request: HttpRequest,
    body: JsonBody<TokenRequest>,
) -> Result<HttpResponse, Problem> {
    if !caller.is_admin() {
        return Err(Problem::forbidden("admin"));
    }
    let minter = minter.get_ref().as_ref().ok_or_else(|| {
        let detail = "minting tokens requires auth.hs256_secrets; this hub only verifies tokens";
        Problem::new(ErrorCode::MintingUnavailable, detail)
    })?;
    let new = body.value;
    validate_owner("sub", &new.sub)?;
    let ttl = new.ttl_seconds.unwrap_or(DEFAULT_TTL_SECONDS);
    if !(1..=MAX_TTL_SECONDS).contains(&ttl) {
        return Err(Problem::invalid(format!(
            "ttl_seconds must be from 1 to {MAX_TTL_SECONDS}"
        )));
    }
    if let Some(jobs) = &new.jobs {
        if jobs.len() > MAX_JOBS {
            return Err(Problem::invalid(format!(
                "jobs must have at most {MAX_JOBS} ids"
            )));
        }
        if let Some(index) = jobs.iter().position(|id| JobId::parse(id).is_err()) {
            return Err(Problem::invalid(format!("jobs[{index}] must be a job id")));
        }
    }
    let email = new.email.as_deref();
    if email.is_some_and(|email| !is_address(email)) {
        return Err(Problem::invalid("email must be a mail address"));
    }
    let (scope, now) = (new.scope.as_deref(), Time::now());
    let mut ttl = Duration::from_secs(ttl);
    if scope.is_some_and(|scope| Scope::parse_list(scope).contains(&Scope::Admin)) {
        let remaining = Time::from(caller.expires_at()).saturating_duration_since(now);
        if remaining < Duration::from_secs(1) {
            return Err(TokenError::Expired.into());
        }
        ttl = ttl.min(remaining);
    }
    let minted = minter
        .mint_with_email(&new.sub, email, new.jobs, scope, ttl, now.timestamp())
        .map_err(|error| Problem::invalid(error.to_string()))?;
    let address = limits.client_address(request.peer_addr(), request.headers());
    token_minted(&caller, address, &new.sub, scope, &minted);
    Ok(HttpResponse::Created()
        .json(json!({ "token": minted.token, "expires_at": Time::from(minted.expires_at) })))
}
