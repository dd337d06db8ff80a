//! Takes in what is said on the channels, and knows by its own probes whether anything is missed.
//!
//! Invariant: messages are taken in by a task that does nothing else, so they wait for nobody; each
//! partition has a probe of its own, because each can be cut off alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fred::interfaces::PubsubInterface;
use fred::types::Message;
use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::store::codec::from_json;
use crate::store::redis::connection::Connections;
use crate::store::redis::endpoint::COMMAND_TIMEOUT;
use crate::store::redis::keys::Keys;
use crate::store::{ChangeListener, Error, StoreEvent};

/// What is heard, and when it was heard last.
pub(super) struct MessageReceiver {
    probes: Vec<Probe>,
    shared_state_channel: String,
    begun: Instant,
    wait_for_loss: Notify,
    heard: Notify,
    is_well: AtomicBool,
}

struct Probe {
    channel: String,
    /// Milliseconds after `begun`.
    received_at: AtomicU64,
}

impl MessageReceiver {
    pub(super) fn new(keys: &Keys, name: &str) -> Self {
        let probe = |channel| Probe {
            channel,
            received_at: AtomicU64::new(0),
        };
        Self {
            probes: keys
                .partitions()
                .map(|part| probe(part.probe_channel(name)))
                .collect(),
            shared_state_channel: keys.partition(0).shared_state_channel(),
            begun: Instant::now(),
            wait_for_loss: Notify::new(),
            heard: Notify::new(),
            is_well: AtomicBool::new(false),
        }
    }

    /// The channels that are listened to for good.
    pub(super) fn system_channels(&self) -> Vec<String> {
        let probes = self.probes.iter().map(|probe| probe.channel.clone());
        probes.chain([self.shared_state_channel.clone()]).collect()
    }

    pub(super) fn is_well(&self) -> bool {
        self.is_well.load(Ordering::Acquire)
    }

    pub(super) fn set_healthy(&self, is_well: bool) {
        self.is_well.store(is_well, Ordering::Release);
    }

    /// Waits until messages were lost on their way to this task.
    pub(super) async fn gap(&self) {
        self.wait_for_loss.notified().await;
    }

    /// Partitions of which nothing was heard for so long.
    pub(super) fn stale_partitions(&self, span: Duration) -> Vec<usize> {
        let now = self.now();
        let is_silent = |probe: &Probe| {
            let heard_at = probe.received_at.load(Ordering::Acquire);
            Duration::from_millis(now.saturating_sub(heard_at)) > span
        };
        let probes = self.probes.iter().enumerate();
        probes
            .filter(|(_, probe)| is_silent(probe))
            .map(|(number, _)| number)
            .collect()
    }

    /// Says something to itself by every way there is.
    pub(super) async fn probe(&self, link: &Connections) {
        let is_sharded = link.publish() == "SPUBLISH";
        let said = self.probes.iter().map(async |probe| {
            let (client, channel) = (link.client(), probe.channel.as_str());
            let said: Result<i64, _> = match is_sharded {
                true => client.spublish(channel, "").await,
                false => client.publish(channel, "").await,
            };
            said.inspect_err(|error| tracing::debug!(%error, "can't probe"))
                .is_ok()
        });
        join_all(said).await;
    }

    /// Probes, and waits until all of it has come back.
    pub(super) async fn await_probes(&self, link: &Connections) -> Result<(), Error> {
        // The clock is in milliseconds: what came in the same one as this began is no proof.
        let begun = self.now() + 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let is_heard = |probe: &Probe| probe.received_at.load(Ordering::Acquire) >= begun;
        let all = async {
            loop {
                let heard = self.heard.notified();
                if self.probes.iter().all(is_heard) {
                    return;
                }
                heard.await;
            }
        };
        let (heard, ()) =
            tokio::join!(tokio::time::timeout(COMMAND_TIMEOUT, all), self.probe(link));
        heard.map_err(|_| Error::Unavailable("a probe did not come back".to_owned()))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn handle_message(&self, message: &Message, node: &ChangeListener) {
        let channel: &str = &message.channel;
        if let Some(probe) = self.probes.iter().find(|probe| probe.channel == channel) {
            probe.received_at.store(self.now(), Ordering::Release);
            self.heard.notify_waiters();
            return;
        }
        let Some(text) = message.value.as_str() else {
            return;
        };
        if channel == self.shared_state_channel {
            return (node.on_event)(StoreEvent::SharedStateChanged);
        }
        match from_json(&text) {
            Ok(job) => (node.on_event)(StoreEvent::JobChanged(std::sync::Arc::new(job))),
            Err(error) => tracing::error!(%error, "heard something unreadable"),
        }
    }
}

/// Takes in messages until there will be no more.
pub(super) async fn run(
    ears: std::sync::Arc<MessageReceiver>,
    mut messages: Receiver<Message>,
    node: ChangeListener,
) {
    loop {
        match messages.recv().await {
            Ok(message) => ears.handle_message(&message, &node),
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "too many changes at once");
                ears.wait_for_loss.notify_one();
            }
            Err(RecvError::Closed) => return,
        }
    }
}
