//! `/v1/health`, `/metrics`: how this node is.

use std::time::Instant;

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde_json::json;

use super::drain::Drain;
use super::providers::states;
use crate::hub::{FeedHealth, Hub};
use crate::provider::Providers;
use crate::store::Store;
use crate::telemetry::{METRICS_CONTENT_TYPE, Metrics};
use crate::time::Time;

/// When this node began to serve.
pub struct StartedAt(pub Instant);

/// How long the store may take to say that it is there.
const STORE_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(800);

async fn is_store_available(store: &dyn Store) -> bool {
    matches!(
        tokio::time::timeout(STORE_TIMEOUT, store.ping()).await,
        Ok(Ok(()))
    )
}

/// `GET /v1/health`: always 200 while the process answers; the words tell more.
pub async fn check(
    store: web::Data<dyn Store>,
    hub: web::Data<Hub>,
    drain: web::Data<Drain>,
    begun: web::Data<StartedAt>,
    providers: web::Data<Providers>,
) -> HttpResponse {
    let is_current = hub.health() == FeedHealth::Healthy && is_store_available(&**store).await;
    let status = match (drain.is_draining(), is_current) {
        (true, _) => "draining",
        (false, true) => "ok",
        (false, false) => "degraded",
    };
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({
            "status": status,
            "version": env!("CARGO_PKG_VERSION"),
            "store": store.name(),
            "uptime_seconds": begun.0.elapsed().as_secs(),
            "providers": states(&providers),
        }))
}

/// `GET /v1/health/live`: whether the process answers; a restart would not help anything else.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

/// `GET /v1/health/ready`: whether a load balancer should send anything here.
pub async fn ready(store: web::Data<dyn Store>, drain: web::Data<Drain>) -> HttpResponse {
    let status = match drain.is_draining() {
        true => "draining",
        false if is_store_available(&**store).await => "ok",
        false => "store_unavailable",
    };
    let mut answer = if status == "ok" {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    answer.json(json!({ "status": status }))
}

/// `GET /metrics`: the Prometheus text.
pub async fn metrics(
    metrics: web::Data<Metrics>,
    hub: web::Data<Hub>,
    providers: web::Data<Providers>,
) -> HttpResponse {
    metrics.set_subscribed_jobs(hub.subscribed_jobs());
    for provider in providers.iter() {
        let (name, gate) = (provider.name(), provider.breaker());
        metrics.set_provider_state(name, gate.health(Time::now()).state, |state| {
            gate.transitions(state)
        });
        if let Some(balance) = provider.balance() {
            metrics.set_provider_balance(name, balance.amount);
        }
    }
    HttpResponse::Ok()
        .content_type(METRICS_CONTENT_TYPE)
        .body(metrics.render())
}
