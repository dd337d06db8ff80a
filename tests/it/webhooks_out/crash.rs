//! No webhook is lost: hubs are killed at random moments while jobs end and the endpoint fails at
//! times.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use tempfile::TempDir;

use super::receiver::{Receiver, Reply};
use super::*;
use crate::app::TEST_TIMEOUT;

const KILLS: usize = 6;
const JOBS_PER_ROUND: usize = 40;

/// Starts an endpoint that is slow and fails one attempt in five. Its responses do not depend on
/// whether the hub still reads them.
async fn unreliable_receiver() -> Receiver {
    Receiver::start_with(|_, _| async {
        let (delay, fails) = {
            let mut rng = rand::rng();
            (rng.random_range(0..30), rng.random_ratio(1, 5))
        };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        Reply::from(if fails { 500 } else { 200 })
    })
    .await
}

/// Registers a job and ends it. A missing response is ignored, because the hub may have been killed.
async fn try_finish_job(app: &TestApp) {
    let worker = app.token("worker", "jobs:publish");
    let register = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let Ok(response) = register.json(&json!({ "owner": "alice" })).send().await else {
        return;
    };
    let Ok(job) = response.json::<Value>().await else {
        return;
    };
    let Some(id) = job["id"].as_str() else {
        return;
    };
    let path = format!("/v1/jobs/{id}/updates");
    let update = app.request_with_token(Method::POST, &path, &worker);
    drop(update.json(&json!({ "status": "succeeded" })).send().await);
}

/// Returns the ids of all jobs that have ended.
async fn ended_jobs(app: &TestApp) -> BTreeSet<String> {
    let mut ended = BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/jobs?limit=200&status=succeeded{cursor}");
        let response = send(app.request(Method::GET, &path, "alice")).await;
        let jobs = response.body["jobs"].as_array().expect("a list of jobs");
        ended.extend(
            jobs.iter()
                .map(|job| job["id"].as_str().unwrap().to_owned()),
        );
        match response.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ended,
        }
    }
}

/// Waits until every ended job was delivered, and was received under a single id.
async fn expect_all_delivered(app: &TestApp, receiver: &Receiver) {
    let ended = ended_jobs(app).await;
    assert!(ended.len() > KILLS, "too few jobs ended: {}", ended.len());
    receiver
        .wait(|received| {
            let jobs: BTreeSet<String> = received.iter().map(receiver::Webhook::job).collect();
            ended.is_subset(&jobs)
        })
        .await;
    wait_for("no delivery waits", async || {
        let waiting = destination(app, "app").await["waiting"].as_u64();
        (waiting == Some(0)).then_some(())
    })
    .await;
    let failed = deliveries(app, "state=failed").await;
    assert_eq!(failed, [Value::Null; 0], "the schedule was long enough");
    let received = receiver.received();
    let ids: BTreeSet<&str> = received.iter().map(receiver::Webhook::id).collect();
    let jobs: BTreeSet<String> = received.iter().map(receiver::Webhook::job).collect();
    assert_eq!(ids.len(), jobs.len(), "repetitions have the same id");
    assert!(
        received
            .iter()
            .all(|webhook| webhook.is_signed_with(SECRET))
    );
}

fn unreliable_hub(receiver: &Receiver) -> TestAppBuilder {
    let retries = vec![r#""20ms""#; 100].join(",");
    hub()
        .endpoint("app", &receiver.url)
        .set("deliveries.retries", format!("[{retries}]"))
        .set("deliveries.pause", "5ms")
}

/// Ends jobs until the hub is killed at a random moment.
async fn run_until_killed(app: TestApp) -> TempDir {
    let jobs = (0..JOBS_PER_ROUND).map(|_| try_finish_job(&app));
    let delay = Duration::from_millis(rand::rng().random_range(20..600));
    let all = futures_util::future::join_all(jobs);
    drop(tokio::time::timeout(delay, all).await);
    app.kill()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_webhook_is_lost_when_the_hub_is_killed_on_sqlite() {
    let receiver = unreliable_receiver().await;
    let mut folder = tempfile::tempdir().unwrap();
    for _ in 0..KILLS {
        let hub = unreliable_hub(&receiver).data_dir(folder);
        folder = run_until_killed(hub.spawn_process(&[]).await).await;
    }
    let hub = unreliable_hub(&receiver).data_dir(folder);
    let app = hub.spawn_process(&[]).await;
    expect_all_delivered(&app, &receiver).await;
    drop(app.kill());
}

/// The node that works on the endpoint is killed. Another one continues when its lease has ended.
#[tokio::test(flavor = "multi_thread")]
async fn no_webhook_is_lost_when_nodes_are_killed_on_redis() {
    let redis = RedisServer::start().await;
    let receiver = unreliable_receiver().await;
    let node = || unreliable_hub(&receiver).set("store.url", redis.url());
    let survivor = node().spawn_process(&[]).await;
    for _ in 0..KILLS {
        let other = node().spawn_process(&[]).await;
        let jobs = (0..JOBS_PER_ROUND / 4).map(|_| try_finish_job(&survivor));
        let (_, folder) = tokio::join!(
            futures_util::future::join_all(jobs),
            run_until_killed(other),
        );
        drop(folder);
    }
    let other = node().spawn_process(&[]).await;
    // Whichever of the two works on the endpoint, the other one takes over.
    drop(survivor.kill());
    let all = expect_all_delivered(&other, &receiver);
    tokio::time::timeout(TEST_TIMEOUT, all)
        .await
        .expect("timed out waiting for the deliveries");
    drop(other.kill());
}

/// A graceful shutdown hands the endpoint over without waiting for the lease.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_hands_the_destination_to_another_node() {
    let redis = RedisServer::start().await;
    let receiver = Receiver::start().await;
    let node = || {
        hub()
            .endpoint("app", &receiver.url)
            .set("store.url", redis.url())
    };
    let (first, second) = (node().spawn().await, node().spawn().await);
    finish_job(&second, "alice").await;
    receiver.wait_for_count(1).await;
    drop(first.shut_down().await);
    finish_job(&second, "alice").await;
    receiver.wait_for_count(2).await;
}
