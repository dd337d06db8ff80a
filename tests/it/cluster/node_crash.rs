//! Hubs that crash. A change is stored and published in one step, so no crash separates the two.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{EventInterface, PubsubInterface};
use fred::types::Message;
use rand::RngExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::workload::Workload;
use super::{HubCluster, random_delay};
use crate::app::TEST_TIMEOUT;
use crate::proxy::Proxy;
use crate::redis::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn change_is_delivered_when_the_committing_node_dies_before_its_reply() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.port).await;
    let mut cluster = HubCluster::start_processes(&[proxy.url(), redis.url()]).await;
    let job = cluster.node(1).register_worker_job("alice").await;
    let mut watcher = cluster.node(1).connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    // The first update runs the commit script and the second the update script. Redis has then
    // loaded both, so the next update is a single request.
    let writer = cluster.node(0);
    for stage in ["first", "second"] {
        writer.push_update(&job, json!({ "stage": stage })).await;
        assert_eq!(watcher.next_job().await["stage"], stage);
    }

    proxy.mute_after("last-stage");
    let path = format!("/v1/jobs/{job}/updates");
    let token = writer.token("worker", "jobs:publish");
    let push = writer.request_with_token(Method::POST, &path, &token);
    let push = tokio::spawn(push.json(&json!({ "stage": "last-stage" })).send());
    proxy.wait_until_muted().await;
    cluster.kill_node(0);
    assert!(push.await.unwrap().is_err(), "the push has no response");

    let received = watcher.next_job().await;
    assert_eq!(received["version"], 4);
    assert_eq!(received["stage"], "last-stage");
    let survivor = cluster.node(1);
    assert_eq!(survivor.get_job(&job, "alice").await, received);
    watcher.assert_no_messages().await;
}

/// Receives everything that is published in a Redis, independently of the hubs.
struct PublishedVersions {
    _client: Client,
    messages: broadcast::Receiver<Message>,
    /// The newest version of each job.
    versions: BTreeMap<String, u64>,
}

impl PublishedVersions {
    async fn subscribe(redis: &RedisServer) -> Self {
        let client = redis.connect().await;
        let messages = client.message_rx();
        client.psubscribe("*").await.unwrap();
        let mut published = Self {
            _client: client,
            messages,
            versions: BTreeMap::new(),
        };
        // The library does not wait until the server has confirmed the subscription.
        let confirmed = async { while redis.query::<u64>("PUBLISH marks confirm").await == 0 {} };
        timeout(TEST_TIMEOUT, confirmed)
            .await
            .expect("a subscription");
        published.catch_up(redis).await;
        published
    }

    /// Receives everything that was published before this call.
    async fn catch_up(&mut self, redis: &RedisServer) {
        let mark = format!("mark-{}", rand::rng().random::<u64>());
        redis.run(&format!("PUBLISH marks {mark}")).await;
        loop {
            let message = timeout(TEST_TIMEOUT, self.messages.recv()).await;
            let message = message.expect("a message").expect("no message is dropped");
            let text = message.value.as_string().unwrap();
            if text == mark {
                return;
            }
            // The document follows the head, which is a line.
            let document = text.split_once('\n').map_or("", |(_, document)| document);
            let Ok(job) = serde_json::from_str::<Value>(document) else {
                continue;
            };
            if let (Some(id), Some(version)) = (job["id"].as_str(), job["version"].as_u64()) {
                let newest = self.versions.entry(id.to_owned()).or_default();
                *newest = version.max(*newest);
            }
        }
    }
}

/// Pushes updates to a job, one at a time, until the hub is gone. Returns the last acknowledged
/// version.
async fn push_until_crash(
    url: String,
    token: String,
    job: String,
    acknowledgments: Arc<watch::Sender<usize>>,
) -> u64 {
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(TEST_TIMEOUT)
        .build()
        .unwrap();
    let mut acknowledged = 0;
    loop {
        let stage = rand::rng().random::<u64>().to_string();
        let request = http
            .post(format!("{url}/v1/jobs/{job}/updates"))
            .bearer_auth(&token)
            .json(&json!({ "stage": stage }));
        let Ok(response) = request.send().await else {
            return acknowledged;
        };
        assert_eq!(response.status(), 200);
        let Ok(body) = response.json::<Value>().await else {
            return acknowledged;
        };
        acknowledged = body["version"].as_u64().unwrap();
        acknowledgments.send_modify(|count| *count += 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stored_change_is_delivered_when_a_node_dies() {
    const JOBS: usize = 16;
    const KILLS: usize = 6;
    let redis = RedisServer::start().await;
    let mut cluster = HubCluster::start_processes(&[redis.url(), redis.url()]).await;
    let mut published = PublishedVersions::subscribe(&redis).await;
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        jobs.push(cluster.node(1).register_worker_job("alice").await);
    }
    let mut watcher = cluster.node(1).connect("alice").await;
    let known: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 1)).collect();
    watcher.subscribe(&known).await;
    let mut received: BTreeMap<String, u64> = jobs.iter().map(|job| (job.clone(), 1)).collect();

    for kill in 0..KILLS {
        if kill > 0 {
            cluster.start_node(0).await;
        }
        let (acknowledgments, mut count) = watch::channel(0);
        let acknowledgments = Arc::new(acknowledgments);
        let token = cluster.node(0).token("worker", "jobs:publish");
        let mut pushes = JoinSet::new();
        for job in &jobs {
            let push = push_until_crash(
                cluster.node(0).url.clone(),
                token.clone(),
                job.clone(),
                Arc::clone(&acknowledgments),
            );
            let job = job.clone();
            pushes.spawn(async move { (job, push.await) });
        }
        let enough = rand::rng().random_range(JOBS..4 * JOBS);
        timeout(TEST_TIMEOUT, count.wait_for(|count| *count >= enough))
            .await
            .expect("updates are acknowledged")
            .unwrap();
        // Right after a response, the next commits have hardly started.
        random_delay(Duration::ZERO..Duration::from_millis(8)).await;
        cluster.kill_node(0);

        for (job, acknowledged) in pushes.join_all().await {
            // Commits of the dead hub may still be on their way to Redis.
            let survivor = cluster.node(1);
            let stored = loop {
                let before = survivor.get_job(&job, "alice").await["version"].as_u64();
                published.catch_up(&redis).await;
                let after = survivor.get_job(&job, "alice").await["version"].as_u64();
                if before == after {
                    break before.unwrap();
                }
            };
            assert!(
                stored >= acknowledged,
                "version {acknowledged} was acknowledged, {stored} is stored"
            );
            assert_eq!(published.versions.get(&job), Some(&stored));
            while received[&job] < stored {
                let next = watcher.next_job().await;
                let id = next["id"].as_str().unwrap();
                let version = next["version"].as_u64().unwrap();
                let previous = received.insert(id.to_owned(), version).unwrap();
                assert!(version > previous, "{version} after {previous}");
            }
            assert_eq!(received[&job], stored);
        }
    }
    watcher.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_hubs_lose_nothing() {
    let redis = RedisServer::start().await;
    let mut cluster = HubCluster::start_processes(&[redis.url(), redis.url()]).await;
    let workload = Workload::start(&cluster).await;
    for kill in 0..4 {
        let node = kill % 2;
        workload.wait_for_updates(1).await;
        random_delay(Duration::ZERO..Duration::from_millis(200)).await;
        cluster.kill_node(node);
        workload.wait_for_updates(1).await;
        cluster.start_node(node).await;
    }
    workload.wait_for_updates(1).await;
    workload.verify(&cluster).await;
}
