//! The channels that a node is subscribed to.
//!
//! A channel is in the list only after the server has confirmed the subscription: a `PING` on the same
//! connection is answered after the server has processed the `SUBSCRIBE`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::ClusterHash;
use fred::types::config::Options;
use futures_util::future::try_join_all;

use crate::job::Topic;
use crate::store::Error;
use crate::store::redis::keys::KeyNames;

/// Channels in one `SUBSCRIBE` command.
const CHANNELS_PER_COMMAND: usize = 1000;

/// Concurrent `SSUBSCRIBE` commands. Each takes a single channel.
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

    /// Returns the channels of `topics` that are subscribed.
    pub(super) fn subscribed<'a>(
        &self,
        keys: &KeyNames,
        topics: impl Iterator<Item = &'a Topic>,
    ) -> Vec<String> {
        topics
            .flat_map(|topic| keys.channels(topic))
            .filter(|channel| self.subscribed.contains_key(channel))
            .collect()
    }

    /// Returns the number of subscribed channels, with the system channels.
    pub(super) fn len(&self) -> usize {
        self.subscribed.len()
    }

    pub(super) async fn add(
        &mut self,
        client: &Client,
        channels: BTreeMap<String, Topic>,
    ) -> Result<(), Error> {
        let names: Vec<&str> = channels.keys().map(String::as_str).collect();
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
        let names: Vec<&str> = self.subscribed.keys().map(String::as_str).collect();
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
        if self.is_sharded {
            for batch in channels.chunks(MAX_CONCURRENT_COMMANDS) {
                let each = batch.iter().map(|name| client.sunsubscribe(name.as_str()));
                try_join_all(each).await?;
            }
        } else {
            for batch in channels.chunks(CHANNELS_PER_COMMAND) {
                client.unsubscribe(batch.to_vec()).await?;
            }
        }
        Ok(())
    }

    /// Subscribes, and waits for the confirmation by a barrier: the client library only reports that
    /// it has sent the command.
    async fn subscribe(&self, client: &Client, channels: &[&str]) -> Result<(), RedisError> {
        if !self.is_sharded {
            for batch in channels.chunks(CHANNELS_PER_COMMAND) {
                let names: Vec<String> = batch.iter().map(ToString::to_string).collect();
                client.subscribe(names).await?;
            }
            return self.barrier(client, None).await;
        }
        // One channel for each command: the library mixes up the replies to several.
        for batch in channels.chunks(MAX_CONCURRENT_COMMANDS) {
            try_join_all(batch.iter().map(|name| client.ssubscribe(*name))).await?;
        }
        let slot = |name: &&str| fred::util::redis_keyslot(name.as_bytes());
        let mut slots: Vec<u16> = channels.iter().map(slot).collect();
        slots.sort_unstable();
        slots.dedup();
        let barriers = slots
            .into_iter()
            .map(|slot| self.barrier(client, Some(slot)));
        try_join_all(barriers).await.map(drop)
    }

    async fn barrier(&self, client: &Client, slot: Option<u16>) -> Result<(), RedisError> {
        let options = Options {
            cluster_hash: slot.map(ClusterHash::Custom),
            timeout: Some(self.command_timeout),
            max_attempts: Some(1),
            fail_fast: true,
            ..Options::default()
        };
        client.with_options(&options).ping(None).await
    }
}
