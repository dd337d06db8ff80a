//! A hub that dies between storing a change and telling of it: there is no such moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Fleet;
use super::workload::Traffic;
use crate::app::TEST_TIMEOUT;
use crate::proxy::Proxy;
use crate::redis::RedisServer;
use crate::redis::resp_client::RespClient;

/// The hub that made the change never learns that it is stored, and is dead.
#[tokio::test(flavor = "multi_thread")]
async fn change_is_delivered_when_the_committing_node_dies_before_its_reply() {
    let redis = RedisServer::start().await;
    let way = Proxy::start(redis.port).await;
    let mut fleet = Fleet::start_processes(&[way.url(), redis.url()], |hub| hub).await;
    let job = fleet.node(1).register_worker_job("alice").await;
    let mut watcher = fleet.node(1).connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    // The first time a script is not known yet, and takes two questions.
    fleet
        .node(0)
        .push_update(&job, json!({ "stage": "well" }))
        .await;
    assert_eq!(watcher.next_job().await["stage"], "well");

    way.mute_after("last-words-of-a-hub");
    let worker = fleet.node(0).token("worker", "jobs:publish");
    let path = format!("/v1/jobs/{job}/updates");
    let push = fleet
        .node(0)
        .request_with_token(Method::POST, &path, &worker);
    let pushing = push.json(&json!({ "stage": "last-words-of-a-hub" })).send();
    let pushing = tokio::spawn(pushing);
    way.until_mute().await;
    fleet.kill(0);
    assert!(pushing.await.unwrap().is_err(), "it was never answered");

    let shown = watcher.next_job().await;
    assert_eq!(
        (&shown["version"], &shown["stage"]),
        (&json!(3), &json!("last-words-of-a-hub"))
    );
    assert_eq!(fleet.node(1).get_job(&job, "alice").await, shown);
    watcher.assert_no_messages().await;
}

/// Everything that is published in a Redis, heard by nobody's hub.
struct Listener {
    speaker: RespClient,
    /// The newest version of each job that was told.
    told: BTreeMap<String, u64>,
}

impl Listener {
    async fn of(redis: &RedisServer) -> Self {
        let mut speaker = redis.speaker().await;
        speaker.ask("PSUBSCRIBE *").await;
        Self {
            speaker,
            told: BTreeMap::new(),
        }
    }

    /// Takes in everything that was published before this moment.
    async fn catch_up(&mut self, redis: &RedisServer) {
        let mark = format!("mark-{}", rand::rng().random::<u64>());
        redis.ask(&format!("PUBLISH marks {mark}")).await;
        loop {
            let heard = self.speaker.hear().await.unwrap();
            let said = heard.list()[3].text();
            if said == mark {
                return;
            }
            let Ok(job) = serde_json::from_str::<Value>(said) else {
                continue;
            };
            if let (Some(id), Some(version)) = (job["id"].as_str(), job["version"].as_u64()) {
                let newest = self.told.entry(id.to_owned()).or_default();
                *newest = version.max(*newest);
            }
        }
    }
}

