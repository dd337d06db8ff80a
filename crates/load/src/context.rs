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
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use url::Url;

use super::arguments::{ArgumentErrors, Arguments, MAX_METADATA_BYTES, UpdateMethod};
use super::process::Usage;
use super::progress::Phase;
use super::schedule::Schedule;
use super::target::{Target, send};

/// Owner of the jobs of a run.
pub const OWNER: &str = "load";

/// Scopes of the token that opens all sockets. The hub limits the connections and messages of a subject,
/// but not those of an administrator.
pub const READER_SCOPE: &str = "jobs:read admin";

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
        /// Token with subject [`OWNER`] and the scopes [`READER_SCOPE`].
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
                mint(&target, &admin, READER_SCOPE).await?,
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

    /// Registers a job and returns its id.
    async fn register(&self, job: u32) -> Result<Box<str>> {
        #[derive(Deserialize)]
        struct Registered {
            id: Box<str>,
        }
        let mut body = json!({ "owner": OWNER, "metadata": {} });
        let padding = (self.arguments.padding as usize).min(MAX_METADATA_BYTES);
        if padding > 0 {
            body["metadata"]["padding"] = json!("x".repeat(padding));
        }
        if self.signer.is_some() {
            body["provider"] = json!(self.arguments.provider);
            body["provider_task_id"] = json!(self.task_id(job));
        }
        let registered: Registered = self.post("/v1/jobs", &body).await?;
        Ok(registered.id)
    }

    /// Sends a request with the token of a worker.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let request = self.target.request(Method::POST, path).json(body);
        send(request.bearer_auth(self.worker_token.expose_secret())).await
    }

    /// Returns the id of a job at the provider.
    pub fn task_id(&self, job: u32) -> String {
        format!("load-{}-{job}", self.run_id)
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

/// Returns the signature scheme of webhooks and its key, or `None` for worker requests.
fn signer(
    method: UpdateMethod,
    secret: Option<SecretString>,
) -> Result<Option<(Scheme, Key)>, ArgumentErrors> {
    let scheme = match method {
        UpdateMethod::Push => return Ok(None),
        UpdateMethod::Webhook => {
            json!({ "scheme": "hmac", "header": "x-ai-signature", "encoding": "hex", "prefix": "sha256=" })
        }
        UpdateMethod::StandardWebhook => json!({ "scheme": "standard_webhooks" }),
    };
    let scheme: Scheme =
        serde_json::from_value(scheme).map_err(|error| ArgumentErrors::one(error.to_string()))?;
    let secret = secret.ok_or_else(|| ArgumentErrors::one("webhooks require a webhook secret"))?;
    let key = Key::from(secret);
    if let Some(problem) = scheme.key_problem(&key) {
        return Err(ArgumentErrors::one(format!("webhook secret: {problem}")));
    }
    Ok(Some((scheme, key)))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn sign(method: UpdateMethod, secret: &str) -> Result<Vec<(String, String)>, String> {
        let signer = signer(method, Some(secret.into())).map_err(|error| error.to_string())?;
        let (scheme, key) = signer.unwrap();
        Ok(scheme
            .sign(
                &key,
                "msg_1",
                b"what do ya want for nothing?",
                Timestamp::now(),
            )
            .unwrap())
    }

    #[test]
    fn hmac_signature_matches_rfc_4231() {
        let tag = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let headers = sign(UpdateMethod::Webhook, "Jefe").unwrap();
        assert_eq!(
            headers,
            [("x-ai-signature".to_owned(), format!("sha256={tag}"))]
        );
    }

    #[test]
    fn standard_webhook_secret_must_be_base64_and_is_not_printed() {
        assert!(
            sign(
                UpdateMethod::StandardWebhook,
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
            )
            .is_ok()
        );
        let error = sign(UpdateMethod::StandardWebhook, "whsec_hunter2!").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
