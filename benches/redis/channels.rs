//! Many jobs watched at one node: what they weigh, and how long it takes to listen to all again.
//!
//! Invariant: a node is a process of its own, watched by real sockets; it has listened again when
//! each of them was told `restored`, which is after all their jobs were read again.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use progress_hub::job::Job;
use serde_json::json;

use crate::environment::{Redis, Serving, Socket, command, hear, hear_any, say};
use crate::workload::{change, create, open};

/// Jobs that a socket watches.
const EACH: usize = 250;

/// Jobs that are created at once, and sockets that subscribe at once.
const MAX_CONCURRENT: usize = 16;

/// Subscribes until it is done; says how often the store was too busy.
async fn subscribe(socket: &mut Socket, jobs: &[Job]) -> usize {
    let jobs: Vec<_> = jobs
        .iter()
        .map(|job| json!({ "job": job.id, "version": 1 }))
        .collect();
    for refused in 0.. {
        say(socket, &json!({ "type": "subscribe", "jobs": jobs })).await;
        let told = hear_any(socket, &["subscribed", "error"]).await;
        if told.contains("store_unavailable") {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        assert_eq!(told.matches("\"current\"").count(), jobs.len(), "{told}");
        return refused;
    }
    unreachable!()
}

#[expect(clippy::cast_precision_loss, reason = "counts that fit")]
pub async fn measure(channels: usize, span: Duration) {
    let redis = Redis::start(None).await;
    let hub = Serving::start(&redis);
    let store = open(&redis, |_| {}).await;
    let empty = redis.info("memory", "used_memory").await;
    let sockets = channels.div_ceil(EACH);
    let mut watchers = Vec::new();
    for number in 0..sockets {
        let owner = format!("owner-{number}");
        let count = EACH.min(channels - number * EACH);
        let created = (0..count).map(|_| create(&*store, &owner));
        let jobs: Vec<Job> = stream::iter(created)
            .buffer_unordered(MAX_CONCURRENT)
            .collect()
            .await;
        watchers.push((owner, jobs));
    }
    let full = redis.info("memory", "used_memory").await;
    let idle = hub.memory();
    let mut connected = Vec::new();
    for (owner, jobs) in watchers {
        connected.push((hub.socket(&owner).await, jobs));
    }
    let mut watchers = connected;
    let greeted = hub.memory();

    let begun = Instant::now();
    let subscribing = watchers
        .iter_mut()
        .map(|(socket, jobs)| subscribe(socket, jobs));
    let refusals: Vec<usize> = stream::iter(subscribing)
        .buffer_unordered(MAX_CONCURRENT)
        .collect()
        .await;
    let (listened, refused) = (begun.elapsed(), refusals.iter().sum::<usize>());
    let watching = redis.info("memory", "used_memory").await;
    let watched = hub.memory();

    // What is looked over all the time in case a message was lost.
    let (worked, begun) = (redis.worked().await, Instant::now());
    tokio::time::sleep(10 * span).await;
    let share = (redis.worked().await - worked) / begun.elapsed().as_secs_f64();

    redis
        .bare()
        .await
        .ask(&command(&["CLIENT", "KILL", "TYPE", "pubsub"]))
        .await;
    let begun = Instant::now();
    join_all(
        watchers
            .iter_mut()
            .map(|(socket, _)| hear(socket, "restored")),
    )
    .await;
    let restored = begun.elapsed();
    let again = hub.memory();
    for (socket, jobs) in watchers.iter_mut().step_by(10) {
        let job = &mut jobs[0];
        change(&*store, job).await;
        let frame = hear(socket, "job").await;
        assert!(frame.contains(job.id.as_str()), "{frame}");
    }
    store.close().await;

    let each = |bytes: f64| format!("{:.2} KiB", bytes / 1024.0 / channels as f64);
    let whole = |bytes: f64| format!("{:.0} MiB", bytes / 1024.0 / 1024.0);
    let row = |name: &str, bytes: f64| vec![name.to_owned(), whole(bytes), each(bytes)];
    println!("{channels} jobs watched at one node by {sockets} sockets\n");
    let rows = [
        row("Redis: the jobs", full - empty),
        row("Redis: their channels", watching - full),
        row(
            "the node: watching them, beside its sockets",
            watched - greeted,
        ),
        row("the node: after it has listened again", again - greeted),
    ];
    crate::table(&["memory", "all", "each"], &rows);
    let seconds = |span: Duration| format!("{:.2} s", span.as_secs_f64());
    let rows = [
        vec![
            format!("to subscribe, {MAX_CONCURRENT} sockets at a time"),
            seconds(listened),
        ],
        vec![
            "refusals meanwhile, the store being too busy".to_owned(),
            refused.to_string(),
        ],
        vec![
            "from `CLIENT KILL TYPE pubsub` to the last `restored`".to_owned(),
            seconds(restored),
        ],
        vec![
            "Redis's thread while nothing changes".to_owned(),
            format!("{:.1} %", share * 100.0),
        ],
        vec!["the node before its first socket".to_owned(), whole(idle)],
    ];
    crate::table(&["", ""], &rows);
}
