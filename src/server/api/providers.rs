//! `/v1/providers`: the state of each provider, and resuming a suspended one.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde_json::{Map, Value, json};

use crate::provider::{Provider, Providers};
use crate::server::caller::Caller;
use crate::server::error::Problem;
use crate::server::router::Segment;
use crate::time::Time;
use crate::tracker::WorkerWakeups;

/// `GET /v1/providers`: lists the providers. An admin also receives the account balances.
pub async fn list(caller: Caller, providers: web::Data<Providers>) -> HttpResponse {
    let now = Time::now();
    let entries: Vec<Value> = providers
        .iter()
        .map(|provider| entry(provider, caller.is_admin(), now))
        .collect();
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "providers": entries }))
}

/// `POST /v1/providers/{name}/resume`: closes the circuits of a provider and sends waiting jobs.
pub async fn resume(
    caller: Caller,
    providers: web::Data<Providers>,
    wakeups: web::Data<WorkerWakeups>,
    Segment(name): Segment<2>,
) -> Result<HttpResponse, Problem> {
    if !caller.is_admin() {
        return Err(Problem::forbidden("admin"));
    }
    let provider = providers.get(&name);
    let provider = provider.ok_or_else(|| Problem::not_found("provider"))?;
    provider.breaker().reset();
    wakeups.submitter.notify_one();
    tracing::info!(provider.name = provider.name(), "provider resumed by admin");
    Ok(HttpResponse::Ok().json(entry(provider, true, Time::now())))
}

fn entry(provider: &Provider, has_balance: bool, now: Time) -> Value {
    let health = provider.breaker().health(now);
    let mut entry = json!({
        "name": provider.name(),
        "title": provider.title(),
        "state": health.state,
        "reason": health.reason,
        "since": health.since,
        "until": health.until,
        "holds": health.holds,
        "max_concurrent": provider.max_concurrent(),
    });
    if has_balance {
        entry["balance"] = json!(provider.balance());
    }
    entry
}

/// Returns the state of each provider by name, for `/v1/health`.
pub fn states(providers: &Providers) -> Map<String, Value> {
    let now = Time::now();
    let state = |provider: &Provider| provider.breaker().health(now).state.as_str();
    providers
        .iter()
        .map(|provider| (provider.name().to_owned(), state(provider).into()))
        .collect()
}
