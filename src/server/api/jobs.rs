//! `/v1/jobs`: read, list and cancel jobs.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::outputs::archived::{JobWithArchive, with_archive};
use crate::admission::AdmissionError;
use crate::cancellation::{CancelError, CancelService};
use crate::destinations::archive::Archive;
use crate::hub::Hub;
use crate::job::{Job, JobId, Status};
use crate::links::Links;
use crate::server::caller::Caller;
use crate::server::drain::Drain;
use crate::server::error::{ErrorCode, Problem};
use crate::server::limits::ConnectionLimits;
use crate::server::request::Query;
use crate::server::router::Segment;
use crate::server::subscribe::{NotifySink, granted_job_ids, subscribe, visible};
use crate::store::{CreateOutcome, ListQuery, Store};
use crate::telemetry::{ConnectionKind, Metrics};
use crate::time::Time;
use progress_hub_auth::jwt::{Principal, TokenError};

/// Maximum time of a long poll. A longer `wait` is reduced to it.
const MAX_WAIT_SECONDS: f64 = 60.0;

/// Number of jobs on a page, by default and at most.
const DEFAULT_PAGE_SIZE: usize = 50;
const MAX_PAGE_SIZE: usize = 200;

#[derive(Deserialize)]
pub struct LongPollQuery {
    wait: Option<f64>,
    since: Option<u64>,
}

/// `GET /v1/jobs/{id}`: returns the document. With `since` and `wait`, waits for a newer version.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments list exactly what the handler uses"
)]
pub async fn show(
    caller: Caller,
    store: web::Data<dyn Store>,
    archive: Option<web::Data<Archive>>,
    hub: web::Data<Hub>,
    drain: web::Data<Drain>,
    limits: web::Data<ConnectionLimits>,
    metrics: web::Data<Metrics>,
    request: HttpRequest,
    Segment(id): Segment<2>,
    Query(query): Query<LongPollQuery>,
) -> Result<HttpResponse, Problem> {
    let if_none_match = request.headers().get(header::IF_NONE_MATCH);
    let since = query.since.or_else(|| {
        let tags = if_none_match?.to_str().ok()?;
        newest_etag_version(tags)
    });
    let wait = query.wait.unwrap_or(0.0);
    if !wait.is_finite() || wait < 0.0 {
        return Err(Problem::invalid(
            "wait must be a number of seconds from 0 to 60",
        ));
    }
    let mut job = visible(&**store, &caller, &id).await?;
    if let Some(since) = since
        && job.version <= since
        && wait > 0.0
        && !job.is_final()
    {
        let _permit = limits.open_stream(&request, &caller, 1, false)?;
        let token_lifetime = Time::from(caller.expires_at()).saturating_duration_since(Time::now());
        let _open = metrics.connection_opened(ConnectionKind::Poll);
        let wait = Duration::from_secs_f64(wait.min(MAX_WAIT_SECONDS));
        tokio::select! {
            newer = wait_for_newer(&hub, &**store, &caller, &job.id, since) => job = newer?,
            () = tokio::time::sleep(wait) => {}
            () = tokio::time::sleep(token_lifetime) => return Err(TokenError::Expired.into()),
            () = drain.started() => {}
        }
    }
    let etag = (header::ETAG, format!("\"{}\"", job.version));
    if since.is_some_and(|since| job.version <= since) {
        return Ok(HttpResponse::NotModified().insert_header(etag).finish());
    }
    let body = with_archive(&**store, archive.as_ref(), vec![job]).await?;
    Ok(HttpResponse::Ok()
        .insert_header(etag)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(body.first()))
}

/// Returns the highest version among the tags of an `If-None-Match` header. `*` matches every version.
fn newest_etag_version(tags: &str) -> Option<u64> {
    if tags.trim() == "*" {
        return Some(u64::MAX);
    }
    let version = |tag: &str| {
        let tag = tag.trim().trim_start_matches("W/");
        tag.trim_matches('"').parse().ok()
    };
    tags.split(',').filter_map(version).max()
}

async fn wait_for_newer(
    hub: &Arc<Hub>,
    store: &dyn Store,
    caller: &Principal,
    id: &JobId,
    since: u64,
) -> Result<Arc<Job>, Problem> {
    let (sink, connection) = NotifySink::connect(hub);
    let paused = subscribe(&connection, store, caller, slice::from_ref(id)).await?;
    if paused.jobs().is_empty() {
        return Err(Problem::not_found("job"));
    }
    paused.activate(|_| since);
    loop {
        if let Some(frame) = connection.next_frame() {
            return Ok(Arc::clone(frame.job()));
        }
        sink.changed().await;
    }
}

#[derive(Serialize)]
struct JobListBody {
    jobs: Vec<JobWithArchive>,
    next_cursor: Option<JobId>,
}

#[derive(Deserialize)]
pub struct ListParams {
    status: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
    owner: Option<String>,
}

