//! One run from its first request to its figures.
//!
//! Register the jobs; open the sockets and wait until all is shown; send updates by schedule; a storm,
//! if one is wanted; end every job; ask the hub how each ended, and judge every socket by it.
//!
//! Invariant: a run that was not whole has no report.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use super::arguments::Arguments;
use super::client::{Headers, HttpClient, RequestError, bearer};
use super::http_pool::{HttpPool, retry_until};
use super::jobs::JobIndex;
use super::measure::{MeasureContext, Measurement, steady};
use super::process::{Cost, Process};
use super::progress::ProgressView;
use super::report::{
    Checks, Client, Deliveries, Plan, Report, Server, Sockets, Storm, Updates, percentiles, rounded,
};
use super::socket::Command;
use super::socket_pool::SocketPool;
use super::stats::SocketStats;
use super::subscription_state::FinalState;
use super::target::Target;
use super::updates::{OWNER, UpdateKind, UpdateResult, UpdateSender, read};
use super::{Access, Error, Tokens};

/// How often a count is looked at while it is waited for.
const CONVERGENCE_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Everything that a run goes by.
pub(super) struct Run {
    arguments: Arguments,
    target: Target,
    is_own_hub: bool,
    hub: Option<Process>,
    way: Arc<UpdateSender>,
    reader: SecretString,
    callers: HttpPool,
    view: ProgressView,
}

#[derive(Deserialize)]
struct Minted {
    token: SecretString,
}

impl Run {
    pub async fn new(
        arguments: Arguments,
        target: Target,
        access: Access,
        pid: Option<u32>,
        is_own_hub: bool,
    ) -> Result<Self, Error> {
        let hub = match pid {
            Some(pid) if !target.is_local() || Process::of(pid).is_none() => {
                return Err(Error::NoProcess(pid));
            }
            pid => pid.and_then(Process::of),
        };
        let callers = HttpPool::new(arguments.connections, &target);
        let (reader, worker) = match access.tokens {
            Tokens::Minted { reader, worker } => (reader, worker),
            Tokens::Admin(admin) => {
                let admin = vec![bearer(admin.expose_secret())];
                (
                    mint(&target, &admin, "jobs:read").await?,
                    mint(&target, &admin, "jobs:publish").await?,
                )
            }
        };
        let way = UpdateSender::new(&arguments, &worker, access.webhook_secret.as_ref())?;
        Ok(Self {
            arguments,
            target,
            is_own_hub,
            hub,
            way: Arc::new(way),
            reader,
            callers,
            view: ProgressView::new(),
        })
    }

    /// Does it all.
    pub async fn execute(mut self) -> Result<Report, Error> {
        let started_at = jiff::Timestamp::now();
        let jobs = Arc::new(self.register().await?);
        let before = self.cost();
        let fleet = self.open(&jobs)?;
        let mut all = self
            .wait_until_current(&fleet, "sockets", SocketStats::default())
            .await;
        let idle = self.cost();
        let scene = MeasureContext {
            arguments: &self.arguments,
            fleet: &fleet,
            jobs: &jobs,
            way: &self.way,
            hub: self.hub,
            view: &self.view,
        };
        let steady = steady(&scene, &mut self.callers).await?;
        all.add(&steady.tally);
        let storm = match self.arguments.storm {
            true => Some(self.storm(&fleet, &jobs, &mut all).await?),
            false => None,
        };
        let truths = self.finish(&fleet, &jobs).await?;
        fleet.order(Command::Verify(truths.clone().into()));
        all.add(&fleet.end().await);
        all.faults.unended += truths.iter().filter(|truth| !truth.is_final).count() as u64;
        let arguments = &self.arguments;
        let checks = Checks::new(&all, arguments.sockets * arguments.subscriptions);
        let deliveries = steady.tally.deliveries;
        Ok(Report {
            ok: checks.violations == 0,
            version: env!("CARGO_PKG_VERSION"),
            started_at,
            plan: Plan::new(arguments, self.target.url().to_string(), self.is_own_hub),
            updates: Updates::new(&steady.sent, arguments.updates(), steady.passed),
            deliveries: Deliveries::new(&steady.tally, steady.passed),
            latency: (&steady.tally.latency).into(),
            slow_latency: (&steady.tally.slow_latency).into(),
            sockets: Sockets::new(&all),
            storm,
            server: self.server(&steady, before, idle),
            client: client(steady.client, deliveries),
            checks,
            percentiles: percentiles(&steady.tally.latency),
            timeline: steady.beats,
        })
    }

