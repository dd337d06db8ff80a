//! `GET /v1/events`: jobs as server-sent events.
//!
//! Invariant: a stream has one pending version per job at most; the list of a stream whose jobs
//! have all ended ends after the last of them.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::jobs::{can_subscribe_owner, granted_job_ids};
use crate::background::change_feed;
use crate::config::SocketConfig;
use crate::hub::{Connection, FeedHealth, Hub, Sink};
use crate::job::{Job, JobId};
use crate::protocol::Frame;
use crate::server::caller::Caller;
use crate::server::drain::Drain;
use crate::server::error::Problem;
use crate::store::Store;
use crate::telemetry::{ConnectionKind, Metrics, OpenConnection};
use crate::time::Time;

/// What a browser waits before it comes back, in milliseconds.
const RETRY: &str = "retry: 2000\n\n";

/// Wakes a stream that has something to say.
#[derive(Default)]
struct NotifySink {
    rings: Notify,
    condition: Cell<Option<FeedHealth>>,
}

impl Sink for NotifySink {
    fn try_send(&self, _: &Frame) -> bool {
        false
    }

    fn notify_pending(&self) {
        self.rings.notify_one();
    }

    fn health_changed(&self, condition: FeedHealth) {
        self.condition.set(Some(condition));
        self.rings.notify_one();
    }
}

/// What a stream is about.
struct StreamParams {
    jobs: Vec<JobId>,
    unknown: Vec<String>,
    mine: bool,
    known_versions: HashMap<String, u64>,
}

impl StreamParams {
    fn read(request: &HttpRequest, most: usize) -> Result<Self, Problem> {
        let mut wish = Self {
            jobs: Vec::new(),
            unknown: Vec::new(),
            mine: false,
            known_versions: HashMap::new(),
        };
        let header = request
            .headers()
            .get("last-event-id")
            .and_then(|id| id.to_str().ok());
        let mut seen = header.map(str::to_owned).into_iter().collect::<Vec<_>>();
        for (name, value) in url::form_urlencoded::parse(request.query_string().as_bytes()) {
            match (&*name, &*value) {
                ("job", id) => match JobId::parse(id) {
                    Ok(id) if wish.jobs.contains(&id) => {}
                    Ok(id) => wish.jobs.push(id),
                    Err(_) => wish.unknown.push(id.to_owned()),
                },
                ("feed", "mine") => wish.mine = true,
                ("feed", _) => return Err(Problem::invalid("feed: there is only 'mine'")),
                ("last_event_id", ids) => seen.push(ids.to_owned()),
                _ => {}
            }
        }
        for id in seen.iter().flat_map(|ids| ids.split(',')) {
            if let Some((job, version)) = id.trim().rsplit_once(':')
                && let Ok(version) = version.parse()
            {
                wish.known_versions.insert(job.to_owned(), version);
            }
        }
        if wish.jobs.is_empty() && wish.unknown.is_empty() && !wish.mine {
            return Err(Problem::invalid(
                "job or feed: say what to follow, as ?job=…&job=… or ?feed=mine",
            ));
        }
        if wish.jobs.len() > most {
            return Err(Problem::invalid(format!(
                "job: at most {most} in one stream"
            )));
        }
        Ok(wish)
    }
}

/// One open stream.
struct Stream {
    bell: Rc<NotifySink>,
    connection: Connection,
    drain: web::Data<Drain>,
    metrics: web::Data<Metrics>,
    _open: OpenConnection,
    heartbeat: Duration,
    next_heartbeat: Instant,
    ends_at: Instant,
    /// Jobs whose end is still to come; none for a feed, which has no last job.
    unfinished: Option<HashSet<JobId>>,
    preamble: Option<String>,
    is_over: bool,
}

