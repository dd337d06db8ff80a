//! The store: one truth per job, on disk before anybody is told.
//!
//! Invariant: [`Store::commit`] compares the version, stores, schedules and announces as one step,
//! so that of two writers one wins, and what was announced is what a restart finds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::config::StoreConfig;
use crate::job::{Job, JobId, Status, Update};
use crate::time::Time;

pub mod redis;
pub mod sqlite;

/// The most news that is parked for one task; what comes on top pushes the oldest out.
pub const MAX_BUFFERED_UPDATES: usize = 32;

/// How long news is parked.
pub const BUFFERED_UPDATE_TTL: Duration = Duration::from_secs(3600);

/// What a store tells its node; called in commit order for one job, and must not block.
pub type EventHandler = Arc<dyn Fn(StoreEvent) + Send + Sync>;

/// Whether its node still wants to hear of a topic; must not block.
pub type SubscriptionFilter = Arc<dyn Fn(&Topic) -> bool + Send + Sync>;

/// The node that a store serves.
#[derive(Clone)]
pub struct ChangeListener {
    /// Told of every change that it listens for.
    pub on_event: EventHandler,
    /// Asked before it is told no more of a topic.
    pub is_subscribed: SubscriptionFilter,
}

/// What a node can listen for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// One job.
    Job(JobId),
    /// All jobs of an owner, future ones too.
    Owner(String),
}

/// What a store tells its node.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// A job has this newest version.
    JobChanged(Arc<Job>),
    /// Changes may have been missed from here on.
    Unavailable,
    /// The store answers again; what is watched must be read again.
    Recovered,
    /// Something new is remembered: see [`Store::remembered`].
    SharedStateChanged,
}

/// How long jobs are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// A final job, from its end.
    pub terminal: Duration,
    /// An unfinished job, from its last news.
    pub active: Duration,
}

/// When a job wants attention next, by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The submitter: when the next try is due.
    pub submit_at: Option<Time>,
    /// The watchdog: when to ask about it or to give it up.
    pub poll_at: Option<Time>,
    /// How long a claim by the watchdog puts the next look off, [`spread`]; never past the job's
    /// deadline.
    pub poll_interval: Duration,
    /// Whether news of it comes by itself: then a claim puts the next look off by at least twice
    /// as long as the job has been silent.
    pub poll_backoff: bool,
    /// Whether the job takes one of its provider's places: from being sent to its end.
    pub holds_slot: bool,
}

/// A span longer by up to a tenth, always the same for one job, so that many jobs that are due
/// together do not come back together.
#[must_use]
pub fn deterministic_jitter(span: Duration, job_id: &str) -> Duration {
    // FNV-1a, which differs in its low bits already where only the last letter does.
    let hash = job_id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    span + span / 10 * (hash % 1024) / 1024
}

/// How long a job claimed for submitting may take to be marked as being sent.
pub const CLAIM_LEASE: Duration = Duration::from_secs(30);

/// One of the two queues that an [`Agenda`] puts a job in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue<'a> {
    /// Jobs of a provider whose next try at submitting is due, as far as it has places: jobs that
    /// hold one, and jobs that are claimed, are at most `places`.
    Submit {
        /// The provider's name.
        provider: &'a str,
        /// How many jobs it may have at once.
        max_concurrent: usize,
    },
    /// Jobs to ask about or to give up, of all providers.
    Poll,
}

/// A caller's promise that equal keys mean the same request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Who promises.
    pub caller: String,
    /// The caller's key.
    pub key: String,
    /// A digest of the request, so that the key can't be used for another.
    pub fingerprint: String,
}

/// A sum to be added to an account. Accounts need no opening: where none is, its balance is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetEntry {
    /// The account's name.
    pub account: String,
    /// What to add, in millionths of whatever is counted there; negative to give back.
    pub amount_micros: i64,
    /// The most the balance may be with it; none: no limit. Only a [`Create`] is held to it.
    pub limit_micros: Option<i64>,
    /// When the account ends: from then on its balance is zero, and what is added to it is lost.
    pub window_ends_at: Time,
}

