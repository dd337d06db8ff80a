//! The change feed over Redis pub/sub.
//!
//! One task owns the list of subscribed channels. It confirms each new subscription with a barrier
//! before the caller continues, and ends subscriptions that are no longer needed. Pub/sub may lose
//! messages, so after every gap (a lost connection, dropped messages, a missing probe) the task
//! renews all subscriptions and then reports [`StoreEvent::Recovered`], upon which the node reads all
//! subscribed jobs again.

mod channels;
mod receiver;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::Server;
use tokio::sync::broadcast::Receiver;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use self::channels::Channels;
use self::receiver::MessageReceiver;
pub(super) use self::receiver::message_head;
use super::connection::Connections;
use super::endpoint::Endpoint;
use super::recent::RecentJobs;
use super::reconnect::{connection_end, force_reconnect};
use crate::job::Topic;
use crate::store::{ChangeListener, Error, StoreEvent};

/// Interval between probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Interval between checks for topics without subscribers. A topic is dropped at the second check in
/// a row that finds it unused, so a client that reconnects finds it still subscribed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);

/// Capacity of the request queue. Callers wait while it is full.
const MAX_PENDING_REQUESTS: usize = 1024;

/// Capacity of the queue of released topics. If it is full, a later check ends the subscriptions.
const MAX_PENDING_RELEASES: usize = 1024;

/// A request to subscribe to topics.
struct SubscribeRequest {
    topics: Vec<Topic>,
    reply: oneshot::Sender<Result<(), Error>>,
}

/// Handle to the task that owns the subscriptions.
pub(super) struct Subscriber {
    requests: mpsc::Sender<SubscribeRequest>,
    state: watch::Receiver<FeedState>,
    releases: mpsc::Sender<Vec<Topic>>,
    /// Number of subscribed channels.
    channels: Arc<AtomicUsize>,
    request_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FeedState {
    /// The first connection is not established yet. Not reported as an outage.
    Starting,
    Healthy,
    /// Messages may have been missed. [`StoreEvent::Unavailable`] was reported.
    Interrupted,
}

impl Subscriber {
    /// Starts the tasks. Must be called within a runtime.
    pub(super) fn open(
        endpoint: &Endpoint,
        connections: &Arc<Connections>,
        recent: &Arc<RecentJobs>,
        listener: ChangeListener,
    ) -> Result<Self, Error> {
        let client = endpoint.subscriber_client()?;
        let node = uuid::Uuid::now_v7().simple().to_string();
        let receiver = Arc::new(MessageReceiver::new(&connections.keys, &node, recent));
        tokio::spawn(receiver::run(
            Arc::clone(&receiver),
            client.message_rx(),
            listener.clone(),
        ));
        let timeouts = connections.timeouts;
        let (requests, queue) = mpsc::channel(MAX_PENDING_REQUESTS);
        let (state, observed_state) = watch::channel(FeedState::Starting);
        let (releases, released) = mpsc::channel(MAX_PENDING_RELEASES);
        let channel_count = Arc::new(AtomicUsize::new(0));
        let manager = SubscriptionManager {
            channels: Channels {
                keys: connections.keys.clone(),
                is_sharded: endpoint.is_clustered(),
                command_timeout: timeouts.command,
                system_channels: receiver.system_channels(),
                topics: HashMap::new(),
                count: 0,
            },
            connections: Arc::clone(connections),
            listener,
            receiver,
            started_at: Instant::now(),
            state,
            channel_count: Arc::clone(&channel_count),
            connection_errors: client.error_rx(),
            reconnects: client.reconnect_rx(),
            client,
        };
        tokio::spawn(manager.run(queue, released));
        Ok(Self {
            requests,
            state: observed_state,
            releases,
            channels: channel_count,
            request_timeout: timeouts.command,
        })
    }

