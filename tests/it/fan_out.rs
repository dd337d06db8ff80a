//! Fan-out to many connections.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::app::TestApp;
use crate::client::TestClient;

/// Pushes increasing progress to the jobs from several tasks concurrently, then a final status.
async fn push_updates(app: &Arc<TestApp>, jobs: &[String], workers: u32, pushes: u32) {
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let (app, jobs) = (Arc::clone(app), jobs.to_vec());
        tasks.spawn(async move {
            for push in 0..pushes {
                let job = &jobs[(push + worker) as usize % jobs.len()];
                let progress =
                    f64::from(push * workers + worker) * 100.0 / f64::from(pushes * workers);
                let response = app.push_update(job, json!({ "progress": progress })).await;
                assert_eq!(response.status, 200, "{}", response.body);
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    for job in jobs {
        let response = app.push_update(job, json!({ "status": "succeeded" })).await;
        assert_eq!(response.status, 200, "{}", response.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_subscribers_end_on_the_final_version() {
    let app = Arc::new(TestApp::spawn().await);
    let job = app.register_worker_job("alice").await;
    let mut subscribers = JoinSet::new();
    for subscriber in 0..100 {
        let mut client = app.connect("alice").await;
        let job = job.clone();
        subscribers.spawn(async move {
            // Subscribes without a version, with a known version, or to the owner's feed.
            match subscriber % 3 {
                0 => drop(client.subscribe(&[(&job, 0)]).await),
                1 => drop(client.subscribe(&[(&job, 1)]).await),
                _ => {
                    client
                        .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
                        .await;
                }
            }
            let last = client.follow_to_final(&job).await;
            client.assert_no_messages().await;
            client.close().await;
            last
        });
    }
    push_updates(&app, std::slice::from_ref(&job), 4, 40).await;
    let last = app.get_job(&job, "alice").await;
    while let Some(received) = subscribers.join_next().await {
        assert_eq!(received.unwrap(), last);
    }
    app.wait_until_no_connections().await;
}

/// The newest versions that one page received.
#[derive(Default)]
struct Received {
    versions: BTreeMap<String, u64>,
    finished: BTreeMap<String, Value>,
}

impl Received {
    fn version(&self, job: &str) -> u64 {
        self.versions.get(job).copied().unwrap_or(0)
    }

    /// Records a message. Versions never decrease. A repeated subscribe can deliver a version twice.
    fn record(&mut self, message: &Value) {
        if message["type"] != "job" {
            assert_ne!(message["type"], "error", "{message}");
            return;
        }
        let job = &message["job"];
        let (id, version) = (
            job["id"].as_str().unwrap(),
            job["version"].as_u64().unwrap(),
        );
        assert!(
            version >= self.version(id),
            "{version} after {}",
            self.version(id)
        );
        self.versions.insert(id.to_owned(), version);
        if job["final"] == true {
            self.finished.insert(id.to_owned(), job.clone());
        }
    }

    async fn record_until_pong(&mut self, client: &mut TestClient) {
        client
            .send_json(json!({ "type": "ping", "id": "done" }))
            .await;
        loop {
            let message = client.next_message().await.expect("a message");
            if message["type"] == "pong" {
                return;
            }
            self.record(&message);
        }
    }
}

/// Subscribes, unsubscribes and reconnects at random, then subscribes to every job until all are final.
async fn simulate_page(app: Arc<TestApp>, jobs: Vec<String>, seed: u64, steps: u32) -> Received {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut client = app.connect("alice").await;
    let mut received = Received::default();
    for _ in 0..steps {
        let job = &jobs[rng.random_range(0..jobs.len())];
        let versions: Vec<Value> = received
            .versions
            .iter()
            .map(|(job, version)| json!({ "job": job, "version": version }))
            .collect();
        match rng.random_range(0..6) {
            0 => {
                let version = received.version(job);
                let jobs = [json!({ "job": job, "version": version })];
                client
                    .send_json(json!({ "type": "subscribe", "id": 1, "jobs": jobs }))
                    .await;
            }
            1 => {
                client
                    .send_json(json!({ "type": "unsubscribe", "id": 2, "jobs": [job] }))
                    .await;
            }
            2 => {
                client
                    .send_json(
                        json!({ "type": "subscribe", "id": 3, "feed": "mine", "jobs": versions }),
                    )
                    .await;
            }
            3 => {
                client
                    .send_json(json!({ "type": "unsubscribe", "id": 4, "feed": "mine" }))
                    .await;
            }
            4 => client = app.connect("alice").await,
            _ => {}
        }
        received.record_until_pong(&mut client).await;
    }
    let versions: Vec<Value> = jobs
        .iter()
        .map(|job| json!({ "job": job, "version": received.version(job) }))
        .collect();
    client
        .send_json(json!({ "type": "subscribe", "id": 5, "jobs": versions }))
        .await;
    while received.finished.len() < jobs.len() {
        let message = client.next_message().await.expect("a message");
        received.record(&message);
    }
    client.assert_no_messages().await;
    client.close().await;
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn remaining_sockets_end_on_final_versions() {
    // All pages share one subject and exceed the default limits per subject.
    let app = TestApp::builder()
        .set("limits.messages_per_second", 100_000)
        .set("limits.ids_per_second", 100_000);
    let app = Arc::new(app.spawn().await);
    let seed: u64 = rand::rng().random();
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(app.register_worker_job("alice").await);
    }
    let mut pages = JoinSet::new();
    for page in 0..16 {
        pages.spawn(simulate_page(
            Arc::clone(&app),
            jobs.clone(),
            seed ^ page,
            40,
        ));
    }
    push_updates(&app, &jobs, 4, 60).await;
    let mut last = BTreeMap::new();
    for job in &jobs {
        last.insert(job.clone(), app.get_job(job, "alice").await);
    }
    while let Some(received) = pages.join_next().await {
        let received = received.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(received.finished, last, "seed {seed}");
    }
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_feed_includes_jobs_created_concurrently() {
    let app = Arc::new(TestApp::spawn().await);
    let mut creators = JoinSet::new();
    for _ in 0..4 {
        let app = Arc::clone(&app);
        creators.spawn(async move {
            let mut created = Vec::new();
            for _ in 0..15 {
                let job = app.register_worker_job("alice").await;
                app.push_update(&job, json!({ "progress": 50 })).await;
                app.push_update(&job, json!({ "status": "succeeded" }))
                    .await;
                created.push(job);
            }
            created
        });
    }
    let mut subscribers = JoinSet::new();
    for _ in 0..8 {
        let mut client = app.connect("alice").await;
        subscribers.spawn(async move {
            client
                .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
                .await;
            let mut received = Received::default();
            while received.finished.len() < 60 {
                received.record(&client.next_message().await.expect("a message"));
            }
            received.finished.into_keys().collect::<Vec<_>>()
        });
    }
    let mut created: Vec<String> = creators.join_all().await.into_iter().flatten().collect();
    created.sort_unstable();
    for received in subscribers.join_all().await {
        assert_eq!(received, created);
    }
}
