//! Latency from a commit on one node to the frame on a socket of another.
//!
//! The baseline is a bare `PUBLISH` to a bare `SUBSCRIBE` of the same document. It alternates with the
//! measurement, so that both run under the same conditions.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::environment::{HubProcess, RedisProcess, encode_command, expect_message, send_json};
use crate::workload::{commit_next, create, open};

/// Rounds before the measurement.
const WARM_UP_ROUNDS: usize = 100;

/// Returns a quantile in microseconds.
fn quantile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a list"
    )]
    let index = (share * (times.len() - 1) as f64) as usize;
    times[index].as_secs_f64() * 1e6
}

pub async fn measure(rounds: usize) {
    let redis = RedisProcess::start(Some("everysec")).await;
    let hub = HubProcess::start(&redis);
    let store = open(&redis, |_| {}).await;
    let mut job = create(&*store, "alice").await;
    let mut socket = hub.connect("alice").await;
    send_json(
        &mut socket,
        &json!({ "type": "subscribe", "jobs": [{ "job": job.id, "version": 1 }] }),
    )
    .await;
    expect_message(&mut socket, "subscribed").await;

    let document = serde_json::to_string(&job).unwrap();
    let publish = encode_command(&["PUBLISH", "bare", &document]);
    let message = encode_command(&["message", "bare", &document]).len();
    let (mut publisher, mut listener) =
        (redis.raw_connection().await, redis.raw_connection().await);
    let subscribed = encode_command(&["subscribe", "bare"]).len() + ":1\r\n".len();
    listener
        .0
        .write_all(&encode_command(&["SUBSCRIBE", "bare"]))
        .await
        .unwrap();
    listener
        .0
        .read_exact(&mut vec![0; subscribed])
        .await
        .unwrap();

    let (mut baseline, mut committed, mut delivered) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..WARM_UP_ROUNDS + rounds {
        let started_at = Instant::now();
        publisher.0.write_all(&publish).await.unwrap();
        listener.0.read_exact(&mut vec![0; message]).await.unwrap();
        let published = started_at.elapsed();
        publisher
            .0
            .read_exact(&mut [0; ":1\r\n".len()])
            .await
            .unwrap();

        let started_at = Instant::now();
        let commit = async {
            commit_next(&*store, &mut job).await;
            started_at.elapsed()
        };
        let delivery = async {
            let frame = expect_message(&mut socket, "job").await;
            (started_at.elapsed(), frame)
        };
        let (commit_time, (delivery_time, frame)) = tokio::join!(commit, delivery);
        assert!(
            frame.contains(&format!("\"version\":{},", job.version)),
            "{frame}"
        );
        if round >= WARM_UP_ROUNDS {
            baseline.push(published);
            committed.push(commit_time);
            delivered.push(delivery_time);
        }
    }
    store.close().await;
    println!("From one node to a socket of another, {rounds} consecutive updates, AOF everysec\n");
    let baseline_p50 = quantile(&mut baseline, 0.5);
    let baseline_p99 = quantile(&mut baseline, 0.99);
    let row = |name: &str, times: &mut [Duration]| {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        vec![
            name.to_owned(),
            format!("{p50:.0} µs"),
            format!("{p99:.0} µs"),
            format!("{:.1}", p50 / baseline_p50),
            format!("{:.1}", p99 / baseline_p99),
        ]
    };
    let rows = [
        row("bare PUBLISH to a bare SUBSCRIBE", &mut baseline),
        row("commit to its reply", &mut committed),
        row(
            "commit to the frame on a socket of the other node",
            &mut delivered,
        ),
    ];
    crate::table(
        &[
            "",
            "p50",
            "p99",
            "p50 ratio to the baseline",
            "p99 ratio to the baseline",
        ],
        &rows,
    );
}