    /// Subscribes to topics. Changes that are published after this call returns are received.
    ///
    /// Waits while the feed is interrupted, because most interruptions are short.
    pub(super) async fn subscribe(&self, topics: Vec<Topic>) -> Result<(), Error> {
        let closed = || Error::Unavailable("store is closed".to_owned());
        let deadline = Instant::now() + self.request_timeout;
        let mut state = self.state.clone();
        loop {
            let is_healthy = async {
                let healthy = state.wait_for(|state| *state == FeedState::Healthy);
                healthy.await.map(drop)
            };
            match timeout_at(deadline, is_healthy).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(closed()),
                Err(_) => return Err(unhealthy()),
            }
            let (reply, outcome) = oneshot::channel();
            let topics = topics.clone();
            let request = SubscribeRequest { topics, reply };
            self.requests.send(request).await.map_err(|_| closed())?;
            let outcome = outcome.await.map_err(|_| closed())?;
            if outcome.is_ok() || self.check_health().is_ok() {
                return outcome;
            }
        }
    }

    /// Ends the subscriptions of topics without subscribers.
    pub(super) fn release(&self, topics: Vec<Topic>) {
        if self.releases.try_send(topics).is_err() {
            tracing::debug!("queue of released topics full; subscriptions end with the next check");
        }
    }

    /// Returns the number of subscribed channels.
    pub(super) fn channels(&self) -> usize {
        self.channels.load(Ordering::Relaxed)
    }

    /// Waits until published messages reach this node.
    pub(super) async fn wait_until_healthy(&self) {
        let mut state = self.state.clone();
        // An error means that the store is closed.
        let _ = state.wait_for(|state| *state == FeedState::Healthy).await;
    }

    /// Checks that published messages reach this node.
    pub(super) fn check_health(&self) -> Result<(), Error> {
        match *self.state.borrow() {
            FeedState::Healthy => Ok(()),
            FeedState::Starting | FeedState::Interrupted => Err(unhealthy()),
        }
    }
}

fn unhealthy() -> Error {
    Error::Unavailable("pub/sub connection is not healthy".to_owned())
}

/// The task that owns the subscriptions.
struct SubscriptionManager {
    connections: Arc<Connections>,
    listener: ChangeListener,
    client: Client,
    channels: Channels,
    receiver: Arc<MessageReceiver>,
    started_at: Instant,
    /// In every state except `Healthy`, all channels must be subscribed again.
    state: watch::Sender<FeedState>,
    channel_count: Arc<AtomicUsize>,
    connection_errors: Receiver<(RedisError, Option<Server>)>,
    reconnects: Receiver<Server>,
}

