//! Updates per second while other nodes listen to every job that changes.
//!
//! Invariant: a rate counts only if every node heard every update.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub::job::{Job, Topic};
use progress_hub::store::StoreEvent;

use crate::environment::Redis;
use crate::workload::{changes, create, open};

const CALLERS: usize = 256;

pub async fn measure(span: Duration) {
    let mut rows = Vec::new();
    for nodes in [0, 1, 4] {
        let redis = Redis::start(Some("everysec")).await;
        let store = open(&redis, |_| {}).await;
        let jobs: Vec<Job> = join_all((0..CALLERS).map(|_| create(&*store, "alice"))).await;
        let topics: Vec<Topic> = jobs.iter().map(|job| Topic::Job(job.id.clone())).collect();
        let heard = Arc::new(AtomicUsize::new(0));
        let mut others = Vec::new();
        for _ in 0..nodes {
            let heard = Arc::clone(&heard);
            let count = move |event| match event {
                StoreEvent::JobChanged(_) => {
                    heard.fetch_add(1, Ordering::Relaxed);
                }
                StoreEvent::Unavailable
                | StoreEvent::Recovered
                | StoreEvent::SharedStateChanged => {}
            };
            let other = open(&redis, count).await;
            other.subscribe(&topics).await.unwrap();
            others.push(other);
        }
        let begun = Instant::now();
        let rate = changes(&redis, &store, &jobs, span).await;
        let expected = rate.count * nodes;
        while heard.load(Ordering::Relaxed) < expected {
            assert!(begun.elapsed() < 10 * span, "not everything was heard");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(heard.load(Ordering::Relaxed), expected, "each once");
        #[expect(clippy::cast_precision_loss, reason = "a count of seconds' work")]
        let heard = expected as f64 / seconds;
        rows.push(vec![
            nodes.to_string(),
            format!("{:.0}", rate.per_second()),
            format!("{heard:.0}"),
            format!("{:.0} µs", rate.cost()),
        ]);
        for store in others.into_iter().chain([store]) {
            store.close().await;
        }
    }
    println!("Updates by {CALLERS} callers, all heard by other nodes, AOF everysec\n");
    let columns = [
        "nodes that listen",
        "updates/s",
        "messages heard/s",
        "Redis's thread, each update",
    ];
    crate::table(&columns, &rows);
}
