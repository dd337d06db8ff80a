//! Many subscribed jobs on one node: their memory, and the time to resubscribe to all of them.
//!
//! The node is a separate process with real sockets. It has recovered when every socket has received
//! `restored`, which follows after all subscribed jobs were read again.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use progress_hub::job::Job;
use serde_json::json;

use crate::environment::{HubProcess, RedisProcess, Socket, expect_any, expect_message, send_json};
use crate::workload::{commit_next, create, open};

/// Jobs that a socket subscribes to.
const JOBS_PER_SOCKET: usize = 250;

/// Concurrent creations and subscriptions.
const MAX_CONCURRENT: usize = 16;

const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Subscribes, and repeats the request while the store is overloaded. Returns the number of rejections.
async fn subscribe(socket: &mut Socket, jobs: &[Job]) -> usize {
    let jobs: Vec<_> = jobs
        .iter()
        .map(|job| json!({ "job": job.id, "version": 1 }))
        .collect();
    for rejections in 0.. {
        send_json(socket, &json!({ "type": "subscribe", "jobs": jobs })).await;
        let response = expect_any(socket, &["subscribed", "error"]).await;
        if response.contains("store_unavailable") {
            tokio::time::sleep(RETRY_DELAY).await;
            continue;
        }
        assert_eq!(
            response.matches("\"current\"").count(),
            jobs.len(),
            "{response}"
        );
        return rejections;
    }
    unreachable!()
}

#[expect(clippy::cast_precision_loss, reason = "the counts are below 2^53")]
pub async fn measure(channels: usize, span: Duration) {
    let redis = RedisProcess::start(None).await;
    let hub = HubProcess::start(&redis);
    let store = open(&redis, |_| {}).await;
    let redis_empty = redis.info("memory", "used_memory").await;
    let sockets = channels.div_ceil(JOBS_PER_SOCKET);
    let mut watchers = Vec::new();
    for number in 0..sockets {
        let owner = format!("owner-{number}");
        let count = JOBS_PER_SOCKET.min(channels - number * JOBS_PER_SOCKET);
        let created = (0..count).map(|_| create(&*store, &owner));
        let jobs: Vec<Job> = stream::iter(created)
            .buffer_unordered(MAX_CONCURRENT)
            .collect()
            .await;
        watchers.push((owner, jobs));
    }
    let redis_with_jobs = redis.info("memory", "used_memory").await;
    let hub_idle = hub.memory();
    let mut connected = Vec::new();
    for (owner, jobs) in watchers {
        connected.push((hub.connect(&owner).await, jobs));
    }
    let mut watchers = connected;
    let hub_connected = hub.memory();

    let started_at = Instant::now();
    let subscribing = watchers
        .iter_mut()
        .map(|(socket, jobs)| subscribe(socket, jobs));
    let rejections: Vec<usize> = stream::iter(subscribing)
        .buffer_unordered(MAX_CONCURRENT)
        .collect()
        .await;
    let subscribe_time = started_at.elapsed();
    let rejections: usize = rejections.iter().sum();
    let redis_subscribed = redis.info("memory", "used_memory").await;
    let hub_subscribed = hub.memory();

    // The load of the reads that look for lost messages.
    let (cpu_seconds, started_at) = (redis.cpu_seconds().await, Instant::now());
    tokio::time::sleep(10 * span).await;
    let load = (redis.cpu_seconds().await - cpu_seconds) / started_at.elapsed().as_secs_f64();

    let _: u64 = redis.query(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let started_at = Instant::now();
    join_all(
        watchers
            .iter_mut()
            .map(|(socket, _)| expect_message(socket, "restored")),
    )
    .await;
    let recovery_time = started_at.elapsed();
    let hub_resubscribed = hub.memory();
    for (socket, jobs) in watchers.iter_mut().step_by(10) {
        let job = &mut jobs[0];
        commit_next(&*store, job).await;
        let frame = expect_message(socket, "job").await;
        assert!(frame.contains(job.id.as_str()), "{frame}");
    }
    store.close().await;

    let per_job = |bytes: f64| format!("{:.2} KiB", bytes / 1024.0 / channels as f64);
    let total = |bytes: f64| format!("{:.0} MiB", bytes / 1024.0 / 1024.0);
    let row = |name: &str, bytes: f64| vec![name.to_owned(), total(bytes), per_job(bytes)];
    println!("{channels} jobs subscribed on one node by {sockets} sockets\n");
    let rows = [
        row("Redis: jobs", redis_with_jobs - redis_empty),
        row("Redis: channels", redis_subscribed - redis_with_jobs),
        row(
            "hub: subscriptions, without sockets",
            hub_subscribed - hub_connected,
        ),
        row(
            "hub: after the resubscription",
            hub_resubscribed - hub_connected,
        ),
    ];
    crate::table(&["memory", "total", "per job"], &rows);
    let seconds = |span: Duration| format!("{:.2} s", span.as_secs_f64());
    let rows = [
        vec![
            format!("time to subscribe, {MAX_CONCURRENT} sockets at a time"),
            seconds(subscribe_time),
        ],
        vec![
            "subscriptions rejected because the store was overloaded".to_owned(),
            rejections.to_string(),
        ],
        vec![
            "time from `CLIENT KILL TYPE pubsub` to the last `restored`".to_owned(),
            seconds(recovery_time),
        ],
        vec![
            "Redis thread without updates".to_owned(),
            format!("{:.1}%", load * 100.0),
        ],
        vec!["hub memory without sockets".to_owned(), total(hub_idle)],
    ];
    crate::table(&["", ""], &rows);
}
