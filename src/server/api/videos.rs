//! `POST /v1/videos`: a job that the hub itself submits.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::jobs::create_response;
use crate::admission::{AdmissionControl, Admitted};
use crate::config::Defaults;
use crate::job::VideoRequest;
use crate::provider::Providers;
use crate::server::caller::Caller;
use crate::server::error::Problem;
use crate::server::request::{JsonBody, find_provider, idempotency, validate_metadata};
use crate::store::{CreateOutcome, Store};
use crate::time::Time;
use crate::tracker::Tracker;

/// Takes a job on, 202, before its provider has heard of it.
#[expect(
    clippy::too_many_arguments,
    reason = "a handler's arguments list exactly what it touches"
)]
pub async fn submit(
    caller: Caller,
    tracker: web::Data<Tracker>,
    store: web::Data<dyn Store>,
    guard: web::Data<AdmissionControl>,
    providers: web::Data<Providers>,
    defaults: web::Data<Defaults>,
    request: HttpRequest,
    body: JsonBody<VideoRequest>,
) -> Result<HttpResponse, Problem> {
    if !caller.may_submit() {
        return Err(Problem::forbidden("jobs:write"));
    }
    let idempotency = idempotency(&request, &caller, &body)?;
    let video = body.value;
    validate_metadata(&video.metadata)?;
    let named = video.provider.as_deref().or(defaults.provider.as_deref());
    let provider = match named {
        Some(name) => find_provider(&providers, name)?,
        None => providers.single().ok_or_else(|| {
            Problem::invalid("provider: is needed, since no default is configured")
        })?,
    };
    if !provider.can_submit() {
        return Err(Problem::invalid(format!(
            "provider: the hub can't submit to '{}', only hear from it",
            provider.name()
        )));
    }
    let now = Time::now();
    let Admitted {
        job,
        budget_entries,
    } = guard.admit(caller.subject(), provider, video, now)?;
    let entries = budget_entries.entries();
    let (created, job) = tracker.create(job, idempotency, entries).await?;
    if let CreateOutcome::LimitExceeded { window } = &created {
        let refusal = guard
            .limit_error(&budget_entries, window, &**store, now)
            .await?;
        return Err(refusal.into());
    }
    create_response(created, job, StatusCode::ACCEPTED)
}
