//! Phases of a run.
//!
//! 1. Register the jobs.
//! 2. Open the sockets and wait until all of them are current.
//! 3. Send the scheduled updates.
//! 4. With `--reconnect-storm`, disconnect all sockets, change every job, and reconnect.
//! 5. Finish every job, read its final state from the API, and verify every socket against it.
//!
//! Invariant: an incomplete run has no report.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use super::access::{Access, OWNER, READER_SCOPE, Tokens};
use super::arguments::Arguments;
use super::client::{HttpClient, retry_until, send};
use super::error::{Error, RequestError};
use super::jobs::JobIndex;
use super::measure::{MeasureContext, measure};
use super::process::{Process, Usage};
use super::progress::ProgressView;
use super::report::{Report, Server, Storm};
use super::socket::Command;
use super::socket_pool::SocketPool;
use super::stats::{SocketCounts, SocketStats};
use super::subscription_state::FinalState;
use super::target::Target;
use super::updates::{UpdateKind, UpdateResult, UpdateSender};

/// Interval at which the run checks whether all sockets have reached a state.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Lifetime of tokens that the run requests from the hub.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A run that is ready to start.
pub(super) struct Run {
    arguments: Arguments,
    target: Target,
    hub: Option<Process>,
    client: HttpClient,
    updates: Arc<UpdateSender>,
    reader_token: SecretString,
    view: ProgressView,
}

impl Run {
    /// Resolves the process of the hub and the tokens.
    pub async fn new(
        arguments: Arguments,
        target: Target,
        access: Access,
        pid: Option<u32>,
    ) -> Result<Self, Error> {
        let open = |pid| {
            let process = Process::open(pid).filter(|_| target.is_local());
            process.ok_or(Error::NoProcess(pid))
        };
        let hub = pid.map(open).transpose()?;
        let client = HttpClient::new(&target, arguments.connections)
            .map_err(|error| Error::Request("cannot create the HTTP client", error))?;
        let (reader_token, worker_token) = match access.tokens {
            Tokens::Minted { reader, worker } => (reader, worker),
            Tokens::Admin(admin) => (
                mint(&client, &admin, READER_SCOPE).await?,
                mint(&client, &admin, "jobs:publish").await?,
            ),
        };
        let updates = UpdateSender::new(
            client.clone(),
            &arguments,
            worker_token,
            access.webhook_secret,
        )?;
        let view = ProgressView::new();
        Ok(Self {
            arguments,
            target,
            hub,
            client,
            updates: Arc::new(updates),
            reader_token,
            view,
        })
    }

    /// Executes all phases.
    pub async fn execute(self) -> Result<Report, Error> {
        let started_at = jiff::Timestamp::now();
        let jobs = Arc::new(self.register().await?);
        let before = self.hub_usage();
        let pool = self.open_sockets(&jobs)?;
        let mut stats = self.wait_until_current(&pool, "sockets").await;
        let idle = self.hub_usage();
        let context = MeasureContext {
            arguments: &self.arguments,
            pool: &pool,
            jobs: &jobs,
            updates: &self.updates,
            hub: self.hub,
            view: &self.view,
        };
        let measurement = measure(&context).await?;
        stats.add(&measurement.sockets);
        let storm = if self.arguments.reconnect_storm {
            Some(self.reconnect_storm(&pool, &jobs, &mut stats).await?)
        } else {
            None
        };
        let final_states = self.finish(&pool, &jobs).await?;
        stats.violations.not_final +=
            final_states.iter().filter(|state| !state.is_final).count() as u64;
        pool.send(Command::Verify(final_states.into()));
        stats.add(&pool.join().await);
        let sockets = self.arguments.sockets;
        let server = before
            .zip(idle)
            .and_then(|connected| Server::new(self.hub?.id(), &measurement, connected, sockets));
        let url = self.target.url().to_string();
        Ok(Report::new(
            started_at,
            &self.arguments,
            url,
            measurement,
            &stats,
            storm,
            server,
        ))
    }

    fn hub_usage(&self) -> Option<Usage> {
        self.hub.and_then(Process::usage)
    }

    async fn register(&self) -> Result<JobIndex, Error> {
        let jobs = self.arguments.jobs;
        let phase = self.view.start("jobs", jobs);
        let registered = AtomicU64::new(0);
        let register = async |job| {
            let id = self.updates.register(job).await?;
            let registered = registered.fetch_add(1, Ordering::Relaxed) + 1;
            phase.update(registered, || format!("{registered} of {jobs} registered"));
            Ok(id)
        };
        let ids = self.client.for_each_job(jobs as u32, register).await;
        let ids = ids.map_err(|error| Error::Request("cannot register a job", error))?;
        phase.finish(format!("{jobs} registered"));
        Ok(JobIndex::new(ids))
    }

