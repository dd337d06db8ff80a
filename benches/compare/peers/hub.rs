//! The hub of this build, with its store on disk.
//!
//! Nothing is disabled: the hub verifies tokens, commits each update to disk before it delivers it, and logs at the
//! default level.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{MAX_CONCURRENT_HANDSHAKES, RunningServer, StartContext};
use crate::clients::{Endpoint, Subscription};
use crate::http_connection::{HttpConnection, post};
use crate::message::{OWNER, Stamp, metadata};
use crate::process::{Cores, Process, free_address};

const PROGRAM: &str = env!("CARGO_BIN_EXE_progress-hub");

/// Secret that signs tokens. The hub requires at least 32 bytes.
const TOKEN_SECRET: &str = "a token secret for a single benchmark run";

/// Secret that signs webhooks of the provider `studio`.
pub const WEBHOOK_SECRET: &str = "a webhook secret for a single benchmark run";

/// A running hub.
pub struct Hub {
    pub process: Process,
    pub address: SocketAddr,
    /// `Authorization` header of a worker.
    pub worker_token: String,
    /// `Authorization` header of the owner of the jobs.
    pub reader_token: String,
}

impl Hub {
    /// Starts a hub with an empty store in `dir`.
    pub fn start(dir: &Path, cores: Cores) -> anyhow::Result<Self> {
        let store = format!("sqlite://{}", dir.join("hub.db").display());
        Self::start_with_store(&store, "hub", dir, cores)
    }

    /// Starts a hub with the given store. Its files in `dir` begin with `name`.
    fn start_with_store(store: &str, name: &str, dir: &Path, cores: Cores) -> anyhow::Result<Self> {
        let address = free_address()?;
        let config = format!(
            "[server]\nbind = '{address}'\ndrain = '2s'\n\
             [auth]\nhs256_secrets = ['{TOKEN_SECRET}']\n\
             [store]\nurl = '{store}'\n\
             [providers.studio]\nspec = 'generic'\nwebhook_secrets = ['{WEBHOOK_SECRET}']\n"
        );
        let path = dir.join(format!("{name}.toml"));
        fs::write(&path, config)?;
        let config = path.to_str().context("the path is not UTF-8")?;
        let command = [PROGRAM, "serve", "--config", config];
        let mut process = Process::start(&command, cores, dir, &format!("{name}.log"))?;
        process.wait_until_listening(address)?;
        Ok(Self {
            process,
            address,
            worker_token: token(config, "worker", "jobs:publish")?,
            reader_token: token(config, OWNER, "jobs:read admin")?,
        })
    }

    /// Registers a job and returns its id.
    pub async fn register(
        &self,
        connection: &mut HttpConnection,
        body: &Value,
    ) -> anyhow::Result<String> {
        let request = post("/v1/jobs", &self.headers(), &body.to_string());
        let job: Value = serde_json::from_slice(connection.send(&request).await?)?;
        let id = job["id"].as_str().context("the job has no id")?;
        Ok(id.to_owned())
    }

    /// Registers `count` jobs without a provider.
    pub async fn jobs(&self, count: usize, padding: usize) -> anyhow::Result<Vec<String>> {
        let mut connection = HttpConnection::new(self.address);
        let body = json!({"owner": OWNER, "metadata": metadata(padding), "deadline_seconds": 1800});
        let mut jobs = Vec::with_capacity(count);
        for _ in 0..count {
            jobs.push(self.register(&mut connection, &body).await?);
        }
        Ok(jobs)
    }

