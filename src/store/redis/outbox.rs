//! Deliveries, their queues, and the state of destinations.
//!
//! Everything that belongs to a delivery is in the partition of its job, so the script that stores a
//! version also adds its deliveries. A destination has a queue in each partition. Its state and its
//! lease are in the partition of its name.

mod read;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::interfaces::{HashesInterface, SortedSetsInterface};
use fred::types::SetOptions;
use fred::types::sorted_sets::ZRange;
use futures_util::future::try_join_all;
use serde::Serialize;

use self::read::{Entry, Member, parse_score};
use super::RedisStore;
use super::jobs::{TTL_MARGIN, millis, millis_of};
use super::keys::Partition;
use super::queues::scores_up_to;
use super::scripts::{
    DELETE_DELIVERY, LEASE_DESTINATION, PUT_DESTINATION_STATE, RECORD_PROGRESS, RELEASE_DESTINATION,
};
use crate::job::Job;
use crate::outbox::{Delivery, DeliveryId, DestinationState, NewDelivery, Progress};
use crate::store::codec::{from_json, skip_corrupt, to_json};
use crate::store::outbox::CORRUPT_RETRY_DELAY;
use crate::store::{
    DeliveryQuery, DeliveryStateFilter, Error, Outbox, StoredDestination, WAITING_RETENTION,
};
use crate::time::Time;

/// Maximum delay between two attempts. A queue must not expire before its deliveries are due.
const MAX_ATTEMPT_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

#[async_trait]
impl Outbox for RedisStore {
    async fn lease_destination(
        &self,
        destination: &str,
        node: &str,
        ttl: Duration,
    ) -> Result<bool, Error> {
        let _operation = self.connections.begin_operation()?;
        let keys = vec![
            self.partition_for(destination)
                .destination_lease(destination),
        ];
        let args = vec![node.into(), millis(ttl).into()];
        let is_held: usize = self.connections.run(&LEASE_DESTINATION, keys, args).await?;
        Ok(is_held == 1)
    }

    async fn release_destination(&self, destination: &str, node: &str) -> Result<(), Error> {
        let _operation = self.connections.begin_operation()?;
        let keys = vec![
            self.partition_for(destination)
                .destination_lease(destination),
        ];
        let args = vec![node.into()];
        let _: usize = self
            .connections
            .run(&RELEASE_DESTINATION, keys, args)
            .await?;
        Ok(())
    }

    async fn due_deliveries(
        &self,
        destination: &str,
        now: Time,
        limit: usize,
    ) -> Result<Vec<Arc<Delivery>>, Error> {
        let _operation = self.connections.begin_operation()?;
        let mut due = self.queued(destination, scores_up_to(now), limit).await?;
        due.truncate(limit);
        let due: Vec<Entry> = due.into_iter().map(|(_, entry)| entry).collect();
        let mut deliveries = Vec::new();
        for (entry, delivery) in due.iter().zip(self.read_deliveries(&due).await?) {
            let Some(delivery) = delivery else { continue };
            match skip_corrupt(delivery, entry.member.as_str())? {
                Some(delivery) => deliveries.push(delivery),
                None => self.postpone(entry, now + CORRUPT_RETRY_DELAY).await?,
            }
        }
        Ok(deliveries)
    }

    async fn next_delivery_at(&self, destination: &str) -> Result<Option<Time>, Error> {
        let _operation = self.connections.begin_operation()?;
        let queued = self.queued(destination, ZRange::from("+inf"), 1).await?;
        Ok(queued.first().map(|(due_at, _)| *due_at))
    }

    async fn record_progress(&self, id: &DeliveryId, progress: Progress) -> Result<bool, Error> {
        let _operation = self.connections.begin_operation()?;
        let Some(expected_revision) = progress.revision.checked_sub(1) else {
            return Ok(false);
        };
        let (member, partition) = (Member::of(id), self.partition_for(id.job.as_str()));
        let state = DeliveryStateFilter::of(&progress.state);
        let mut indexes = DeliveryStateFilter::ALL;
        indexes.sort_by_key(|index| *index != state);
        let mut keys = vec![
            partition.deliveries(&id.job),
            partition.delivery_queue(&id.destination),
        ];
        keys.extend(indexes.map(|state| state_index(partition, state)));
        keys.extend([partition.delivery_destinations(), partition.job(&id.job)]);
        let args = vec![
            member.as_str().into(),
            id.destination.as_str().into(),
            id.version.to_string().into(),
            expected_revision.to_string().into(),
            progress.revision.to_string().into(),
            to_json(&progress)?.into(),
            progress.due_at().map(millis_of).unwrap_or_default().into(),
            self.outbox_ttl().into(),
        ];
        let outcome: String = self.connections.run(&RECORD_PROGRESS, keys, args).await?;
        if outcome == "orphaned" && progress.due_at().is_none() {
            // If this fails, the delivery expires.
            let deleted = self.delete_delivery(&member, Time::from_millis(0)).await;
            if let Err(error) = deleted {
                tracing::debug!(delivery.id = %id, %error, "delivery without job not deleted");
            }
        }
        Ok(outcome != "stale")
    }