impl SubscriptionManager {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<SubscribeRequest>,
        mut released: mpsc::Receiver<Vec<Topic>>,
    ) {
        let mut connection = self.client.connect();
        let mut batch = Vec::new();
        let mut probe = interval(PROBE_INTERVAL);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut prune = interval(PRUNE_INTERVAL);
        let shutdown = self.connections.shutdown.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                count = requests.recv_many(&mut batch, MAX_PENDING_REQUESTS) => {
                    if count == 0 {
                        break;
                    }
                    self.process(&mut batch).await;
                }
                Some(topics) = released.recv() => self.drop_unused(topics).await,
                reason = connection_end(&mut connection) => {
                    connection = self.client.connect();
                    self.mark_stale(&reason);
                }
                // A receiver that lags has missed some events. They all have the same consequence.
                error = self.connection_errors.recv() => match error {
                    Ok((error, _)) => self.mark_stale(&error.to_string()),
                    Err(_) => self.mark_stale("several connection errors"),
                },
                _ = self.reconnects.recv() => {
                    self.mark_stale("reconnected");
                    probe.reset_immediately();
                }
                () = self.receiver.wait_for_loss() => self.mark_stale("messages dropped"),
                _ = probe.tick() => self.check_probes(&mut probe).await,
                _ = prune.tick() => self.prune_channels().await,
            }
            self.channel_count
                .store(self.channels.len(), Ordering::Relaxed);
        }
        if let Err(error) = self.client.quit().await {
            tracing::debug!(%error, "pub/sub connection already closed");
        }
    }

    /// Subscribes to the channels of all requests at once.
    async fn process(&mut self, requests: &mut Vec<SubscribeRequest>) {
        let topics = requests.iter().flat_map(|request| &request.topics);
        let outcome = match self.is_healthy() {
            true => self.channels.add(&self.client, topics).await,
            false => Err(unhealthy()),
        };
        if let Err(error) = &outcome {
            tracing::debug!(%error, "subscribe failed");
        }
        for request in requests.drain(..) {
            // The caller may have been cancelled.
            drop(request.reply.send(outcome.clone()));
        }
    }

    /// Records that messages may have been missed.
    fn mark_stale(&mut self, reason: &str) {
        let is_starting = match *self.state.borrow() {
            FeedState::Starting => self.started_at.elapsed() <= self.connections.timeouts.probe,
            FeedState::Healthy => false,
            FeedState::Interrupted => return,
        };
        if !is_starting {
            tracing::warn!(reason, "pub/sub subscription lost");
            self.state.send_replace(FeedState::Interrupted);
            (self.listener.on_event)(StoreEvent::Unavailable);
        }
    }

    fn is_healthy(&self) -> bool {
        *self.state.borrow() == FeedState::Healthy
    }

    /// Sends a probe through every partition, and resubscribes if earlier probes are missing.
    async fn check_probes(&mut self, probe: &mut tokio::time::Interval) {
        if self.is_healthy() {
            let stale = self
                .receiver
                .stale_partitions(self.connections.timeouts.probe);
            if !stale.is_empty() {
                self.mark_stale(&format!("probe timed out: partitions {}", stale.join(", ")));
            }
        }
        if !self.is_healthy() {
            self.resubscribe().await;
            probe.reset();
        }
        self.receiver.probe(&self.connections).await;
    }

    /// Renews all subscriptions. If the connection does not respond, it is replaced.
    async fn resubscribe(&mut self) {
        if self.started_at.elapsed() > self.connections.timeouts.probe {
            self.mark_stale("not connected");
        }
        // Without a connection for commands, the probes that confirm a resubscription cannot be sent.
        if !self.client.is_connected() || !self.connections.is_connected() {
            return;
        }
        // The resubscription covers everything that was reported so far, once for each server.
        self.connection_errors = self.connection_errors.resubscribe();
        self.reconnects = self.reconnects.resubscribe();
        let resubscribed = async {
            self.channels.resubscribe_all(&self.client).await?;
            self.receiver.await_probes(&self.connections).await
        };
        match resubscribed.await {
            Ok(()) => {
                if self.state.send_replace(FeedState::Healthy) == FeedState::Interrupted {
                    tracing::info!("pub/sub subscription restored");
                    (self.listener.on_event)(StoreEvent::Recovered);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "resubscribe failed; retrying");
                if self.client.is_connected() {
                    force_reconnect(&self.client, self.connections.timeouts.command).await;
                }
            }
        }
    }

    async fn prune_channels(&mut self) {
        let is_subscribed = Arc::clone(&self.listener.is_subscribed);
        let idle = self.channels.idle(|topic| is_subscribed(topic));
        self.remove_topics(idle).await;
    }

    async fn drop_unused(&mut self, topics: Vec<Topic>) {
        let is_subscribed = Arc::clone(&self.listener.is_subscribed);
        let unused = topics.into_iter().filter(|topic| !is_subscribed(topic));
        self.remove_topics(unused.collect()).await;
    }

    async fn remove_topics(&mut self, topics: Vec<Topic>) {
        if !self.is_healthy() {
            return;
        }
        if let Err(error) = self.channels.remove(&self.client, &topics).await {
            tracing::debug!(%error, "unsubscribe failed");
        }
    }
}
