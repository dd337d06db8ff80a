//! `/v1/providers`: how each provider is, and the word of an operator that one is mended.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde_json::{Map, Value, json};

use super::caller::Caller;
use super::problem::Problem;
use crate::provider::{Provider, Providers};
use crate::time::Time;
use crate::tracker::WorkerWakeups;

/// `GET /v1/providers`: for anybody with a token; what is left on an account is for admins.
pub async fn list(caller: Caller, providers: web::Data<Providers>) -> HttpResponse {
    let now = Time::now();
    let shown: Vec<Value> = providers
        .iter()
        .map(|provider| shown(provider, caller.is_admin(), now))
        .collect();
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "providers": shown }))
}

/// `POST /v1/providers/{name}/resume`: whatever it was left alone for is mended.
pub async fn resume(
    caller: Caller,
    providers: web::Data<Providers>,
    stir: web::Data<WorkerWakeups>,
    name: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    if !caller.is_admin() {
        return Err(Problem::forbidden("admin"));
    }
    let provider = providers.get(&name);
    let provider = provider.ok_or_else(|| Problem::not_found("provider"))?;
    provider.breaker().reset();
    stir.submitter.notify_one();
    tracing::info!(provider.name = provider.name(), "resumed by an admin");
    Ok(HttpResponse::Ok().json(shown(provider, true, Time::now())))
}

fn shown(provider: &Provider, is_for_admin: bool, now: Time) -> Value {
    let standing = provider.breaker().health(now);
    let mut shown = json!({
        "name": provider.name(),
        "title": provider.title(),
        "state": standing.state,
        "reason": standing.reason,
        "since": standing.since,
        "until": standing.until,
        "max_concurrent": provider.max_concurrent(),
    });
    if is_for_admin {
        shown["balance"] = json!(provider.balance());
    }
    shown
}

/// A word for each provider, as `/v1/health` tells it.
pub fn states(providers: &Providers) -> Map<String, Value> {
    let now = Time::now();
    let state = |provider: &Provider| provider.breaker().health(now).state.as_str();
    providers
        .iter()
        .map(|provider| (provider.name().to_owned(), state(provider).into()))
        .collect()
}