/// Opens a stream.
pub async fn open(
    caller: Caller,
    store: web::Data<dyn Store>,
    hub: web::Data<Hub>,
    drain: web::Data<Drain>,
    metrics: web::Data<Metrics>,
    settings: web::Data<SocketConfig>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let mut wish = StreamParams::read(&request, settings.max_subscriptions)?;
    let bell = Rc::new(NotifySink::default());
    let connection = Connection::open(&hub.shard(), Rc::clone(&bell) as Rc<dyn Sink>);
    let follows = wish.mine && can_subscribe_owner(&caller);
    if wish.mine {
        wish.jobs
            .extend(granted_job_ids(&caller).unwrap_or_default());
        wish.jobs.sort_unstable();
        wish.jobs.dedup();
    }
    let mut is_any_seen = wish.mine;
    let mut unfinished = HashSet::new();
    let mut greeting = RETRY.to_owned();

    for id in &wish.jobs {
        connection.subscribe_paused(id);
    }
    if follows {
        connection.subscribe_owner(caller.subject());
    }
    let mut newest: HashMap<JobId, Arc<Job>> =
        change_feed::subscribe_and_read(&**store, &wish.jobs)
            .await?
            .into_iter()
            .map(|job| (job.id.clone(), job))
            .collect();
    let version_of = |id: &JobId| wish.known_versions.get(id.as_str()).copied().unwrap_or(0);
    for id in &wish.jobs {
        match newest
            .remove(id)
            .filter(|job| caller.may_see(id.as_str(), &job.owner))
        {
            Some(job) => {
                is_any_seen = true;
                let known = version_of(id);
                if !(job.is_final() && job.version <= known) {
                    unfinished.insert(id.clone());
                }
                connection.activate(job, known);
            }
            None => {
                connection.reject(id);
                wish.unknown.push(id.to_string());
            }
        }
    }
    if !is_any_seen {
        return Err(Problem::not_found("job"));
    }
    for id in &wish.unknown {
        let id = serde_json::to_string(id).unwrap_or_default();
        greeting.push_str(&format!(
            "event: error\ndata: {{\"code\":\"not_found\",\"job\":{id}}}\n\n"
        ));
    }
    if follows {
        for job in change_feed::subscribe_and_list(&**store, caller.subject()).await? {
            let known = version_of(&job.id);
            connection.backfill(job, known);
        }
    }
    let now = Instant::now();
    let stream = Stream {
        bell,
        connection,
        drain,
        _open: metrics.connection_opened(ConnectionKind::Sse),
        metrics,
        heartbeat: settings.heartbeat,
        next_heartbeat: now + settings.heartbeat,
        ends_at: now + Time::from(caller.expires_at()).saturating_duration_since(Time::now()),
        unfinished: (!wish.mine).then_some(unfinished),
        preamble: Some(greeting),
        is_over: false,
    };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(stream::unfold(stream, |mut stream| async move {
            let chunk = stream.next().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), stream))
        })))
}

impl Stream {
    /// What comes next, however long that takes; `None` once it is over.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.preamble.take() {
            return Some(greeting.into());
        }
        if self.is_over {
            return None;
        }
        loop {
            if let Some(frame) = self.connection.next_frame() {
                return Some(self.event(&frame));
            }
            if self.unfinished.as_ref().is_some_and(HashSet::is_empty) {
                self.is_over = true;
                return Some(Bytes::from_static(b"event: end\ndata: {}\n\n"));
            }
            if let Some(condition) = self.bell.condition.take() {
                return Some(health_event(condition));
            }
            let (bell, drain) = (Rc::clone(&self.bell), self.drain.clone());
            tokio::select! {
                () = bell.rings.notified() => {}
                () = drain.begun() => return None,
                () = tokio::time::sleep_until(self.ends_at) => return None,
                () = tokio::time::sleep_until(self.next_heartbeat) => {
                    self.next_heartbeat += self.heartbeat;
                    return Some(Bytes::from_static(b": heartbeat\n\n"));
                }
            }
        }
    }

    fn event(&mut self, frame: &Frame) -> Bytes {
        let job = frame.job();
        if let (true, Some(unfinished)) = (job.is_final(), &mut self.unfinished) {
            unfinished.remove(&job.id);
        }
        self.metrics.delivered(ConnectionKind::Sse, 1);
        let document = frame.document();
        let mut event = format!("event: job\nid: {}:{}\ndata: ", job.id, job.version).into_bytes();
        event.reserve(document.len() + 2);
        event.extend_from_slice(document);
        event.extend_from_slice(b"\n\n");
        event.into()
    }
}

fn health_event(condition: FeedHealth) -> Bytes {
    match condition {
        FeedHealth::Degraded(since) => {
            format!("event: degraded\ndata: {{\"since\":\"{since}\"}}\n\n").into()
        }
        FeedHealth::Healthy => Bytes::from_static(b"event: restored\ndata: {}\n\n"),
    }
}
