//! Names that belong to one job: a provider's task, a caller's key; and the news that comes for a
//! task before its job does.
//!
//! Invariant: a name is claimed before its job is written and parked news is looked through in the
//! same step, so news is either parked before the claim and folded in, or waits for the job. A claim
//! counts only with a job behind it; one whose job does not come within [`LEASE`] is void.

use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::{KeysInterface, ListInterface};
use fred::types::Value;
use serde::Deserialize;

use super::RedisStore;
use super::jobs::{from_json, task_of, to_json};
use super::link::away;
use super::scripts::{CLAIM_NAME, DROP_NAME, PARK, UNPARK};
use crate::job::{Job, JobId, Update};
use crate::store::{Error, MAX_BUFFERED_UPDATES, BUFFERED_UPDATE_TTL, BufferOutcome};
use crate::time::Time;

/// How long a claim may be without its job: longer than any call takes.
const LEASE: Duration = Duration::from_secs(10);

/// How long to wait for another's claim to become a job, and how long between two looks.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

/// What is claimed.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Task(String),
    Key(String),
}

/// How a claim ended.
pub(super) enum Claim {
    /// The name is the job's. None where there was nothing to claim.
    Ours(Option<Name>),
    /// It is this job's, with this fingerprint.
    Others { job: Arc<Job>, print: String },
    /// More was parked for it than the job has in it.
    NewsMissed,
}

/// A claim as it stands in Redis.
#[derive(Deserialize)]
struct Held {
    job: JobId,
    print: String,
}

impl Name {
    pub(super) fn task(name: &str) -> Self {
        Self::Task(name.to_owned())
    }

    pub(super) fn key(name: &str) -> Self {
        Self::Key(name.to_owned())
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Task(text) | Self::Key(text) => text,
        }
    }
}

impl RedisStore {
    /// The name's key, and its parked news.
    fn name_keys(&self, name: &Name) -> Vec<String> {
        let part = self.link.keys.of(name.text());
        let key = match name {
            Name::Task(text) => part.task(text),
            Name::Key(text) => part.idempotency(text),
        };
        vec![key, part.news(name.text())]
    }

    /// Claims a name for a job that has `folded` of what is parked for it in it.
    pub(super) async fn claim(
        &self,
        name: Name,
        job: &Job,
        print: &str,
        folded: &[Update],
    ) -> Result<Claim, Error> {
        let news = match &name {
            Name::Task(_) => self.raw_news(&name).await?,
            Name::Key(_) => Vec::new(),
        };
        let is_folded = |one: &String| readable(one).is_none_or(|one| folded.contains(&one));
        if !news.iter().all(is_folded) {
            return Ok(Claim::NewsMissed);
        }
        let mut void = String::new();
        let begun = tokio::time::Instant::now();
        loop {
            let mut args: Vec<Value> = vec![
                job.id.as_str().into(),
                print.into(),
                self.longest().into(),
                void.as_str().into(),
            ];
            args.extend(news.iter().map(|one| Value::from(one.as_str())));
            let answer: Vec<String> = self
                .link
                .run_durably(&CLAIM_NAME, self.name_keys(&name), args)
                .await?;
            match answer.as_slice() {
                [word] if word == "claimed" => return Ok(Claim::Ours(Some(name))),
                [_, held, age] => {
                    let holder: Held = from_json(held)?;
                    match self.standing(&name, &holder, age).await? {
                        Standing::Job(job) => {
                            let print = holder.print;
                            return Ok(Claim::Others { job, print });
                        }
                        Standing::Void => held.clone_into(&mut void),
                        Standing::Coming if begun.elapsed() > PATIENCE => return Err(Error::Overloaded),
                        Standing::Coming => tokio::time::sleep(PAUSE).await,
                    }
                }
                _ => return Ok(Claim::NewsMissed),
            }
        }
    }

    /// What a claim that another holds is worth.
    async fn standing(&self, name: &Name, held: &Held, age: &str) -> Result<Standing, Error> {
        let job = self.read(&held.job).await?.filter(|job| match name {
            Name::Key(_) => true,
            Name::Task(task) => has_task(job, task),
        });
        let age = age.parse().map_or(Duration::MAX, Duration::from_millis);
        Ok(match job {
            Some(job) => Standing::Job(job),
            None if age >= LEASE => Standing::Void,
            None => Standing::Coming,
        })
    }