/// `GET /v1/jobs`: lists the caller's jobs, newest first. An admin may select an `owner`, or all with `*`.
pub async fn list(
    caller: Caller,
    store: web::Data<dyn Store>,
    archive: Option<web::Data<Archive>>,
    Query(query): Query<ListParams>,
) -> Result<HttpResponse, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE_SIZE);
    if !(1..=MAX_PAGE_SIZE).contains(&limit) {
        return Err(Problem::invalid(format!(
            "limit must be from 1 to {MAX_PAGE_SIZE}"
        )));
    }
    let status = query.status.as_deref().map(parse_status).transpose()?;
    let cursor = query.cursor.as_deref().map(JobId::parse).transpose();
    let before = cursor
        .map_err(|_| Problem::invalid("cursor must be the next_cursor of an earlier response"))?;
    let owner = match query.owner.as_deref() {
        Some("*") if caller.is_admin() => None,
        Some(owner) if caller.is_admin() || owner == caller.subject() => Some(owner.to_owned()),
        Some(_) => return Err(Problem::forbidden("admin")),
        None => Some(caller.subject().to_owned()),
    };
    // One more than requested, which shows whether there is a next page.
    let mut jobs = if let Some(ids) = granted_job_ids(&caller) {
        let mut jobs = store.get_many(&ids).await?;
        jobs.sort_by(|a, b| b.id.cmp(&a.id));
        jobs.retain(|job| {
            status.is_none_or(|status| job.status == status)
                && before.as_ref().is_none_or(|before| job.id < *before)
        });
        jobs.truncate(limit + 1);
        jobs
    } else {
        let query = ListQuery {
            owner,
            status,
            before,
            limit: limit + 1,
            active_first: false,
        };
        store.list(query).await?
    };
    jobs.retain(|job| caller.may_see(job.id.as_str(), &job.owner));
    let has_next_page = jobs.len() > limit;
    jobs.truncate(limit);
    let last = jobs.last().filter(|_| has_next_page);
    let next_cursor = last.map(|job| job.id.clone());
    let jobs = with_archive(&**store, archive.as_ref(), jobs).await?;
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(JobListBody { jobs, next_cursor }))
}

fn parse_status(name: &str) -> Result<Status, Problem> {
    name.parse().map_err(|_| {
        let names: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
        Problem::invalid(format!("status must be one of {}", names.join(", ")))
    })
}

/// Returns a problem about a conflict with `job`. It includes the document if the caller may see
/// the job.
pub fn conflict(code: ErrorCode, detail: &str, caller: &Principal, job: &Job) -> Problem {
    let problem = Problem::new(code, detail);
    if caller.may_see(job.id.as_str(), &job.owner) {
        problem.with_job(job)
    } else {
        problem
    }
}

/// Returns the response to a request that creates a job.
pub fn create_response(
    links: &Links,
    caller: &Principal,
    outcome: CreateOutcome,
    job: Arc<Job>,
    status: StatusCode,
) -> Result<HttpResponse, Problem> {
    let job = match outcome {
        CreateOutcome::Created | CreateOutcome::Conflict => job,
        CreateOutcome::Replayed(job) => job,
        CreateOutcome::IdempotencyKeyConflict => {
            return Err(Problem::new(
                ErrorCode::IdempotencyConflict,
                "the Idempotency-Key was used for another request",
            ));
        }
        CreateOutcome::LimitExceeded { window } => {
            let detail = format!("{window}: the budget is exhausted");
            return Err(AdmissionError::Budget(detail).into());
        }
        CreateOutcome::TaskConflict(job) => {
            let detail = "this provider task is already registered";
            return Err(conflict(ErrorCode::TaskKnown, detail, caller, &job));
        }
    };
    let location = (header::LOCATION, links.job_path(&job.id));
    Ok(HttpResponse::build(status)
        .insert_header(location)
        .json(job))
}

/// `GET /v1/jobs/{id}/cancel`: whether the caller can cancel the job now.
pub async fn cancellable(
    caller: Caller,
    canceller: web::Data<CancelService>,
    Segment(id): Segment<2>,
) -> Result<HttpResponse, Problem> {
    let reason = match canceller.check(&caller, &id).await {
        Ok(()) => None,
        Err(error @ (CancelError::NotCancellable(_) | CancelError::Forbidden)) => {
            Some(Problem::from(error).detail().to_owned())
        }
        Err(error) => return Err(error.into()),
    };
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "cancellable": reason.is_none(), "reason": reason })))
}

/// `POST /v1/jobs/{id}/cancel`: cancels a job that was not submitted, or requests it from the provider.
pub async fn cancel(
    caller: Caller,
    canceller: web::Data<CancelService>,
    Segment(id): Segment<2>,
) -> Result<HttpResponse, Problem> {
    let job = canceller.cancel(&caller, &id).await?;
    Ok(HttpResponse::Accepted().json(job))
}
