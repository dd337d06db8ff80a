//! The judge: jobs that are under way on a fleet, hundreds who watch them, and the webhooks that
//! move them.
//!
//! Invariant: it asserts three things, whatever was done to the fleet: every watcher ends on the
//! final version of all that it watches, none was ever shown an older version after a newer or two
//! of one number, and every acknowledged webhook counted, once.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::Fleet;
use super::watchers::{Audience, Wish};
use super::webhook_sender::Sender;
use crate::app::send;

/// Jobs under way.
const JOBS: usize = 24;

/// Watchers at each hub.
const WATCHERS: usize = 120;

/// Jobs that one of them watches.
const WATCHED: usize = 2;

/// Of so many watchers one follows everything instead.
const FOLLOWER: usize = 20;

pub struct Traffic {
    name: &'static str,
    /// Ids of the jobs.
    pub jobs: Vec<String>,
    pub audience: Audience,
    pub sender: Sender,
}

impl Traffic {
    /// Registers jobs all over the fleet, seats its watchers and begins to send.
    pub async fn begin(name: &'static str, fleet: &Fleet) -> Self {
        let mut tasks = Vec::new();
        for n in 0..JOBS {
            let app = fleet.node(n % fleet.size());
            let worker = app.token("worker", "jobs:publish");
            let task = format!("task-{n}");
            let body = json!({ "provider": "generic", "provider_task_id": task, "owner": "alice" });
            let register = app.request_with_token(Method::POST, "/v1/jobs", &worker);
            let answer = send(register.json(&body)).await;
            assert_eq!(answer.status, 201, "{}", answer.body);
            tasks.push((task, answer.body["id"].as_str().unwrap().to_owned()));
        }
        let jobs: Vec<String> = tasks.iter().map(|(_, job)| job.clone()).collect();
        let wish = |n: usize| {
            if n.is_multiple_of(FOLLOWER) {
                return Wish::Mine;
            }
            let watched = (0..WATCHED).map(|k| jobs[(n + k * 7) % JOBS].clone());
            Wish::Jobs(watched.collect())
        };
        let wishes = (0..WATCHERS * fleet.size())
            .map(|n| (n % fleet.size(), wish(n / fleet.size())))
            .collect();
        let token = fleet.node(0).token("alice", "jobs:read");
        let audience = Audience::gather(&fleet.addresses, &token, wishes).await;
        let sender = Sender::start(&fleet.addresses, &tasks, &token);
        let traffic = Self {
            name,
            jobs,
            audience,
            sender,
        };
        traffic.flows(2).await;
        traffic
    }

    /// Waits until each job has moved on this many times.
    pub async fn flows(&self, more: u64) {
        self.sender.flows(more).await;
    }

    /// Ends every job, and asserts everything. Prints the counts.
    pub async fn settle(self, fleet: &Fleet) {
        self.judge(fleet, false).await;
    }

    /// The same after another Redis took over. The one before may have told of changes that it then
    /// lost unacknowledged: what comes instead has a number above what was told, so there may be more
    /// versions than webhooks. And for a moment it may be read by one hub while another writes anew.
    pub async fn settle_after_a_failover(self, fleet: &Fleet) {
        self.judge(fleet, true).await;
    }

    async fn judge(self, fleet: &Fleet, is_failover: bool) {
        let books = self.sender.finish().await;
        let mut truth = BTreeMap::new();
        for id in &self.jobs {
            let mut documents: Vec<Value> = Vec::new();
            for app in fleet.up() {
                documents.push(app.get_job(id, "alice").await);
            }
            assert!(
                documents.windows(2).all(|pair| pair[0] == pair[1]),
                "the hubs disagree: {documents:?}"
            );
            truth.insert(id.clone(), documents.swap_remove(0));
        }
        self.audience.until_current(&truth).await;
        for node in 0..fleet.size() {
            self.audience.until_restored_at(node).await;
        }

        let mut raised = 0;
        for (id, job) in &truth {
            assert_eq!(job["status"], "succeeded", "{job}");
            let acknowledged = books.acknowledged[id];
            let version = job["version"].as_u64().unwrap();
            let is_counted = match is_failover {
                true => version > acknowledged,
                false => version == 1 + acknowledged,
            };
            let history = self.audience.history_of(id);
            assert!(
                is_counted,
                "{acknowledged} acknowledged, as {version} versions: {job}; shown {history:?}"
            );
            raised += version.saturating_sub(1 + acknowledged);
        }
        let (second, tenth) = (Duration::from_secs(1), Duration::from_millis(100));
        println!(
            "{}: {} watchers on {} hubs, {} jobs, {} webhooks acknowledged ({} after a lost answer, \
             {} refusals, the slowest after {:?}, {} unanswered), {} stale readings, {raised} versions raised, {} messages shown \
             ({} of them again), {} reconnects (at most {} in a second, {} in a tenth of it), degraded {} restored {}",
            self.name,
            self.audience.size(),
            fleet.size(),
            truth.len(),
            books.acknowledged.values().sum::<u64>(),
            books.known,
            books.refused,
            books.slowest_refusal,
            books.unanswered,
            books.stale,
            self.audience.sum(|seen| seen.messages),
            self.audience.sum(|seen| seen.repeated),
            self.audience.reconnects(),
            self.audience.most_reconnects_in(second),
            self.audience.most_reconnects_in(tenth),
            self.audience.sum(|seen| seen.degraded),
            self.audience.sum(|seen| seen.restored),
        );
        assert!(is_failover || books.stale == 0, "{} stale", books.stale);
        let faults = [self.audience.faults(), books.faults].concat();
        assert!(faults.is_empty(), "{faults:#?}");
        self.audience.dismiss().await;
    }
}

/// The judge on a single hub with the embedded store, where nothing is done to it.
#[tokio::test(flavor = "multi_thread")]
async fn on_one_hub_everything_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("hub.db").display());
    let fleet = Fleet::start(&[url], |hub| hub).await;
    let traffic = Traffic::begin("one hub", &fleet).await;
    traffic.flows(5).await;
    traffic.settle(&fleet).await;
}
