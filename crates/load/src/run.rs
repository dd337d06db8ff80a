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
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use reqwest::Method;
use reqwest::header::AUTHORIZATION;
use tokio::time::sleep;
use url::Url;

use super::arguments::Arguments;
use super::context::{Access, Context};
use super::measure::measure;
use super::progress::Phase;
use super::report::{Report, Server};
use super::socket::Command;
use super::socket_pool::SocketPool;
use super::stats::SocketStats;
use super::subscription_state::FinalState;
use super::target::{ErrorResponse, send};
use super::updates::UpdateKind;

/// Interval at which the run checks whether all sockets have reached a state.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// A run whose jobs are registered.
struct Run {
    context: Arc<Context>,
    pool: SocketPool,
}

/// Runs a load test against the hub at `url`. With its process id `pid`, the report includes CPU time and memory.
///
/// # Errors
/// [`ArgumentErrors`](super::ArgumentErrors) for invalid flags, and any error that prevents a complete run. Violations
/// that the run finds are part of the [`Report`].
pub async fn run(
    arguments: Arguments,
    url: Url,
    pid: Option<u32>,
    access: Access,
) -> Result<Report> {
    let started_at = jiff::Timestamp::now();
    let context = Arc::new(Context::new(arguments, url, pid, access).await?);
    let before = context.hub_usage();
    let mut run = Run {
        pool: SocketPool::start(&context)?,
        context: context.clone(),
    };
    let ramp = context.arguments.ramp;
    run.wait_for("sockets", "current", ramp, |stats| stats.current)
        .await;
    let idle = context.hub_usage();
    let measurement = measure(&context, &mut run.pool).await?;
    if context.arguments.reconnect_storm {
        run.pool.send(Command::Disconnect);
        run.wait_for("disconnect", "disconnected", Duration::ZERO, |stats| {
            stats.disconnected
        })
        .await;
        run.update_all(UpdateKind::Storm).await?;
        run.pool.send(Command::Reconnect(Instant::now()));
        run.wait_for("reconnect", "current", ramp, |stats| stats.current)
            .await;
    }
    run.pool.send(Command::Quiesce);
    run.update_all(UpdateKind::Final).await?;
    let state = "sockets have all final versions";
    run.wait_for("finish", state, Duration::ZERO, |stats| stats.done)
        .await;
    let stats = run.verify().await?;
    let server = Server::new(&context, &measurement, before, idle);
    let arguments = context.arguments.clone();
    Ok(Report::new(
        started_at,
        arguments,
        measurement,
        stats,
        server,
    ))
}

impl Run {
    /// Waits until the sum of `count` includes every socket, at most for `--timeout` after the ramp. After that the
    /// run continues, and the final verification reports the sockets that are behind. `state` is shown as progress.
    async fn wait_for(
        &mut self,
        name: &'static str,
        state: &str,
        ramp: Duration,
        count: impl Fn(&SocketStats) -> i64,
    ) {
        let sockets = self.context.arguments.sockets;
        let phase = Phase::start(name, sockets);
        let deadline = Instant::now() + ramp + self.context.arguments.timeout;
        let mut stats = SocketStats::default();
        loop {
            stats += self.pool.take_stats();
            let count = count(&self.pool.total).unsigned_abs();
            let message = || {
                let progress = format!("{count} of {sockets} {state}");
                let failures = &stats.connections.failures;
                if let Some(reason) = &failures.reason {
                    return format!("{progress}; {} failed: {reason}", failures.count);
                }
                match stats.storm_recovery.max() / 1000.0 {
                    0.0 => progress,
                    seconds => format!("{progress} within {seconds:.2} s"),
                }
            };
            if count == sockets || Instant::now() > deadline {
                return phase.finish(message());
            }
            phase.update(count, message);
            sleep(CHECK_INTERVAL).await;
        }
    }

    /// Sends the same update for every job, with retries.
    async fn update_all(&self, kind: UpdateKind) -> Result<()> {
        let update = async |job| match self.context.update(job, kind).await {
            // The response to an earlier attempt was lost, but the hub has applied it.
            Err(error) if ErrorResponse::is_conflict(&error) => Ok(true),
            result => result,
        };
        let updates = self.context.for_each_job(self.deadline(), update).await;
        updates.map(drop).context("cannot update a job")
    }

    /// Reads the final states of all jobs from the API and compares every socket with them. Returns the statistics of
    /// all phases.
    async fn verify(mut self) -> Result<SocketStats> {
        let read = async |job| {
            let path = format!("/v1/jobs/{}", self.context.job_id(job));
            let request = self.context.target.request(Method::GET, &path);
            send(request.header(AUTHORIZATION, &self.context.bearer)).await
        };
        let states = self.context.for_each_job(self.deadline(), read).await;
        let states: Vec<FinalState> = states.context("cannot read the final state of a job")?;
        let not_final = states.iter().filter(|state| !state.is_final).count();
        self.pool.total.violations.not_final += not_final as u64;
        self.pool.send(Command::Verify(states.into()));
        Ok(self.pool.join().await)
    }

    /// Returns the end of the time for retries.
    fn deadline(&self) -> Instant {
        Instant::now() + self.context.arguments.timeout
    }
}
