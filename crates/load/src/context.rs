//! State that all parts of a run share: flags, hub, credentials and jobs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indexmap::IndexSet;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use url::Url;

use super::arguments::{ArgumentErrors, Arguments};
use super::client::{for_each_job, send};
use super::process::Usage;
use super::progress::Phase;
use super::schedule::Schedule;
use super::stats::SocketCounts;
use super::target::Target;
use super::updates::{UpdateKind, UpdateSender};

/// Owner of the jobs of a run.
pub const OWNER: &str = "load";

/// Lifetime of tokens that the run requests from the hub.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Credentials for the hub under test.
pub struct Access {
    /// Bearer tokens.
    pub tokens: Tokens,
    /// Secret that signs webhooks. Required if updates are sent as webhooks.
    pub webhook_secret: Option<SecretString>,
}

/// Bearer tokens, or the token that mints them.
pub enum Tokens {
    /// Tokens minted by the caller with the secret of the hub.
    Minted {
        /// Token with subject [`OWNER`] and scope `jobs:read`.
        reader: SecretString,
        /// Token with scope `jobs:publish`.
        worker: SecretString,
    },
    /// Token with scope `admin`. The run requests the other tokens from the hub.
    Admin(SecretString),
}

/// Shared state of a run.
pub(super) struct Context {
    pub arguments: Arguments,
    pub target: Target,
    /// Process id of the hub, if it is known.
    pub pid: Option<u32>,
    /// `Authorization` of sockets and of requests that read jobs.
    pub bearer: HeaderValue,
    pub updates: UpdateSender,
    /// Ids of the jobs. Inside the run, jobs are numbered from 0.
    pub jobs: IndexSet<Box<str>>,
    /// Due times of the updates, from the start of the measurement.
    pub schedule: OnceLock<Schedule>,
    pub counts: SocketCounts,
    /// Limits concurrent WebSocket handshakes.
    pub handshakes: Semaphore,
}

impl Context {
    /// Resolves the hub and the tokens, and registers the jobs.
    pub async fn new(
        mut arguments: Arguments,
        url: Url,
        pid: Option<u32>,
        access: Access,
    ) -> Result<Self> {
        let sources = arguments.sources();
        let target = Target::resolve(url.clone(), sources, arguments.allow_remote)?;
        if let Some(pid) = pid
            && (Usage::of(pid).is_none() || !target.is_local())
        {
            return Err(ArgumentErrors::one(format!("--pid {pid}: no such process")).into());
        }
        (arguments.url, arguments.sources) = (Some(url), Some(sources));
        let (reader, worker) = match access.tokens {
            Tokens::Minted { reader, worker } => (reader, worker),
            Tokens::Admin(admin) => (
                mint(&target, &admin, "jobs:read").await?,
                mint(&target, &admin, "jobs:publish").await?,
            ),
        };
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", reader.expose_secret()))
            .context("the token cannot be sent in an HTTP header")?;
        bearer.set_sensitive(true);
        let updates = UpdateSender::new(target.clone(), &arguments, worker, access.webhook_secret)?;
        Ok(Self {
            jobs: register(&arguments, &updates).await?,
            handshakes: Semaphore::new(arguments.handshakes as usize),
            arguments,
            target,
            pid,
            bearer,
            updates,
            schedule: OnceLock::new(),
            counts: SocketCounts::default(),
        })
    }

    /// Returns the resource usage of the hub, if its process is known and running.
    pub fn hub_usage(&self) -> Option<Usage> {
        self.pid.and_then(Usage::of)
    }

    /// Returns the id of a job.
    pub fn job_id(&self, job: u32) -> &str {
        &self.jobs[job as usize]
    }

    /// Returns the number of a job.
    pub fn job_number(&self, id: &str) -> Option<u32> {
        Some(self.jobs.get_index_of(id)? as u32)
    }

    /// Sends an update of a job. Returns whether it was applied.
    pub async fn update(&self, job: u32, kind: UpdateKind) -> Result<bool> {
        self.updates.send(job, self.job_id(job), kind).await
    }
}

/// Registers the jobs of a run. Returns their ids.
async fn register(arguments: &Arguments, updates: &UpdateSender) -> Result<IndexSet<Box<str>>> {
    let jobs = arguments.jobs;
    let phase = Phase::start("jobs", jobs);
    let registered = AtomicU64::new(0);
    let register = async |job| {
        let id = updates.register(job).await?;
        let registered = registered.fetch_add(1, Ordering::Relaxed) + 1;
        phase.update(registered, || format!("{registered} of {jobs} registered"));
        Ok(id.into_boxed_str())
    };
    let ids = for_each_job(jobs as u32, arguments.connections, Instant::now(), register).await;
    let ids = ids.context("cannot register a job")?;
    phase.finish(format!("{jobs} registered"));
    Ok(ids.into_iter().collect())
}

/// Requests a token with `scope` from the hub.
async fn mint(target: &Target, admin: &SecretString, scope: &str) -> Result<SecretString> {
    #[derive(Deserialize)]
    struct Minted {
        token: SecretString,
    }
    let body = json!({ "sub": OWNER, "scope": scope, "ttl_seconds": TOKEN_TTL.as_secs() });
    let request = target.post("/v1/tokens").bearer_auth(admin.expose_secret());
    let minted: Minted = send(request.json(&body))
        .await
        .context("cannot mint a token")?;
    Ok(minted.token)
}
