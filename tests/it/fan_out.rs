//! One job, many watchers.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::app::TestApp;
use crate::client::TestClient;

/// Pushes rising progress to the jobs from several tasks at once, and then each one's end.
async fn work(app: &Arc<TestApp>, jobs: &[String], workers: u32, pushes: u32) {
    let mut working = JoinSet::new();
    for worker in 0..workers {
        let (app, jobs) = (Arc::clone(app), jobs.to_vec());
        working.spawn(async move {
            for push in 0..pushes {
                let job = &jobs[(push + worker) as usize % jobs.len()];
                let progress =
                    f64::from(push * workers + worker) * 100.0 / f64::from(pushes * workers);
                let answer = app.push_update(job, json!({ "progress": progress })).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
            }
        });
    }
    while let Some(worked) = working.join_next().await {
        worked.unwrap();
    }
    for job in jobs {
        let answer = app.push_update(job, json!({ "status": "succeeded" })).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_subscribers_end_on_the_final_version() {
    let app = Arc::new(TestApp::spawn().await);
    let job = app.register_worker_job("alice").await;
    let mut watching = JoinSet::new();
    for watcher in 0..100 {
        let mut client = app.connect("alice").await;
        let job = job.clone();
        watching.spawn(async move {
            // Some know the job, some are new to it, and some follow everything.
            match watcher % 3 {
                0 => drop(client.subscribe(&[(&job, 0)]).await),
                1 => drop(client.subscribe(&[(&job, 1)]).await),
                _ => {
                    client
                        .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
                        .await;
                }
            }
            let ended = client.follow_to_final(&job).await;
            client.assert_no_messages().await;
            client.close().await;
            ended
        });
    }
    work(&app, std::slice::from_ref(&job), 4, 40).await;
    let last = app.get_job(&job, "alice").await;
    while let Some(ended) = watching.join_next().await {
        assert_eq!(ended.unwrap(), last);
    }
    app.wait_until_no_connections().await;
}

/// What one page has been shown.
#[derive(Default)]
struct Shown {
    versions: BTreeMap<String, u64>,
    ended: BTreeMap<String, Value>,
}

impl Shown {
    fn version(&self, job: &str) -> u64 {
        self.versions.get(job).copied().unwrap_or(0)
    }

    /// Takes in what came; nothing goes back. Who asks again for what is on its way gets it twice.
    fn take(&mut self, message: &Value) {
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
            self.ended.insert(id.to_owned(), job.clone());
        }
    }

    async fn until_pong(&mut self, client: &mut TestClient) {
        client
            .send_json(json!({ "type": "ping", "id": "done" }))
            .await;
        loop {
            let message = client.next_message().await.expect("a message");
            if message["type"] == "pong" {
                return;
            }
            self.take(&message);
        }
    }
}

/// A page that comes, goes, looks here and there, and at last stays to the end of every job.
async fn browse(app: Arc<TestApp>, jobs: Vec<String>, seed: u64, turns: u32) -> Shown {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut client = app.connect("alice").await;
    let mut shown = Shown::default();
    for _ in 0..turns {
        let job = &jobs[dice.random_range(0..jobs.len())];
        let known: Vec<Value> = shown
            .versions
            .iter()
            .map(|(job, version)| json!({ "job": job, "version": version }))
            .collect();
        match dice.random_range(0..6) {
            0 => {
                let version = shown.version(job);
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
                        json!({ "type": "subscribe", "id": 3, "feed": "mine", "jobs": known }),
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
        shown.until_pong(&mut client).await;
    }
    let known: Vec<Value> = jobs
        .iter()
        .map(|job| json!({ "job": job, "version": shown.version(job) }))
        .collect();
    client
        .send_json(json!({ "type": "subscribe", "id": 5, "jobs": known }))
        .await;
    while shown.ended.len() < jobs.len() {
        let message = client.next_message().await.expect("a message");
        shown.take(&message);
    }
    client.assert_no_messages().await;
    client.close().await;
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn remaining_sockets_end_on_final_versions() {
    let app = Arc::new(TestApp::spawn().await);
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(app.register_worker_job("alice").await);
    }
    let mut browsing = JoinSet::new();
    for page in 0..16 {
        browsing.spawn(browse(Arc::clone(&app), jobs.clone(), seed ^ page, 40));
    }
    work(&app, &jobs, 4, 60).await;
    let mut last = BTreeMap::new();
    for job in &jobs {
        last.insert(job.clone(), app.get_job(job, "alice").await);
    }
    while let Some(shown) = browsing.join_next().await {
        assert_eq!(shown.unwrap().ended, last);
    }
    app.wait_until_no_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_feed_includes_jobs_created_concurrently() {
    let app = Arc::new(TestApp::spawn().await);
    let mut making = JoinSet::new();
    for _ in 0..4 {
        let app = Arc::clone(&app);
        making.spawn(async move {
            let mut made = Vec::new();
            for _ in 0..15 {
                let job = app.register_worker_job("alice").await;
                app.push_update(&job, json!({ "progress": 50 })).await;
                app.push_update(&job, json!({ "status": "succeeded" }))
                    .await;
                made.push(job);
            }
            made
        });
    }
    let mut watching = JoinSet::new();
    for _ in 0..8 {
        let mut client = app.connect("alice").await;
        watching.spawn(async move {
            client
                .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
                .await;
            let mut shown = Shown::default();
            while shown.ended.len() < 60 {
                shown.take(&client.next_message().await.expect("a message"));
            }
            shown.ended.into_keys().collect::<Vec<_>>()
        });
    }
    let mut made: Vec<String> = making.join_all().await.into_iter().flatten().collect();
    made.sort_unstable();
    for seen in watching.join_all().await {
        assert_eq!(seen, made);
    }
}