    /// Gives up a name that was claimed for a job.
    pub(super) async fn drop_name(&self, name: Option<Name>, job: &JobId) {
        let Some(name) = name else { return };
        let mut keys = self.name_keys(&name);
        keys.truncate(1);
        let dropped: Result<i64, Error> = self
            .link
            .run(&DROP_NAME, keys, vec![job.as_str().into()])
            .await;
        if let Err(error) = dropped {
            tracing::debug!(%error, "a claim is left to end by itself");
        }
    }

    /// The job that a task is claimed for, if it has that task.
    pub(super) async fn holder(&self, task: &str) -> Result<Option<JobId>, Error> {
        let key = self.link.keys.of(task).task(task);
        let held: Option<String> = self
            .link
            .client()
            .get(key)
            .await
            .map_err(|error| away(&error))?;
        let Some(held) = held else { return Ok(None) };
        let held: Held = from_json(&held)?;
        let job = self.read(&held.job).await?;
        Ok(job
            .filter(|job| has_task(job, task))
            .map(|job| job.id.clone()))
    }

    pub(super) async fn park_news(
        &self,
        task: &str,
        news: &Update,
        now: Time,
    ) -> Result<BufferOutcome, Error> {
        let name = Name::task(task);
        let news = to_json(news)?;
        let part = self.link.keys.of(task);
        let mut void = String::new();
        let begun = tokio::time::Instant::now();
        loop {
            let mut keys = self.name_keys(&name);
            keys.push(part.buffered_updates());
            let args = vec![
                news.as_str().into(),
                now.millis().into(),
                i64::try_from(MAX_BUFFERED_UPDATES).unwrap_or(i64::MAX).into(),
                super::jobs::millis(BUFFERED_UPDATE_TTL + super::jobs::SLACK).into(),
                task.into(),
                void.as_str().into(),
            ];
            let answer: Vec<String> = self.link.run_durably(&PARK, keys, args).await?;
            let [_, held, age] = answer.as_slice() else {
                return Ok(BufferOutcome::Buffered);
            };
            let holder: Held = from_json(held)?;
            match self.standing(&name, &holder, age).await? {
                Standing::Job(job) => return Ok(BufferOutcome::TaskKnown(job.id.clone())),
                Standing::Void => held.clone_into(&mut void),
                Standing::Coming if begun.elapsed() > PATIENCE => return Err(Error::Overloaded),
                Standing::Coming => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// What is parked for a task, oldest first. Unreadable news is told to the log and left out.
    pub(super) async fn parked_news(&self, task: &str) -> Result<Vec<Update>, Error> {
        let news = self.raw_news(&Name::task(task)).await?;
        Ok(news.iter().filter_map(|one| readable(one)).collect())
    }

    async fn raw_news(&self, name: &Name) -> Result<Vec<String>, Error> {
        let key = self.link.keys.of(name.text()).news(name.text());
        let news = self.link.client().lrange(key, 0, -1).await;
        news.map_err(|error| away(&error))
    }

    /// Forgets what was parked for a task that has its job now.
    pub(super) async fn forget_news(&self, name: Option<&Name>) {
        let Some(Name::Task(task)) = name else { return };
        if let Err(error) = self.unpark(task, None).await {
            tracing::debug!(%error, "what was parked is left to a sweep");
        }
    }

    /// Forgets what was parked for a task before a moment, or all; says how much.
    pub(super) async fn unpark(&self, task: &str, before: Option<Time>) -> Result<usize, Error> {
        let part = self.link.keys.of(task);
        let before = before.map(|before| before.millis().to_string());
        let args = vec![task.into(), before.unwrap_or_default().into()];
        self.link
            .run(&UNPARK, vec![part.news(task), part.buffered_updates()], args)
            .await
    }
}

/// What a claim is worth.
enum Standing {
    /// There is a job behind it.
    Job(Arc<Job>),
    /// There is none, and there will be none.
    Void,
    /// It may be on its way.
    Coming,
}

fn has_task(job: &Job, task: &str) -> bool {
    task_of(job).is_some_and(|(provider, id)| super::keys::task_name(provider, id) == task)
}

/// The news behind the moment it came.
fn readable(parked: &str) -> Option<Update> {
    let (_, news) = parked.split_once(' ')?;
    let read = serde_json::from_str(news);
    read.inspect_err(|error| tracing::error!(%error, "the store holds something unreadable"))
        .ok()
}
