//! Updates that are buffered for a provider task until its job is known.

use fred::interfaces::ListInterface;

use super::RedisStore;
use super::jobs::{TTL_MARGIN, millis};
use super::scripts::{BUFFER_UPDATE, DELETE_BUFFERED};
use super::unique_keys::{HeldClaim, UniqueKey, decode_buffered};
use crate::job::Update;
use crate::store::codec::to_json;
use crate::store::{BUFFERED_UPDATE_TTL, BufferOutcome, Error, MAX_BUFFERED_UPDATES};
use crate::time::Time;

impl RedisStore {
    pub(super) fn buffer_of(&self, key: &UniqueKey) -> String {
        let partition = self.partition_for(key.name());
        partition.buffered_updates(key.name())
    }

    /// Appends an update to the buffer of a task.
    pub(super) async fn append_buffered(
        &self,
        task: &UniqueKey,
        update: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error> {
        let update = to_json(update)?;
        let index = self.partition_for(task.name()).buffered_tasks();
        let mut held = HeldClaim::new();
        loop {
            let keys = vec![self.claim_key_of(task), self.buffer_of(task), index.clone()];
            let args = vec![
                update.as_str().into(),
                now.millis().into(),
                MAX_BUFFERED_UPDATES.to_string().into(),
                millis(BUFFERED_UPDATE_TTL + TTL_MARGIN).into(),
                task.name().into(),
                held.expired.as_str().into(),
            ];
            let reply: Vec<String> = self
                .connections
                .run_script_replicated(&BUFFER_UPDATE, keys, args)
                .await?;
            let [_, record, age] = reply.as_slice() else {
                return Ok(BufferOutcome::Buffered);
            };
            if let Some((job, _)) = self.resolve_held(task, record, age, &mut held).await? {
                return Ok(BufferOutcome::TaskKnown(job.id.clone()));
            }
        }
    }

    /// Returns the updates buffered for a task, oldest first. Skips corrupt updates.
    pub(super) async fn read_buffered(&self, task: &UniqueKey) -> Result<Vec<Update>, Error> {
        let buffered = self.read_raw_buffered(task).await?;
        let updates = buffered.iter();
        updates
            .filter_map(|entry| decode_buffered(entry).transpose())
            .collect()
    }

    pub(super) async fn read_raw_buffered(&self, task: &UniqueKey) -> Result<Vec<String>, Error> {
        let buffer = self.buffer_of(task);
        Ok(self.connections.client().lrange(buffer, 0, -1).await?)
    }

    /// Deletes the updates of a task that is bound to its job now.
    pub(super) async fn delete_buffered(&self, task: &UniqueKey) {
        if let Err(error) = self.delete_buffered_before(task.name(), None).await {
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
        self.connections
            .run_script(&DELETE_BUFFERED, keys, args)
            .await
    }
}
