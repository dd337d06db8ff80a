//! `GET /v1/events`: jobs as server-sent events.
//!
//! A stream holds at most one pending version per job. A stream of listed jobs ends after the last one
//! is final. The response is 204 if the client has every final version, and `EventSource` then
//! stops reconnecting.
//!
//! A blank line follows only an event with data, because common clients deliver an empty message
//! for a blank line after `retry` or after a comment.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{Method, header};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use serde_json::json;
use tokio::time::Instant;

use crate::config::SocketConfig;
use crate::hub::{Connection, FeedHealth, Hub};
use crate::job::{Job, JobId};
use crate::protocol::Frame;
use crate::server::caller::Caller;
use crate::server::drain::Drain;
use crate::server::error::{ErrorCode, Problem};
use crate::server::limits::{ConnectionLimits, StreamPermit};
use crate::server::subscribe::{
    NotifySink, can_subscribe_owner, granted_job_ids, subscribe, subscribe_owner,
};
use crate::store::Store;
use crate::telemetry::{ConnectionKind, Metrics, OpenConnection};
use crate::time::Time;

/// The first field of a stream: milliseconds after which a browser reconnects.
const RETRY: &str = "retry: 2000\n";

/// Sent every `socket.heartbeat`.
const HEARTBEAT: &[u8] = b": heartbeat\n";

/// Prevents proxies from storing the stream, and from compressing it, which would delay events.
const CACHE_CONTROL: &str = "no-store, no-transform";

/// The parameters of a stream.
#[derive(Default)]
struct StreamParams {
    jobs: Vec<JobId>,
    /// Values of `job` that are not valid ids.
    invalid_jobs: Vec<String>,
    has_owner_feed: bool,
    /// Versions from `Last-Event-ID` and `last_event_id`, by job id.
    known_versions: HashMap<String, u64>,
}

impl StreamParams {
    fn parse(request: &HttpRequest, max_jobs: usize) -> Result<Self, Problem> {
        let mut params = Self::default();
        let (mut occurrences, mut seen) = (0, HashSet::new());
        let last_event_id = request.headers().get("last-event-id");
        if let Some(ids) = last_event_id.and_then(|ids| ids.to_str().ok()) {
            params.add_known_versions(ids);
        }
        for (name, value) in url::form_urlencoded::parse(request.query_string().as_bytes()) {
            match (&*name, &*value) {
                ("job", id) => {
                    occurrences += 1;
                    if occurrences > max_jobs {
                        return Err(Problem::invalid(format!(
                            "job must occur at most {max_jobs} times"
                        )));
                    }
                    match JobId::parse(id) {
                        Ok(id) if seen.insert(id.clone()) => params.jobs.push(id),
                        Ok(_) => {}
                        Err(_) => params.invalid_jobs.push(id.to_owned()),
                    }
                }
                ("feed", "mine") => params.has_owner_feed = true,
                ("feed", _) => return Err(Problem::invalid("feed must be 'mine'")),
                ("last_event_id", ids) => params.add_known_versions(ids),
                _ => {}
            }
        }
        if params.jobs.is_empty() && params.invalid_jobs.is_empty() && !params.has_owner_feed {
            return Err(Problem::invalid(
                "job or feed is required: use ?job=…&job=… or ?feed=mine",
            ));
        }
        Ok(params)
    }

    /// Adds versions of the form `<job>:<version>,…`. Other values are ignored.
    fn add_known_versions(&mut self, ids: &str) {
        for id in ids.split(',') {
            if let Some((job, version)) = id.trim().rsplit_once(':')
                && let Ok(version) = version.parse()
            {
                self.known_versions.insert(job.to_owned(), version);
            }
        }
    }

    fn known_version(&self, id: &JobId) -> u64 {
        self.known_versions.get(id.as_str()).copied().unwrap_or(0)
    }
}

/// An open stream.
struct Stream {
    sink: Rc<NotifySink>,
    connection: Connection,
    drain: web::Data<Drain>,
    metrics: web::Data<Metrics>,
    _open: OpenConnection,
    _permit: StreamPermit,
    heartbeat: Duration,
    next_heartbeat: Instant,
    token_expires_at: Instant,
    /// The listed jobs. `None` for a feed, which has no last job.
    list: Option<JobList>,
    preamble: Option<String>,
    has_ended: bool,
}

/// The jobs of a stream that ends when all of them are final.
struct JobList {
    /// The jobs whose final version was not sent yet.
    unfinished: HashSet<JobId>,
    /// Event ids of the final versions that the client has, as `<job>:<version>`.
    finished: Vec<String>,
}

impl JobList {
    fn new(jobs: &[Arc<Job>], params: &StreamParams) -> Self {
        let (finished, unfinished): (Vec<&Arc<Job>>, Vec<_>) = jobs
            .iter()
            .partition(|job| job.is_final() && job.version <= params.known_version(&job.id));
        Self {
            unfinished: unfinished.iter().map(|job| job.id.clone()).collect(),
            finished: finished.iter().map(|job| event_id(job)).collect(),
        }
    }

