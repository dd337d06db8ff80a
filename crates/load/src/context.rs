//! State that all parts of a run share: flags, hub, credentials and jobs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use indexmap::IndexSet;
use progress_hub_auth::signature::{Key, Scheme};
use reqwest::Method;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use url::Url;

use super::arguments::{ArgumentErrors, Arguments};
use super::process::Usage;
use super::progress::Phase;
use super::schedule::Schedule;
use super::target::{Target, send};
use super::updates::signer;

/// Owner of the jobs of a run.
pub const OWNER: &str = "load";

/// Lifetime of tokens that the run requests from the hub.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Time between two attempts of a request that the run depends on.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

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
    pub worker_token: SecretString,
    /// Signs webhooks. Absent if updates are sent as worker requests.
    pub signer: Option<(Scheme, Key)>,
    /// Distinguishes the provider tasks of this run from those of other runs.
    pub run_id: String,
    /// Ids of the jobs. Inside the run, jobs are numbered from 0.
    pub jobs: IndexSet<Box<str>>,
    /// Due times of the updates, from the start of the measurement.
    pub schedule: OnceLock<Schedule>,
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
        let target = Target::resolve(url.clone(), arguments.sources(), arguments.allow_remote)?;
        if let Some(pid) = pid
            && (Usage::of(pid).is_none() || !target.is_local())
        {
            return Err(ArgumentErrors::one(format!("--pid {pid}: no such process")).into());
        }
        arguments.own_hub = arguments.url.replace(url).is_none();
        arguments.sources = Some(arguments.sources());
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
        let mut context = Self {
            handshakes: Semaphore::new(arguments.handshakes as usize),
            signer: signer(arguments.by, access.webhook_secret)?,
            arguments,
            target,
            pid,
            bearer,
            worker_token: worker,
            run_id: format!("{:016x}", rand::random::<u64>()),
            jobs: IndexSet::new(),
            schedule: OnceLock::new(),
        };
        context.jobs = context.register_all().await?;
        Ok(context)
    }

    async fn register_all(&self) -> Result<IndexSet<Box<str>>> {
        let jobs = self.arguments.jobs;
        let phase = Phase::start("jobs", jobs);
        let registered = AtomicU64::new(0);
        let register = async |job| {
            let id = self.register(job).await?;
            let registered = registered.fetch_add(1, Ordering::Relaxed) + 1;
            phase.update(registered, || format!("{registered} of {jobs} registered"));
            Ok(id)
        };
        let ids = self.for_each_job(Instant::now(), register).await;
        let ids = ids.context("cannot register a job")?;
        phase.finish(format!("{jobs} registered"));
        Ok(ids.into_iter().collect())
    }

    /// Calls `send` for every job, with at most `--connections` calls at a time. Repeats a failed call until
    /// `deadline`. Returns the results in job order, or the first error.
    pub async fn for_each_job<T>(
        &self,
        deadline: Instant,
        send: impl AsyncFn(u32) -> Result<T>,
    ) -> Result<Vec<T>> {
        let send = async |job| loop {
            match send(job).await {
                Err(_) if Instant::now() < deadline => sleep(RETRY_INTERVAL).await,
                result => return result,
            }
        };
        let requests = stream::iter(0..self.arguments.jobs as u32).map(send);
        let concurrency = self.arguments.connections as usize;
        requests.buffered(concurrency).try_collect().await
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
}

/// Requests a token with `scope` from the hub.
async fn mint(target: &Target, admin: &SecretString, scope: &str) -> Result<SecretString> {
    #[derive(Deserialize)]
    struct Minted {
        token: SecretString,
    }
    let body = json!({ "sub": OWNER, "scope": scope, "ttl_seconds": TOKEN_TTL.as_secs() });
    let request = target
        .request(Method::POST, "/v1/tokens")
        .bearer_auth(admin.expose_secret());
    let minted: Minted = send(request.json(&body))
        .await
        .context("cannot mint a token")?;
    Ok(minted.token)
}
