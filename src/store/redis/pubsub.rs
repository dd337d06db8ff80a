//! The change feed over Redis pub/sub.
//!
//! One task owns the list of subscribed channels. It confirms each new subscription with a barrier
//! before the caller continues, and ends subscriptions that are no longer needed. Pub/sub may lose
//! messages, so after every gap (a lost connection, dropped messages, a missing probe) the task
//! renews all subscriptions and then reports [`StoreEvent::Recovered`], upon which the node reads all
//! subscribed jobs again.

mod channels;
mod receiver;

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::Server;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::channels::Channels;
use self::receiver::MessageReceiver;
use super::connection::Connections;
use super::endpoint::Endpoint;
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

/// A request to subscribe to topics.
struct SubscribeRequest {
    topics: Vec<Topic>,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), Error>>,
}

impl SubscribeRequest {
    fn finish(self, outcome: Result<(), Error>) {
        // The caller may have been cancelled.
        drop(self.reply.send(outcome));
    }
}

/// Handle to the task that owns the subscriptions.
pub(super) struct Subscriber {
    requests: mpsc::Sender<SubscribeRequest>,
    receiver: Arc<MessageReceiver>,
    request_timeout: Duration,
}

impl Subscriber {
    /// Starts the tasks. Must be called within a runtime.
    pub(super) fn open(
        endpoint: &Endpoint,
        connections: &Arc<Connections>,
        listener: ChangeListener,
    ) -> Result<Self, Error> {
        let client = endpoint.subscriber_client()?;
        let node = uuid::Uuid::now_v7().simple().to_string();
        let receiver = Arc::new(MessageReceiver::new(&connections.keys, &node));
        tokio::spawn(receiver::run(
            Arc::clone(&receiver),
            client.message_rx(),
            listener.clone(),
        ));
        let timeouts = connections.timeouts;
        let (requests, queue) = mpsc::channel(MAX_PENDING_REQUESTS);
        let manager = SubscriptionManager {
            channels: Channels::new(
                endpoint.is_clustered(),
                timeouts.command,
                receiver.system_channels(),
            ),
            connections: Arc::clone(connections),
            listener,
            receiver: Arc::clone(&receiver),
            started_at: Instant::now(),
            reported_unavailable: false,
            needs_resubscribe: true,
            pending_requests: Vec::new(),
            connection_errors: client.error_rx(),
            reconnects: client.reconnect_rx(),
            client,
        };
        tokio::spawn(manager.run(queue));
        Ok(Self {
            requests,
            receiver,
            request_timeout: timeouts.command,
        })
    }

    /// Subscribes to topics. Changes that are published after this call returns are received.
    pub(super) async fn subscribe(&self, topics: Vec<Topic>) -> Result<(), Error> {
        let closed = || Error::Unavailable("store is closed".to_owned());
        let (reply, outcome) = oneshot::channel();
        let request = SubscribeRequest {
            topics,
            deadline: Instant::now() + self.request_timeout,
            reply,
        };
        self.requests.send(request).await.map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Waits until published messages reach this node.
    pub(super) async fn wait_until_healthy(&self) {
        self.receiver.wait_until_healthy().await;
    }

    /// Checks that published messages reach this node.
    pub(super) fn check_health(&self) -> Result<(), Error> {
        if self.receiver.is_healthy() {
            Ok(())
        } else {
            Err(unhealthy())
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
    /// Whether [`StoreEvent::Unavailable`] was reported without [`StoreEvent::Recovered`] since.
    reported_unavailable: bool,
    /// Whether messages may have been missed, so that all channels must be subscribed again.
    needs_resubscribe: bool,
    /// Requests that wait for a resubscription.
    pending_requests: Vec<SubscribeRequest>,
    connection_errors: Receiver<(RedisError, Option<Server>)>,
    reconnects: Receiver<Server>,
}

impl SubscriptionManager {
    async fn run(mut self, mut requests: mpsc::Receiver<SubscribeRequest>) {
        let mut connection = self.client.connect();
        let mut probe = interval(PROBE_INTERVAL);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut prune = interval(PRUNE_INTERVAL);
        let shutdown = self.connections.shutdown.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                count = requests.recv_many(&mut self.pending_requests, MAX_PENDING_REQUESTS) => {
                    if count == 0 {
                        break;
                    }
                    self.process_requests().await;
                }
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
        }
        if let Err(error) = self.client.quit().await {
            tracing::debug!(%error, "pub/sub connection already closed");
        }
    }

    /// Subscribes to the channels of the pending requests. During a gap, requests stay pending until
    /// their deadline, because most gaps are short.
    async fn process_requests(&mut self) {
        if self.needs_resubscribe {
            let now = Instant::now();
            let is_expired = |request: &mut SubscribeRequest| request.deadline <= now;
            for request in self.pending_requests.extract_if(.., is_expired) {
                request.finish(Err(unhealthy()));
            }
            return;
        }
        let topics = self
            .pending_requests
            .iter()
            .flat_map(|request| &request.topics);
        let missing = self.channels.missing(&self.connections.keys, topics);
        let outcome = if missing.is_empty() {
            Ok(())
        } else {
            self.channels.add(&self.client, missing).await
        };
        if let Err(error) = &outcome {
            tracing::debug!(%error, "subscribe failed");
        }
        for request in self.pending_requests.drain(..) {
            request.finish(outcome.clone());
        }
    }

    /// Records that messages may have been missed.
    fn mark_stale(&mut self, reason: &str) {
        if !self.needs_resubscribe {
            tracing::warn!(reason, "pub/sub subscription lost");
        }
        self.needs_resubscribe = true;
        // The first connection takes a moment, which is not an outage.
        let is_starting = !self.receiver.is_healthy()
            && self.started_at.elapsed() <= self.connections.timeouts.probe;
        if !self.reported_unavailable && !is_starting {
            self.reported_unavailable = true;
            self.receiver.set_healthy(false);
            (self.listener.on_event)(StoreEvent::Unavailable);
        }
    }

    /// Sends a probe through every partition, and resubscribes if earlier probes are missing.
    async fn check_probes(&mut self, probe: &mut tokio::time::Interval) {
        if !self.needs_resubscribe {
            let stale = self
                .receiver
                .stale_partitions(self.connections.timeouts.probe);
            if !stale.is_empty() {
                self.mark_stale(&format!("probe timed out: partitions {}", stale.join(", ")));
            }
        }
        if self.needs_resubscribe {
            self.resubscribe().await;
            self.process_requests().await;
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
        discard_queued(&mut self.connection_errors);
        discard_queued(&mut self.reconnects);
        let resubscribed = async {
            self.channels.resubscribe_all(&self.client).await?;
            self.receiver.await_probes(&self.connections).await
        };
        match resubscribed.await {
            Ok(()) => {
                self.needs_resubscribe = false;
                self.receiver.set_healthy(true);
                if self.reported_unavailable {
                    self.reported_unavailable = false;
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
        if self.needs_resubscribe || idle.is_empty() {
            return;
        }
        if let Err(error) = self.channels.remove(&self.client, idle).await {
            tracing::debug!(%error, "unsubscribe failed");
        }
    }
}

fn discard_queued<T: Clone>(events: &mut Receiver<T>) {
    while !matches!(
        events.try_recv(),
        Err(TryRecvError::Empty | TryRecvError::Closed)
    ) {}
}
