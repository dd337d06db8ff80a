//! The hub itself: the program of this very build, with its store on disk.
//!
//! Invariant: nothing is turned off: tokens are proven, each update is committed to disk before anybody
//! hears of it, and the log is what `serve` writes unless told otherwise.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Ground, MAX_CONCURRENT_HANDSHAKES, Stand};
use crate::clients::{Door, Greeting};
use crate::http_connection::{Lane, post};
use crate::message::{OWNER, Stamp, metadata};
use crate::process::{Cores, Process, free_address};

const PROGRAM: &str = env!("CARGO_BIN_EXE_progress-hub");

/// Signs tokens; as long as the hub wants it.
const TOKEN_SECRET: &str = "a secret of a run that ends with it";

/// Signs webhooks of the provider `studio`.
pub const WEBHOOK_SECRET: &str = "another secret of a run that ends with it";

/// A hub that is up.
pub struct Hub {
    /// Its process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    /// May publish.
    pub publisher: String,
    /// May watch.
    pub watcher: String,
}

impl Hub {
    /// Starts one with an empty store in `dir`.
    pub fn start(dir: &Path, cores: Cores) -> anyhow::Result<Self> {
        let store = format!("sqlite://{}", dir.join("hub.db").display());
        Self::start_on(&store, "hub", dir, cores)
    }

    /// Starts one on this store, with files of this name in `dir`.
    fn start_on(store: &str, name: &str, dir: &Path, cores: Cores) -> anyhow::Result<Self> {
        let address = free_address()?;
        let config = format!(
            "[server]\nbind = '{address}'\ndrain = '2s'\n\
             [auth]\nhs256_secrets = ['{TOKEN_SECRET}']\n\
             [store]\nurl = '{store}'\n\
             [providers.studio]\nspec = 'generic'\nwebhook_secrets = ['{WEBHOOK_SECRET}']\n"
        );
        let path = dir.join(format!("{name}.toml"));
        fs::write(&path, config)?;
        let config = path.to_str().context("a path of text")?;
        let command = [PROGRAM, "serve", "--config", config];
        let mut process = Process::start(&command, cores, dir, &format!("{name}.log"))?;
        process.listens(address)?;
        Ok(Self {
            process,
            address,
            publisher: token(config, "worker", "jobs:publish")?,
            watcher: token(config, OWNER, "jobs:read")?,
        })
    }

    /// Registers a job and says its id.
    pub async fn register(&self, lane: &mut Lane, body: &Value) -> anyhow::Result<String> {
        let request = post("/v1/jobs", &self.headers(), &body.to_string());
        let job: Value = serde_json::from_slice(lane.call(&request).await?)?;
        let id = job["id"].as_str().context("a job has an id")?;
        Ok(id.to_owned())
    }

    /// Registers so many jobs of a worker's own.
    pub async fn jobs(&self, how_many: usize, padding: usize) -> anyhow::Result<Vec<String>> {
        let mut lane = Lane::to(self.address);
        let body = json!({"owner": OWNER, "metadata": metadata(padding), "deadline_seconds": 1800});
        let mut jobs = Vec::with_capacity(how_many);
        for _ in 0..how_many {
            jobs.push(self.register(&mut lane, &body).await?);
        }
        Ok(jobs)
    }

