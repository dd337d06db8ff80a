//! Updates that are buffered for a provider task until its job is known.

use fred::interfaces::ListInterface;

use super::RedisStore;
use super::scripts::DELETE_BUFFERED;
use super::unique_keys::UniqueKey;
use crate::job::Update;
use crate::store::Error;
use crate::store::codec::{from_json, skip_corrupt};
use crate::time::Time;

impl RedisStore {
    pub(super) fn buffer_of(&self, key: &UniqueKey) -> String {
        let partition = self.partition_for(key.name());
        partition.buffered_updates(key.name())
    }

    pub(super) async fn read_raw_buffered(&self, task: &UniqueKey) -> Result<Vec<String>, Error> {
        let buffer = self.buffer_of(task);
        Ok(self.connections.client().lrange(buffer, 0, -1).await?)
    }

    /// Deletes the updates of a key that is bound to its job now. Idempotency keys have none.
    pub(super) async fn delete_buffered(&self, task: &UniqueKey) {
        if let UniqueKey::Task(_) = task
            && let Err(error) = self.delete_buffered_before(task.name(), None).await
        {
            tracing::debug!(%error, "failed to delete buffered updates; sweep will retry");
        }
    }

    /// Deletes the updates of a task that were received before a time, or all of them.
    ///
    /// Returns the number of updates deleted because of their age.
    pub(super) async fn delete_buffered_before(
        &self,
        task: &str,
        before: Option<Time>,
    ) -> Result<usize, Error> {
        let partition = self.partition_for(task);
        let keys = vec![partition.buffered_updates(task), partition.buffered_tasks()];
        let before = before.map(|before| before.millis().to_string());
        let args = vec![task.into(), before.unwrap_or_default().into()];
        self.connections.run(&DELETE_BUFFERED, keys, args).await
    }
}

/// Decodes a buffered update. The time it was received comes first, separated by a space.
pub(super) fn decode_buffered(entry: &str) -> Result<Option<Update>, Error> {
    let Some((_, update)) = entry.split_once(' ') else {
        return Ok(None);
    };
    skip_corrupt(from_json(update), "buffered update")
}
