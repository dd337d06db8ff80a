//! `/v1/jobs`: look at jobs, and cancel them.

use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::admission::AdmissionError;
use crate::background::change_feed;
use crate::cancellation::CancelService;
use crate::hub::{Connection, FeedHealth, Hub, Sink};
use crate::job::{Job, JobId, Status};
use crate::protocol::Frame;
use crate::server::caller::Caller;
use crate::server::drain::Drain;
use crate::server::error::Problem;
use crate::store::{CreateOutcome, ListQuery, Store};
use crate::telemetry::{ConnectionKind, Metrics};
use progress_hub_auth::jwt::Principal;

/// The longest a request may be held, in seconds.
const MAX_WAIT: f64 = 60.0;

/// Jobs on a page, unless asked for otherwise, and at most.
const PAGE: usize = 50;
const MAX_PAGE: usize = 200;

/// The job, if this caller may see it; otherwise there is none.
pub async fn load_visible_job(
    store: &dyn Store,
    caller: &Principal,
    id: &str,
) -> Result<Arc<Job>, Problem> {
    let id = JobId::parse(id).map_err(|_| Problem::not_found("job"))?;
    let job = store.get(&id).await?;
    job.filter(|job| caller.may_see(job.id.as_str(), &job.owner))
        .ok_or_else(|| Problem::not_found("job"))
}

#[derive(Deserialize)]
pub struct LongPollQuery {
    wait: Option<f64>,
    since: Option<u64>,
}

/// `GET /v1/jobs/{id}`: the document, at once or once it is newer than `since`.
#[expect(clippy::too_many_arguments, reason = "they are what it touches")]
pub async fn show(
    caller: Caller,
    store: web::Data<dyn Store>,
    hub: web::Data<Hub>,
    drain: web::Data<Drain>,
    metrics: web::Data<Metrics>,
    request: HttpRequest,
    id: web::Path<String>,
    hold: web::Query<LongPollQuery>,
) -> Result<HttpResponse, Problem> {
    let tag = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .and_then(|tag| tag.to_str().ok());
    let tagged = tag.and_then(newest_etag_version);
    let since = hold.since.or(tagged);
    let wait = hold.wait.unwrap_or(0.0);
    if !wait.is_finite() || wait < 0.0 {
        return Err(Problem::invalid(
            "wait: must be a number of seconds, 0 to 60",
        ));
    }
    let job = load_visible_job(&**store, &caller, &id).await?;
    let job = match since {
        Some(since) if job.version <= since && wait > 0.0 && !job.is_final() => {
            let _open = metrics.connection_opened(ConnectionKind::Poll);
            let wait = Duration::from_secs_f64(wait.min(MAX_WAIT));
            tokio::select! {
                newer = wait_for_newer(&hub, &**store, &job, since) => newer?,
                () = tokio::time::sleep(wait) => job,
                () = drain.begun() => job,
            }
        }
        Some(_) | None => job,
    };
    let etag = (header::ETAG, format!("\"{}\"", job.version));
    Ok(match since.is_some_and(|since| job.version <= since) {
        true => HttpResponse::NotModified().insert_header(etag).finish(),
        false => HttpResponse::Ok()
            .insert_header(etag)
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(job),
    })
}

/// The newest version among the tags of an `If-None-Match`.
fn newest_etag_version(tags: &str) -> Option<u64> {
    let version = |tag: &str| {
        let tag = tag.trim().trim_start_matches("W/");
        tag.trim_matches('"').parse().ok()
    };
    tags.split(',').filter_map(version).max()
}

/// Rings when something newer is there.
struct NotifySink(Notify);

impl Sink for NotifySink {
    fn try_send(&self, _: &Frame) -> bool {
        false
    }

    fn notify_pending(&self) {
        self.0.notify_one();
    }

    fn health_changed(&self, _: FeedHealth) {}
}

async fn wait_for_newer(
    hub: &Arc<Hub>,
    store: &dyn Store,
    job: &Job,
    since: u64,
) -> Result<Arc<Job>, Problem> {
    let bell = Rc::new(NotifySink(Notify::new()));
    let connection = Connection::open(&hub.shard(), Rc::clone(&bell) as Rc<dyn Sink>);
    connection.subscribe_paused(&job.id);
    let newest = change_feed::subscribe_and_read(store, slice::from_ref(&job.id)).await?;
    let newest = newest.into_iter().next();
    let newest = newest.ok_or_else(|| Problem::not_found("job"))?;
    connection.activate(newest, since);
    loop {
        if let Some(frame) = connection.next_frame() {
            return Ok(Arc::clone(frame.job()));
        }
        bell.0.notified().await;
    }
}

