//! From a commit at one node to the frame at a socket of another.
//!
//! Invariant: the floor, a bare `PUBLISH` to a bare `SUBSCRIBE` of the same document through the
//! same Redis, takes turns with what is measured, so both see the same machine.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::environment::{Redis, Serving, command, hear, say};
use crate::workload::{change, create, open};

/// Rounds before it counts.
const WARMING: usize = 100;

/// How many stand below this share of them.
fn quantile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let at = (share * (times.len() - 1) as f64) as usize;
    times[at].as_secs_f64() * 1e6
}

pub async fn measure(rounds: usize) {
    let redis = Redis::start(Some("everysec")).await;
    let hub = Serving::start(&redis);
    let store = open(&redis, |_| {}).await;
    let mut job = create(&*store, "alice").await;
    let mut socket = hub.socket("alice").await;
    say(
        &mut socket,
        &json!({ "type": "subscribe", "jobs": [{ "job": job.id, "version": 1 }] }),
    )
    .await;
    hear(&mut socket, "subscribed").await;

    let document = serde_json::to_string(&job).unwrap();
    let publish = command(&["PUBLISH", "bare", &document]);
    let message = command(&["message", "bare", &document]).len();
    let (mut publisher, mut listener) = (redis.bare().await, redis.bare().await);
    let subscribed = command(&["subscribe", "bare"]).len() + ":1\r\n".len();
    listener
        .0
        .write_all(&command(&["SUBSCRIBE", "bare"]))
        .await
        .unwrap();
    listener
        .0
        .read_exact(&mut vec![0; subscribed])
        .await
        .unwrap();

    let (mut floor, mut answered, mut shown) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..WARMING + rounds {
        let begun = Instant::now();
        publisher.0.write_all(&publish).await.unwrap();
        listener.0.read_exact(&mut vec![0; message]).await.unwrap();
        let bare = begun.elapsed();
        publisher
            .0
            .read_exact(&mut [0; ":1\r\n".len()])
            .await
            .unwrap();

        let begun = Instant::now();
        let committing = async {
            change(&*store, &mut job).await;
            begun.elapsed()
        };
        let hearing = async {
            let frame = hear(&mut socket, "job").await;
            (begun.elapsed(), frame)
        };
        let (committed, (heard, frame)) = tokio::join!(committing, hearing);
        assert!(
            frame.contains(&format!("\"version\":{},", job.version)),
            "{frame}"
        );
        if round >= WARMING {
            floor.push(bare);
            answered.push(committed);
            shown.push(heard);
        }
    }
    store.close().await;
    println!("From one node to a socket of another, {rounds} updates one by one, AOF everysec\n");
    let (floor50, floor99) = (quantile(&mut floor, 0.5), quantile(&mut floor, 0.99));
    let row = |name: &str, times: &mut [Duration]| {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        vec![
            name.to_owned(),
            format!("{p50:.0} µs"),
            format!("{p99:.0} µs"),
            format!("{:.1}", p50 / floor50),
            format!("{:.1}", p99 / floor99),
        ]
    };
    let rows = [
        row("a bare PUBLISH to a bare SUBSCRIBE", &mut floor),
        row("a commit to its answer", &mut answered),
        row(
            "a commit to the frame at the other node's socket",
            &mut shown,
        ),
    ];
    crate::table(
        &["", "p50", "p99", "p50 to the floor's", "p99 to the floor's"],
        &rows,
    );
}