/// A job to be kept from now on.
#[derive(Clone, Debug)]
pub struct CreateJob {
    /// Its first document.
    pub job: Arc<Job>,
    /// When it wants attention.
    pub agenda: Schedule,
    /// Under which key the caller may repeat the request.
    pub idempotency: Option<IdempotencyKey>,
    /// The parked updates of its task that are already in the document; see [`Commit::folded`].
    pub applied_buffered: Vec<Update>,
    /// What it is charged, if it is [`Created::New`].
    pub budget_entries: Vec<BudgetEntry>,
}

/// How a [`Create`] ended.
#[derive(Clone, Debug, PartialEq)]
pub enum CreateOutcome {
    /// It is kept.
    Created,
    /// The key was used before for the same request, or the job is kept already; this is the job
    /// as it is now.
    Replayed(Arc<Job>),
    /// The key was used before for another request.
    IdempotencyKeyConflict,
    /// The provider's task is this job's already.
    TaskConflict(Arc<Job>),
    /// An account's limit does not allow it; the first one of [`Create::entries`].
    LimitExceeded {
        /// The account's name.
        account: String,
    },
    /// Other updates were parked for the task in the meantime: read them and create again.
    Conflict,
}

/// The next document of a job.
#[derive(Clone, Debug)]
pub struct CommitJob {
    /// The document to store.
    pub job: Arc<Job>,
    /// The version it was made from.
    pub expected_version: u64,
    /// When it wants attention next.
    pub agenda: Schedule,
    /// The parked updates of its task that are already in the document, as [`Store::parked`] gave
    /// them. They are forgotten with this commit; should any other be parked by now, the commit is
    /// [`Committed::Stale`]. Only looked at when the commit makes the job's task id known.
    pub folded: Vec<Update>,
    /// What is added to accounts, whatever their limits, if it is [`Committed::Done`].
    pub entries: Vec<BudgetEntry>,
}

/// How a [`Commit`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// Durable and announced.
    Committed,
    /// The job has another version, the task is another job's, or updates were parked: read again.
    Conflict,
    /// There is no such job any more.
    NotFound,
}

/// How parking ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BufferOutcome {
    /// Kept until the task becomes known, or the retention of parked news ends.
    Buffered,
    /// The task is this job's: record it there.
    TaskKnown(JobId),
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Only this owner's; none: everybody's.
    pub owner: Option<String>,
    /// Only those with this status.
    pub status: Option<Status>,
    /// Only those older than this one.
    pub before: Option<JobId>,
    /// Unfinished jobs first, then the others, instead of newest first.
    pub active_first: bool,
    /// At most so many.
    pub limit: usize,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It can't be reached, its disk fails, or it is closing.
    #[error("the store is away: {0}")]
    Unavailable(String),
    /// It has more waiting than it takes.
    #[error("the store is busy")]
    Overloaded,
    /// What it holds can't be read.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
}

/// The engines that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Embedded: one node, one file.
    Sqlite,
    /// Shared: any number of nodes.
    Redis,
}

/// The engine that the URL names.
///
/// # Errors
/// What is wrong with the URL, without its credentials.
pub fn from_url(url: &str) -> Result<Engine, String> {
    match url.split(':').next() {
        Some("sqlite") => Ok(Engine::Sqlite),
        _ => redis::check(url).map(|()| Engine::Redis),
    }
}

/// Opens the engine that the URL names. A Redis that is not there yet is waited for beside it, and
/// until then everything is [`Error::Away`].
///
/// # Errors
/// [`Error::Away`] when it can't be opened, or when there is no such engine.
pub fn open(
    config: &StoreConfig,
    retention: Retention,
    node: ChangeListener,
) -> Result<Arc<dyn Store>, Error> {
    match from_url(&config.url).map_err(Error::Unavailable)? {
        Engine::Sqlite => {
            let store = sqlite::SqliteStore::open(&config.url, retention, node.on_event)?;
            Ok(Arc::new(store))
        }
        Engine::Redis => Ok(Arc::new(redis::RedisStore::open(config, retention, node)?)),
    }
}

