//! The topics that a node is subscribed to.
//!
//! A topic is in the list only after the server has confirmed the subscription: a `PING` on the same
//! connection is answered after the server has processed the `SUBSCRIBE`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::ClusterHash;
use fred::types::config::Options;
use fred::util::redis_keyslot;
use futures_util::future::try_join_all;

use crate::job::Topic;
use crate::store::Error;
use crate::store::redis::endpoint::fail_fast;
use crate::store::redis::keys::KeyNames;

/// Channels in one `SUBSCRIBE` command.
const CHANNELS_PER_COMMAND: usize = 1000;

/// Concurrent `SSUBSCRIBE` commands.
const MAX_CONCURRENT_COMMANDS: usize = 64;

/// The subscribed topics, and the channels that are always subscribed.
pub(super) struct Channels {
    pub(super) keys: KeyNames,
    pub(super) is_sharded: bool,
    pub(super) command_timeout: Duration,
    pub(super) system_channels: Vec<String>,
    /// Whether the last check found no subscribers, for each topic.
    pub(super) topics: HashMap<Topic, bool>,
    /// Number of channels of `topics`.
    pub(super) count: usize,
}

impl Channels {
    /// Subscribes to those of `topics` that are not subscribed.
    pub(super) async fn add(
        &mut self,
        client: &Client,
        topics: impl Iterator<Item = &Topic>,
    ) -> Result<(), Error> {
        let missing = topics.filter(|topic| !self.topics.contains_key(topic));
        let missing: HashSet<Topic> = missing.cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names = self.names(&missing);
        self.subscribe(client, &names).await?;
        self.count += names.len();
        let added = missing.into_iter().map(|topic| (topic, false));
        self.topics.extend(added);
        Ok(())
    }

    pub(super) async fn resubscribe_all(&self, client: &Client) -> Result<(), Error> {
        let mut names = self.names(self.topics.keys());
        names.extend_from_slice(&self.system_channels);
        Ok(self.subscribe(client, &names).await?)
    }

    /// Returns the topics that this check and the previous one found without subscribers.
    pub(super) fn idle(&mut self, is_subscribed: impl Fn(&Topic) -> bool) -> Vec<Topic> {
        let mut idle = Vec::new();
        for (topic, was_idle) in &mut self.topics {
            let is_idle = !is_subscribed(topic);
            if is_idle && *was_idle {
                idle.push(topic.clone());
            }
            *was_idle = is_idle;
        }
        idle
    }

    /// Ends the subscriptions to those of `topics` that are subscribed.
    pub(super) async fn remove(
        &mut self,
        client: &Client,
        topics: &[Topic],
    ) -> Result<(), RedisError> {
        let topics = topics.iter();
        let removed: Vec<&Topic> = topics
            .filter(|topic| self.topics.remove(topic).is_some())
            .collect();
        let names = self.names(removed);
        self.count -= names.len();
        let is_sharded = self.is_sharded;
        self.send(&names, |names| async move {
            match is_sharded {
                true => client.sunsubscribe(names).await,
                false => client.unsubscribe(names).await,
            }
        })
        .await
    }

    /// Returns the number of subscribed channels, with the system channels.
    pub(super) fn len(&self) -> usize {
        self.count + self.system_channels.len()
    }

    fn names<'a>(&self, topics: impl IntoIterator<Item = &'a Topic>) -> Vec<String> {
        let topics = topics.into_iter();
        topics.flat_map(|topic| self.keys.channels(topic)).collect()
    }

    /// Subscribes, and waits for the confirmation by barriers: the client library only reports that
    /// it has sent the command.
    async fn subscribe(&self, client: &Client, channels: &[String]) -> Result<(), RedisError> {
        let is_sharded = self.is_sharded;
        self.send(channels, |names| async move {
            match is_sharded {
                true => client.ssubscribe(names).await,
                false => client.subscribe(names).await,
            }
        })
        .await?;
        let slot = |name: &String| is_sharded.then(|| redis_keyslot(name.as_bytes()));
        let slots: BTreeSet<Option<u16>> = channels.iter().map(slot).collect();
        let barriers = slots.into_iter().map(|slot| self.barrier(client, slot));
        try_join_all(barriers).await.map(drop)
    }

    /// Sends a command for each batch of channels.
    async fn send<F: Future<Output = Result<(), RedisError>>>(
        &self,
        channels: &[String],
        command: impl Fn(Vec<String>) -> F,
    ) -> Result<(), RedisError> {
        let (batch, concurrency) = match self.is_sharded {
            // The library mixes up the replies to a command with several sharded channels.
            true => (1, MAX_CONCURRENT_COMMANDS),
            false => (CHANNELS_PER_COMMAND, 1),
        };
        for channels in channels.chunks(batch * concurrency) {
            let commands = channels.chunks(batch).map(|names| command(names.to_vec()));
            try_join_all(commands).await?;
        }
        Ok(())
    }

    async fn barrier(&self, client: &Client, slot: Option<u16>) -> Result<(), RedisError> {
        let options = Options {
            cluster_hash: slot.map(ClusterHash::Custom),
            ..fail_fast(self.command_timeout)
        };
        client.with_options(&options).ping(None).await
    }
}
