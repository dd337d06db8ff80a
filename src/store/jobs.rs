//! Jobs, and updates that are buffered until their job is known.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{BudgetEntry, Error, Schedule};
use crate::job::{Job, JobId, Status, Update};
use crate::outbox::NewDelivery;
use crate::time::Time;

/// Maximum number of updates buffered for one task. Further updates replace the oldest.
pub const MAX_BUFFERED_UPDATES: usize = 32;

/// Maximum total size of the updates buffered for one task, in bytes of JSON. The oldest updates
/// that exceed it are dropped. A single larger update is not buffered.
pub const MAX_BUFFERED_BYTES: usize = 32 << 10;

/// Maximum number of tasks of one provider with buffered updates. A further task replaces the task
/// with the oldest update. A Redis cluster divides the number among its partitions.
pub const MAX_BUFFERED_TASKS: usize = 1000;

/// How long an update is buffered for a task that no job has.
pub const BUFFERED_UPDATE_TTL: Duration = Duration::from_secs(3600);

/// A key with which a caller can repeat a request without creating a second job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The caller. Keys of different callers are independent.
    pub caller: String,
    /// The caller's key.
    pub key: String,
    /// Digest of the request, to detect a key that is reused for a different request.
    pub fingerprint: String,
}

/// A job to create.
#[derive(Clone, Debug)]
pub struct CreateJob {
    /// The first version of the job.
    pub job: Arc<Job>,
    /// When the job is due.
    pub schedule: Schedule,
    /// The key under which the caller may repeat the request.
    pub idempotency: Option<IdempotencyKey>,
    /// Buffered updates of the job's task that `job` already includes. See
    /// [`CommitJob::applied_buffered`].
    pub applied_buffered: Vec<Update>,
    /// Charges that apply if the job is created.
    pub budget_entries: Vec<BudgetEntry>,
    /// Deliveries that are added to the outbox if the job is created.
    pub deliveries: Vec<NewDelivery>,
}

/// The result of [`JobStore::create`].
#[derive(Clone, Debug, PartialEq)]
pub enum CreateOutcome {
    /// The job was created.
    Created,
    /// The job exists, or the idempotency key was used for the same request. Contains the current
    /// version.
    Replayed(Arc<Job>),
    /// The idempotency key was used for a different request.
    IdempotencyKeyConflict,
    /// The provider task belongs to this other job.
    TaskConflict(Arc<Job>),
    /// A budget limit would be exceeded.
    LimitExceeded {
        /// Window of the first entry in [`CreateJob::budget_entries`] that does not fit.
        window: String,
    },
    /// Updates were buffered for the task in the meantime. Read them and try again.
    Conflict,
}

/// A new version of a job.
#[derive(Clone, Debug)]
pub struct CommitJob {
    /// The version to store.
    pub job: Arc<Job>,
    /// The version from which `job` was derived.
    pub expected_version: u64,
    /// The revision of that version, if [`JobStore::recent`] returned it. The commit then succeeds
    /// only if the store holds this revision.
    pub expected_revision: Option<Revision>,
    /// When the job is due next.
    pub schedule: Schedule,
    /// Buffered updates of the job's task that `job` already includes, as
    /// [`JobStore::buffered_updates`] returned them.
    ///
    /// Only used when this commit sets the job's task id. The commit then deletes them, and fails
    /// with [`CommitOutcome::Conflict`] if other updates are buffered.
    pub applied_buffered: Vec<Update>,
    /// Charges that apply with this commit. Their limits are ignored.
    pub budget_entries: Vec<BudgetEntry>,
    /// Deliveries that this commit adds to the outbox.
    pub deliveries: Vec<NewDelivery>,
}

/// Identifies one write of a job.
///
/// Two writes can store the same version: different documents, after a failover of the store, or
/// different internal states. Their revisions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision(pub(super) u128);

impl Revision {
    /// Parses the text that [`Display`](fmt::Display) writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A version of a job that this node knows to have been stored. The store may hold another version
/// now.
#[derive(Clone, Debug)]
pub struct RecentJob {
    /// The version.
    pub job: Arc<Job>,
    /// The write that stored it, for [`CommitJob::expected_revision`].
    pub revision: Revision,
}

/// The result of [`JobStore::commit`] and [`JobStore::ensure_durable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The version is durable and published.
    Committed,
    /// The stored version differs, the task belongs to another job, or further updates are
    /// buffered. Retry with the version that [`JobStore::recent`] returns now, or read the job.
    Conflict,
    /// The job does not exist.
    NotFound,
}

