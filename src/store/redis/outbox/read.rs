//! Reads of deliveries, and lists of them, newest first.
//!
//! The queues and indexes of a partition contain the same members as the hashes of its deliveries. A
//! member without a delivery is what an expired hash left, and is removed when it is read.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use fred::interfaces::{HashesInterface, SortedSetsInterface};
use fred::types::sorted_sets::ZRange;
use futures_util::future::try_join_all;
use serde::Deserialize;

use super::state_index;
use crate::job::JobId;
use crate::outbox::{Delivery, DeliveryId};
use crate::store::codec::{from_json, skip_corrupt};
use crate::store::redis::RedisStore;
use crate::store::redis::keys::Partition;
use crate::store::redis::queues::scores_up_to;
use crate::store::redis::scripts::READ_DELIVERIES;
use crate::store::{DeliveryQuery, DeliveryStateFilter, Error};
use crate::time::Time;

/// Deliveries that one script reads. A longer script would delay other commands.
const READ_BATCH: usize = 64;

/// Maximum number of members of an index that one command returns.
const MAX_INDEX_BATCH: usize = 512;

/// Minimum of this number.
const MIN_INDEX_BATCH: usize = 16;

/// A delivery in a queue or an index: its job, its event and its destination, separated by spaces.
/// Members with equal scores have the order of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member(String);

impl Member {
    pub(super) fn of(id: &DeliveryId) -> Self {
        Self(format!("{} {} {}", id.job, id.event, id.destination))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn job(&self) -> &str {
        self.parts().0
    }

    pub(super) fn destination(&self) -> &str {
        self.parts().2
    }

    fn parts(&self) -> (&str, &str, &str) {
        let (job, name) = self.0.split_once(' ').unwrap_or((&self.0, ""));
        let (event, destination) = name.split_once(' ').unwrap_or((name, ""));
        (job, event, destination)
    }
}

impl From<String> for Member {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A member of a queue or an index, which is the key `index`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) member: Member,
    pub(super) index: String,
}

/// The fields of a document that belong to its deliveries.
#[derive(Deserialize)]
struct Origin {
    owner: String,
}

