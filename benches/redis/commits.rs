//! Updates per second, by callers and by what Redis writes to its disk.
//!
//! Invariant: the floors are asked by as many callers, each on a connection of its own, with a
//! document of the same size: a bare `SET`, and the smallest script that stores and tells.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub::job::Job;

use crate::environment::{Redis, command};
use crate::workload::{Rate, changes, create, open, rate};

const SMALLEST: &str = "redis.call('HSET', KEYS[1], 'doc', ARGV[1]) \
                        redis.call('PUBLISH', KEYS[1], ARGV[1]) return 1";

/// The same command by so many callers.
async fn bare(redis: &Redis, commands: Vec<Vec<u8>>, span: Duration) -> Rate {
    let connections = commands
        .into_iter()
        .map(async |command| (redis.bare().await, command));
    let connections = std::cell::Cell::new(join_all(connections).await);
    rate(redis, span, |until| {
        let workers = connections.take().into_iter();
        let workers = workers.map(|(mut connection, command)| async move {
            let mut count = 0;
            while Instant::now() < until {
                connection.ask(&command).await;
                count += 1;
            }
            count
        });
        workers.collect()
    })
    .await
}

pub async fn measure(span: Duration) {
    let mut rows = Vec::new();
    for appendfsync in [None, Some("everysec"), Some("always")] {
        let redis = Redis::start(appendfsync).await;
        let store = open(&redis, |_| {}).await;
        for callers in [1, 32, 256] {
            let jobs: Vec<Job> = join_all((0..callers).map(|_| create(&*store, "alice"))).await;
            let document = serde_json::to_string(&jobs[0]).unwrap();
            let each = |words: &dyn Fn(&str) -> Vec<u8>| {
                let names = (0..callers).map(|number| number.to_string());
                names.map(|name| words(&name)).collect()
            };
            let set = each(&|name| command(&["SET", &format!("set{name}"), &document]));
            let mut loading = redis.bare().await;
            let smallest = loading.ask_bulk(&["SCRIPT", "LOAD", SMALLEST]).await;
            let script = each(&|name| {
                let key = format!("hash{name}");
                command(&["EVALSHA", &smallest, "1", &key, &document])
            });
            let set = bare(&redis, set, span).await;
            let script = bare(&redis, script, span).await;
            let ours = changes(&redis, &store, &jobs, span).await;
            rows.push(vec![
                appendfsync.map_or("no AOF", |when| when).to_owned(),
                callers.to_string(),
                format!("{:.0}", ours.per_second()),
                format!("{:.2}", ours.per_second() / set.per_second()),
                format!("{:.2}", ours.per_second() / script.per_second()),
                format!("{:.0} µs", ours.cost()),
                format!("{:.0} µs / {:.0} µs", set.cost(), script.cost()),
            ]);
        }
        store.close().await;
    }
    println!("Updates committed by one node\n");
    let columns = [
        "appendfsync",
        "callers",
        "updates/s",
        "to a bare SET",
        "to the smallest script",
        "Redis's thread, each",
        "the floors'",
    ];
    crate::table(&columns, &rows);
}
