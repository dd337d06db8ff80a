//! `/v1/destinations`: the state of each destination, for administrators.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::background::delivery::{Admission, admission};
use crate::destinations::{Destination, Destinations, Verdict};
use crate::outbox::{DestinationState, Disabled, DisabledReason};
use crate::server::caller::Caller;
use crate::server::error::{ErrorCode, Problem};
use crate::server::router::Segment;
use crate::store::{self, Store, StoredDestination};
use crate::telemetry::DestinationStatus;
use crate::time::Time;

/// Maximum number of compare-and-swap attempts. A conflict means that an attempt ended meanwhile.
const MAX_CAS_ATTEMPTS: usize = 8;

/// Returns the state of a destination as clients see it.
pub fn status(state: &DestinationState, now: Time) -> DestinationStatus {
    match admission(state, now) {
        _ if state.disabled.is_some() => DestinationStatus::Disabled,
        Admission::Open => DestinationStatus::Active,
        Admission::Probe | Admission::PausedUntil(_) | Admission::Disabled { .. } => {
            DestinationStatus::Paused
        }
    }
}

fn body(stored: &StoredDestination, configured: Option<&Destination>) -> Value {
    let state = &stored.state;
    let status = match configured {
        Some(_) => status(state, Time::now()).as_str(),
        // It was removed from the configuration while deliveries waited.
        None => "unconfigured",
    };
    json!({
        "name": stored.name,
        "kind": configured.map(|it| it.kind.as_str()),
        "address": configured.map(|it| it.address.as_str()),
        "state": status,
        "waiting": stored.waiting,
        "consecutive_failures": state.consecutive_failures,
        "failing_since": state.failing_since,
        "paused_until": state.paused_until,
        "disabled": state.disabled,
        "last_success_at": state.last_success_at,
        "last_error": state.last_error,
    })
}

/// Returns all destinations by name: the configured ones, and others that have a recorded state or
/// waiting deliveries.
pub async fn stored(
    destinations: &Destinations,
    store: &dyn Store,
) -> Result<Vec<StoredDestination>, store::Error> {
    let mut all = store.destinations().await?;
    for destination in destinations.iter() {
        if !all.iter().any(|stored| stored.name == destination.name) {
            all.push(StoredDestination {
                name: destination.name.clone(),
                state: DestinationState::default(),
                waiting: 0,
            });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn require_admin(caller: &Caller) -> Result<(), Problem> {
    if caller.is_admin() {
        Ok(())
    } else {
        Err(Problem::forbidden("admin"))
    }
}

/// `GET /v1/destinations`: lists all destinations.
pub async fn list(
    caller: Caller,
    store: web::Data<dyn Store>,
    destinations: web::Data<Destinations>,
) -> Result<HttpResponse, Problem> {
    require_admin(&caller)?;
    let all = stored(&destinations, &**store).await?;
    let bodies = all.iter().map(|stored| {
        let configured = destinations.get(&stored.name);
        body(stored, configured.map(AsRef::as_ref))
    });
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "destinations": bodies.collect::<Vec<_>>() })))
}

/// `POST /v1/destinations/{name}/test`: sends a test and returns its result. The result does not
/// change the state of the destination.
pub async fn test(
    caller: Caller,
    destinations: web::Data<Destinations>,
    Segment(name): Segment<2>,
) -> Result<HttpResponse, Problem> {
    require_admin(&caller)?;
    let destination = find(&destinations, &name)?;
    let started = Instant::now();
    let outcome = destination.channel.test().await.ok_or_else(|| {
        let detail = "this destination has no URL of its own; submissions name the URLs";
        Problem::new(ErrorCode::NotTestable, detail)
    })?;
    Ok(HttpResponse::Ok().json(json!({
        "delivered": matches!(outcome.verdict, Verdict::Delivered { .. }),
        "status": outcome.status,
        "duration_ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "error": outcome.verdict.error(),
    })))
}

/// `POST /v1/destinations/{name}/enable`: ends a pause or makes a disabled destination active again.
/// Deliveries that were held are sent.
pub async fn enable(
    caller: Caller,
    store: web::Data<dyn Store>,
    destinations: web::Data<Destinations>,
    Segment(name): Segment<2>,
) -> Result<HttpResponse, Problem> {
    require_admin(&caller)?;
    let enabled = |state: &DestinationState| DestinationState {
        last_success_at: state.last_success_at,
        ..DestinationState::default()
    };
    let response = change(&**store, &destinations, &name, enabled).await?;
    tracing::info!(
        destination.name = name,
        caller.subject = caller.subject(),
        "destination enabled by admin"
    );
    Ok(response)
}

/// `POST /v1/destinations/{name}/disable`: holds all deliveries until the destination is enabled.
pub async fn disable(
    caller: Caller,
    store: web::Data<dyn Store>,
    destinations: web::Data<Destinations>,
    Segment(name): Segment<2>,
) -> Result<HttpResponse, Problem> {
    require_admin(&caller)?;
    let disabled = |state: &DestinationState| DestinationState {
        disabled: Some(Disabled {
            at: Time::now(),
            reason: DisabledReason::Manual,
            recheck_at: None,
        }),
        ..state.clone()
    };
    let response = change(&**store, &destinations, &name, disabled).await?;
    tracing::info!(
        destination.name = name,
        caller.subject = caller.subject(),
        "destination disabled by admin"
    );
    Ok(response)
}

fn find<'d>(destinations: &'d Destinations, name: &str) -> Result<&'d Destination, Problem> {
    let destination = destinations.get(name);
    let destination = destination.ok_or_else(|| Problem::not_found("destination"))?;
    Ok(destination)
}

async fn change(
    store: &dyn Store,
    destinations: &Destinations,
    name: &str,
    change: impl Fn(&DestinationState) -> DestinationState,
) -> Result<HttpResponse, Problem> {
    let destination = find(destinations, name)?;
    for _ in 0..MAX_CAS_ATTEMPTS {
        let before = store.destination_state(name).await?;
        let after = DestinationState {
            revision: before.revision + 1,
            ..change(&before)
        };
        if store.put_destination_state(name, after).await? {
            destination.wakeup.notify_one();
            let all = stored(destinations, store).await?;
            let stored = all.iter().find(|stored| stored.name == name);
            let body = stored.map(|stored| body(stored, Some(destination)));
            return Ok(HttpResponse::Ok().json(body));
        }
    }
    Err(store::Error::Overloaded.into())
}