    fn open_sockets(&self, jobs: &Arc<JobIndex>) -> Result<SocketPool, Error> {
        let bearer = format!("Bearer {}", self.reader_token.expose_secret());
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|_| Error::InvalidToken)?;
        bearer.set_sensitive(true);
        Ok(SocketPool::start(
            &self.arguments,
            &self.target,
            &bearer,
            jobs,
        )?)
    }

    /// Waits until every socket is current. After the timeout the run continues, and the final verification reports
    /// the sockets that are behind.
    async fn wait_until_current(&self, pool: &SocketPool, phase: &'static str) -> SocketStats {
        let sockets = self.arguments.sockets;
        let timeout = self.arguments.ramp + self.arguments.timeout;
        let mut stats = SocketStats::default();
        self.wait_for_sockets(
            pool,
            phase,
            timeout,
            |counts| &counts.current,
            |current| {
                stats.add(&pool.take_stats());
                let progress = format!("{current} of {sockets} current");
                match (&stats.reason, stats.storm_recovery.count()) {
                    (Some(reason), _) => format!("{progress}; {} failed: {reason}", stats.failed),
                    (None, 0) => progress,
                    (None, _) => format!(
                        "{progress} within {:.2} s",
                        stats.storm_recovery.max() / 1000.0
                    ),
                }
            },
        )
        .await;
        stats
    }

    /// Waits until `counter` includes every socket or the timeout has passed. Shows `message` as progress.
    async fn wait_for_sockets(
        &self,
        pool: &SocketPool,
        phase: &'static str,
        timeout: Duration,
        counter: impl Fn(&SocketCounts) -> &AtomicU64,
        mut message: impl FnMut(u64) -> String,
    ) {
        let sockets = self.arguments.sockets;
        let phase = self.view.start(phase, sockets);
        let deadline = Instant::now() + timeout;
        loop {
            let count = pool.count(&counter);
            if count == sockets || Instant::now() > deadline {
                phase.finish(message(count));
                return;
            }
            phase.update(count, || message(count));
            sleep(CHECK_INTERVAL).await;
        }
    }

    /// Disconnects all sockets, changes every job, and reconnects all sockets at once.
    async fn reconnect_storm(
        &self,
        pool: &SocketPool,
        jobs: &JobIndex,
        stats: &mut SocketStats,
    ) -> Result<Storm, Error> {
        let sockets = self.arguments.sockets;
        pool.send(Command::Disconnect);
        let message = |disconnected| format!("{disconnected} of {sockets} disconnected");
        let timeout = self.arguments.timeout;
        self.wait_for_sockets(
            pool,
            "disconnect",
            timeout,
            |counts| &counts.disconnected,
            message,
        )
        .await;
        stats.add(&pool.take_stats());
        self.update_all(jobs, UpdateKind::Storm).await?;
        pool.send(Command::Reconnect(Instant::now()));
        let recovery = self.wait_until_current(pool, "reconnect").await;
        stats.add(&recovery);
        Ok(Storm::new(&recovery.storm_recovery))
    }

    /// Finishes every job, waits until the sockets have received it, and reads the final states from the API.
    async fn finish(&self, pool: &SocketPool, jobs: &JobIndex) -> Result<Vec<FinalState>, Error> {
        let sockets = self.arguments.sockets;
        pool.send(Command::Quiesce);
        self.update_all(jobs, UpdateKind::Final).await?;
        let message = |done| format!("{done} of {sockets} sockets have all final versions");
        let timeout = self.arguments.timeout;
        self.wait_for_sockets(pool, "finish", timeout, |counts| &counts.done, message)
            .await;
        let deadline = Instant::now() + timeout;
        let read = async |job| {
            let path = format!("/v1/jobs/{}", jobs.id(job));
            let read = async || send(self.client.get(&path, &self.reader_token)).await;
            retry_until(deadline, read).await
        };
        let states = self.client.for_each_job(jobs.count(), read).await;
        states.map_err(|error| Error::Request("cannot read the final state of a job", error))
    }

    /// Sends the same update for every job, with retries.
    async fn update_all(&self, jobs: &JobIndex, kind: UpdateKind) -> Result<(), Error> {
        let deadline = Instant::now() + self.arguments.timeout;
        let update = async |job| {
            retry_until(deadline, async || {
                match self.updates.send(jobs, job, kind).await {
                    // The response to an earlier attempt was lost, but the hub has applied it.
                    Err(RequestError::Status(409, _)) => Ok(UpdateResult::Unchanged),
                    result => result,
                }
            })
            .await
        };
        let results = self.client.for_each_job(jobs.count(), update).await;
        results
            .map(drop)
            .map_err(|error| Error::Request("cannot update a job", error))
    }
}

/// Requests a token with `scope` from the hub.
async fn mint(
    client: &HttpClient,
    admin: &SecretString,
    scope: &str,
) -> Result<SecretString, Error> {
    #[derive(Deserialize)]
    struct Minted {
        token: SecretString,
    }
    let body = json!({ "sub": OWNER, "scope": scope, "ttl_seconds": TOKEN_TTL.as_secs() });
    let request = client.post("/v1/tokens", Some(admin));
    let minted: Result<Minted, RequestError> = send(request.json(&body)).await;
    let minted = minted.map_err(|error| Error::Request("cannot mint a token", error))?;
    Ok(minted.token)
}
