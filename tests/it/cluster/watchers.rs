//! Hundreds of WebSocket clients that check what they receive.
//!
//! A watcher keeps its documents across reconnects, as a page does. It records an error for a version
//! that goes backwards, for two documents with the same version, and for a job it did not subscribe to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{NodeAddresses, random_delay};
use crate::app::TEST_TIMEOUT;
use crate::client::upgrade_request;

/// Delay before a client reconnects if the hub did not set one.
const RECONNECT_DELAY: std::ops::Range<Duration> =
    Duration::from_millis(50)..Duration::from_millis(300);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub enum Subscription {
    Jobs(Vec<String>),
    /// All jobs of the token's subject.
    Owner,
}

/// What one watcher has received.
pub struct WatcherState {
    subscription: Subscription,
    /// The hub that it connects to while that hub is running.
    node: usize,
    /// The newest document of each job.
    jobs: BTreeMap<String, Value>,
    is_subscribed: bool,
    is_degraded: bool,
    pub reconnects: usize,
    /// The close code of each socket that ended with a close frame.
    pub close_codes: Vec<Option<u16>>,
    errors: Vec<String>,
}

impl WatcherState {
    fn new(subscription: Subscription, node: usize) -> Self {
        Self {
            subscription,
            node,
            jobs: BTreeMap::new(),
            is_subscribed: false,
            is_degraded: false,
            reconnects: 0,
            close_codes: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Returns whether it has the newest version of every job that it subscribed to.
    fn is_current(&self, newest: &BTreeMap<String, Value>) -> bool {
        let is_current = |id: &String| self.jobs.get(id) == newest.get(id);
        match &self.subscription {
            Subscription::Jobs(jobs) => jobs.iter().all(is_current),
            Subscription::Owner => newest.keys().all(is_current),
        }
    }

    fn receive_job(&mut self, job: &Value) {
        let id = job["id"].as_str().unwrap();
        if let Subscription::Jobs(jobs) = &self.subscription
            && !jobs.iter().any(|subscribed| subscribed == id)
        {
            self.errors.push(format!("{id}: not subscribed"));
        }
        let version = |job: &Value| job["version"].as_u64().unwrap();
        // A repeated document is allowed: a new subscription may overlap with a delivery.
        if let Some(previous) = self.jobs.get(id)
            && previous != job
            && version(job) <= version(previous)
        {
            self.errors.push(format!("{previous}, followed by {job}"));
        }
        self.jobs.insert(id.to_owned(), job.clone());
    }

    /// Handles a message. Returns the reconnect delay that a `bye` contains.
    fn receive(&mut self, message: &Value) -> Option<Duration> {
        match message["type"].as_str().unwrap() {
            "subscribed" => {
                self.is_subscribed = true;
                let results = message["jobs"].as_object().into_iter().flatten();
                for (job, result) in results.filter(|(_, result)| *result == "not_found") {
                    self.errors.push(format!("{job}: {result}"));
                }
            }
            "job" => self.receive_job(&message["job"]),
            "degraded" if std::mem::replace(&mut self.is_degraded, true) => {
                self.errors.push("degraded twice".to_owned());
            }
            "restored" if !std::mem::replace(&mut self.is_degraded, false) => {
                self.errors.push("restored without degraded".to_owned());
            }
            "bye" => {
                return message["retry_after_ms"]
                    .as_u64()
                    .map(Duration::from_millis);
            }
            "error" if message["code"] != "store_unavailable" => {
                self.errors.push(message.to_string());
            }
            _ => {}
        }
        None
    }

    fn subscribe_message(&self) -> Value {
        let known = |id: &String| {
            let version = self
                .jobs
                .get(id)
                .map_or(json!(0), |job| job["version"].clone());
            json!({ "job": id, "version": version })
        };
        match &self.subscription {
            Subscription::Jobs(jobs) => {
                let jobs: Vec<Value> = jobs.iter().map(known).collect();
                json!({ "type": "subscribe", "id": 1, "jobs": jobs })
            }
            Subscription::Owner => {
                let jobs: Vec<Value> = self.jobs.keys().map(known).collect();
                json!({ "type": "subscribe", "id": 1, "feed": "mine", "jobs": jobs })
            }
        }
    }
}

/// All watchers of a test.
pub struct WatcherPool {
    states: Arc<watch::Sender<Vec<WatcherState>>>,
    watchers: JoinSet<()>,
}

impl WatcherPool {
    /// Starts a watcher for each subscription, at the hub of the given number, and waits until all
    /// have subscribed.
    pub async fn start(
        addresses: &NodeAddresses,
        token: &str,
        subscriptions: Vec<(usize, Subscription)>,
    ) -> Self {
        let states = subscriptions
            .into_iter()
            .map(|(node, subscription)| WatcherState::new(subscription, node))
            .collect::<Vec<_>>();
        let nodes: Vec<usize> = states.iter().map(|state| state.node).collect();
        let states = Arc::new(watch::Sender::new(states));
        let mut watchers = JoinSet::new();
        for (number, node) in nodes.into_iter().enumerate() {
            let watcher = Watcher {
                number,
                node,
                addresses: addresses.clone(),
                token: token.to_owned(),
                states: Arc::clone(&states),
            };
            watchers.spawn(watcher.run());
        }
        let pool = Self { states, watchers };
        pool.wait_until("are subscribed", |state| state.is_subscribed)
            .await;
        pool
    }

    pub fn size(&self) -> usize {
        self.watchers.len()
    }

    /// Waits until every watcher meets a condition.
    async fn wait_until(&self, what: &str, is_met: impl Fn(&WatcherState) -> bool) {
        let mut states = self.states.subscribe();
        let all = states.wait_for(|states| states.iter().all(&is_met));
        if timeout(TEST_TIMEOUT, all).await.is_err() {
            let others = self.sum(|state| usize::from(!is_met(state)));
            panic!("{others} of {} watchers never {what}", self.size());
        }
    }

    /// Waits until the watchers at a hub have received `degraded`.
    pub async fn wait_until_degraded(&self, node: usize) {
        self.wait_until("are degraded", |state| {
            state.node != node || state.is_degraded
        })
        .await;
    }

    /// Waits until the watchers at a hub are subscribed and not degraded.
    pub async fn wait_until_restored(&self, node: usize) {
        self.wait_until("are restored", |state| {
            state.node != node || (state.is_subscribed && !state.is_degraded)
        })
        .await;
    }

    /// Waits until every watcher has the newest version of its jobs.
    pub async fn wait_until_current(&self, newest: &BTreeMap<String, Value>) {
        self.wait_until("have the newest versions", |state| state.is_current(newest))
            .await;
    }

    pub fn all(&self, is_met: impl Fn(&WatcherState) -> bool) -> bool {
        self.states.borrow().iter().all(is_met)
    }

    pub fn sum(&self, count: impl Fn(&WatcherState) -> usize) -> usize {
        self.states.borrow().iter().map(count).sum()
    }

    /// Stops the watchers and returns their errors.
    pub async fn stop(mut self) -> Vec<String> {
        self.watchers.abort_all();
        while let Some(result) = self.watchers.join_next().await {
            assert!(
                !result.is_err_and(|error| error.is_panic()),
                "a watcher panicked"
            );
        }
        let states = self.states.borrow();
        states
            .iter()
            .flat_map(|state| state.errors.clone())
            .collect()
    }
}

struct Watcher {
    number: usize,
    node: usize,
    addresses: NodeAddresses,
    token: String,
    states: Arc<watch::Sender<Vec<WatcherState>>>,
}

impl Watcher {
    /// Keeps a socket open and subscribed.
    async fn run(self) {
        loop {
            let mut delay = None;
            if let Some(mut socket) = self.connect().await {
                delay = self.follow(&mut socket).await;
                self.update(|state| (state.is_subscribed, state.is_degraded) = (false, false));
            }
            match delay {
                Some(delay) => random_delay(delay..delay + RECONNECT_DELAY.start).await,
                None => random_delay(RECONNECT_DELAY).await,
            }
            self.update(|state| state.reconnects += 1);
        }
    }

    async fn connect(&self) -> Option<Socket> {
        let address = self.addresses.prefer(self.node)?;
        let bearer = format!("Bearer {}", self.token);
        let request = upgrade_request(&address, &[("authorization", &bearer)]);
        let connecting = tokio_tungstenite::connect_async(request);
        let (socket, _) = timeout(TEST_TIMEOUT, connecting).await.ok()?.ok()?;
        Some(socket)
    }

    /// Subscribes and receives messages until the socket ends. Returns the delay that `bye` sets.
    async fn follow(&self, socket: &mut Socket) -> Option<Duration> {
        let (mut delay, mut is_requested) = (None, false);
        loop {
            if !is_requested {
                let subscribe = self.states.borrow()[self.number].subscribe_message();
                socket
                    .send(Message::text(subscribe.to_string()))
                    .await
                    .ok()?;
                is_requested = true;
            }
            let message: Value = match socket.next().await {
                Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.map(|frame| frame.code.into());
                    self.update(|state| state.close_codes.push(code));
                    return delay;
                }
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return delay,
            };
            self.update(|state| delay = delay.or(state.receive(&message)));
            if message["code"] == "store_unavailable" {
                random_delay(RECONNECT_DELAY).await;
                is_requested = false;
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut WatcherState)) {
        self.states
            .send_modify(|states| change(&mut states[self.number]));
    }
}

#[test]
fn watcher_detects_regressions_conflicts_and_foreign_jobs() {
    let document = |id: &str, version: u64, progress: u64| json!({ "id": id, "version": version, "progress": progress });
    let mut state = WatcherState::new(Subscription::Jobs(vec!["a".to_owned()]), 0);
    for (version, progress) in [(1, 1), (3, 3), (3, 3), (4, 4)] {
        state.receive_job(&document("a", version, progress));
    }
    assert_eq!(state.errors, [""; 0]);
    let invalid = [
        document("a", 3, 3),
        document("a", 3, 4),
        document("b", 1, 1),
    ];
    for (errors, document) in invalid.iter().enumerate() {
        state.receive_job(document);
        assert_eq!(state.errors.len(), errors + 1, "{document}");
    }
    for (version, is_current) in [(3, true), (4, false)] {
        let newest = BTreeMap::from([("a".to_owned(), document("a", version, 4))]);
        assert_eq!(state.is_current(&newest), is_current);
    }
    let state = WatcherState::new(Subscription::Owner, 0);
    let newest = BTreeMap::from([("a".to_owned(), document("a", 1, 1))]);
    assert!(!state.is_current(&newest), "the job was never received");
}
