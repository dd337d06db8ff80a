//! `POST /v1/tokens`: a browser's token, minted for a caller who may do everything.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use crate::job::JobId;
use crate::server::caller::Caller;
use crate::server::error::Problem;
use crate::server::request::{JsonBody, validate_owner};
use crate::time::Time;
use progress_hub_auth::jwt::Minter;

/// How long a token lasts unless asked for otherwise, and at most, in seconds.
const TTL: u64 = 15 * 60;
const MAX_TTL: u64 = 24 * 60 * 60;

/// The most jobs that one token may name: it has to fit in a header.
const MAX_JOBS: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    sub: String,
    jobs: Option<Vec<String>>,
    scope: Option<String>,
    ttl_seconds: Option<u64>,
}

/// Mints a token with the first configured HS256 secret.
pub async fn mint(
    caller: Caller,
    minter: web::Data<Option<Minter>>,
    body: JsonBody<TokenRequest>,
) -> Result<HttpResponse, Problem> {
    if !caller.is_admin() {
        return Err(Problem::forbidden("admin"));
    }
    let Some(minter) = minter.get_ref() else {
        let detail =
            "no auth.hs256_secrets is configured, so this hub can check tokens but mint none";
        return Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "minting_unavailable",
            detail,
        ));
    };
    let wish = body.value;
    validate_owner(&wish.sub).map_err(|_| Problem::invalid("sub: must have 1 to 255 bytes"))?;
    let ttl = wish.ttl_seconds.unwrap_or(TTL);
    if !(1..=MAX_TTL).contains(&ttl) {
        return Err(Problem::invalid(format!(
            "ttl_seconds: must be 1 to {MAX_TTL}"
        )));
    }
    if let Some(jobs) = &wish.jobs {
        if jobs.len() > MAX_JOBS {
            return Err(Problem::invalid(format!("jobs: at most {MAX_JOBS}")));
        }
        if let Some(bad) = jobs.iter().position(|id| JobId::parse(id).is_err()) {
            return Err(Problem::invalid(format!("jobs[{bad}]: is no job id")));
        }
    }
    let minted = minter.mint(
        &wish.sub,
        wish.jobs,
        wish.scope.as_deref(),
        Duration::from_secs(ttl),
        Time::now().timestamp(),
    );
    let minted = minted.map_err(|error| Problem::invalid(error.to_string()))?;
    Ok(HttpResponse::Created()
        .json(json!({ "token": minted.token, "expires_at": Time::from(minted.expires_at) })))
}