    fn cost(&self) -> Option<Cost> {
        self.hub.and_then(Process::cost)
    }

    async fn register(&mut self) -> Result<JobIndex, Error> {
        let count = self.arguments.jobs as u32;
        let stage = self.view.begin("jobs", count.into());
        let way = self.way.clone();
        let done = AtomicU32::new(0);
        let registered = self.callers.each(count, async |caller, job| {
            let registered = way.register(caller, job).await;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            stage.at(done.into(), || format!("{done} of {count} registered"));
            registered
        });
        let ids: Result<Vec<String>, RequestError> = registered.await.into_iter().collect();
        let ids = ids.map_err(|error| Error::Unanswered("can't register a job", error))?;
        stage.end(format!("{count} registered"));
        Ok(JobIndex::new(ids))
    }

    fn open(&self, jobs: &Arc<JobIndex>) -> Result<SocketPool, Error> {
        let bearer = format!("Bearer {}", self.reader.expose_secret());
        let mut bearer =
            HeaderValue::from_str(&bearer).map_err(|_| Error::Token("has signs that none has"))?;
        bearer.set_sensitive(true);
        Ok(SocketPool::start(
            &self.arguments,
            &self.target,
            &bearer,
            jobs,
        )?)
    }

    /// Waits until every socket is current, or patience is over; the end of the run tells which.
    async fn wait_until_current(
        &self,
        fleet: &SocketPool,
        name: &'static str,
        mut tally: SocketStats,
    ) -> SocketStats {
        let all = self.arguments.sockets;
        let stage = self.view.begin(name, all);
        let deadline = Instant::now() + self.arguments.ramp + self.arguments.timeout;
        loop {
            tally.add(&fleet.take());
            let current = fleet.count(|standing| &standing.current);
            let within = match tally.storm.count() {
                0 => String::new(),
                _ => format!(" within {:.2} s", tally.storm.max() / 1000.0),
            };
            let told = || match &tally.reason {
                Some(reason) => format!(
                    "{current} of {all} current; {} failed: {reason}",
                    tally.failed
                ),
                None => format!("{current} of {all} current{within}"),
            };
            if current == all || Instant::now() > deadline {
                stage.end(told());
                return tally;
            }
            stage.at(current, told);
            sleep(CONVERGENCE_CHECK_INTERVAL).await;
        }
    }

    /// Everybody leaves, every job changes, and everybody is back at once.
    async fn storm(
        &mut self,
        fleet: &SocketPool,
        jobs: &JobIndex,
        all: &mut SocketStats,
    ) -> Result<Storm, Error> {
        fleet.order(Command::Disconnect);
        let deadline = Instant::now() + self.arguments.timeout;
        let is_away = || fleet.count(|standing| &standing.away) == self.arguments.sockets;
        while !is_away() && Instant::now() < deadline {
            sleep(CONVERGENCE_CHECK_INTERVAL).await;
        }
        all.add(&fleet.take());
        self.update_all(jobs, UpdateKind::Storm).await?;
        let since = Instant::now();
        fleet.order(Command::Reconnect(since));
        let tally = self
            .wait_until_current(fleet, "storm", SocketStats::default())
            .await;
        let storm = Storm {
            sockets: tally.storm.count(),
            seconds: rounded(tally.storm.max() / 1000.0),
            current: (&tally.storm).into(),
        };
        all.add(&tally);
        Ok(storm)
    }

