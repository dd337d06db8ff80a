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

use super::webhooks::{PROVIDER, Signer, WEBHOOK_SECRET, task_id};
use super::{MAX_CONCURRENT_HANDSHAKES, RunningServer, StartContext};
use crate::clients::{Endpoint, Protocol, Subscription};
use crate::http_connection::{HttpConnection, post, send_all};
use crate::message::{OWNER, Stamp, metadata};
use crate::process::{Cores, Process, free_address};

const PROGRAM: &str = env!("CARGO_BIN_EXE_progress-hub");

/// Secret that signs tokens. The hub requires at least 32 bytes.
const TOKEN_SECRET: &str = "a token secret for a single benchmark run";

/// Concurrent registrations of jobs.
const REGISTRATIONS: usize = 32;

/// Store of the hub.
#[derive(Clone, Copy)]
pub enum Store {
    Sqlite,
    /// One Redis server for all nodes. The sockets are distributed over the nodes, and the first node receives all
    /// updates.
    Redis {
        nodes: usize,
    },
}

/// How updates are reported to the hub.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reports {
    /// A worker with a token pushes them.
    Pushes,
    /// A provider sends signed webhooks.
    Webhooks,
}

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
             [providers.{PROVIDER}]\nspec = 'generic'\nwebhook_secrets = ['{WEBHOOK_SECRET}']\n"
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

    /// Registers `count` jobs without a provider.
    pub async fn jobs(&self, count: usize, padding: usize) -> anyhow::Result<Vec<String>> {
        let job =
            |_| json!({"owner": OWNER, "metadata": metadata(padding), "deadline_seconds": 1800});
        self.register((0..count).map(job)).await
    }

    /// Registers `count` jobs of the provider `studio`, each with the [`task_id`] of its number.
    pub async fn provider_jobs(&self, count: usize, padding: usize) -> anyhow::Result<Vec<String>> {
        let job = |nth| {
            json!({
                "owner": OWNER,
                "provider": PROVIDER,
                "provider_task_id": task_id(nth),
                "metadata": metadata(padding),
                "deadline_seconds": 1800,
            })
        };
        self.register((0..count).map(job)).await
    }

    /// Registers jobs and returns their ids.
    async fn register(&self, jobs: impl Iterator<Item = Value>) -> anyhow::Result<Vec<String>> {
        let headers = [
            ("Authorization", &*self.worker_token),
            ("Content-Type", "application/json"),
        ];
        let requests = jobs.map(|job| post("/v1/jobs", &headers, &job.to_string()));
        let jobs = send_all(self.address, REGISTRATIONS, requests.collect()).await?;
        let id = |job: Vec<u8>| {
            let job: Value = serde_json::from_slice(&job)?;
            Ok(job["id"].as_str().context("the job has no id")?.to_owned())
        };
        jobs.into_iter().map(id).collect()
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
            protocol: Protocol::WebSocket,
            path: "/v1/ws".to_owned(),
            headers: format!("Authorization: {}\r\n", self.reader_token),
            message: Some(json!({"type": "subscribe", "id": 1, "jobs": jobs}).to_string()),
        }
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
                Ok(Self::update(&worker_token, &jobs[job], stamp))
            }),
        })
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

/// Starts a hub with one job per channel, and Redis if the store requires it.
pub async fn start(
    context: &StartContext<'_>,
    store: Store,
    reports: Reports,
) -> anyhow::Result<RunningServer> {
    let mut processes = Vec::new();
    let hubs = match store {
        Store::Sqlite => vec![Hub::start(context.dir, context.cores)?],
        Store::Redis { nodes } => {
            let (redis, port) = super::redis::start(context)?;
            processes.push(redis);
            let store = format!("redis://127.0.0.1:{port}");
            let hubs = (0..nodes).map(|node| {
                let name = format!("hub-{node}");
                Hub::start_with_store(&store, &name, context.dir, context.cores)
            });
            hubs.collect::<anyhow::Result<_>>()?
        }
    };
    for hub in &hubs {
        hub.wait_until_ready().await?;
    }
    let first = hubs.first().context("no nodes")?;
    let jobs = match reports {
        Reports::Pushes => first.jobs(context.channels, context.padding).await?,
        Reports::Webhooks => {
            first
                .provider_jobs(context.channels, context.padding)
                .await?
        }
    };
    let subscriptions = jobs.iter().map(|job| first.subscription(&[(job, 0)]));
    let endpoint = Endpoint {
        addresses: hubs.iter().map(|hub| hub.address).collect(),
        subscriptions: subscriptions.collect(),
        max_handshakes: MAX_CONCURRENT_HANDSHAKES,
    };
    let publish_address = first.address;
    let publish: super::Publish = match reports {
        Reports::Pushes => {
            let worker_token = first.worker_token.clone();
            Box::new(move |channel, stamp| Ok(Hub::update(&worker_token, &jobs[channel], stamp)))
        }
        Reports::Webhooks => {
            let signer = Signer::new()?;
            Box::new(move |channel, stamp| {
                let (task, stage) = (task_id(channel), stamp.text());
                signer.request(&json!({"task_id": task, "status": "running", "stage": stage}))
            })
        }
    };
    processes.extend(hubs.into_iter().map(|hub| hub.process));
    Ok(RunningServer {
        endpoint,
        publish_address,
        processes,
        publish,
    })
}