    fn is_finished(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// Records a sent version.
    fn add(&mut self, job: &Job) {
        if job.is_final() && self.unfinished.remove(&job.id) {
            self.finished.push(event_id(job));
        }
    }

    /// Returns the `end` event. Its id contains every final version, and `EventSource` sends the id
    /// when it reconnects.
    fn end_event(&self) -> Bytes {
        format!(
            "event: end\nid: {}\ndata: {{}}\n\n",
            self.finished.join(",")
        )
        .into()
    }
}

/// Opens a stream.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments list exactly what the handler uses"
)]
pub async fn open(
    caller: Caller,
    store: web::Data<dyn Store>,
    hub: web::Data<Hub>,
    drain: web::Data<Drain>,
    limits: web::Data<ConnectionLimits>,
    metrics: web::Data<Metrics>,
    settings: web::Data<SocketConfig>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let mut params = StreamParams::parse(&request, settings.max_subscriptions)?;
    let (sink, connection) = NotifySink::connect(&hub);
    if params.has_owner_feed {
        params
            .jobs
            .extend(granted_job_ids(&caller).unwrap_or_default());
        params.jobs.sort_unstable();
        params.jobs.dedup();
    }
    let jobs = params.jobs.len();
    let mut permit = limits.open_stream(&request, &caller, jobs, params.has_owner_feed)?;
    let by_id = subscribe(&connection, &**store, &caller, &params.jobs).await?;
    if by_id.jobs().is_empty() && !params.has_owner_feed {
        return Err(Problem::not_found("job"));
    }
    permit.settle_subscriptions(by_id.jobs().len());
    let found: HashSet<&JobId> = by_id.jobs().iter().map(|job| &job.id).collect();
    let missing = params.jobs.iter().filter(|id| !found.contains(id));
    let missing = missing.map(JobId::as_str);
    let invalid = params.invalid_jobs.iter().map(String::as_str);
    let preamble = preamble(missing.chain(invalid));
    let list = (!params.has_owner_feed).then(|| JobList::new(by_id.jobs(), &params));
    if list.as_ref().is_some_and(JobList::is_finished) {
        return Ok(HttpResponse::NoContent()
            .insert_header((header::CACHE_CONTROL, CACHE_CONTROL))
            .finish());
    }
    by_id.activate(|id| params.known_version(id));
    if params.has_owner_feed && can_subscribe_owner(&caller) {
        let feed = subscribe_owner(&connection, &**store, &caller, &[]).await?;
        feed.activate(|id| params.known_version(id));
    }

    let now = Instant::now();
    let token_lifetime = Time::from(caller.expires_at()).saturating_duration_since(Time::now());
    let stream = Stream {
        sink,
        connection,
        drain,
        _open: metrics.connection_opened(ConnectionKind::Sse),
        metrics,
        _permit: permit,
        heartbeat: settings.heartbeat,
        next_heartbeat: now + settings.heartbeat,
        token_expires_at: now + token_lifetime,
        list,
        preamble: Some(preamble),
        has_ended: false,
    };
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, CACHE_CONTROL))
        .insert_header(("x-accel-buffering", "no"));
    if request.method() == Method::HEAD {
        return Ok(response.finish());
    }
    Ok(
        response.streaming(stream::unfold(stream, |mut stream| async move {
            let chunk = stream.next().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), stream))
        })),
    )
}

/// Returns the start of a stream: the retry time, and a `problem` event for each job that was not found.
fn preamble<'a>(not_found: impl Iterator<Item = &'a str>) -> String {
    let mut preamble = RETRY.to_owned();
    for job in not_found {
        let data = json!({ "code": ErrorCode::NotFound.as_str(), "job": job });
        preamble.push_str(&format!("event: problem\ndata: {data}\n\n"));
    }
    preamble
}

impl Stream {
    /// Waits for the next chunk. Returns `None` at the end of the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(preamble) = self.preamble.take() {
            return Some(preamble.into());
        }
        if self.has_ended {
            return None;
        }
        loop {
            if let Some(frame) = self.connection.next_frame() {
                return Some(self.job_event(&frame));
            }
            if let Some(list) = self.list.as_ref().filter(|list| list.is_finished()) {
                self.has_ended = true;
                return Some(list.end_event());
            }
            if let Some(health) = self.sink.take_health() {
                return Some(health_event(health));
            }
            tokio::select! {
                () = self.sink.changed() => {}
                () = self.drain.started() => return None,
                () = tokio::time::sleep_until(self.token_expires_at) => return None,
                () = tokio::time::sleep_until(self.next_heartbeat) => {
                    self.next_heartbeat += self.heartbeat;
                    return Some(Bytes::from_static(HEARTBEAT));
                }
            }
        }
    }

    fn job_event(&mut self, frame: &Frame) -> Bytes {
        let job = frame.job();
        if let Some(list) = &mut self.list {
            list.add(job);
        }
        self.metrics.delivered(ConnectionKind::Sse, 1);
        let document = frame.document();
        let mut event = format!("event: job\nid: {}\ndata: ", event_id(job)).into_bytes();
        event.reserve(document.len() + 2);
        event.extend_from_slice(document);
        event.extend_from_slice(b"\n\n");
        event.into()
    }
}

/// Returns the id of an event, as `<job>:<version>`.
fn event_id(job: &Job) -> String {
    format!("{}:{}", job.id, job.version)
}

fn health_event(health: FeedHealth) -> Bytes {
    match health {
        FeedHealth::Degraded(since) => {
            format!("event: degraded\ndata: {{\"since\":\"{since}\"}}\n\n").into()
        }
        FeedHealth::Healthy => Bytes::from_static(b"event: restored\ndata: {}\n\n"),
    }
}
