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

use anyhow::{Context as _, Result};
use reqwest::StatusCode;
use reqwest::header::AUTHORIZATION;
use tokio::time::sleep;
use url::Url;

use super::arguments::Arguments;
use super::client::{ErrorResponse, for_each_job, send};
use super::context::{Access, Context};
use super::measure::measure;
use super::progress::Phase;
use super::report::{Report, Server};
use super::socket::Command;
use super::socket_pool::SocketPool;
use super::stats::{SocketCounts, SocketStats};
use super::subscription_state::FinalState;
use super::updates::UpdateKind;

/// Interval at which the run checks whether all sockets have reached a state.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// A run whose jobs are registered.
struct Run {
    context: Arc<Context>,
    pool: SocketPool,
    /// Sum of what the sockets of all phases observed.
    stats: SocketStats,
}

/// Executes all phases against the hub at `url`, which has the process id `pid`.
pub(super) async fn execute(
    arguments: Arguments,
    url: Url,
    pid: Option<u32>,
    access: Access,
) -> Result<Report> {
    let started_at = jiff::Timestamp::now();
    let own_hub = arguments.url.is_none();
    let context = Arc::new(Context::new(arguments, url, pid, access).await?);
    let arguments = &context.arguments;
    let before = context.hub_usage();
    let mut run = Run {
        pool: SocketPool::start(&context)?,
        context: context.clone(),
        stats: SocketStats::default(),
    };
    let connect_timeout = arguments.ramp + arguments.timeout;
    run.wait_for("sockets", "current", connect_timeout, |counts| {
        &counts.current
    })
    .await;
    let idle = context.hub_usage();
    let measurement = measure(&context, &run.pool).await?;
    run.stats += measurement.sockets.clone();
    if arguments.reconnect_storm {
        run.pool.send(Command::Disconnect);
        run.wait_for("disconnect", "disconnected", arguments.timeout, |counts| {
            &counts.disconnected
        })
        .await;
        run.update_all(UpdateKind::Storm).await?;
        run.pool.send(Command::Reconnect(Instant::now()));
        run.wait_for("reconnect", "current", connect_timeout, |counts| {
            &counts.current
        })
        .await;
    }
    run.pool.send(Command::Quiesce);
    run.update_all(UpdateKind::Final).await?;
    run.wait_for(
        "finish",
        "sockets have all final versions",
        arguments.timeout,
        |counts| &counts.done,
    )
    .await;
    let stats = run.verify().await?;
    let server = before
        .zip(idle)
        .and_then(|connected| Server::new(pid?, &measurement, connected, arguments.sockets));
    Ok(Report::new(
        started_at,
        arguments,
        own_hub,
        measurement,
        stats,
        server,
    ))
}

impl Run {
    /// Waits until `counter` includes every socket. After the timeout the run continues, and the final verification
    /// reports the sockets that are behind. `state` names what the sockets wait for.
    async fn wait_for(
        &mut self,
        name: &'static str,
        state: &str,
        timeout: Duration,
        counter: impl Fn(&SocketCounts) -> &AtomicU64,
    ) {
        let sockets = self.context.arguments.sockets;
        let phase = Phase::start(name, sockets);
        let deadline = Instant::now() + timeout;
        let mut stats = SocketStats::default();
        loop {
            stats += self.pool.take_stats();
            let count = counter(&self.context.counts).load(Ordering::Relaxed);
            let message = || {
                let progress = format!("{count} of {sockets} {state}");
                let failures = &stats.connections.failures;
                match (&failures.reason, stats.storm_recovery.count()) {
                    (Some(reason), _) => format!("{progress}; {} failed: {reason}", failures.count),
                    (None, 0) => progress,
                    (None, _) => format!(
                        "{progress} within {:.2} s",
                        stats.storm_recovery.max() / 1000.0
                    ),
                }
            };
            if count == sockets || Instant::now() > deadline {
                phase.finish(message());
                break;
            }
            phase.update(count, message);
            sleep(CHECK_INTERVAL).await;
        }
        self.stats += stats;
    }

    /// Sends the same update for every job, with retries.
    async fn update_all(&self, kind: UpdateKind) -> Result<()> {
        let update = async |job| match self.context.update(job, kind).await {
            // The response to an earlier attempt was lost, but the hub has applied it.
            Err(error) if is_conflict(&error) => Ok(true),
            result => result,
        };
        self.for_each_job(update)
            .await
            .context("cannot update a job")?;
        Ok(())
    }

    /// Reads the final states of all jobs from the API and compares every socket with them. Returns the statistics of
    /// all phases.
    async fn verify(mut self) -> Result<SocketStats> {
        let read = async |job| {
            let path = format!("/v1/jobs/{}", self.context.job_id(job));
            let request = self.context.target.get(&path);
            send(request.header(AUTHORIZATION, &self.context.bearer)).await
        };
        let states: Vec<FinalState> = self
            .for_each_job(read)
            .await
            .context("cannot read the final state of a job")?;
        self.stats.violations.not_final +=
            states.iter().filter(|state| !state.is_final).count() as u64;
        self.pool.send(Command::Verify(states.into()));
        self.stats += self.pool.join().await;
        Ok(self.stats)
    }

    /// Calls `send` for every job, and repeats failed calls until the timeout.
    async fn for_each_job<T>(&self, send: impl AsyncFn(u32) -> Result<T>) -> Result<Vec<T>> {
        let arguments = &self.context.arguments;
        let deadline = Instant::now() + arguments.timeout;
        for_each_job(arguments.jobs as u32, arguments.connections, deadline, send).await
    }
}

fn is_conflict(error: &anyhow::Error) -> bool {
    let response = error.downcast_ref::<ErrorResponse>();
    response.is_some_and(|response| response.status == StatusCode::CONFLICT)
}
