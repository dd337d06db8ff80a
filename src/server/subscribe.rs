//! The subscribe path of WebSocket, server-sent events and long polling.
//!
//! The order of the steps guarantees that no version is lost: attach the connection without delivery,
//! read the documents, authorize the caller on each document, subscribe the store to those that are
//! visible, read them again, activate delivery. A change that arrives between two steps is resolved by
//! its version.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::error::Problem;
use crate::background::change_feed;
use crate::hub::{Connection, FeedHealth, Hub, Sink};
use crate::job::{Job, JobId, Topic};
use crate::protocol::Frame;
use crate::store::{self, Store};
use progress_hub_auth::jwt::Principal;

/// Maximum time for subscribing the store and reading the documents.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Jobs that a connection is attached to and that the caller may see, before delivery begins.
/// Dropping it without [`PausedSubscription::activate`] leaves the jobs paused.
#[must_use]
pub struct PausedSubscription<'c> {
    connection: &'c Connection,
    jobs: Vec<Arc<Job>>,
    deliver: fn(&Connection, Arc<Job>, u64),
}

impl PausedSubscription<'_> {
    /// The newest document of each job.
    pub fn jobs(&self) -> &[Arc<Job>] {
        &self.jobs
    }

    /// Starts delivery. A document is delivered now if it is newer than `known`, the client's version.
    pub fn activate(self, known: impl Fn(&JobId) -> u64) {
        for job in self.jobs {
            let known = known(&job.id);
            (self.deliver)(self.connection, job, known);
        }
    }
}

/// Subscribes a connection to jobs by id. Jobs that do not exist, or that the caller may not see, are
/// missing from the result; the connection is no longer attached to them.
///
/// # Errors
/// Store errors and a timeout, as [`store::Error`]. The connection is attached to none of the jobs,
/// except for those that it had subscribed to before.
pub async fn subscribe<'c>(
    connection: &'c Connection,
    store: &dyn Store,
    caller: &Principal,
    ids: &[JobId],
) -> Result<PausedSubscription<'c>, store::Error> {
    for id in ids {
        connection.subscribe_paused(id);
    }
    let is_visible = |job: &Job| is_visible(job, caller);
    let read = with_timeout(change_feed::subscribe_and_read(store, ids, is_visible)).await;
    let visible: HashSet<&JobId> = read.iter().flatten().map(|job| &job.id).collect();
    let mut rejected = Vec::new();
    for id in ids.iter().filter(|id| !visible.contains(id)) {
        connection.reject(id);
        rejected.push(Topic::Job(id.clone()));
    }
    // Releases the channels of jobs that were removed or became invisible after the first read.
    if !rejected.is_empty() {
        store.release(rejected);
    }
    Ok(PausedSubscription {
        connection,
        jobs: read?,
        deliver: Connection::activate,
    })
}

/// Subscribes a connection to all jobs of the caller, including future ones. The result has the jobs
/// with the ids in `known` and the most recent ones. The caller must satisfy [`can_subscribe_owner`].
///
/// # Errors
/// Store errors and a timeout, as [`store::Error`]. The connection has no owner subscription then.
pub async fn subscribe_owner<'c>(
    connection: &'c Connection,
    store: &dyn Store,
    caller: &Principal,
    known: &[JobId],
) -> Result<PausedSubscription<'c>, store::Error> {
    let owner = caller.subject();
    connection.subscribe_owner(owner);
    let read = with_timeout(async {
        let mut jobs = store.get_many(known).await?;
        jobs.retain(|job| job.owner == owner);
        let recent = change_feed::subscribe_and_list(store, owner).await?;
        jobs.extend(recent.into_iter().filter(|job| !known.contains(&job.id)));
        Ok(jobs)
    })
    .await;
    match read {
        Ok(jobs) => Ok(PausedSubscription {
            connection,
            jobs,
            deliver: Connection::backfill,
        }),
        Err(error) => {
            connection.unsubscribe_owner();
            Err(error)
        }
    }
}

async fn with_timeout<R>(
    read: impl Future<Output = Result<R, store::Error>>,
) -> Result<R, store::Error> {
    let read = tokio::time::timeout(STORE_TIMEOUT, read).await;
    read.unwrap_or(Err(store::Error::Overloaded))
}

fn is_visible(job: &Job, caller: &Principal) -> bool {
    caller.may_see(job.id.as_str(), &job.owner)
}

/// Reads a job that the caller may see.
///
/// # Errors
/// `not_found` if the job does not exist or the caller may not see it, or if `id` is invalid.
pub async fn visible(store: &dyn Store, caller: &Principal, id: &str) -> Result<Arc<Job>, Problem> {
    let id = JobId::parse(id).map_err(|_| Problem::not_found("job"))?;
    let job = store.get(&id).await?;
    job.filter(|job| is_visible(job, caller))
        .ok_or_else(|| Problem::not_found("job"))
}

/// Returns the jobs of a token that is limited to certain jobs, without invalid ids.
pub fn granted_job_ids(caller: &Principal) -> Option<Vec<JobId>> {
    let ids = caller.granted_jobs()?;
    Some(ids.filter_map(|id| JobId::parse(id).ok()).collect())
}

/// Returns whether the caller may see every job of its own, and so may subscribe to all of them.
pub fn can_subscribe_owner(caller: &Principal) -> bool {
    caller.granted_jobs().is_none() && caller.may_see("", caller.subject())
}

/// A sink for responses that fetch frames themselves. It accepts no frames and wakes the response
/// when [`Connection::next_frame`] may return one or the health of the feed has changed.
#[derive(Default)]
pub struct NotifySink {
    changed: Notify,
    health: Cell<Option<FeedHealth>>,
}

impl NotifySink {
    /// Opens a connection of this thread with a sink of its own.
    pub fn connect(hub: &Arc<Hub>) -> (Rc<Self>, Connection) {
        let sink = Rc::new(Self::default());
        let connection = Connection::open(&hub.shard(), Rc::clone(&sink) as Rc<dyn Sink>);
        (sink, connection)
    }

    /// Waits for a frame or a change of the health. Changes before this call are not lost.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns a change of the health since the last call.
    pub fn take_health(&self) -> Option<FeedHealth> {
        self.health.take()
    }
}

impl Sink for NotifySink {
    fn try_send(&self, _: &Frame) -> bool {
        false
    }

    fn notify_pending(&self) {
        self.changed.notify_one();
    }

    fn health_changed(&self, health: FeedHealth) {
        self.health.set(Some(health));
        self.changed.notify_one();
    }
}
