//! A workload for a cluster: jobs in progress, watchers, and the webhooks that update the jobs.
//!
//! Whatever fails meanwhile, three assertions hold in the end. Every watcher has the final version of
//! its jobs. No watcher has received an older version after a newer one, or two documents of one
//! version. Every acknowledged webhook was applied exactly once.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use super::watchers::{Subscription, WatcherPool};
use super::webhook_sender::WebhookSender;
use super::{HubCluster, send_until_available};

const JOBS: usize = 24;

const WATCHERS_PER_NODE: usize = 120;

const JOBS_PER_WATCHER: usize = 2;

/// One of this many watchers subscribes to all jobs of the owner instead.
const OWNER_SUBSCRIPTION_RATIO: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Redis keeps all data.
    Temporary,
    /// Redis may lose writes that were not acknowledged.
    Failover,
}

pub struct Workload {
    /// The ids of the jobs.
    pub jobs: Vec<String>,
    pub watchers: WatcherPool,
    sender: WebhookSender,
}

impl Workload {
    /// Registers the jobs on all hubs, starts watchers and webhooks, and waits until both make
    /// progress.
    pub async fn start(cluster: &HubCluster) -> Self {
        let mut tasks = Vec::new();
        for number in 0..JOBS {
            let app = cluster.node(number % cluster.size());
            let worker = app.token("worker", "jobs:publish");
            let task = format!("task-{number}");
            let body = json!({ "provider": "generic", "provider_task_id": task, "owner": "alice" });
            let response = send_until_available(|| {
                app.request_with_token(Method::POST, "/v1/jobs", &worker)
                    .header("idempotency-key", &task)
                    .json(&body)
            })
            .await;
            assert_eq!(response.status, 201, "{}", response.body);
            tasks.push((task, response.body["id"].as_str().unwrap().to_owned()));
        }
        let jobs: Vec<String> = tasks.iter().map(|(_, job)| job.clone()).collect();
        let subscription = |number: usize| {
            if number.is_multiple_of(OWNER_SUBSCRIPTION_RATIO) {
                return Subscription::Owner;
            }
            let subscribed = (0..JOBS_PER_WATCHER).map(|n| jobs[(number + n * 7) % JOBS].clone());
            Subscription::Jobs(subscribed.collect())
        };
        let subscriptions = (0..WATCHERS_PER_NODE * cluster.size())
            .map(|n| (n % cluster.size(), subscription(n / cluster.size())))
            .collect();
        let token = cluster.node(0).token("alice", "jobs:read");
        let watchers = WatcherPool::start(&cluster.addresses, &token, subscriptions).await;
        let sender = WebhookSender::start(&cluster.addresses, &tasks, &token);
        let workload = Self {
            jobs,
            watchers,
            sender,
        };
        workload.wait_for_updates(2).await;
        workload
    }

    /// Waits until `count` more webhooks of each job are acknowledged.
    pub async fn wait_for_updates(&self, count: u64) {
        self.sender.wait_for_acknowledged(count).await;
    }

    /// Finishes every job and checks all assertions.
    pub async fn verify(self, cluster: &HubCluster) {
        self.finish(cluster, Fault::Temporary).await;
    }

    /// Like [`Workload::verify`], after a failover of Redis.
    ///
    /// The old primary may have published changes that were lost before they were acknowledged. They
    /// are replaced under higher versions, so there may be more versions than webhooks. During the
    /// failover, one hub may still read from the old primary while another writes to the new one.
    pub async fn verify_after_failover(self, cluster: &HubCluster) {
        self.finish(cluster, Fault::Failover).await;
    }

    async fn finish(self, cluster: &HubCluster, fault: Fault) {
        let log = self.sender.finish().await;
        let mut newest = BTreeMap::new();
        for id in &self.jobs {
            let mut documents: Vec<Value> = Vec::new();
            for app in cluster.running() {
                let path = format!("/v1/jobs/{id}");
                let read = || app.request(Method::GET, &path, "alice");
                let response = send_until_available(read).await;
                assert_eq!(response.status, 200, "{}", response.body);
                documents.push(response.body);
            }
            assert!(
                documents.windows(2).all(|pair| pair[0] == pair[1]),
                "the hubs disagree: {documents:?}"
            );
            newest.insert(id.clone(), documents.swap_remove(0));
        }
        self.watchers.wait_until_current(&newest).await;
        for node in 0..cluster.size() {
            self.watchers.wait_until_restored(node).await;
        }

        for (id, job) in &newest {
            assert_eq!(job["status"], "succeeded", "{job}");
            let acknowledged = log.acknowledged[id];
            let version = job["version"].as_u64().unwrap();
            let is_expected = match fault {
                Fault::Temporary => version == 1 + acknowledged,
                Fault::Failover => version > acknowledged,
            };
            assert!(is_expected, "{acknowledged} webhooks acknowledged: {job}");
        }
        assert!(
            fault == Fault::Failover || log.stale_reads == 0,
            "{} stale reads",
            log.stale_reads
        );
        let errors = [self.watchers.stop().await, log.errors].concat();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

/// Checks the workload itself: one hub with the embedded store and no faults.
#[tokio::test(flavor = "multi_thread")]
async fn single_hub_delivers_everything() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("hub.db").display());
    let cluster = HubCluster::start(&[url], |hub| hub).await;
    let workload = Workload::start(&cluster).await;
    workload.wait_for_updates(5).await;
    workload.verify(&cluster).await;
}
