//! Performs the deliveries to one destination.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::policy::{Admission, DeliveryPolicy, admission};
use crate::destinations::{Destination, Outcome, Quota, Verdict};
use crate::job::JobId;
use crate::outbox::{
    Attempt, Delivery, DeliveryId, DeliveryState, DestinationState, MAX_ATTEMPT_ERROR_CHARS,
    Progress,
};
use crate::store::{self, BudgetEntry, Store};
use crate::telemetry::{AttemptOutcome, Metrics};
use crate::time::{Time, exponential_backoff, random_jitter};
use crate::tracker::MAX_IDLE;

/// Duration of the lease of a destination. If the node crashes, another one continues after it.
const LEASE_TTL: Duration = Duration::from_secs(15);

/// Interval at which the lease is extended.
const LEASE_RENEWAL: Duration = Duration::from_secs(5);

/// Interval at which a node without the lease tries to acquire it.
const LEASE_RETRY: Duration = Duration::from_secs(3);

/// Maximum age of the state of the destination, which any node can change.
const STATE_MAX_AGE: Duration = Duration::from_secs(1);

/// Maximum number of deliveries per read of the outbox.
const DUE_BATCH: usize = 64;

/// Maximum number of attempts to record a result, and the delays between them. If all fail, the
/// delivery is repeated.
const RECORD_ATTEMPTS: u32 = 6;
const RECORD_BACKOFF: Duration = Duration::from_millis(100);
const RECORD_MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Time for attempts in progress to end at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// What the attempts of one destination share.
struct Shared {
    store: Arc<dyn Store>,
    destination: Arc<Destination>,
    policy: Arc<DeliveryPolicy>,
    metrics: Arc<Metrics>,
}

/// Performs the deliveries to one destination while it holds the lease.
pub(super) struct Worker {
    shared: Arc<Shared>,
    node: Arc<str>,
    /// Until when the lease is held for certain.
    leased_until: Option<Instant>,
    renew_at: Instant,
    state: DestinationState,
    state_read_at: Option<Instant>,
    /// Due deliveries that were read.
    due: VecDeque<Arc<Delivery>>,
    /// Until this time, no further delivery is due unless the worker is woken.
    idle_until: Option<Time>,
    attempts: JoinSet<Verdict>,
    in_progress: HashMap<Id, Slot>,
    is_store_failing: bool,
}

/// What can have only one attempt at a time. All events of a job share one, so that an older version
/// does not arrive after a newer one. Each output of a job has its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    job: JobId,
    output: Option<String>,
}

impl Slot {
    fn of(id: &DeliveryId) -> Self {
        Self {
            job: id.job.clone(),
            output: id.event.strip_prefix("output.").map(str::to_owned),
        }
    }
}

