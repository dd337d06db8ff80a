//! The channels that a node is subscribed to.
//!
//! A channel is in the list only after the server has confirmed the subscription: a `PING` on the same
//! connection is answered after the server has processed the `SUBSCRIBE`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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

/// The subscribed channels. System channels have no state, and are never dropped.
pub(super) struct Channels {
    is_sharded: bool,
    command_timeout: Duration,
    subscribed: HashMap<String, Option<ChannelState>>,
}

struct ChannelState {
    topic: Topic,
    /// Whether the last check found no subscribers.
    was_idle: bool,
}

impl Channels {
    pub(super) fn new(
        is_sharded: bool,
        command_timeout: Duration,
        system_channels: Vec<String>,
    ) -> Self {
        let channels = system_channels.into_iter();
        Self {
            is_sharded,
            command_timeout,
            subscribed: channels.map(|channel| (channel, None)).collect(),
        }
    }

    /// Returns the channels of `topics` that are not subscribed.
    pub(super) fn missing<'a>(
        &self,
        keys: &KeyNames,
        topics: impl Iterator<Item = &'a Topic>,
    ) -> BTreeMap<String, Topic> {
        topics
            .flat_map(|topic| {
                let channels = keys.channels(topic).into_iter();
                channels.map(move |channel| (channel, topic.clone()))
            })
            .filter(|(channel, _)| !self.subscribed.contains_key(channel))
            .collect()
    }

    pub(super) async fn add(
        &mut self,
        client: &Client,
        channels: BTreeMap<String, Topic>,
    ) -> Result<(), Error> {
        let names: Vec<String> = channels.keys().cloned().collect();
        self.subscribe(client, &names).await?;
        let added = channels.into_iter().map(|(channel, topic)| {
            let state = ChannelState {
                topic,
                was_idle: false,
            };
            (channel, Some(state))
        });
        self.subscribed.extend(added);
        Ok(())
    }

    pub(super) async fn resubscribe_all(&self, client: &Client) -> Result<(), Error> {
        let names: Vec<String> = self.subscribed.keys().cloned().collect();
        Ok(self.subscribe(client, &names).await?)
    }

    /// Returns the channels that two checks in a row have found without subscribers.
    pub(super) fn idle(&mut self, is_subscribed: impl Fn(&Topic) -> bool) -> Vec<String> {
        let mut idle = Vec::new();
        for (channel, state) in &mut self.subscribed {
            let Some(state) = state else { continue };
            let is_idle = !is_subscribed(&state.topic);
            if is_idle && state.was_idle {
                idle.push(channel.clone());
            }
            state.was_idle = is_idle;
        }
        idle
    }

    pub(super) async fn remove(
        &mut self,
        client: &Client,
        channels: Vec<String>,
    ) -> Result<(), Error> {
        for channel in &channels {
            self.subscribed.remove(channel);
        }
        let is_sharded = self.is_sharded;
        self.send(&channels, |names| async move {
            match is_sharded {
                true => client.sunsubscribe(names).await,
                false => client.unsubscribe(names).await,
            }
        })
        .await?;
        Ok(())
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
