//! Subscriptions of sockets to channels: direct, or through a feed that keeps the newest version.

use std::collections::HashMap;

use actix_ws::{MessageStream, Session};
use bytestring::ByteString;
use futures_util::StreamExt;
use tokio::sync::{broadcast, watch};

use crate::message::OWNER;

/// Number of versions that the feed of an owner keeps for slow readers.
const OWNER_FEED_VERSIONS: usize = 256;

/// Subscriptions of the worker.
#[derive(Default)]
pub struct Feeds {
    sessions: HashMap<String, Vec<Session>>,
    channels: HashMap<String, watch::Sender<ByteString>>,
    owners: HashMap<String, broadcast::Sender<ByteString>>,
}

impl Feeds {
    /// Adds a socket that receives messages without a feed.
    pub fn add(&mut self, channel: String, session: Session) {
        self.sessions.entry(channel).or_default().push(session);
    }

    /// Returns the sockets of a channel that receive messages without a feed.
    pub fn sessions(&self, channel: &str) -> Vec<Session> {
        self.sessions.get(channel).cloned().unwrap_or_default()
    }

    /// Subscribes to the newest version of a channel.
    pub fn follow(&mut self, channel: String) -> watch::Receiver<ByteString> {
        self.channels.entry(channel).or_default().subscribe()
    }

    /// Replaces the newest version of a channel and appends it to the feed of its owner.
    pub fn publish(&mut self, channel: String, message: &ByteString) {
        self.channels
            .entry(channel)
            .or_default()
            .send_replace(message.clone());
        let new_feed = || broadcast::channel(OWNER_FEED_VERSIONS).0;
        let owner = self.owners.entry(OWNER.to_owned()).or_insert_with(new_feed);
        // Fails if the feed has no subscribers.
        let _ = owner.send(message.clone());
    }
}

/// Sends the newest version to the socket whenever it changes, until the socket is closed.
pub async fn forward(
    mut feed: watch::Receiver<ByteString>,
    mut session: Session,
    mut messages: MessageStream,
) {
    loop {
        tokio::select! {
            changed = feed.changed() => {
                let message = feed.borrow_and_update().clone();
                if changed.is_err() || session.text(message).await.is_err() {
                    return;
                }
            }
            message = messages.next() => {
                if !matches!(message, Some(Ok(_))) {
                    return;
                }
            }
        }
    }
}