    /// Ends every job, waits until it was shown, and asks how each ended.
    async fn finish(
        &mut self,
        fleet: &SocketPool,
        jobs: &JobIndex,
    ) -> Result<Vec<FinalState>, Error> {
        fleet.order(Command::Quiesce);
        let all = self.arguments.sockets;
        let stage = self.view.begin("ends", all);
        self.update_all(jobs, UpdateKind::End).await?;
        let deadline = Instant::now() + self.arguments.timeout;
        loop {
            let done = fleet.count(|standing| &standing.done);
            if done == all || Instant::now() > deadline {
                stage.end(format!("{done} of {all} sockets have every end"));
                break;
            }
            stage.at(done, || format!("{done} of {all} sockets have every end"));
            sleep(CONVERGENCE_CHECK_INTERVAL).await;
        }
        let (way, reader) = (self.way.clone(), vec![bearer(self.reader.expose_secret())]);
        let truths = self.callers.each(jobs.count(), async |caller, job| {
            retry_until(deadline, async || {
                way.truth(caller, jobs, job, &reader).await
            })
            .await
        });
        let truths: Result<Vec<FinalState>, RequestError> = truths.await.into_iter().collect();
        truths.map_err(|error| Error::Unanswered("can't read how a job ended", error))
    }

    /// Tells the same of every job, as often as it takes.
    async fn update_all(&mut self, jobs: &JobIndex, news: UpdateKind) -> Result<(), Error> {
        let deadline = Instant::now() + self.arguments.timeout;
        let way = self.way.clone();
        let told = self.callers.each(jobs.count(), async |caller, job| {
            retry_until(deadline, async || {
                match way.tell(caller, jobs, job, news).await {
                    // An earlier try came through and its answer did not.
                    Err(RequestError::Refused(status, _)) if status == 409 => {
                        Ok(UpdateResult::Unchanged)
                    }
                    told => told,
                }
            })
            .await
        });
        let told: Result<Vec<UpdateResult>, RequestError> = told.await.into_iter().collect();
        match told {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Unanswered("can't update a job", error)),
        }
    }

    fn server(
        &self,
        steady: &Measurement,
        before: Option<Cost>,
        idle: Option<Cost>,
    ) -> Option<Server> {
        let (begin, end) = steady.hub?;
        let (before, idle) = (before?.memory, idle?.memory);
        let (cpu, share) = end.since(&begin);
        let answered = steady.sent.applied + steady.sent.unchanged;
        let per = |count: u64| rounded(cpu.as_secs_f64() * 1e6 / count.max(1) as f64);
        let added = idle.saturating_sub(before) as f64;
        let beats = steady.beats.iter().filter_map(|beat| beat.memory_bytes);
        Some(Server {
            pid: self.hub?.id(),
            cpu_us_per_delivery: per(steady.tally.deliveries),
            cpu_us_per_update: per(answered),
            cpu_percent: rounded(share * 100.0),
            memory_before_bytes: before,
            memory_idle_bytes: idle,
            memory_per_connection_bytes: (added / self.arguments.sockets as f64).round(),
            memory_peak_bytes: beats.chain([idle, end.memory]).max().unwrap_or(idle),
        })
    }
}

async fn mint(target: &Target, admin: &Headers, scope: &str) -> Result<SecretString, Error> {
    let wish = json!({ "sub": OWNER, "scope": scope, "ttl_seconds": 24 * 60 * 60 });
    let body = Bytes::from(wish.to_string());
    let mut caller = HttpClient::new(target.clone());
    let called = caller.call(Method::POST, "/v1/tokens", admin, body).await;
    let minted = called.and_then(read::<Minted>);
    let minted = minted.map_err(|error| Error::Unanswered("can't mint a token", error))?;
    Ok(minted.token)
}

fn client(costs: Option<(Cost, Cost)>, deliveries: u64) -> Client {
    let (cpu, share) = costs.map_or((Duration::ZERO, 0.0), |(begin, end)| end.since(&begin));
    Client {
        cpu_percent: rounded(share * 100.0),
        cpu_us_per_delivery: rounded(cpu.as_secs_f64() * 1e6 / deliveries.max(1) as f64),
    }
}