    async fn delivery(&self, id: &DeliveryId) -> Result<Option<Arc<Delivery>>, Error> {
        let _operation = self.connections.begin_operation()?;
        let delivery = self.read_delivery(&Member::of(id)).await?;
        Ok(delivery.filter(|delivery| delivery.id == *id))
    }

    async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<Arc<Delivery>>, Error> {
        let _operation = self.connections.begin_operation()?;
        self.list_deliveries(&query).await
    }

    async fn destinations(&self) -> Result<Vec<StoredDestination>, Error> {
        let _operation = self.connections.begin_operation()?;
        let reads = self.connections.keys.partitions().map(async |partition| {
            let client = self.connections.client();
            let stored: Vec<(String, String)> =
                client.hgetall(partition.destination_states()).await?;
            let mut states = Vec::new();
            for (name, state) in stored {
                let state = skip_corrupt(decode_state(&state), &name)?;
                states.extend(state.map(|state| (name, state)));
            }
            let names = self.destinations_with_queue(partition).await?;
            let counts = names.into_iter().map(async |name| {
                let count: u64 = client.zcard(partition.delivery_queue(&name)).await?;
                Ok::<_, Error>((name, count))
            });
            Ok::<_, Error>((states, try_join_all(counts).await?))
        });
        let (states, waiting): (Vec<_>, Vec<_>) = try_join_all(reads).await?.into_iter().unzip();
        let waiting = waiting
            .into_iter()
            .flatten()
            .filter(|(_, count)| *count > 0);
        Ok(StoredDestination::merge(
            states.into_iter().flatten(),
            waiting,
        ))
    }

    async fn destination_state(&self, destination: &str) -> Result<DestinationState, Error> {
        let _operation = self.connections.begin_operation()?;
        let key = self.partition_for(destination).destination_states();
        let client = self.connections.client();
        let state: Option<String> = client.hget(key, destination).await?;
        state.map_or_else(|| Ok(DestinationState::default()), |it| decode_state(&it))
    }

    async fn put_destination_state(
        &self,
        destination: &str,
        state: DestinationState,
    ) -> Result<bool, Error> {
        let _operation = self.connections.begin_operation()?;
        let Some(expected_revision) = state.revision.checked_sub(1) else {
            return Ok(false);
        };
        let keys = vec![self.partition_for(destination).destination_states()];
        let args = vec![
            destination.into(),
            expected_revision.to_string().into(),
            state.revision.to_string().into(),
            to_json(&state)?.into(),
            self.outbox_ttl().into(),
        ];
        let replaced: usize = self
            .connections
            .run(&PUT_DESTINATION_STATE, keys, args)
            .await?;
        Ok(replaced == 1)
    }
}

impl RedisStore {
    /// Returns the keys of the function `add_deliveries` of the scripts.
    pub(super) fn outbox_keys(&self, job: &Job, deliveries: &[NewDelivery]) -> Vec<String> {
        let partition = self.partition_for(job.id.as_str());
        let mut keys = vec![
            partition.deliveries(&job.id),
            partition.waiting_deliveries(),
            partition.delivered_deliveries(),
            partition.failed_deliveries(),
            partition.owner_deliveries(&job.owner),
            partition.delivery_destinations(),
        ];
        let queues = deliveries.iter();
        keys.extend(queues.map(|delivery| partition.delivery_queue(&delivery.destination)));
        keys
    }

    /// Returns [`Self::outbox_lifetime`] in milliseconds.
    pub(super) fn outbox_ttl(&self) -> String {
        millis(self.outbox_lifetime())
    }

    /// Returns the TTL of the keys of the outbox. They outlive the jobs, and waiting deliveries.
    pub(super) fn outbox_lifetime(&self) -> Duration {
        let waiting = WAITING_RETENTION + MAX_ATTEMPT_DELAY + TTL_MARGIN;
        self.shared_key_lifetime().max(waiting)
    }

    /// Returns the waiting deliveries of a destination with their due times up to `last`, earliest
    /// first, at most `limit` of each partition.
    async fn queued(
        &self,
        destination: &str,
        last: ZRange,
        limit: usize,
    ) -> Result<Vec<(Time, Entry)>, Error> {
        let limit = Some((0, i64::try_from(limit).unwrap_or(i64::MAX)));
        let reads = self.connections.keys.partitions().map(|partition| {
            let (queue, last) = (partition.delivery_queue(destination), last.clone());
            async move {
                let client = self.connections.client();
                let queued: Vec<(String, f64)> = client
                    .zrangebyscore(queue.as_str(), "-inf", last, true, limit)
                    .await?;
                let queued = queued.into_iter().map(|(member, due_at)| {
                    let (member, index) = (Member::from(member), queue.clone());
                    (parse_score(due_at), Entry { member, index })
                });
                Ok::<_, Error>(queued.collect::<Vec<_>>())
            }
        });
        let mut queued = try_join_all(reads).await?.concat();
        queued.sort();
        Ok(queued)
    }

