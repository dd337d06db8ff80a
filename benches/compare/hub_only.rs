//! What the hub alone is held to: a storm of reconnects, webhooks that are stored, look-ups.
//!
//! Invariant: each is checked as it is measured: after the storm every socket is current, every
//! webhook was applied, every look-up was answered.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use progress_hub::time::Time;
use progress_hub_auth::signature::{Key, Scheme};
use secrecy::SecretString;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::clients::{Crowd, Door};
use crate::http_connection::{Lane, post};
use crate::message::{Clock, OWNER, Stamp};
use crate::peers::{Hub, MAX_CONCURRENT_HANDSHAKES, WEBHOOK_SECRET};
use crate::process::Cores;

const STORM: usize = 10_000;
const STORM_JOBS: usize = 1000;
const WEBHOOKS: usize = 40_000;
const WEBHOOK_JOBS: usize = 4000;
const WEBHOOK_LANES: usize = 128;
const LOOKUPS: u32 = 1000;

/// Measures all three and prints a line each.
pub async fn measure(core: usize) -> anyhow::Result<()> {
    let took = storm().await?;
    println!(
        "- {STORM} sockets reconnect at once, with the versions they have, to a hub on all cores that has \
         a newer one of each of {STORM_JOBS} jobs: all current after {:.2} s",
        took.as_secs_f64()
    );
    for cores in [Cores::One(core), Cores::All] {
        let rate = webhooks(cores).await?;
        println!(
            "- signed webhooks, verified and on disk before they are answered, hub on {cores:?}: {rate:.0}/s"
        );
    }
    let latencies = lookups(core).await?;
    println!(
        "- look-ups of a job's status, {LOOKUPS}/s: p50 {} µs, p99 {} µs, p99.9 {} µs",
        latencies.value_at_quantile(0.5),
        latencies.value_at_quantile(0.99),
        latencies.value_at_quantile(0.999)
    );
    Ok(())
}

/// Everybody is there, goes, misses an update, and comes back.
async fn storm() -> anyhow::Result<Duration> {
    let dir = crate::place()?;
    let hub = Hub::start(dir.path(), Cores::All)?;
    let jobs = hub.jobs(STORM_JOBS, 0).await?;
    let mut lane = Lane::to(hub.address);
    let mut publish = async |number| {
        for job in &jobs {
            let stamp = Stamp { number, due: 0 };
            lane.call(&Hub::push(&hub.publisher, job, stamp)).await?;
        }
        anyhow::Ok(())
    };
    let door = |version| Door {
        addresses: vec![hub.address],
        greetings: jobs
            .iter()
            .map(|job| hub.greeting(&[(job, version)]))
            .collect(),
        at_once: MAX_CONCURRENT_HANDSHAKES,
    };
    publish(1).await?;
    let crowd = Crowd::open(&door(1), STORM, 1).await?;
    crowd.board.reached(Duration::from_secs(30)).await?;
    drop(crowd);
    publish(2).await?;
    let begun = Instant::now();
    let crowd = Crowd::open(&door(2), STORM, 2).await?;
    crowd.board.reached(Duration::from_secs(30)).await?;
    let took = begun.elapsed();
    crowd.is_sound()?;
    Ok(took)
}

/// Signed webhooks of many jobs, on many connections, each of them news.
async fn webhooks(cores: Cores) -> anyhow::Result<f64> {
    let dir = crate::place()?;
    let hub = Hub::start(dir.path(), cores)?;
    let mut lane = Lane::to(hub.address);
    for task in 0..WEBHOOK_JOBS {
        let task = format!("task-{task}");
        let body = json!({"owner": OWNER, "provider": "studio", "provider_task_id": task});
        hub.register(&mut lane, &body).await?;
    }
    let scheme: Scheme = toml::from_str(
        "scheme = 'hmac'\nheader = 'x-ai-signature'\nencoding = 'hex'\nprefix = 'sha256='",
    )?;
    let key = Key::from(SecretString::from(WEBHOOK_SECRET));
    let now = Time::now().timestamp();
    let mut requests = Vec::with_capacity(WEBHOOKS);
    for at in 0..WEBHOOKS {
        let (task, percent) = (at % WEBHOOK_JOBS, 1 + at / WEBHOOK_JOBS);
        let body =
            json!({"task_id": format!("task-{task}"), "status": "running", "progress": percent});
        let body = body.to_string();
        let signed = scheme.sign(&key, "", body.as_bytes(), now)?;
        let headers: Vec<(&str, &str)> = signed
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        requests.push(post("/v1/webhooks/studio", &headers, &body));
    }
    let requests = Rc::new(requests);
    let next = Rc::new(std::cell::Cell::new(0));
    let mut lanes = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..WEBHOOK_LANES {
        let (requests, next) = (Rc::clone(&requests), Rc::clone(&next));
        let mut lane = Lane::to(hub.address);
        lanes.spawn_local(async move {
            let mut applied = 0usize;
            while let Some(request) = requests.get(next.replace(next.get() + 1)) {
                let answer = lane.call(request).await?;
                applied += usize::from(answer == br#"{"applied":true,"matched":true}"#);
            }
            anyhow::Ok(applied)
        });
    }
    let mut applied = 0;
    while let Some(done) = lanes.join_next().await {
        applied += done??;
    }
    let took = begun.elapsed();
    ensure!(
        applied * 100 >= WEBHOOKS * 99,
        "only {applied} of {WEBHOOKS} were news"
    );
    #[expect(clippy::cast_precision_loss, reason = "nowhere near 2⁵³")]
    let rate = WEBHOOKS as f64 / took.as_secs_f64();
    Ok(rate)
}

/// Look-ups at a fixed rate, each counted from when it was due. Gives microseconds.
async fn lookups(core: usize) -> anyhow::Result<Histogram<u64>> {
    let dir = crate::place()?;
    let hub = Hub::start(dir.path(), Cores::One(core))?;
    let jobs = hub.jobs(1000, 0).await?;
    let lanes: Vec<_> = (0..8)
        .map(|_| Rc::new(Mutex::new(Lane::to(hub.address))))
        .collect();
    let clock = Clock::start();
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let mut calls = JoinSet::new();
    for at in 0..LOOKUPS * 5 {
        let due = u64::from(at) * 1_000_000_000 / u64::from(LOOKUPS);
        clock.reach(due).await;
        let turn = usize::try_from(at)?;
        let request = format!(
            "GET /v1/jobs/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\r\n",
            jobs[turn % jobs.len()],
            hub.watcher
        );
        let lane = Rc::clone(&lanes[turn % lanes.len()]);
        calls.spawn_local(async move {
            lane.lock().await.call(request.as_bytes()).await?;
            anyhow::Ok((clock.now() - due) / 1000)
        });
    }
    while let Some(done) = calls.join_next().await {
        latencies.saturating_record(done?.context("a look-up failed")?);
    }
    Ok(latencies)
}