/// Where jobs live. One conformance suite runs against every engine.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// `sqlite` or `redis`, as health shows it.
    fn name(&self) -> &'static str;

    /// Keeps a new job, with its task id and its idempotency key, charges its accounts, and
    /// announces it: all or nothing, at the job's `updated_at`.
    async fn create(&self, create: CreateJob) -> Result<CreateOutcome, Error>;

    /// The newest version of a job.
    async fn get(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error>;

    /// The newest versions of those that exist, in any order.
    async fn get_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error>;

    /// Jobs newest first.
    async fn list(&self, listing: ListQuery) -> Result<Vec<Arc<Job>>, Error>;

    /// Has changes of these announced on this node, whichever node makes them: all that are
    /// committed after the answer, for as long as [`Node::wanted`] says so. Whoever attaches to a
    /// topic first, listens then and reads last has missed nothing.
    async fn subscribe(&self, topics: &[Topic]) -> Result<(), Error>;

    /// Whether announcements can get lost on their way, so that it is worth looking again.
    fn is_lossy(&self) -> bool;

    /// The job a provider's task belongs to.
    async fn find_task(&self, provider: &str, task_id: &str) -> Result<Option<JobId>, Error>;

    /// Stores a job's next document and its agenda, if its version is still the expected one,
    /// charges its accounts at the job's `updated_at`, and announces it: all or nothing.
    async fn commit(&self, commit: CommitJob) -> Result<CommitOutcome, Error>;

    /// Makes sure that this version of a job, as it was read, outlives all that a commit outlives: for
    /// whoever takes what is there already for an answer. [`Committed::Stale`] where another is kept
    /// by now, or another was where it is kept.
    async fn ensure_durable(&self, job: &Job) -> Result<CommitOutcome, Error>;

    /// Brings the watchdog's next look at an unfinished job forward to `at`, or to `cool_down`
    /// after its last claim if that is later; never puts it off. Until it is claimed, no commit
    /// puts that look off either: what was heard while a read was under way is not lost with it.
    async fn schedule_poll(&self, id: &JobId, at: Time, cool_down: Duration) -> Result<(), Error>;

    /// The balances of accounts at `now`, in millionths and in their order.
    async fn balances(&self, accounts: &[String], now: Time) -> Result<Vec<i64>, Error>;

    /// Claims up to `limit` jobs of a queue that are due at `now`, earliest first. No other claim
    /// yields them before their next commit, or before [`SUBMIT_LEASE`] has passed
    /// ([`Queue::Submit`]) or the agenda's `every` ([`Queue::Watch`]).
    async fn claim(
        &self,
        queue: Queue<'_>,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Job>>, Error>;

    /// When the earliest job of a queue is due, leases counted in, places not.
    async fn next_due(&self, queue: Queue<'_>) -> Result<Option<Time>, Error>;

    /// Keeps verified news about a task that is no job's yet: the same news once, and of more than
    /// [`MOST_PARKED`] the latest, for [`PARKED_FOR`].
    async fn buffer_update(
        &self,
        provider: &str,
        task_id: &str,
        news: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error>;

    /// What is parked for a task, oldest first.
    async fn buffered_updates(&self, provider: &str, task_id: &str) -> Result<Vec<Update>, Error>;

    /// Forgets what its retention says: jobs, with their keys and tasks, parked news, and accounts
    /// that have ended; returns how many of all. One call does a bounded piece of the work: call until it returns zero.
    async fn sweep(&self, now: Time) -> Result<usize, Error>;

    /// Remembers a text under a name for all nodes, in the place of the one before, and tells them
    /// that there is something new. An engine with one node does nothing: there is nobody to tell.
    async fn put_shared_state(&self, name: &str, text: &str) -> Result<(), Error>;

    /// All that is remembered, by name.
    async fn shared_states(&self) -> Result<Vec<(String, String)>, Error>;

    /// Whether it answers.
    async fn ping(&self) -> Result<(), Error>;

    /// Ends it: what was acknowledged is durable, what comes later is [`Error::Away`].
    async fn close(&self);
}
