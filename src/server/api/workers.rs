//! Jobs that are not submitted by the hub: registration and updates by workers.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::jobs::{conflict, create_response};
use crate::config::StoreConfig;
use crate::destinations::WebhookHosts;
use crate::job::{
    Failure, FailureKind, Job, JobId, MAX_ERROR_CODE_CHARS, MAX_ERROR_MESSAGE_CHARS,
    MAX_MODEL_BYTES, MAX_OUTPUT_TYPE_CHARS, MAX_OUTPUTS, MAX_OUTPUTS_BYTES, MAX_STAGE_CHARS,
    MAX_TASK_ID_BYTES, MAX_URL_BYTES, NewJob, Output, Source, Status, StatusReport,
};
use crate::links::Links;
use crate::provider::Providers;
use crate::server::caller::Caller;
use crate::server::error::{ErrorCode, Problem};
use crate::server::request::{
    JsonBody, find_provider, idempotency, is_web_url, owner_email, validate_metadata,
    validate_owner,
};
use crate::server::router::Segment;
use crate::time::Time;
use crate::tracker::Tracker;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    owner: String,
    provider: Option<String>,
    provider_task_id: Option<String>,
    model: Option<String>,
    #[serde(default)]
    metadata: Map<String, Value>,
    deadline_seconds: Option<f64>,
    owner_email: Option<String>,
    webhook_url: Option<String>,
}

