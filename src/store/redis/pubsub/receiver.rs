//! Receives pub/sub messages, and detects missing ones with probes.
//!
//! A task of its own receives the messages, so that they never wait for other work. Each partition has
//! its own probe, because the connection to each can fail alone.

use std::sync::Arc;
use std::time::Duration;

use fred::error::Error as RedisError;
use fred::interfaces::PubsubInterface;
use fred::types::{Message, Value};
use futures_util::future::join_all;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use crate::job::{Job, JobId};
use crate::protocol::Frame;
use crate::store::codec::from_json;
use crate::store::redis::connection::Connections;
use crate::store::redis::keys::KeyNames;
use crate::store::redis::recent::RecentJobs;
use crate::store::{ChangeListener, Error, Revision, StoreEvent};

/// The state of the pub/sub connection, shared with the task that receives messages.
pub(super) struct MessageReceiver {
    /// The channel of the probes of each partition.
    probe_channels: Vec<String>,
    /// When each partition delivered its last probe.
    received_at: watch::Sender<Vec<Instant>>,
    shared_state_channel: String,
    messages_lost: Notify,
    recent: Arc<RecentJobs>,
}

impl MessageReceiver {
    pub(super) fn new(keys: &KeyNames, node: &str, recent: &Arc<RecentJobs>) -> Self {
        let partitions = keys.partitions();
        let probe_channels: Vec<_> = partitions.map(|one| one.probe_channel(node)).collect();
        Self {
            received_at: watch::Sender::new(vec![Instant::now(); probe_channels.len()]),
            probe_channels,
            shared_state_channel: keys.partition(0).shared_state_channel(),
            messages_lost: Notify::new(),
            recent: Arc::clone(recent),
        }
    }

    /// Returns the channels that a node is always subscribed to.
    pub(super) fn system_channels(&self) -> Vec<String> {
        let probes = self.probe_channels.iter().cloned();
        probes.chain([self.shared_state_channel.clone()]).collect()
    }

    /// Waits until messages are dropped because the receiving task is too slow.
    pub(super) async fn wait_for_loss(&self) {
        self.messages_lost.notified().await;
    }

    /// Returns the numbers of the partitions whose last probe is older than `max_age`.
    pub(super) fn stale_partitions(&self, max_age: Duration) -> Vec<String> {
        let received_at = self.received_at.borrow();
        let partitions = received_at.iter().enumerate();
        let stale = partitions.filter(|(_, received_at)| received_at.elapsed() > max_age);
        stale.map(|(number, _)| number.to_string()).collect()
    }

    /// Publishes a probe in every partition.
    pub(super) async fn probe(&self, connections: &Connections) {
        let is_sharded = connections.publish_command == "SPUBLISH";
        let probes = self.probe_channels.iter().map(async |channel| {
            let (client, channel) = (connections.client(), channel.as_str());
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
        let published_at = Instant::now();
        let mut received_at = self.received_at.subscribe();
        let all_received = async {
            let is_received = |at: &Instant| *at > published_at;
            let received = received_at.wait_for(|all| all.iter().all(is_received));
            received.await.is_ok()
        };
        let (received, ()) = tokio::join!(
            timeout(connections.timeouts.command, all_received),
            self.probe(connections)
        );
        match received {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Error::Unavailable("pub/sub probe timed out".to_owned())),
        }
    }

    fn handle_message(&self, message: &Message, listener: &ChangeListener) {
        let channel: &str = &message.channel;
        if let Some(number) = self
            .probe_channels
            .iter()
            .position(|probe| probe == channel)
        {
            return self
                .received_at
                .send_modify(|received_at| received_at[number] = Instant::now());
        }
        if channel == self.shared_state_channel {
            return (listener.on_event)(StoreEvent::SharedStateChanged);
        }
        match self.changed_job(&message.value) {
            Ok(frame) => (listener.on_event)(StoreEvent::JobChanged(frame)),
            Err(error) => tracing::error!(%error, "invalid pub/sub message"),
        }
    }

    /// Returns the job version that a message announces. A document that this node wrote is not
    /// decoded if the job is still in memory.
    fn changed_job(&self, message: &Value) -> Result<Arc<Frame>, Error> {
        let text = message.as_str().unwrap_or_default();
        let (revision, id, document) = parse_message(&text)
            .ok_or_else(|| Error::Corrupt("pub/sub message without revision and id".to_owned()))?;
        let job = match self.recent.sent_by_this_node(id, revision) {
            Some(job) => job,
            None => {
                let job: Arc<Job> = Arc::new(from_json(document)?);
                self.recent.observe(&job, revision);
                job
            }
        };
        Ok(Arc::new(Frame::with_document(job, document)))
    }
}

/// Returns the first line of the message that announces a write of a job. The document follows it.
pub(in crate::store::redis) fn message_head(revision: Revision, id: &JobId) -> String {
    format!("{revision} {id}\n")
}

/// Splits a message into the revision, the job id and the document.
fn parse_message(message: &str) -> Option<(Revision, &str, &str)> {
    let (head, document) = message.split_once('\n')?;
    let (revision, id) = head.split_once(' ')?;
    Some((Revision::parse(revision)?, id, document))
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