    async fn destinations_with_queue(
        &self,
        partition: Partition<'_>,
    ) -> Result<Vec<String>, Error> {
        let client = self.connections.client();
        let key = partition.delivery_destinations();
        Ok(client.zrangebylex(key, "-", "+", None).await?)
    }

    /// Moves the next attempt of a waiting delivery.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds are below 2^53")]
    async fn postpone(&self, entry: &Entry, due_at: Time) -> Result<(), Error> {
        let client = self.connections.client();
        let (queue, member) = (entry.index.as_str(), entry.member.as_str());
        let score = (due_at.millis() as f64, member);
        Ok(client
            .zadd(queue, Some(SetOptions::XX), None, false, false, score)
            .await?)
    }

    /// Deletes a delivery that has ended, or that has waited since a time before `before`. Returns
    /// whether it was deleted.
    async fn delete_delivery(&self, member: &Member, before: Time) -> Result<bool, Error> {
        // The index of an unknown owner loses the member when it is read.
        let delivery = self.read_delivery(member).await;
        let delivery = skip_corrupt(delivery, member.as_str())?.flatten();
        let owner = delivery.as_ref().map_or("", |delivery| &delivery.owner);
        let partition = self.partition_for(member.job());
        let keys = vec![
            partition.deliveries(member.job()),
            partition.delivery_destinations(),
            partition.delivery_queue(member.destination()),
            partition.waiting_deliveries(),
            partition.delivered_deliveries(),
            partition.failed_deliveries(),
            partition.owner_deliveries(owner),
        ];
        let args = vec![
            member.as_str().into(),
            member.destination().into(),
            millis_of(before).into(),
        ];
        let deleted: usize = self.connections.run(&DELETE_DELIVERY, keys, args).await?;
        Ok(deleted == 1)
    }

    /// Deletes deliveries of a partition that have waited for [`WAITING_RETENTION`]. Returns their
    /// number.
    pub(super) async fn delete_expired_deliveries(
        &self,
        partition: Partition<'_>,
        now: Time,
    ) -> Result<usize, Error> {
        let before = now - WAITING_RETENTION;
        let mut count = 0;
        for name in self.destinations_with_queue(partition).await? {
            let queue = partition.delivery_queue(name);
            for member in self.expired(queue, before).await? {
                let deleted = self.delete_delivery(&Member::from(member), before).await?;
                count += usize::from(deleted);
            }
        }
        Ok(count)
    }
}

/// The deliveries of a version, as the function `add_deliveries` of the scripts reads them.
#[derive(Serialize)]
struct EncodedDeliveries<'a> {
    version: String,
    created_at: String,
    progress: String,
    deliveries: Vec<EncodedDelivery<'a>>,
}

#[derive(Serialize)]
struct EncodedDelivery<'a> {
    name: String,
    destination: &'a str,
    /// Value of the field `delivery`.
    value: String,
    is_independent: bool,
}

/// Encodes new deliveries for the function `add_deliveries` of the scripts.
pub(super) fn encode_deliveries(job: &Job, deliveries: &[NewDelivery]) -> Result<String, Error> {
    if deliveries.is_empty() {
        return Ok(String::new());
    }
    let (version, created_at) = (job.version.to_string(), millis_of(job.updated_at));
    let progress = Progress::new(job.updated_at);
    let encode = |new: &'_ NewDelivery| -> String {
        let target = new.target.as_ref().map(|target| format!(" {target}"));
        format!("{version} {created_at}{}", target.unwrap_or_default())
    };
    let deliveries = deliveries.iter().map(|new| EncodedDelivery {
        name: format!("{} {}", new.event, new.destination),
        destination: &new.destination,
        value: encode(new),
        is_independent: new.is_independent,
    });
    to_json(&EncodedDeliveries {
        deliveries: deliveries.collect(),
        progress: format!("{} {}", progress.revision, to_json(&progress)?),
        version,
        created_at,
    })
}

/// Decodes a value of [`Partition::destination_states`]: the revision and JSON.
fn decode_state(value: &str) -> Result<DestinationState, Error> {
    let json = value.split_once(' ').map_or(value, |(_, json)| json);
    from_json(json)
}

/// Returns the index of the deliveries in a state.
fn state_index(partition: Partition<'_>, state: DeliveryStateFilter) -> String {
    match state {
        DeliveryStateFilter::Waiting => partition.waiting_deliveries(),
        DeliveryStateFilter::Delivered => partition.delivered_deliveries(),
        DeliveryStateFilter::Failed => partition.failed_deliveries(),
    }
}