/// Pushes to a job as fast as it is answered, until its hub is gone; what was acknowledged last.
async fn push_on(
    fleet_url: String,
    token: String,
    job: String,
    pushed: Arc<watch::Sender<usize>>,
) -> u64 {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut acknowledged = 0;
    loop {
        let stage = format!("{}", rand::rng().random::<u64>());
        let request = http
            .post(format!("{fleet_url}/v1/jobs/{job}/updates"))
            .timeout(TEST_TIMEOUT)
            .bearer_auth(&token)
            .json(&json!({ "stage": stage }));
        let Ok(answer) = request.send().await else {
            return acknowledged;
        };
        assert_eq!(answer.status(), 200);
        let Ok(told) = answer.json::<Value>().await else {
            return acknowledged;
        };
        acknowledged = told["version"].as_u64().unwrap();
        pushed.send_modify(|count| *count += 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stored_change_is_delivered_when_a_node_dies() {
    const JOBS: usize = 16;
    const KILLS: usize = 6;
    let redis = RedisServer::start().await;
    let mut fleet = Fleet::start_processes(&[redis.url(), redis.url()], |hub| hub).await;
    let mut listener = Listener::of(&redis).await;
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        jobs.push(fleet.node(1).register_worker_job("alice").await);
    }
    let mut watcher = fleet.node(1).connect("alice").await;
    let known: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 1)).collect();
    watcher.subscribe(&known).await;
    let mut shown: BTreeMap<String, u64> = jobs.iter().map(|job| (job.clone(), 1)).collect();
    let (acknowledged_in_all, unheard) = (AtomicUsize::new(0), AtomicUsize::new(0));

    for kill in 0..KILLS {
        if kill > 0 {
            fleet.bring_up(0).await;
        }
        let (pushed, mut count) = watch::channel(0);
        let pushed = Arc::new(pushed);
        let token = fleet.node(0).token("worker", "jobs:publish");
        let mut pushing = JoinSet::new();
        for job in &jobs {
            let (url, token) = (fleet.node(0).url.clone(), token.clone());
            let (id, pushed) = (job.clone(), Arc::clone(&pushed));
            let job = job.clone();
            pushing.spawn(async move { (job, push_on(url, token, id, pushed).await) });
        }
        let enough = rand::rng().random_range(JOBS..4 * JOBS);
        let waiting = count.wait_for(|count| *count >= enough);
        tokio::time::timeout(TEST_TIMEOUT, waiting)
            .await
            .expect("it goes on")
            .unwrap();
        // Not right after an answer, which is when the next commits have not come far.
        tokio::time::sleep(Duration::from_micros(rand::rng().random_range(0..8000))).await;
        fleet.kill(0);
        acknowledged_in_all.fetch_add(*pushed.borrow(), Ordering::Relaxed);

        for (job, acknowledged) in pushing.join_all().await {
            // What the dead hub had sent may still be on its way into the Redis.
            let stored = loop {
                let before = fleet.node(1).get_job(&job, "alice").await["version"].as_u64();
                listener.catch_up(&redis).await;
                let after = fleet.node(1).get_job(&job, "alice").await["version"].as_u64();
                if before == after {
                    break before.unwrap();
                }
            };
            assert!(
                stored >= acknowledged,
                "{stored}, but {acknowledged} was acknowledged"
            );
            assert_eq!(listener.told.get(&job), Some(&stored), "told and stored");
            unheard.fetch_add(usize::from(stored > acknowledged), Ordering::Relaxed);
            while shown[&job] < stored {
                let next = watcher.next_job().await;
                let (id, version) = (
                    next["id"].as_str().unwrap(),
                    next["version"].as_u64().unwrap(),
                );
                let last = shown.insert(id.to_owned(), version).unwrap();
                assert!(version > last, "{version} after {last}");
            }
            assert_eq!(shown[&job], stored);
        }
    }
    watcher.assert_no_messages().await;
    println!(
        "{KILLS} kills among {JOBS} jobs: {} changes acknowledged, {} stored whose hub died first, \
         and all of them told",
        acknowledged_in_all.into_inner(),
        unheard.into_inner()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hubs_that_are_killed_and_come_back_lose_nothing() {
    let redis = RedisServer::start().await;
    let mut fleet = Fleet::start_processes(&[redis.url(), redis.url()], |hub| hub).await;
    let traffic = Traffic::begin("hubs killed", &fleet).await;
    for kill in 0..4 {
        traffic.flows(1).await;
        let jitter = rand::rng().random_range(0..200);
        tokio::time::sleep(Duration::from_millis(jitter)).await;
        fleet.kill(kill % 2);
        traffic.flows(1).await;
        fleet.bring_up(kill % 2).await;
    }
    traffic.flows(1).await;
    traffic.settle(&fleet).await;
}
