//! The channels that a node listens to.
//!
//! Invariant: a channel is on the list only once the server has confirmed it, by a ping that went the
//! same way after it; and what is on the list is asked for again as a whole.

use std::collections::{BTreeMap, HashMap};

use fred::clients::Client;
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::ClusterHash;
use fred::types::config::Options;
use futures_util::future::try_join_all;

use crate::job::Topic;
use crate::store::Error;
use crate::store::redis::connection::to_store_error;
use crate::store::redis::endpoint::COMMAND_TIMEOUT;
use crate::store::redis::keys::Keys;

/// Channels in one command, where a command takes several.
const CHANNELS_PER_COMMAND: usize = 1000;

/// Commands under way at once, where each takes one.
const MAX_CONCURRENT_COMMANDS: usize = 64;

/// The channels, each with what it is listened to for; none: for good.
pub(super) struct Channels {
    is_sharded: bool,
    list: HashMap<String, Option<ChannelState>>,
}

struct ChannelState {
    topic: Topic,
    /// Whether nobody wanted it at the last look.
    was_unused: bool,
}

impl Channels {
    pub(super) fn new(is_sharded: bool, permanent: Vec<String>) -> Self {
        Self {
            is_sharded,
            list: permanent
                .into_iter()
                .map(|channel| (channel, None))
                .collect(),
        }
    }

    /// The channels of topics that are not on the list.
    pub(super) fn not_subscribed<'a>(
        &self,
        keys: &Keys,
        topics: impl Iterator<Item = &'a Topic>,
    ) -> BTreeMap<String, Topic> {
        let pairs = topics.flat_map(|topic| {
            let channels = keys.channels(topic).into_iter();
            channels.map(move |channel| (channel, topic.clone()))
        });
        pairs
            .filter(|(channel, _)| !self.list.contains_key(channel))
            .collect()
    }

    /// Listens to these as well.
    pub(super) async fn add(
        &mut self,
        client: &Client,
        channels: BTreeMap<String, Topic>,
    ) -> Result<(), Error> {
        let names: Vec<&str> = channels.keys().map(String::as_str).collect();
        self.subscribe(client, &names).await?;
        let listened = |topic| {
            Some(ChannelState {
                topic,
                was_unused: false,
            })
        };
        self.list.extend(
            channels
                .into_iter()
                .map(|(name, topic)| (name, listened(topic))),
        );
        Ok(())
    }

    /// Asks for all of them again.
    pub(super) async fn resubscribe_all(&self, client: &Client) -> Result<(), Error> {
        let names: Vec<&str> = self.list.keys().map(String::as_str).collect();
        self.subscribe(client, &names).await
    }

    /// Channels whose topic nobody has wanted twice in a row.
    pub(super) fn idle(&mut self, wanted: impl Fn(&Topic) -> bool) -> Vec<String> {
        let mut unwanted = Vec::new();
        for (channel, listened) in &mut self.list {
            let Some(listened) = listened else { continue };
            let is_idle = !wanted(&listened.topic);
            if is_idle && listened.was_unused {
                unwanted.push(channel.clone());
            }
            listened.was_unused = is_idle;
        }
        unwanted
    }

    /// Listens to these no more.
    pub(super) async fn remove(
        &mut self,
        client: &Client,
        channels: Vec<String>,
    ) -> Result<(), Error> {
        for channel in &channels {
            self.list.remove(channel);
        }
        match self.is_sharded {
            true => {
                for some in channels.chunks(MAX_CONCURRENT_COMMANDS) {
                    let each = some.iter().map(|one| client.sunsubscribe(one.as_str()));
                    try_join_all(each)
                        .await
                        .map_err(|error| to_store_error(&error))?;
                }
            }
            false => {
                for some in channels.chunks(CHANNELS_PER_COMMAND) {
                    let done = client.unsubscribe(some.to_vec()).await;
                    done.map_err(|error| to_store_error(&error))?;
                }
            }
        }
        Ok(())
    }

    /// The client library's word that it has subscribed says only that it has asked. A ping that
    /// follows on the same connection is answered when the server has come past it.
    async fn subscribe(&self, client: &Client, channels: &[&str]) -> Result<(), Error> {
        if !self.is_sharded {
            for some in channels.chunks(CHANNELS_PER_COMMAND) {
                let some: Vec<String> = some.iter().map(|one| (*one).to_owned()).collect();
                client
                    .subscribe(some)
                    .await
                    .map_err(|error| to_store_error(&error))?;
            }
            return barrier(client, None).await;
        }
        // A command with several channels would mix up the answers to others.
        for some in channels.chunks(MAX_CONCURRENT_COMMANDS) {
            let each = some.iter().map(|one| client.ssubscribe(*one));
            try_join_all(each)
                .await
                .map_err(|error| to_store_error(&error))?;
        }
        let slots = channels
            .iter()
            .map(|one| fred::util::redis_keyslot(one.as_bytes()));
        let mut slots: Vec<u16> = slots.collect();
        slots.sort_unstable();
        slots.dedup();
        let barriers = slots.into_iter().map(|slot| barrier(client, Some(slot)));
        try_join_all(barriers).await.map(drop)
    }
}

async fn barrier(client: &Client, slot: Option<u16>) -> Result<(), Error> {
    let options = Options {
        cluster_hash: slot.map(ClusterHash::Custom),
        timeout: Some(COMMAND_TIMEOUT),
        max_attempts: Some(1),
        fail_fast: true,
        ..Options::default()
    };
    let answered: Result<(), _> = client.with_options(&options).ping(None).await;
    answered.map_err(|error| to_store_error(&error))
}
