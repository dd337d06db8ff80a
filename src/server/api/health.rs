//! `/v1/health` and `/metrics`: health checks and metrics of this node.

use std::time::{Duration, Instant};

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use super::destinations;
use super::providers::states;
use crate::destinations::Destinations;
use crate::hub::{FeedHealth, Hub};
use crate::provider::Providers;
use crate::server::caller::Caller;
use crate::server::drain::Drain;
use crate::server::error::Problem;
use crate::store::Store;
use crate::telemetry::{METRICS_CONTENT_TYPE, Metrics};
use crate::time::Time;

/// Start time of this node.
pub struct StartedAt(pub Instant);

/// Time after which a store that does not answer a ping counts as unavailable.
const PING_TIMEOUT: Duration = Duration::from_millis(800);

async fn is_store_available(store: &dyn Store) -> bool {
    matches!(
        tokio::time::timeout(PING_TIMEOUT, store.ping()).await,
        Ok(Ok(()))
    )
}

/// `GET /v1/health`: always 200. `status` is `ok`, `degraded` or `draining`.
pub async fn check(
    store: web::Data<dyn Store>,
    hub: web::Data<Hub>,
    drain: web::Data<Drain>,
    started_at: web::Data<StartedAt>,
    providers: web::Data<Providers>,
) -> HttpResponse {
    let status = if drain.is_draining() {
        "draining"
    } else if hub.health() == FeedHealth::Healthy && is_store_available(&**store).await {
        "ok"
    } else {
        "degraded"
    };
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({
            "status": status,
            "version": env!("CARGO_PKG_VERSION"),
            "store": store.name(),
            "uptime_seconds": started_at.0.elapsed().as_secs(),
            "providers": states(&providers),
        }))
}

/// `GET /v1/health/live`: the liveness probe. It depends on nothing, because a restart fixes no other
/// problem.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

/// `GET /v1/health/ready`: the readiness probe. It fails while the node drains or the store is
/// unavailable or rejects writes.
pub async fn ready(store: web::Data<dyn Store>, drain: web::Data<Drain>) -> HttpResponse {
    let (status, mut response) = if drain.is_draining() {
        ("draining", HttpResponse::ServiceUnavailable())
    } else if is_store_available(&**store).await {
        ("ok", HttpResponse::Ok())
    } else {
        ("store_unavailable", HttpResponse::ServiceUnavailable())
    };
    response.json(json!({ "status": status }))
}

/// Marks the admin listener, whose clients may see all metrics.
pub struct AdminListener;

/// `GET /metrics`: metrics in the OpenMetrics text format. The public listener returns balances and
/// spending only to an admin. The admin listener verifies no tokens and always returns them.
pub async fn metrics(
    caller: Result<Caller, Problem>,
    metrics: web::Data<Metrics>,
    hub: web::Data<Hub>,
    store: web::Data<dyn Store>,
    providers: web::Data<Providers>,
    destinations: web::Data<Destinations>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let is_admin_listener = request.app_data::<web::Data<AdminListener>>().is_some();
    let may_see_amounts = match caller {
        _ if is_admin_listener => true,
        Ok(caller) => caller.is_admin(),
        // Without this error, a scraper whose token has expired would lose metrics unnoticed.
        Err(problem) if request.headers().contains_key(header::AUTHORIZATION) => {
            return Err(problem);
        }
        Err(_) => false,
    };
    metrics.set_subscribed_jobs(hub.subscribed_jobs());
    metrics.set_subscribed_channels(store.channels().unwrap_or(0));
    for provider in providers.iter() {
        let (name, breaker) = (provider.name(), provider.breaker());
        let health = breaker.health(Time::now());
        metrics.set_provider_state(name, health.state, |state| breaker.transitions(state));
        metrics.set_provider_holds(name, health.holds);
        if let Some(balance) = provider.balance() {
            metrics.set_provider_balance(name, balance.amount);
        }
    }
    // If the store is unavailable, these metrics keep their values.
    let stored = destinations::stored(&destinations, &**store).await;
    let stored = stored.unwrap_or_default();
    for stored in stored
        .iter()
        .filter(|it| destinations.get(&it.name).is_some())
    {
        let status = destinations::status(&stored.state, Time::now());
        metrics.set_destination(&stored.name, status, stored.waiting);
    }
    let text = if may_see_amounts {
        metrics.render()
    } else {
        metrics.render_public()
    };
    Ok(HttpResponse::Ok()
        .content_type(METRICS_CONTENT_TYPE)
        .body(text))
}