#[derive(Serialize)]
struct JobListBody {
    jobs: Vec<Arc<Job>>,
    next_cursor: Option<JobId>,
}

#[derive(Deserialize)]
pub struct ListParams {
    status: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
    owner: Option<String>,
}

/// `GET /v1/jobs`: the caller's jobs, newest first; an admin may name an `owner`, or `*` for all.
pub async fn list(
    caller: Caller,
    store: web::Data<dyn Store>,
    page: web::Query<ListParams>,
) -> Result<HttpResponse, Problem> {
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::invalid("limit: must be 1 to 200"));
    }
    let status = page.status.as_deref().map(|text| {
        text.parse::<Status>().map_err(|_| {
            let names: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
            Problem::invalid(format!("status: must be one of {}", names.join(", ")))
        })
    });
    let status = status.transpose()?;
    let before = page.cursor.as_deref().map(JobId::parse).transpose();
    let before = before.map_err(|_| Problem::invalid("cursor: is not one that this hub gave"))?;
    let owner = match page.owner.as_deref() {
        Some("*") if caller.is_admin() => None,
        Some(owner) if caller.is_admin() || owner == caller.subject() => Some(owner.to_owned()),
        Some(_) => return Err(Problem::forbidden("admin")),
        None => Some(caller.subject().to_owned()),
    };
    let mut jobs = match granted_job_ids(&caller) {
        Some(ids) => {
            let mut jobs = store.get_many(&ids).await?;
            jobs.sort_by(|a, b| b.id.cmp(&a.id));
            let is_wanted = |job: &Arc<Job>| {
                status.is_none_or(|status| job.status == status)
                    && before.as_ref().is_none_or(|before| job.id < *before)
            };
            jobs.retain(is_wanted);
            jobs.truncate(limit + 1);
            jobs
        }
        None => {
            store
                .list(ListQuery {
                    owner,
                    status,
                    before,
                    limit: limit + 1,
                    active_first: false,
                })
                .await?
        }
    };
    jobs.retain(|job| caller.may_see(job.id.as_str(), &job.owner));
    let next_cursor = (jobs.len() > limit).then(|| {
        jobs.truncate(limit);
        jobs.last().map(|job| job.id.clone())
    });
    let body = JobListBody {
        jobs,
        next_cursor: next_cursor.flatten(),
    };
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(body))
}

/// The ids of a token that is limited to certain jobs; those that can't be ids are no jobs.
pub fn granted_job_ids(caller: &Principal) -> Option<Vec<JobId>> {
    Some(
        caller
            .granted_jobs()?
            .filter_map(|id| JobId::parse(id).ok())
            .collect(),
    )
}

/// Whether the caller may see whatever job becomes its own, and so may follow them all.
pub fn can_subscribe_owner(caller: &Principal) -> bool {
    caller.granted_jobs().is_none() && caller.may_see("", caller.subject())
}

/// What a caller is told of a job that it asked for.
pub fn create_response(
    created: CreateOutcome,
    job: Arc<Job>,
    status: StatusCode,
) -> Result<HttpResponse, Problem> {
    let job = match created {
        CreateOutcome::Created | CreateOutcome::Conflict => job,
        CreateOutcome::Replayed(job) => job,
        CreateOutcome::IdempotencyKeyConflict => {
            let detail = "the Idempotency-Key was used for another request";
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "idempotency_conflict",
                detail,
            ));
        }
        CreateOutcome::LimitExceeded { window } => {
            return Err(AdmissionError::Budget(format!("{window}: nothing is left")).into());
        }
        CreateOutcome::TaskConflict(job) => {
            return Err(Problem::conflict(
                "task_known",
                "the provider's task is a job's already",
                &job,
            ));
        }
    };
    let location = (header::LOCATION, format!("/v1/jobs/{}", job.id));
    Ok(HttpResponse::build(status)
        .insert_header(location)
        .json(job))
}

/// `POST /v1/jobs/{id}/cancel`: ends a job that was not sent, or asks its provider to.
pub async fn cancel(
    caller: Caller,
    canceller: web::Data<CancelService>,
    id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let job = canceller.cancel(&caller, &id).await?;
    Ok(HttpResponse::Accepted().json(job))
}
