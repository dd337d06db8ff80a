//! Updates per second while other nodes are subscribed to every job.
//!
//! The measurement ends when every node has received every update.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub::job::{Job, Topic};
use progress_hub::store::StoreEvent;

use crate::environment::RedisProcess;
use crate::workload::{commit_repeatedly, create, open};

const CALLERS: usize = 256;

pub async fn measure(span: Duration) {
    let mut rows = Vec::new();
    for nodes in [0, 1, 4] {
        let redis = RedisProcess::start(Some("everysec")).await;
        let store = open(&redis, |_| {}).await;
        let jobs: Vec<Job> = join_all((0..CALLERS).map(|_| create(&*store, "alice"))).await;
        let topics: Vec<Topic> = jobs.iter().map(|job| Topic::Job(job.id.clone())).collect();
        let received = Arc::new(AtomicUsize::new(0));
        let mut others = Vec::new();
        for _ in 0..nodes {
            let received = Arc::clone(&received);
            let count = move |event| match event {
                StoreEvent::JobChanged(_) => {
                    received.fetch_add(1, Ordering::Relaxed);
                }
                StoreEvent::Unavailable
                | StoreEvent::Recovered
                | StoreEvent::SharedStateChanged => {}
            };
            let other = open(&redis, count).await;
            other.subscribe(&topics).await.unwrap();
            others.push(other);
        }
        let started_at = Instant::now();
        let rate = commit_repeatedly(&redis, &store, &jobs, span).await;
        let expected = rate.count * nodes;
        while received.load(Ordering::Relaxed) < expected {
            assert!(started_at.elapsed() < 10 * span, "updates are missing");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let seconds = started_at.elapsed().as_secs_f64();
        assert_eq!(
            received.load(Ordering::Relaxed),
            expected,
            "each update is received once"
        );
        #[expect(clippy::cast_precision_loss, reason = "the count is below 2^53")]
        let received_per_second = expected as f64 / seconds;
        rows.push(vec![
            nodes.to_string(),
            format!("{:.0}", rate.per_second()),
            format!("{received_per_second:.0}"),
            format!("{:.0} µs", rate.cost()),
        ]);
        for store in others.into_iter().chain([store]) {
            store.close().await;
        }
    }
    println!("Updates by {CALLERS} callers with subscribed nodes, AOF everysec\n");
    let columns = [
        "subscribed nodes",
        "updates/s",
        "messages received/s",
        "Redis thread per update",
    ];
    crate::table(&columns, &rows);
}