/// `POST /v1/jobs`: registers a worker's job, or a job that another program submitted to a provider.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments list exactly what the handler uses"
)]
pub async fn register(
    caller: Caller,
    tracker: web::Data<Tracker>,
    providers: web::Data<Providers>,
    settings: web::Data<StoreConfig>,
    links: web::Data<Links>,
    webhook_hosts: web::Data<WebhookHosts>,
    request: HttpRequest,
    body: JsonBody<Registration>,
) -> Result<HttpResponse, Problem> {
    if !caller.may_publish() {
        return Err(Problem::forbidden("jobs:publish"));
    }
    let idempotency = idempotency(&request, &caller, &body)?;
    let new = body.value;
    validate_owner("owner", &new.owner)?;
    validate_metadata(&new.metadata)?;
    let owner_email = owner_email(&caller, &new.owner, new.owner_email)?;
    let webhook_url = new.webhook_url.as_deref();
    let webhook_url = webhook_url
        .map(|url| webhook_hosts.parse(url))
        .transpose()?;
    let model = new.model.as_deref().unwrap_or_default();
    require(model.len() <= MAX_MODEL_BYTES, || {
        format!("model must have at most {MAX_MODEL_BYTES} bytes")
    })?;
    let provider = match (&new.provider, &new.provider_task_id) {
        (None, None) => None,
        (Some(name), Some(task)) if !task.is_empty() && task.len() <= MAX_TASK_ID_BYTES => {
            Some(find_provider(&providers, name)?)
        }
        _ => {
            return Err(Problem::invalid(
                "provider and provider_task_id must both be set, or both be absent for a worker's job",
            ));
        }
    };
    // The deadline is before the provider deletes the task, so that it can still be polled.
    let max_deadline = provider.map_or(settings.retain_active, |provider| {
        let retention = provider.retention().saturating_sub(Duration::from_secs(1));
        settings.retain_active.min(retention)
    });
    let deadline = match new.deadline_seconds {
        Some(seconds) if seconds > 0.0 && seconds <= max_deadline.as_secs_f64() => {
            Duration::from_secs_f64(seconds)
        }
        Some(_) => {
            return Err(Problem::invalid(format!(
                "deadline_seconds must be greater than 0 and at most {}",
                max_deadline.as_secs()
            )));
        }
        None => provider.map_or(max_deadline, |provider| provider.poll_policy().deadline),
    };
    let mut job = Job::new(
        NewJob {
            owner: new.owner,
            provider: new.provider,
            provider_task_id: new.provider_task_id,
            model: new.model,
            metadata: new.metadata,
            request: None,
            deadline,
        },
        Time::now(),
    );
    let internal = Arc::make_mut(&mut job.internal);
    internal.owner_email = owner_email;
    internal.webhook_url = webhook_url;
    let (outcome, job) = tracker.create(job, idempotency, Vec::new()).await?;
    create_response(&links, &caller, outcome, job, StatusCode::CREATED)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    status: Option<Status>,
    progress: Option<f64>,
    stage: Option<String>,
    queue_position: Option<u32>,
    eta_seconds: Option<f64>,
    #[serde(default)]
    outputs: Vec<Output>,
    error: Option<UpdateRequestError>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateRequestError {
    #[serde(default = "default_kind")]
    kind: FailureKind,
    #[serde(default)]
    message: String,
    provider_code: Option<String>,
    retryable: Option<bool>,
}

fn default_kind() -> FailureKind {
    FailureKind::Technical
}

/// Returns a problem with this detail unless the condition holds.
fn require<D: Into<String>>(is_valid: bool, detail: impl FnOnce() -> D) -> Result<(), Problem> {
    if is_valid {
        Ok(())
    } else {
        Err(Problem::invalid(detail()))
    }
}

impl UpdateRequest {
    /// Checks the limits of each field.
    fn into_report(self) -> Result<StatusReport, Problem> {
        let is_percentage = |percent| (0.0..=100.0).contains(&percent);
        require(
            self.progress.is_none_or(is_percentage),
            || "progress must be from 0 to 100",
        )?;
        let is_duration = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        require(
            self.eta_seconds.is_none_or(is_duration),
            || "eta_seconds must be 0 or greater",
        )?;
        let stage = self.stage.as_deref().unwrap_or_default();
        require(stage.chars().count() <= MAX_STAGE_CHARS, || {
            format!("stage must have at most {MAX_STAGE_CHARS} characters")
        })?;
        self.check_outputs()?;
        self.check_error()?;
        // An error without a status is a failure.
        let status = self.status.or(self.error.as_ref().map(|_| Status::Failed));
        let error = self.error.map(|error| {
            let failure = Failure::new(error.kind, error.message);
            Failure {
                provider_code: error.provider_code,
                retryable: error.retryable.unwrap_or(failure.retryable),
                ..failure
            }
        });
        Ok(StatusReport {
            status,
            progress: self.progress,
            queue_position: self.queue_position,
            stage: self.stage,
            eta_seconds: self.eta_seconds,
            outputs: self.outputs,
            error,
            is_authoritative: true,
            ..StatusReport::default()
        })
    }

    fn check_outputs(&self) -> Result<(), Problem> {
        let outputs = &self.outputs;
        let all_urls = || outputs.iter().flat_map(urls);
        require(
            outputs.is_empty() || self.status == Some(Status::Succeeded),
            || "outputs require the status succeeded",
        )?;
        let is_short = |url: &str| url.len() <= MAX_URL_BYTES;
        require(
            outputs.len() <= MAX_OUTPUTS && all_urls().all(is_short),
            || {
                format!(
                    "outputs must have at most {MAX_OUTPUTS} entries, and each url at most {MAX_URL_BYTES} bytes"
                )
            },
        )?;
        require(
            all_urls().all(is_web_url),
            || "outputs[].url and outputs[].watermark_url must be http or https URLs without control characters",
        )?;
        let bytes: usize = all_urls().map(str::len).sum();
        require(bytes <= MAX_OUTPUTS_BYTES, || {
            format!("outputs must have at most {MAX_OUTPUTS_BYTES} bytes of URLs")
        })?;
        let is_type = |output: &Output| output.kind.chars().count() <= MAX_OUTPUT_TYPE_CHARS;
        require(outputs.iter().all(is_type), || {
            format!("outputs: each type must have at most {MAX_OUTPUT_TYPE_CHARS} characters")
        })
    }

    fn check_error(&self) -> Result<(), Problem> {
        let Some(error) = &self.error else {
            return Ok(());
        };
        let code = error.provider_code.as_deref().unwrap_or_default();
        let is_short = error.message.chars().count() <= MAX_ERROR_MESSAGE_CHARS
            && code.chars().count() <= MAX_ERROR_CODE_CHARS;
        require(is_short, || {
            format!(
                "error.message must have at most {MAX_ERROR_MESSAGE_CHARS} characters, error.provider_code at most {MAX_ERROR_CODE_CHARS}"
            )
        })?;
        require(
            matches!(self.status, Some(Status::Failed) | None),
            || "error requires the status failed",
        )
    }
}

fn urls(output: &Output) -> impl Iterator<Item = &str> {
    let urls = std::iter::once(&output.url).chain(&output.watermark_url);
    urls.map(String::as_str)
}

/// The response to an update.
#[derive(Serialize)]
struct UpdateResponse {
    applied: bool,
    version: u64,
}

/// `POST /v1/jobs/{id}/updates`: applies an update by a worker.
pub async fn push(
    caller: Caller,
    tracker: web::Data<Tracker>,
    Segment(id): Segment<2>,
    body: JsonBody<UpdateRequest>,
) -> Result<HttpResponse, Problem> {
    let id = JobId::parse(&id).map_err(|_| Problem::not_found("job"))?;
    if !caller.may_update(id.as_str()) {
        return Err(Problem::forbidden("jobs:publish"));
    }
    let report = body.value.into_report()?;
    let outcome = tracker
        .apply_update(&id, report.into_update(Source::Push))
        .await?;
    if !outcome.applied && outcome.job.is_final() {
        let detail = "the job is final and cannot change";
        return Err(conflict(ErrorCode::JobFinal, detail, &caller, &outcome.job));
    }
    Ok(HttpResponse::Ok().json(UpdateResponse {
        applied: outcome.applied,
        version: outcome.job.version,
    }))
}