/// The result of [`JobStore::buffer_update`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BufferOutcome {
    /// The update is buffered.
    Buffered,
    /// The task belongs to this job. Apply the update to it.
    TaskKnown(JobId),
}

/// A selection of jobs.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Owner to select, or `None` for all owners.
    pub owner: Option<String>,
    /// Status to select, or `None` for every status.
    pub status: Option<Status>,
    /// Cursor: selects jobs with smaller ids, which are older.
    pub before: Option<JobId>,
    /// Whether unfinished jobs come first, each group sorted from newest to oldest.
    pub active_first: bool,
    /// Maximum number of jobs to return.
    pub limit: usize,
}

/// Storage of jobs with optimistic concurrency control on the version.
///
/// Reads return what was acknowledged before the call, whichever node wrote it.
#[async_trait]
pub trait JobStore: Send + Sync + 'static {
    /// Creates a job, claims its task and idempotency key, charges its budget windows, and
    /// publishes the job.
    ///
    /// The operation is all-or-nothing and idempotent by job id. On success the job is durable.
    /// Budget windows are evaluated at the job's `updated_at`.
    async fn create(&self, create: CreateJob) -> Result<CreateOutcome, Error>;

    /// Returns the current version of a job.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the job can't be decoded.
    async fn get(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error>;

    /// Returns the last version of an unfinished job that this node knows to have been stored, if
    /// it is in memory.
    ///
    /// The version may only be used as the basis of a [`commit`](Self::commit) with its revision,
    /// to save the read: the job may have changed or been deleted. If the store holds another
    /// revision, the commit returns a conflict, and the outdated version is not returned again. The
    /// default implementation returns `None`.
    fn recent(&self, _id: &JobId) -> Option<RecentJob> {
        None
    }

    /// Returns the current versions of those jobs that exist, in no particular order.
    ///
    /// Corrupt jobs are logged and skipped.
    async fn get_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error>;

    /// Returns the jobs that match `query`, sorted from newest to oldest.
    ///
    /// Corrupt jobs are logged and skipped.
    async fn list(&self, query: ListQuery) -> Result<Vec<Arc<Job>>, Error>;

    /// Returns the job to which a provider task belongs.
    ///
    /// A task never changes its job. If the job was deleted by another node, it may still be returned,
    /// until an operation of this node on the job reports that it does not exist.
    async fn find_task(&self, provider: &str, task_id: &str) -> Result<Option<JobId>, Error>;

    /// Replaces a job and its schedule if the stored version is the expected one, charges budget
    /// windows, and publishes the new version.
    ///
    /// The comparison and all effects are one atomic step. Of concurrent commits with the same
    /// expected version, at most one succeeds. On success the version is durable. Versions of one
    /// job are published once each and in order. Budget windows are evaluated at the job's
    /// `updated_at`.
    async fn commit(&self, commit: CommitJob) -> Result<CommitOutcome, Error>;

    /// Waits until this version of `job` is as durable as a committed write.
    ///
    /// Call it before acknowledging a request that changed nothing, such as a duplicate: the
    /// version that was read may not have reached the replicas yet. Returns
    /// [`CommitOutcome::Conflict`] if the stored version differs.
    async fn ensure_durable(&self, job: &Job) -> Result<CommitOutcome, Error>;

    /// Buffers a verified update for a task that belongs to no job yet.
    ///
    /// Identical updates are stored once. The newest updates of a task are kept, at most
    /// [`MAX_BUFFERED_UPDATES`] and [`MAX_BUFFERED_BYTES`], for [`BUFFERED_UPDATE_TTL`]. At most
    /// [`MAX_BUFFERED_TASKS`] tasks of a provider have buffered updates. An update is either
    /// buffered or the task is known, never both, so no update is missed when a commit sets the
    /// task id.
    async fn buffer_update(
        &self,
        provider: &str,
        task_id: &str,
        update: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error>;

    /// Returns the updates buffered for a task, from oldest to newest.
    ///
    /// Corrupt updates are logged and skipped.
    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error>;
}
