//! `POST /v1/videos`: submits a job through the hub.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::jobs::create_response;
use crate::admission::{AdmissionControl, Admitted};
use crate::config::Defaults;
use crate::destinations::WebhookHosts;
use crate::job::VideoRequest;
use crate::links::Links;
use crate::provider::Providers;
use crate::server::caller::Caller;
use crate::server::error::Problem;
use crate::server::request::{
    JsonBody, find_provider, idempotency, owner_email, validate_metadata,
};
use crate::store::{CreateOutcome, Store};
use crate::time::Time;
use crate::tracker::Tracker;

/// Stores the job and returns 202. The submitter sends it to the provider afterwards.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments list exactly what the handler uses"
)]
pub async fn submit(
    caller: Caller,
    tracker: web::Data<Tracker>,
    store: web::Data<dyn Store>,
    admission: web::Data<AdmissionControl>,
    providers: web::Data<Providers>,
    defaults: web::Data<Defaults>,
    links: web::Data<Links>,
    webhook_hosts: web::Data<WebhookHosts>,
    request: HttpRequest,
    body: JsonBody<VideoRequest>,
) -> Result<HttpResponse, Problem> {
    if !caller.may_submit() {
        return Err(Problem::forbidden("jobs:write"));
    }
    let idempotency = idempotency(&request, &caller, &body)?;
    let mut video = body.value;
    validate_metadata(&video.metadata)?;
    let owner_email = owner_email(&caller, caller.subject(), video.owner_email.take())?;
    let webhook_url = video.webhook_url.take();
    let webhook_url = webhook_url
        .map(|url| webhook_hosts.parse(&url))
        .transpose()?;
    let provider = match video.provider.as_ref().or(defaults.provider.as_ref()) {
        Some(name) => find_provider(&providers, name)?,
        None => providers.single().ok_or_else(|| {
            Problem::invalid("provider is required because no default provider is configured")
        })?,
    };
    if !provider.can_submit() {
        return Err(Problem::invalid(format!(
            "provider '{}' only sends webhooks; the hub cannot submit jobs to it",
            provider.name()
        )));
    }
    let now = Time::now();
    let Admitted {
        mut job,
        budget_entries,
    } = admission.admit(caller.subject(), provider, video, now)?;
    let internal = Arc::make_mut(&mut job.internal);
    internal.owner_email = owner_email;
    internal.webhook_url = webhook_url;
    let entries = budget_entries.entries();
    let (outcome, job) = tracker.create(job, idempotency, entries).await?;
    if let CreateOutcome::LimitExceeded { window } = &outcome {
        let error = admission
            .limit_error(&budget_entries, window, &**store, now)
            .await?;
        return Err(error.into());
    }
    create_response(&links, &caller, outcome, job, StatusCode::ACCEPTED)
}
