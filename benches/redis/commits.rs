//! Updates per second, by number of callers and by persistence of Redis.
//!
//! Each rate is compared with two baselines in the same run: a bare `SET`, and the smallest script that
//! stores and publishes. They use as many callers, each with its own connection, and a document of the
//! same size.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub::job::Job;

use crate::environment::{RedisProcess, encode_command};
use crate::workload::{Rate, commit_repeatedly, create, measure_rate, open};

const SMALLEST_SCRIPT: &str = "redis.call('HSET', KEYS[1], 'document', ARGV[1]) \
                              redis.call('PUBLISH', KEYS[1], ARGV[1]) return 1";

/// Measures commands that are repeated, each on its own connection.
async fn baseline(redis: &RedisProcess, commands: Vec<Vec<u8>>, span: Duration) -> Rate {
    let connections = commands
        .into_iter()
        .map(async |command| (redis.raw_connection().await, command));
    let connections = std::cell::Cell::new(join_all(connections).await);
    measure_rate(redis, span, |until| {
        let workers = connections.take().into_iter();
        let workers = workers.map(|(mut connection, command)| async move {
            let mut count = 0;
            while Instant::now() < until {
                connection.send(&command).await;
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
        let redis = RedisProcess::start(appendfsync).await;
        let store = open(&redis, |_| {}).await;
        for callers in [1, 32, 256] {
            let jobs: Vec<Job> = join_all((0..callers).map(|_| create(&*store, "alice"))).await;
            let document = serde_json::to_string(&jobs[0]).unwrap();
            let for_each_caller = |encode: &dyn Fn(&str) -> Vec<u8>| {
                let names = (0..callers).map(|number| number.to_string());
                names.map(|name| encode(&name)).collect()
            };
            let set =
                for_each_caller(&|name| encode_command(&["SET", &format!("set{name}"), &document]));
            let sha: String = redis.query(&["SCRIPT", "LOAD", SMALLEST_SCRIPT]).await;
            let script = for_each_caller(&|name| {
                let key = format!("hash{name}");
                encode_command(&["EVALSHA", &sha, "1", &key, &document])
            });
            let set = baseline(&redis, set, span).await;
            let script = baseline(&redis, script, span).await;
            let hub = commit_repeatedly(&redis, &store, &jobs, span).await;
            rows.push(vec![
                appendfsync.unwrap_or("no AOF").to_owned(),
                callers.to_string(),
                format!("{:.0}", hub.per_second()),
                format!("{:.2}", hub.per_second() / set.per_second()),
                format!("{:.2}", hub.per_second() / script.per_second()),
                format!("{:.0} µs", hub.cost()),
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
        "ratio to a bare SET",
        "ratio to the smallest script",
        "Redis thread per update",
        "Redis thread per SET and script",
    ];
    crate::table(&columns, &rows);
}
