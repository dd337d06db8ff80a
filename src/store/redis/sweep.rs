//! Forgetting what has been kept long enough, and finishing what dead nodes left.
//!
//! Invariant: a job goes together with its key and its task, and one sweep is a bounded piece of
//! work. Whatever a sweep misses, Redis forgets by itself a day later.

use std::time::Duration;

use fred::interfaces::{HashesInterface, KeysInterface, SortedSetsInterface};

use super::RedisStore;
use super::agenda::until;
use super::keys::Partition;
use super::keys::task_name;
use super::link::away;
use super::names::Name;
use super::scripts::FORGET;
use crate::job::JobId;
use crate::store::{Error, BUFFERED_UPDATE_TTL};
use crate::time::Time;

/// The most jobs, tasks and accounts that are looked at in one partition.
const PIECE: i64 = 250;

/// The least difference between two moments.
const MOMENT: Duration = Duration::from_millis(1);

impl RedisStore {
    pub(super) async fn sweep_once(&self, now: Time) -> Result<usize, Error> {
        let mut count = 0;
        for part in self.link.keys.partitions() {
            self.pay_for_the_dead(part).await?;
            for id in self.over(part.ends(), now - MOMENT).await? {
                count += self.forget(part, &id, now).await?;
            }
            let before = now - BUFFERED_UPDATE_TTL;
            for task in self.over(part.buffered_updates(), before - MOMENT).await? {
                count += self.unpark(&task, Some(before)).await?;
            }
            for account in self.over(part.accounts(), now).await? {
                let client = self.link.client();
                let deleted: Result<usize, _> = client.del(part.account(&account)).await;
                let struck: Result<usize, _> = client.zrem(part.accounts(), account).await;
                deleted.map_err(|error| away(&error))?;
                count += struck.map_err(|error| away(&error))?;
            }
        }
        Ok(count)
    }

    /// What is in a list up to a moment, earliest first.
    async fn over(&self, key: String, last: Time) -> Result<Vec<String>, Error> {
        let client = self.link.client();
        let over = client
            .zrangebyscore(key, "-inf", until(last), false, Some((0, PIECE)))
            .await;
        over.map_err(|error| away(&error))
    }

    async fn forget(&self, part: Partition<'_>, id: &str, now: Time) -> Result<usize, Error> {
        let fields = vec!["owner", "provider", "task", "key"];
        let known: Result<Vec<Option<String>>, _> =
            self.link.client().hmget(part.job(id), fields).await;
        let known = known.map_err(|error| away(&error))?;
        let field = |at: usize| known.get(at).cloned().flatten().unwrap_or_default();
        let (owner, provider) = (field(0), field(1));
        let keys = vec![
            part.job(id),
            part.watch(),
            part.submit(&provider),
            part.ends(),
            part.jobs(None),
            part.open(None),
        ];
        let args = vec![id.into(), now.millis().into()];
        let forgotten: usize = self.link.run(&FORGET, keys, args).await?;
        let task = task_name(&provider, &field(2));
        let names = [
            (field(2), Name::task(&task)),
            (field(3), Name::key(&field(3))),
        ];
        if let Ok(job) = JobId::parse(id) {
            for (_, name) in names.into_iter().filter(|(text, _)| !text.is_empty()) {
                self.drop_name(Some(name), &job).await;
            }
        }
        let lists = self.link.keys.of(&owner);
        for list in [lists.jobs(Some(&owner)), lists.open(Some(&owner))] {
            let struck: Result<(), _> = self.link.client().zrem(list, id).await;
            struck.map_err(|error| away(&error))?;
        }
        self.free_place_of(&provider, id).await?;
        Ok(forgotten)
    }
}