impl RedisStore {
    /// Reads deliveries. Returns `None` for those that do not exist, and removes them from their index.
    pub(super) async fn read_deliveries(
        &self,
        entries: &[Entry],
    ) -> Result<Vec<Option<Result<Arc<Delivery>, Error>>>, Error> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (position, entry) in entries.iter().enumerate() {
            let partition = self.partition_for(entry.member.job());
            groups.entry(partition.number).or_default().push(position);
        }
        let batches = groups
            .values()
            .flat_map(|positions| positions.chunks(READ_BATCH));
        let reads = batches.map(async |positions| {
            let (mut keys, mut args) = (Vec::new(), Vec::new());
            for Entry { member, index } in positions.iter().map(|it| &entries[*it]) {
                let partition = self.partition_for(member.job());
                keys.extend([partition.deliveries(member.job()), index.clone()]);
                args.push(member.as_str().into());
            }
            let fields: Vec<Option<String>> =
                self.connections.run(&READ_DELIVERIES, keys, args).await?;
            let deliveries = positions.iter().zip(fields.as_chunks().0);
            let deliveries =
                deliveries.map(|(&it, fields)| (it, decode(&entries[it].member, fields)));
            Ok::<_, Error>(deliveries.collect::<Vec<_>>())
        });
        let read = try_join_all(reads).await?.into_iter().flatten();
        let mut read: Vec<_> = read.collect();
        read.sort_unstable_by_key(|(position, _)| *position);
        Ok(read.into_iter().map(|(_, delivery)| delivery).collect())
    }

    /// Reads one delivery. Returns `None` if it does not exist.
    pub(super) async fn read_delivery(
        &self,
        member: &Member,
    ) -> Result<Option<Arc<Delivery>>, Error> {
        let entry = Entry {
            index: self.partition_for(member.job()).waiting_deliveries(),
            member: member.clone(),
        };
        let read = self.read_deliveries(&[entry]).await?;
        read.into_iter().flatten().next().transpose()
    }

    pub(super) async fn list_deliveries(
        &self,
        query: &DeliveryQuery,
    ) -> Result<Vec<Arc<Delivery>>, Error> {
        if let Some(job) = &query.job {
            return self.list_deliveries_of(job, query).await;
        }
        // The members show the destination, so it selects the deliveries to read.
        let batch = match query.destination {
            Some(_) => MAX_INDEX_BATCH,
            None => query.limit.clamp(MIN_INDEX_BATCH, MAX_INDEX_BATCH),
        };
        let mut deliveries = Vec::new();
        let mut cursor = cursor_of(query);
        while deliveries.len() < query.limit {
            let page = self
                .indexed_deliveries(query, cursor.as_ref(), batch)
                .await?;
            let Some((created_at, last)) = page.last() else {
                break;
            };
            cursor = Some((*created_at, last.member.clone()));
            let entries = page.into_iter().map(|(_, entry)| entry);
            let is_selected = |entry: &Entry| {
                let destination = query.destination.as_deref();
                destination.is_none_or(|destination| entry.member.destination() == destination)
            };
            let entries: Vec<Entry> = entries.filter(is_selected).collect();
            for batch in entries.chunks(READ_BATCH) {
                deliveries.extend(self.read_selected(batch, query).await?);
                if deliveries.len() >= query.limit {
                    break;
                }
            }
        }
        deliveries.truncate(query.limit);
        Ok(deliveries)
    }

    /// Returns a list of the deliveries of one job.
    async fn list_deliveries_of(
        &self,
        job: &JobId,
        query: &DeliveryQuery,
    ) -> Result<Vec<Arc<Delivery>>, Error> {
        let partition = self.partition_for(job.as_str());
        let client = self.connections.client();
        let fields: Vec<String> = client.hkeys(partition.deliveries(job)).await?;
        let names = fields
            .iter()
            .filter_map(|field| field.strip_prefix("delivery "));
        let entries: Vec<Entry> = names
            .map(|name| Entry {
                member: Member(format!("{job} {name}")),
                index: partition.waiting_deliveries(),
            })
            .collect();
        let mut deliveries = self.read_selected(&entries, query).await?;
        let position = |delivery: &Arc<Delivery>| (delivery.created_at, Member::of(&delivery.id));
        if let Some(cursor) = cursor_of(query) {
            deliveries.retain(|delivery| position(delivery) < cursor);
        }
        deliveries.sort_by_cached_key(|delivery| Reverse(position(delivery)));
        deliveries.truncate(query.limit);
        Ok(deliveries)
    }

    /// Reads those deliveries that match the filters of a query.
    async fn read_selected(
        &self,
        entries: &[Entry],
        query: &DeliveryQuery,
    ) -> Result<Vec<Arc<Delivery>>, Error> {
        let read = self.read_deliveries(entries).await?;
        let mut selected = Vec::new();
        for (entry, delivery) in entries.iter().zip(read) {
            let Some(delivery) = delivery else { continue };
            let delivery = skip_corrupt(delivery, entry.member.as_str())?;
            selected.extend(delivery.filter(|delivery| is_selected(delivery, query)));
        }
        Ok(selected)
    }

    /// Returns the next entries of the indexes that contain the list, newest first, up to `batch`.
    async fn indexed_deliveries(
        &self,
        query: &DeliveryQuery,
        cursor: Option<&(Time, Member)>,
        batch: usize,
    ) -> Result<Vec<(Time, Entry)>, Error> {
        let indexes = |partition: Partition<'_>| match (&query.owner, query.state) {
            (Some(owner), _) => vec![partition.owner_deliveries(owner)],
            (None, Some(state)) => vec![state_index(partition, state)],
            (None, None) => DeliveryStateFilter::ALL
                .map(|state| state_index(partition, state))
                .to_vec(),
        };
        let indexes = self.connections.keys.partitions().flat_map(indexes);
        let reads = indexes.map(|index| self.index_page(index, cursor, batch));
        let mut entries = try_join_all(reads).await?.concat();
        entries.sort_unstable_by(|a, b| b.cmp(a));
        // A delivery whose state changes may be in two indexes.
        entries.dedup_by(|(_, a), (_, b)| a.member == b.member);
        entries.truncate(batch);
        Ok(entries)
    }

    /// Returns the next entries of an index, newest first: at least `batch` unless these are the last.
    async fn index_page(
        &self,
        index: String,
        cursor: Option<&(Time, Member)>,
        batch: usize,
    ) -> Result<Vec<(Time, Entry)>, Error> {
        let newest = cursor.map_or(ZRange::from("+inf"), |(time, _)| scores_up_to(*time));
        let count = i64::try_from(batch).unwrap_or(i64::MAX);
        let (mut entries, mut offset) = (Vec::new(), 0);
        loop {
            let client = self.connections.client();
            let (newest, limit) = (newest.clone(), Some((offset, count)));
            let members: Vec<(String, f64)> = client
                .zrevrangebyscore(index.as_str(), newest, "-inf", true, limit)
                .await?;
            let is_last = members.len() < batch;
            for (member, score) in members {
                let position = (parse_score(score), Member(member));
                // Members with the time of the cursor may precede it.
                if cursor.is_none_or(|cursor| position < *cursor) {
                    let (created_at, member) = position;
                    let index = index.clone();
                    entries.push((created_at, Entry { member, index }));
                }
            }
            if is_last || entries.len() >= batch {
                return Ok(entries);
            }
            offset += count;
        }
    }
}

