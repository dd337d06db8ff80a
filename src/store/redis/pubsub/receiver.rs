//! Receives pub/sub messages, and detects missing ones with probes.
//!
//! A task of its own receives the messages, so that they never wait for other work. Each partition has
//! its own probe, because the connection to each can fail alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fred::error::Error as RedisError;
use fred::interfaces::PubsubInterface;
use fred::types::Message;
use futures_util::future::join_all;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::store::codec::from_json;
use crate::store::redis::connection::Connections;
use crate::store::redis::keys::KeyNames;
use crate::store::{ChangeListener, Error, StoreEvent};

/// The state of the pub/sub connection, shared with the task that receives messages.
pub(super) struct MessageReceiver {
    probes: Vec<Probe>,
    shared_state_channel: String,
    started_at: Instant,
    messages_lost: Notify,
    probe_received: Notify,
    is_healthy: watch::Sender<bool>,
}

struct Probe {
    channel: String,
    /// Time of the last probe received, in milliseconds since `started_at`.
    received_at: AtomicU64,
}

impl MessageReceiver {
    pub(super) fn new(keys: &KeyNames, node: &str) -> Self {
        let probes = keys.partitions().map(|partition| Probe {
            channel: partition.probe_channel(node),
            received_at: AtomicU64::new(0),
        });
        Self {
            probes: probes.collect(),
            shared_state_channel: keys.partition(0).shared_state_channel(),
            started_at: Instant::now(),
            messages_lost: Notify::new(),
            probe_received: Notify::new(),
            is_healthy: watch::Sender::new(false),
        }
    }

    /// Returns the channels that a node is always subscribed to.
    pub(super) fn system_channels(&self) -> Vec<String> {
        let probes = self.probes.iter().map(|probe| probe.channel.clone());
        probes.chain([self.shared_state_channel.clone()]).collect()
    }

    pub(super) fn is_healthy(&self) -> bool {
        *self.is_healthy.borrow()
    }

    pub(super) fn set_healthy(&self, is_healthy: bool) {
        self.is_healthy.send_replace(is_healthy);
    }

    pub(super) async fn wait_until_healthy(&self) {
        let mut is_healthy = self.is_healthy.subscribe();
        // An error means that the sender was dropped, but `self` owns it.
        let _ = is_healthy.wait_for(|is_healthy| *is_healthy).await;
    }

    /// Waits until messages are dropped because the receiving task is too slow.
    pub(super) async fn wait_for_loss(&self) {
        self.messages_lost.notified().await;
    }

    /// Returns the numbers of the partitions whose last probe is older than `max_age`.
    pub(super) fn stale_partitions(&self, max_age: Duration) -> Vec<String> {
        let now = self.now();
        let is_stale = |probe: &Probe| {
            let received_at = probe.received_at.load(Ordering::Acquire);
            Duration::from_millis(now.saturating_sub(received_at)) > max_age
        };
        let probes = self.probes.iter().enumerate();
        probes
            .filter(|(_, probe)| is_stale(probe))
            .map(|(number, _)| number.to_string())
            .collect()
    }

    /// Publishes a probe in every partition.
    pub(super) async fn probe(&self, connections: &Connections) {
        let is_sharded = connections.publish_command() == "SPUBLISH";
        let probes = self.probes.iter().map(async |probe| {
            let (client, channel) = (connections.client(), probe.channel.as_str());
            let published: Result<i64, RedisError> = if is_sharded {
                client.spublish(channel, "").await
            } else {
                client.publish(channel, "").await
            };
            if let Err(error) = published {
                tracing::debug!(%error, "failed to publish probe");
            }
        });
        join_all(probes).await;
    }

    /// Publishes probes, and waits until every partition has delivered one.
    pub(super) async fn await_probes(&self, connections: &Connections) -> Result<(), Error> {
        // A probe received in the current millisecond may have been published earlier.
        let published_at = self.now() + 1;
        sleep(Duration::from_millis(1)).await;
        let is_received = |probe: &Probe| probe.received_at.load(Ordering::Acquire) >= published_at;
        let all_received = async {
            loop {
                let probe_received = self.probe_received.notified();
                if self.probes.iter().all(is_received) {
                    return;
                }
                probe_received.await;
            }
        };
        let (received, ()) = tokio::join!(
            timeout(connections.timeouts.command, all_received),
            self.probe(connections)
        );
        received.map_err(|_| Error::Unavailable("pub/sub probe timed out".to_owned()))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn handle_message(&self, message: &Message, listener: &ChangeListener) {
        let channel: &str = &message.channel;
        if let Some(probe) = self.probes.iter().find(|probe| probe.channel == channel) {
            probe.received_at.store(self.now(), Ordering::Release);
            self.probe_received.notify_waiters();
            return;
        }
        if channel == self.shared_state_channel {
            return (listener.on_event)(StoreEvent::SharedStateChanged);
        }
        let Some(document) = message.value.as_str() else {
            return;
        };
        match from_json(&document) {
            Ok(job) => (listener.on_event)(StoreEvent::JobChanged(Arc::new(job))),
            Err(error) => tracing::error!(%error, "invalid pub/sub message"),
        }
    }
}

/// Passes messages to the listener until the connection closes.
pub(super) async fn run(
    receiver: Arc<MessageReceiver>,
    mut messages: Receiver<Message>,
    listener: ChangeListener,
) {
    loop {
        match messages.recv().await {
            Ok(message) => receiver.handle_message(&message, &listener),
            Err(RecvError::Lagged(count)) => {
                tracing::warn!(count, "pub/sub messages dropped; resyncing");
                receiver.messages_lost.notify_one();
            }
            Err(RecvError::Closed) => return,
        }
    }
}
