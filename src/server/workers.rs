//! What workers say: which jobs there are, and how they get on.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::caller::Caller;
use super::jobs::create_response;
use super::problem::Problem;
use super::request::{JsonBody, find_provider, idempotency, validate_metadata, validate_owner};
use crate::config::StoreConfig;
use crate::job::{Failure, FailureKind, Job, JobId, NewJob, Output, Source, Status, StatusReport};
use crate::provider::Providers;
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
}

/// `POST /v1/jobs`: registers a job that was submitted elsewhere, or a worker's own.
pub async fn register(
    caller: Caller,
    tracker: web::Data<Tracker>,
    providers: web::Data<Providers>,
    settings: web::Data<StoreConfig>,
    request: HttpRequest,
    body: JsonBody<Registration>,
) -> Result<HttpResponse, Problem> {
    if !caller.may_publish() {
        return Err(Problem::forbidden("jobs:publish"));
    }
    let idempotency = idempotency(&request, &caller, &body)?;
    let new = body.value;
    validate_owner(&new.owner)?;
    validate_metadata(&new.metadata)?;
    if new.model.as_ref().is_some_and(|model| model.len() > 128) {
        return Err(Problem::invalid("model: must have at most 128 bytes"));
    }
    let provider = match (&new.provider, &new.provider_task_id) {
        (None, None) => None,
        (Some(name), Some(task)) if !task.is_empty() && task.len() <= 512 => {
            Some(find_provider(&providers, name)?)
        }
        _ => {
            return Err(Problem::invalid(
                "provider and provider_task_id: give both, or neither for a worker's own job",
            ));
        }
    };
    // There is no asking once the provider has forgotten it.
    let kept = provider.map(|provider| provider.retention().saturating_sub(Duration::from_secs(1)));
    let longest = kept.map_or(settings.retain_active, |kept| {
        settings.retain_active.min(kept)
    });
    let deadline = match new.deadline_seconds {
        Some(seconds) if seconds > 0.0 && seconds <= longest.as_secs_f64() => {
            Duration::from_secs_f64(seconds)
        }
        Some(_) => {
            return Err(Problem::invalid(format!(
                "deadline_seconds: must be more than 0 and at most {}",
                longest.as_secs()
            )));
        }
        None => provider.map_or(longest, |provider| provider.poll_policy().deadline),
    };
    let job = Job::new(
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
    let (created, job) = tracker.create(job, idempotency, Vec::new()).await?;
    create_response(created, job, StatusCode::CREATED)
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
    #[serde(default = "technical")]
    kind: FailureKind,
    #[serde(default)]
    message: String,
    provider_code: Option<String>,
    retryable: Option<bool>,
}

fn technical() -> FailureKind {
    FailureKind::Technical
}

impl UpdateRequest {
    fn report(self) -> Result<StatusReport, Problem> {
        if self
            .progress
            .is_some_and(|percent| !(0.0..=100.0).contains(&percent))
        {
            return Err(Problem::invalid("progress: must be 0 to 100"));
        }
        if self
            .eta_seconds
            .is_some_and(|seconds| !seconds.is_finite() || seconds < 0.0)
        {
            return Err(Problem::invalid("eta_seconds: must be 0 or more"));
        }
        if self
            .stage
            .as_ref()
            .is_some_and(|stage| stage.chars().count() > 200)
        {
            return Err(Problem::invalid("stage: must have at most 200 characters"));
        }
        if !self.outputs.is_empty() && self.status != Some(Status::Succeeded) {
            return Err(Problem::invalid("outputs: come with the status succeeded"));
        }
        if self.outputs.len() > 100 || self.outputs.iter().any(|output| output.url.len() > 4096) {
            return Err(Problem::invalid(
                "outputs: at most 100, each URL of at most 4096 characters",
            ));
        }
        let is_long = |error: &UpdateRequestError| {
            error.message.chars().count() > 1000
                || error
                    .provider_code
                    .as_ref()
                    .is_some_and(|code| code.len() > 128)
        };
        if self.error.as_ref().is_some_and(is_long) {
            return Err(Problem::invalid(
                "error: the message must have at most 1000 characters, the provider_code 128",
            ));
        }
        let status = match (self.status, &self.error) {
            (Some(Status::Failed) | None, Some(_)) => Some(Status::Failed),
            (Some(_), Some(_)) => {
                return Err(Problem::invalid("error: comes with the status failed"));
            }
            (status, None) => status,
        };
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
}

/// `POST /v1/jobs/{id}/updates`: a worker's push.
pub async fn push(
    caller: Caller,
    tracker: web::Data<Tracker>,
    id: web::Path<String>,
    body: JsonBody<UpdateRequest>,
) -> Result<HttpResponse, Problem> {
    let id = JobId::parse(&id).map_err(|_| Problem::not_found("job"))?;
    if !caller.may_update(id.as_str()) {
        return Err(Problem::forbidden("jobs:publish"));
    }
    let report = body.value.report()?;
    let recorded = tracker
        .apply_update(&id, report.into_update(Source::Push))
        .await?;
    if !recorded.applied && recorded.job.is_final() {
        return Err(Problem::conflict(
            "job_final",
            "the job has ended; nothing changes it any more",
            &recorded.job,
        ));
    }
    Ok(HttpResponse::Ok()
        .json(json!({ "applied": recorded.applied, "version": recorded.job.version })))
}