/// Returns the position of the cursor of a query.
fn cursor_of(query: &DeliveryQuery) -> Option<(Time, Member)> {
    let cursor = query.after.as_ref()?;
    Some((cursor.created_at, Member::of(&cursor.id)))
}

fn is_selected(delivery: &Delivery, query: &DeliveryQuery) -> bool {
    let state = DeliveryStateFilter::of(&delivery.progress.state);
    let owner = query.owner.as_ref();
    let destination = query.destination.as_ref();
    owner.is_none_or(|owner| *owner == delivery.owner)
        && destination.is_none_or(|destination| *destination == delivery.id.destination)
        && query.state.is_none_or(|it| it == state)
}

/// Decodes the fields that the read script returns, or returns `None` for a missing delivery.
fn decode(member: &Member, fields: &[Option<String>; 3]) -> Option<Result<Arc<Delivery>, Error>> {
    let [delivery, progress, document] = fields;
    let delivery = delivery.as_deref()?;
    let decode = || -> Result<Arc<Delivery>, Error> {
        let invalid = || Error::Corrupt("invalid fields of a delivery".to_owned());
        let (job, event, destination) = member.parts();
        let mut values = delivery.splitn(3, ' ');
        let mut number = || values.next()?.parse::<i64>().ok();
        let (version, created_at) = number().zip(number()).ok_or_else(invalid)?;
        let target = values.next().map(str::to_owned);
        let progress = progress.as_deref().and_then(|it| it.split_once(' '));
        let (_, progress) = progress.ok_or_else(invalid)?;
        let document = document.as_deref().ok_or_else(invalid)?;
        let Origin { owner } = from_json(document)?;
        Ok(Arc::new(Delivery {
            id: DeliveryId {
                job: JobId::parse(job).map_err(|error| Error::Corrupt(error.to_string()))?,
                version: version.cast_unsigned(),
                event: event.to_owned(),
                destination: destination.to_owned(),
            },
            owner,
            target,
            document: document.to_owned(),
            created_at: Time::from_millis(created_at),
            progress: from_json(progress)?,
        }))
    };
    Some(decode())
}

/// Returns the time that a score represents.
#[expect(
    clippy::cast_possible_truncation,
    reason = "scores are whole milliseconds below 2^53"
)]
pub(super) fn parse_score(score: f64) -> Time {
    Time::from_millis(score as i64)
}