    /// A worker's push with this stamp.
    pub fn push(publisher: &str, job: &str, stamp: Stamp) -> Vec<u8> {
        let headers = [
            ("Authorization", publisher),
            ("Content-Type", "application/json"),
        ];
        let body = format!(r#"{{"status":"running","stage":"{}"}}"#, stamp.text());
        post(&format!("/v1/jobs/{job}/updates"), &headers, &body)
    }

    /// How a socket watches these jobs, given the versions it has.
    pub fn greeting(&self, jobs: &[(&str, u64)]) -> Greeting {
        let jobs = jobs
            .iter()
            .map(|(job, version)| json!({"job": job, "version": version}));
        let jobs: Vec<Value> = jobs.collect();
        Greeting {
            path: "/v1/ws".to_owned(),
            headers: format!("Authorization: {}\r\n", self.watcher),
            subscribe: Some(json!({"type": "subscribe", "id": 1, "jobs": jobs}).to_string()),
        }
    }

    /// So many hubs on one Redis, over which the sockets are spread; all updates come in at the first.
    pub async fn fleet(ground: &Ground<'_>, nodes: usize) -> anyhow::Result<Stand> {
        let (redis, port) = super::redis::start(ground)?;
        let store = format!("redis://127.0.0.1:{port}");
        let hubs = (0..nodes).map(|node| {
            let name = format!("hub-{node}");
            Self::start_on(&store, &name, ground.dir, ground.cores)
        });
        let hubs = hubs.collect::<anyhow::Result<Vec<Self>>>()?;
        for hub in &hubs {
            hub.is_ready().await?;
        }
        let first = hubs.first().context("a fleet has a hub")?;
        let jobs = first.jobs(ground.channels, ground.padding).await?;
        let greetings = jobs.iter().map(|job| first.greeting(&[(job, 0)])).collect();
        let (publisher, publish_at) = (first.publisher.clone(), first.address);
        let addresses = hubs.iter().map(|hub| hub.address).collect();
        let mut processes = vec![redis];
        processes.extend(hubs.into_iter().map(|hub| hub.process));
        Ok(Stand {
            door: Door {
                addresses,
                greetings,
                at_once: MAX_CONCURRENT_HANDSHAKES,
            },
            publish_at,
            processes,
            publish: Box::new(move |channel, stamp| Self::push(&publisher, &jobs[channel], stamp)),
        })
    }

    /// Waits until its store is there.
    async fn is_ready(&self) -> anyhow::Result<()> {
        let mut lane = Lane::to(self.address);
        let request = b"GET /v1/health/ready HTTP/1.1\r\nHost: hub\r\n\r\n";
        for _ in 0..100 {
            if lane.call(request).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("its store does not answer: {}", self.address)
    }

    /// A hub whose sockets all watch the same jobs, updated in turn, as one channel.
    pub async fn with_many(ground: &Ground<'_>, jobs: usize) -> anyhow::Result<Stand> {
        let hub = Self::start(ground.dir, ground.cores)?;
        let jobs = hub.jobs(jobs, ground.padding).await?;
        let known: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 0)).collect();
        let door = Door {
            addresses: vec![hub.address],
            greetings: vec![hub.greeting(&known)],
            at_once: MAX_CONCURRENT_HANDSHAKES,
        };
        let publisher = hub.publisher;
        let mut turns = (0..jobs.len()).cycle();
        let turn = std::cell::RefCell::new(move || turns.next().unwrap_or_default());
        Ok(Stand {
            door,
            publish_at: hub.address,
            processes: vec![hub.process],
            publish: Box::new(move |_, stamp| {
                let job = (turn.borrow_mut())();
                Self::push(&publisher, &jobs[job], stamp)
            }),
        })
    }

    fn headers(&self) -> [(&str, &str); 2] {
        [
            ("Authorization", &self.publisher),
            ("Content-Type", "application/json"),
        ]
    }
}

/// A bearer token, minted by the hub's own command.
fn token(config: &str, sub: &str, scope: &str) -> anyhow::Result<String> {
    let minted = Command::new(PROGRAM)
        .args(["token", "--config", config, "--sub", sub, "--scope", scope])
        .output()?;
    if !minted.status.success() {
        bail!("no token: {}", String::from_utf8_lossy(&minted.stderr));
    }
    Ok(format!(
        "Bearer {}",
        String::from_utf8(minted.stdout)?.trim()
    ))
}

pub(super) async fn start(ground: &Ground<'_>) -> anyhow::Result<Stand> {
    let hub = Hub::start(ground.dir, ground.cores)?;
    let jobs = hub.jobs(ground.channels, ground.padding).await?;
    let greetings = jobs.iter().map(|job| hub.greeting(&[(job, 0)])).collect();
    let publisher = hub.publisher;
    Ok(Stand {
        door: Door {
            addresses: vec![hub.address],
            greetings,
            at_once: MAX_CONCURRENT_HANDSHAKES,
        },
        publish_at: hub.address,
        processes: vec![hub.process],
        publish: Box::new(move |channel, stamp| Hub::push(&publisher, &jobs[channel], stamp)),
    })
}