    /// Returns the request of a worker that reports an update.
    pub fn update(worker_token: &str, job: &str, stamp: Stamp) -> Vec<u8> {
        let headers = [
            ("Authorization", worker_token),
            ("Content-Type", "application/json"),
        ];
        let body = format!(r#"{{"status":"running","stage":"{}"}}"#, stamp.text());
        post(&format!("/v1/jobs/{job}/updates"), &headers, &body)
    }

    /// Returns a subscription to jobs with known versions.
    pub fn subscription(&self, jobs: &[(&str, u64)]) -> Subscription {
        let jobs = jobs
            .iter()
            .map(|(job, version)| json!({"job": job, "version": version}));
        let jobs: Vec<Value> = jobs.collect();
        Subscription {
            path: "/v1/ws".to_owned(),
            headers: format!("Authorization: {}\r\n", self.reader_token),
            message: Some(json!({"type": "subscribe", "id": 1, "jobs": jobs}).to_string()),
        }
    }

    /// Starts `nodes` hubs on one Redis. Sockets are distributed over them, and the first receives all updates.
    pub async fn start_cluster(
        context: &StartContext<'_>,
        nodes: usize,
    ) -> anyhow::Result<RunningServer> {
        let (redis, port) = super::redis::start(context)?;
        let store = format!("redis://127.0.0.1:{port}");
        let hubs = (0..nodes).map(|node| {
            let name = format!("hub-{node}");
            Self::start_with_store(&store, &name, context.dir, context.cores)
        });
        let hubs = hubs.collect::<anyhow::Result<Vec<Self>>>()?;
        for hub in &hubs {
            hub.wait_until_ready().await?;
        }
        let first = hubs.first().context("the cluster has no nodes")?;
        let jobs = first.jobs(context.channels, context.padding).await?;
        let subscriptions = jobs
            .iter()
            .map(|job| first.subscription(&[(job, 0)]))
            .collect();
        let (worker_token, publish_address) = (first.worker_token.clone(), first.address);
        let addresses = hubs.iter().map(|hub| hub.address).collect();
        let mut processes = vec![redis];
        processes.extend(hubs.into_iter().map(|hub| hub.process));
        Ok(RunningServer {
            endpoint: Endpoint {
                addresses,
                subscriptions,
                max_handshakes: MAX_CONCURRENT_HANDSHAKES,
            },
            publish_address,
            processes,
            publish: Box::new(move |channel, stamp| {
                Self::update(&worker_token, &jobs[channel], stamp)
            }),
        })
    }

    /// Waits until the readiness check succeeds.
    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let mut connection = HttpConnection::new(self.address);
        let request = b"GET /v1/health/ready HTTP/1.1\r\nHost: hub\r\n\r\n";
        for _ in 0..100 {
            if connection.send(request).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("hub at {} is not ready", self.address)
    }

    /// Starts a hub whose sockets all subscribe to the same jobs. Updates of the only channel go to the jobs in turn.
    pub async fn start_with_jobs(
        context: &StartContext<'_>,
        jobs: usize,
    ) -> anyhow::Result<RunningServer> {
        let hub = Self::start(context.dir, context.cores)?;
        let jobs = hub.jobs(jobs, context.padding).await?;
        let known: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 0)).collect();
        let endpoint = Endpoint {
            addresses: vec![hub.address],
            subscriptions: vec![hub.subscription(&known)],
            max_handshakes: MAX_CONCURRENT_HANDSHAKES,
        };
        let worker_token = hub.worker_token;
        let next = std::cell::Cell::new(0);
        Ok(RunningServer {
            endpoint,
            publish_address: hub.address,
            processes: vec![hub.process],
            publish: Box::new(move |_, stamp| {
                let job = next.replace((next.get() + 1) % jobs.len());
                Self::update(&worker_token, &jobs[job], stamp)
            }),
        })
    }

    fn headers(&self) -> [(&str, &str); 2] {
        [
            ("Authorization", &self.worker_token),
            ("Content-Type", "application/json"),
        ]
    }
}

/// Mints a token with the command of the hub and returns the `Authorization` header.
fn token(config: &str, sub: &str, scope: &str) -> anyhow::Result<String> {
    let minted = Command::new(PROGRAM)
        .args(["token", "--config", config, "--sub", sub, "--scope", scope])
        .output()?;
    if !minted.status.success() {
        bail!(
            "cannot mint a token: {}",
            String::from_utf8_lossy(&minted.stderr)
        );
    }
    Ok(format!(
        "Bearer {}",
        String::from_utf8(minted.stdout)?.trim()
    ))
}

pub(super) async fn start(context: &StartContext<'_>) -> anyhow::Result<RunningServer> {
    let hub = Hub::start(context.dir, context.cores)?;
    let jobs = hub.jobs(context.channels, context.padding).await?;
    let subscriptions = jobs
        .iter()
        .map(|job| hub.subscription(&[(job, 0)]))
        .collect();
    let worker_token = hub.worker_token;
    Ok(RunningServer {
        endpoint: Endpoint {
            addresses: vec![hub.address],
            subscriptions,
            max_handshakes: MAX_CONCURRENT_HANDSHAKES,
        },
        publish_address: hub.address,
        processes: vec![hub.process],
        publish: Box::new(move |channel, stamp| Hub::update(&worker_token, &jobs[channel], stamp)),
    })
}
