//! Measurements of the hub only: a reconnect storm, signed webhooks, and status requests.
//!
//! Invariant: results are verified. After the storm every socket is current, webhooks are applied, and every status
//! request succeeds.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::clients::{Clients, Endpoint};
use crate::http_connection::HttpConnection;
use crate::message::{Clock, Stamp};
use crate::peers::MAX_CONCURRENT_HANDSHAKES;
use crate::peers::hub::Hub;
use crate::peers::webhooks::{Signer, task_id};
use crate::process::Cores;

const STORM_SOCKETS: usize = 10_000;
const STORM_JOBS: usize = 1000;
const WEBHOOKS: usize = 40_000;
const WEBHOOK_JOBS: usize = 4000;
const WEBHOOK_CONNECTIONS: usize = 128;
const REQUESTS_PER_SECOND: u32 = 1000;

/// Maximum time for all sockets to become current.
const CURRENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs all three measurements and prints a line for each.
pub async fn measure(core: usize) -> anyhow::Result<()> {
    let recovery = storm().await?;
    println!(
        "- {STORM_SOCKETS} sockets of {STORM_JOBS} jobs missed an update and reconnect at once with their versions, to \
         a hub on all cores: all are current after {:.2} s",
        recovery.as_secs_f64()
    );
    for (cores, name) in [(Cores::One(core), "one core"), (Cores::All, "all cores")] {
        let rate = webhooks(cores).await?;
        println!(
            "- signed webhooks, verified and on disk before the response, hub on {name}: {rate:.0}/s"
        );
    }
    let latencies = status_requests(core).await?;
    println!(
        "- status requests, {REQUESTS_PER_SECOND}/s: p50 {} µs, p99 {} µs, p99.9 {} µs",
        latencies.value_at_quantile(0.5),
        latencies.value_at_quantile(0.99),
        latencies.value_at_quantile(0.999)
    );
    Ok(())
}

/// Returns the time until sockets that missed an update and reconnect at once are current.
async fn storm() -> anyhow::Result<Duration> {
    let dir = crate::temp_dir()?;
    let hub = Hub::start(dir.path(), Cores::All)?;
    let jobs = hub.jobs(STORM_JOBS, 0).await?;
    let mut connection = HttpConnection::new(hub.address);
    let mut publish = async |number| {
        for job in &jobs {
            let stamp = Stamp { number, due: 0 };
            connection
                .send(&Hub::update(&hub.worker_token, job, stamp))
                .await?;
        }
        anyhow::Ok(())
    };
    let endpoint = |version| Endpoint {
        addresses: vec![hub.address],
        subscriptions: jobs
            .iter()
            .map(|job| hub.subscription(&[(job, version)]))
            .collect(),
        max_handshakes: MAX_CONCURRENT_HANDSHAKES,
    };
    publish(1).await?;
    let clients = Clients::open(&endpoint(1), STORM_SOCKETS, 1).await?;
    clients
        .observations
        .wait_until_current(CURRENT_TIMEOUT)
        .await?;
    drop(clients);
    publish(2).await?;
    let start = Instant::now();
    let clients = Clients::open(&endpoint(2), STORM_SOCKETS, 2).await?;
    clients
        .observations
        .wait_until_current(CURRENT_TIMEOUT)
        .await?;
    let took = start.elapsed();
    clients.verify()?;
    Ok(took)
}

/// Returns the signed webhooks per second that the hub applies.
async fn webhooks(cores: Cores) -> anyhow::Result<f64> {
    let dir = crate::temp_dir()?;
    let hub = Hub::start(dir.path(), cores)?;
    hub.provider_jobs(WEBHOOK_JOBS, 0).await?;
    let signer = Signer::new()?;
    let mut requests = Vec::with_capacity(WEBHOOKS);
    for nth in 0..WEBHOOKS {
        let (task, percent) = (task_id(nth % WEBHOOK_JOBS), 1 + nth / WEBHOOK_JOBS);
        let body = json!({"task_id": task, "status": "running", "progress": percent});
        requests.push(signer.request(&body)?);
    }
    let requests = Rc::new(requests);
    let next = Rc::new(std::cell::Cell::new(0));
    let mut senders = JoinSet::new();
    let start = Instant::now();
    for _ in 0..WEBHOOK_CONNECTIONS {
        let (requests, next) = (Rc::clone(&requests), Rc::clone(&next));
        let mut connection = HttpConnection::new(hub.address);
        senders.spawn_local(async move {
            let mut applied = 0usize;
            while let Some(request) = requests.get(next.replace(next.get() + 1)) {
                let response = connection.send(request).await?;
                applied += usize::from(response == br#"{"applied":true,"matched":true}"#);
            }
            anyhow::Ok(applied)
        });
    }
    let mut applied = 0;
    while let Some(done) = senders.join_next().await {
        applied += done??;
    }
    let elapsed = start.elapsed();
    ensure!(
        applied * 100 >= WEBHOOKS * 99,
        "only {applied} of {WEBHOOKS} webhooks were applied"
    );
    #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
    let rate = WEBHOOKS as f64 / elapsed.as_secs_f64();
    Ok(rate)
}

/// Sends status requests at a fixed rate. Returns latencies from the due time of each, in microseconds.
async fn status_requests(core: usize) -> anyhow::Result<Histogram<u64>> {
    let dir = crate::temp_dir()?;
    let hub = Hub::start(dir.path(), Cores::One(core))?;
    let jobs = hub.jobs(1000, 0).await?;
    let connections: Vec<_> = (0..8)
        .map(|_| Rc::new(Mutex::new(HttpConnection::new(hub.address))))
        .collect();
    let clock = Clock::start();
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let mut requests = JoinSet::new();
    for nth in 0..REQUESTS_PER_SECOND * 5 {
        let due = u64::from(nth) * 1_000_000_000 / u64::from(REQUESTS_PER_SECOND);
        clock.wait_until(due).await;
        let nth = usize::try_from(nth)?;
        let request = format!(
            "GET /v1/jobs/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\r\n",
            jobs[nth % jobs.len()],
            hub.reader_token
        );
        let connection = Rc::clone(&connections[nth % connections.len()]);
        requests.spawn_local(async move {
            connection.lock().await.send(request.as_bytes()).await?;
            anyhow::Ok((clock.now() - due) / 1000)
        });
    }
    while let Some(done) = requests.join_next().await {
        latencies.saturating_record(done?.context("a status request failed")?);
    }
    Ok(latencies)
}