impl Worker {
    pub(super) fn new(
        store: Arc<dyn Store>,
        destination: Arc<Destination>,
        policy: Arc<DeliveryPolicy>,
        metrics: Arc<Metrics>,
        node: Arc<str>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                destination,
                policy,
                metrics,
            }),
            node,
            leased_until: None,
            renew_at: Instant::now(),
            state: DestinationState::default(),
            state_read_at: None,
            due: VecDeque::new(),
            idle_until: None,
            attempts: JoinSet::new(),
            in_progress: HashMap::new(),
            is_store_failing: false,
        }
    }

    /// Works until `stop` is cancelled, then releases the lease.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let destination = Arc::clone(&self.shared.destination);
        while !stop.is_cancelled() {
            let delay = match self.start_due().await {
                Ok(delay) => {
                    self.is_store_failing = false;
                    delay
                }
                Err(error) => {
                    if !self.is_store_failing {
                        tracing::warn!(destination.name = destination.name, %error, "failed to read outbox");
                    }
                    self.is_store_failing = true;
                    MAX_IDLE
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = self.attempts.join_next_with_id() => self.complete(ended).await,
                () = destination.wakeup.notified() => {
                    self.idle_until = None;
                    self.state_read_at = None;
                }
                () = sleep(delay) => {}
            }
        }
        let end = async { while self.attempts.join_next().await.is_some() {} };
        let _ = timeout(SHUTDOWN_GRACE, end).await;
        if self.leased_until.is_some() {
            let store = &self.shared.store;
            if let Err(error) = store
                .release_destination(&destination.name, &self.node)
                .await
            {
                tracing::debug!(destination.name = destination.name, %error, "failed to release lease");
            }
        }
    }

    /// Starts the attempts that are due and permitted. Returns the time until the next call is
    /// necessary, unless an attempt ends or the worker is woken before.
    async fn start_due(&mut self) -> Result<Duration, store::Error> {
        if !self.holds_lease().await? {
            return Ok(LEASE_RETRY);
        }
        self.refresh_state().await?;
        let now = Time::now();
        let limit = match admission(&self.state, now) {
            Admission::Open => self.shared.destination.channel.max_in_flight(),
            Admission::Probe => 1,
            Admission::PausedUntil(until)
            | Admission::Disabled {
                recheck_at: Some(until),
            } => {
                self.forget_due();
                return Ok(until.saturating_duration_since(now).min(MAX_IDLE));
            }
            Admission::Disabled { recheck_at: None } => {
                self.forget_due();
                return Ok(MAX_IDLE);
            }
        };
        while self.attempts.len() < limit {
            let Some(delivery) = self.next_due(now).await? else {
                let idle = self.idle_until.unwrap_or(now + MAX_IDLE);
                return Ok(idle.saturating_duration_since(now));
            };
            self.start(delivery);
        }
        Ok(MAX_IDLE)
    }

    /// Forgets which deliveries are due. Newer versions can replace them before the next attempt.
    fn forget_due(&mut self) {
        self.due.clear();
        self.idle_until = None;
    }

    /// Acquires or extends the lease if necessary. Returns whether it is held.
    async fn holds_lease(&mut self) -> Result<bool, store::Error> {
        let now = Instant::now();
        if now < self.renew_at {
            return Ok(self.leased_until.is_some_and(|until| now < until));
        }
        let name = &self.shared.destination.name;
        let store = &self.shared.store;
        let leased = store.lease_destination(name, &self.node, LEASE_TTL).await?;
        if leased != self.leased_until.is_some() {
            let name = name.as_str();
            tracing::debug!(destination.name = name, leased, "destination lease changed");
            self.state_read_at = None;
            self.forget_due();
        }
        self.leased_until = leased.then_some(now + LEASE_TTL);
        self.renew_at = now + if leased { LEASE_RENEWAL } else { LEASE_RETRY };
        Ok(leased)
    }

    async fn refresh_state(&mut self) -> Result<(), store::Error> {
        let is_recent = |at: Instant| at.elapsed() < STATE_MAX_AGE;
        if !self.state_read_at.is_some_and(is_recent) {
            let name = &self.shared.destination.name;
            self.state = self.shared.store.destination_state(name).await?;
            self.state_read_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Returns the next delivery that is due and has no attempt in progress.
    async fn next_due(&mut self, now: Time) -> Result<Option<Arc<Delivery>>, store::Error> {
        let is_free = |slots: &HashMap<Id, Slot>, delivery: &Delivery| {
            let slot = Slot::of(&delivery.id);
            !slots.values().any(|used| *used == slot)
        };
        loop {
            while let Some(delivery) = self.due.pop_front() {
                if is_free(&self.in_progress, &delivery) {
                    return Ok(Some(delivery));
                }
            }
            if self.idle_until.is_some_and(|until| now < until) {
                return Ok(None);
            }
            let (store, name) = (&self.shared.store, &self.shared.destination.name);
            self.due = store.due_deliveries(name, now, DUE_BATCH).await?.into();
            let in_progress = &self.in_progress;
            self.due.retain(|delivery| is_free(in_progress, delivery));
            if self.due.is_empty() {
                let next = store.next_delivery_at(name).await?;
                // A delivery that is in progress is due, too. Its end wakes the worker.
                let next = next.filter(|at| *at > now).unwrap_or(now + MAX_IDLE);
                self.idle_until = Some(next.min(now + MAX_IDLE));
                return Ok(None);
            }
        }
    }

    fn start(&mut self, delivery: Arc<Delivery>) {
        let slot = Slot::of(&delivery.id);
        let shared = Arc::clone(&self.shared);
        let attempt = self
            .attempts
            .spawn(async move { shared.attempt(&delivery).await });
        self.in_progress.insert(attempt.id(), slot);
    }

    /// Records what an attempt says about the destination.
    async fn complete(&mut self, ended: Result<(Id, Verdict), JoinError>) {
        let (id, verdict) = ended.unwrap_or_else(|error| {
            let verdict = Verdict::Failed {
                error: "internal error".to_owned(),
                retry_after: None,
            };
            (error.id(), verdict)
        });
        self.in_progress.remove(&id);
        self.idle_until = None;
        if let Err(error) = self.update_state(&verdict).await {
            let name = &self.shared.destination.name;
            tracing::warn!(destination.name = name, %error, "failed to record destination state");
        }
    }

    async fn update_state(&mut self, verdict: &Verdict) -> Result<(), store::Error> {
        let (store, name) = (&self.shared.store, &self.shared.destination.name);
        let now = Time::now();
        loop {
            let mut next = self.shared.policy.state_after(&self.state, verdict, now);
            if next == self.state {
                return Ok(());
            }
            next.revision += 1;
            if store.put_destination_state(name, next.clone()).await? {
                log_transition(name, &self.state, &next);
                self.state = next;
                return Ok(());
            }
            self.state = store.destination_state(name).await?;
        }
    }
}

impl Shared {
    /// Performs an attempt and records its result.
    async fn attempt(&self, delivery: &Delivery) -> Verdict {
        let (at, started) = (Time::now(), Instant::now());
        let outcome = match self.exceeded_quota(delivery).await {
            Some(verdict) => Outcome {
                status: None,
                verdict,
            },
            None => self.destination.channel.deliver(delivery).await,
        };
        let error = outcome.verdict.error();
        let attempt = Attempt {
            at,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            status: outcome.status,
            error: error.map(|error| error.chars().take(MAX_ATTEMPT_ERROR_CHARS).collect()),
        };
        let label = AttemptOutcome::from(&outcome.verdict);
        self.metrics.delivery_attempt(self.destination.kind, label);
        let jitter = random_jitter(Duration::from_secs(1), 0.8..1.2).as_secs_f64();
        let (verdict, now) = (outcome.verdict, Time::now());
        let before = &delivery.progress;
        let progress = self
            .policy
            .progress_after(before, &verdict, attempt, now, jitter);
        log_attempt(delivery, &progress, verdict.error());
        self.record(&delivery.id, progress).await;
        verdict
    }

    /// Counts a delivery for the quota of its channel, once. Returns a verdict if the delivery must not
    /// be attempted now.
    async fn exceeded_quota(&self, delivery: &Delivery) -> Option<Verdict> {
        let quota = self.destination.channel.quota(delivery)?;
        let Quota {
            setting,
            window,
            limit,
        } = quota;
        let entry = BudgetEntry {
            window: window.name,
            amount: 1,
            limit: Some(i64::try_from(limit).unwrap_or(i64::MAX)),
            earlier_windows: Vec::new(),
            window_ends_at: window.expires_at,
        };
        let id = delivery.id.to_string();
        let counted = self.store.charge_once(&id, entry, delivery.created_at);
        match counted.await {
            Ok(true) => None,
            Ok(false) => Some(Verdict::Rejected {
                error: format!("{setting}: the limit of {limit} is reached"),
            }),
            Err(error) => {
                tracing::warn!(delivery.id = %delivery.id, %error, "failed to count delivery");
                Some(Verdict::Postponed { delay: MAX_IDLE })
            }
        }
    }

    async fn record(&self, id: &DeliveryId, progress: Progress) {
        for attempt in 1..=RECORD_ATTEMPTS {
            match self.store.record_progress(id, progress.clone()).await {
                // Without the record, a newer version has replaced the delivery.
                Ok(_is_recorded) => return,
                Err(error) if attempt == RECORD_ATTEMPTS => {
                    tracing::warn!(delivery.id = %id, %error, "failed to record delivery; it is repeated");
                }
                Err(_) => {
                    let backoff = exponential_backoff(RECORD_BACKOFF, RECORD_MAX_BACKOFF, attempt);
                    sleep(random_jitter(backoff, 0.5..1.0)).await;
                }
            }
        }
    }
}

fn log_attempt(delivery: &Delivery, progress: &Progress, error: Option<&str>) {
    let (id, attempts) = (&delivery.id, progress.attempt_count);
    match progress.state {
        DeliveryState::Delivered { .. } => {
            tracing::debug!(delivery.id = %id, delivery.attempts = attempts, "delivered");
        }
        DeliveryState::Failed { .. } => {
            tracing::warn!(delivery.id = %id, delivery.attempts = attempts, error, "delivery failed");
        }
        DeliveryState::Waiting { due_at, .. } => {
            tracing::info!(delivery.id = %id, delivery.attempts = attempts, error, delivery.due_at = %due_at, "delivery attempt failed");
        }
    }
}

fn log_transition(name: &str, before: &DestinationState, after: &DestinationState) {
    let error = after.last_error.as_deref();
    let failures = after.consecutive_failures;
    if let Some(disabled) = &after.disabled {
        if before.disabled.is_none() {
            let reason = disabled.reason.as_str();
            tracing::warn!(
                destination.name = name,
                reason,
                error,
                "destination disabled"
            );
        }
    } else if after.paused_until.is_some() {
        tracing::warn!(
            destination.name = name,
            failures,
            error,
            "destination paused"
        );
    } else if before.paused_until.is_some() || before.disabled.is_some() {
        tracing::info!(destination.name = name, "destination recovered");
    }
}
