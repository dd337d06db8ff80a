//! Jobs in their hashes: creating, committing, reading.
//!
//! Invariant: a job's hash is the truth and changes in one script, together with its queues and the
//! telling of it. Everything elsewhere (tasks, keys, accounts, places, owners' lists) only points at
//! it: it is written before where it may name too much, and whoever follows it looks at the job.

use std::sync::Arc;
use std::time::Duration;

use fred::interfaces::HashesInterface;
use futures_util::future::try_join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RedisStore;
use super::keys::{Partition, key_name, task_name};
use super::link::away;
use super::names::{Claim, Name};
use super::scripts::{COMMIT, CREATE};
use crate::job::{Job, JobId};
use crate::store::{Agenda, Commit, Committed, Create, Created, Error, Idempotency, spread};

/// How much longer than its retention anything is kept by Redis itself: the sweep comes first.
pub(super) const SLACK: Duration = Duration::from_secs(24 * 3600);

/// What a commit changes beside the document, as its script reads it.
#[derive(Serialize)]
struct Changes {
    /// Names and values in turn.
    fields: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    submit: Option<String>,
    /// When it may be forgotten.
    forget: String,
    /// How long Redis keeps the job, and how long its queues, in milliseconds.
    ttl: String,
    longest: String,
    r#final: bool,
}

impl RedisStore {
    pub(super) async fn create_job(&self, create: Create) -> Result<Created, Error> {
        let job = &create.job;
        let key = match self.claim_key(create.idempotency.as_ref(), job).await? {
            Claim::Ours(name) => name,
            Claim::Others { job, print }
                if create
                    .idempotency
                    .as_ref()
                    .is_some_and(|key| key.fingerprint == print) =>
            {
                return Ok(Created::Replay(job));
            }
            Claim::Others { .. } => return Ok(Created::KeyReused),
            Claim::NewsMissed => return Err(Error::Busy),
        };
        let created = self.create_with_task(&create, key.as_ref()).await;
        self.drop_if_refused(&created, key, job).await;
        created
    }

    /// Gives up a name that was claimed for a job that is not to be. Where that is not known, the
    /// claim stays: it is void before long if the job does not come.
    async fn drop_if_refused(
        &self,
        created: &Result<Created, Error>,
        name: Option<Name>,
        job: &Job,
    ) {
        match created {
            Ok(Created::TaskTaken(_) | Created::OverLimit { .. } | Created::Stale) => {
                self.drop_name(name, &job.id).await;
            }
            Ok(Created::New | Created::Replay(_) | Created::KeyReused) | Err(_) => {}
        }
    }

    async fn claim_key(
        &self,
        idempotency: Option<&Idempotency>,
        job: &Job,
    ) -> Result<Claim, Error> {
        let Some(Idempotency {
            caller,
            key,
            fingerprint,
        }) = idempotency
        else {
            return Ok(Claim::Ours(None));
        };
        let name = Name::key(&key_name(caller, key));
        self.claim(name, job, fingerprint, &[]).await
    }

    async fn create_with_task(
        &self,
        create: &Create,
        key: Option<&Name>,
    ) -> Result<Created, Error> {
        let job = &create.job;
        // The same request once more, without a key.
        if let Some(kept) = self.read(&job.id).await? {
            return Ok(Created::Replay(kept));
        }
        let task = match task_of(job) {
            Some((provider, task_id)) => {
                let name = Name::task(&task_name(provider, task_id));
                match self.claim(name, job, "", &create.folded).await? {
                    Claim::Ours(name) => name,
                    Claim::Others { job, .. } => return Ok(Created::TaskTaken(job)),
                    Claim::NewsMissed => return Ok(Created::Stale),
                }
            }
            None => None,
        };
        let created = self.create_charged(create, key).await;
        if let Ok(Created::New) = &created {
            self.forget_news(task.as_ref()).await;
        }
        self.drop_if_refused(&created, task, job).await;
        created
    }

    async fn create_charged(&self, create: &Create, key: Option<&Name>) -> Result<Created, Error> {
        let job = &create.job;
        let owed = self.reserve(job, &create.entries).await?;
        let owed = match owed {
            Ok(owed) => owed,
            Err(account) => return Ok(Created::OverLimit { account }),
        };
        self.list(job).await?;
        if create.agenda.holds_place && !job.is_final() {
            self.hold_place(job).await?;
        }
        let part = self.link.keys.of(job.id.as_str());
        let keys = self.keys_of(part, job);
        let [
            hash,
            watch,
            submit,
            ends,
            jobs,
            open,
            owed_key,
            channel,
            owner,
        ] = keys;
        let created: String = self
            .link
            .run_durably(
                &CREATE,
                vec![
                    hash, watch, submit, ends, jobs, open, owed_key, channel, owner,
                ],
                vec![
                    self.link.publish().into(),
                    job.id.as_str().into(),
                    to_json(&**job)?.into(),
                    to_json(&*job.ticket)?.into(),
                    to_json(&self.changes(job, create.agenda))?.into(),
                    to_json(&lasting(job, key))?.into(),
                    owed.unwrap_or_default().into(),
                ],
            )
            .await?;
        match created.as_str() {
            "done" => Ok(Created::New),
            // The answer to an earlier try of ours was lost, or another one's was not.
            "exists" => match self.read(&job.id).await? {
                Some(kept) => Ok(Created::Replay(kept)),
                None => Err(Error::Busy),
            },
            _ => Err(Error::Busy),
        }
    }

    pub(super) async fn commit_job(&self, commit: &Commit) -> Result<Committed, Error> {
        let job = &commit.job;
        let mut task = None;
        loop {
            let outcome = self.try_commit(commit, task.is_some()).await;
            match outcome {
                Ok(Outcome::Unbound) => {
                    let Some((provider, task_id)) = task_of(job) else {
                        return Ok(Committed::Stale);
                    };
                    let name = Name::task(&task_name(provider, task_id));
                    match self.claim(name, job, "", &commit.folded).await? {
                        Claim::Ours(name) => task = name,
                        Claim::Others { .. } | Claim::NewsMissed => return Ok(Committed::Stale),
                    }
                }
                Ok(Outcome::Done { had_place }) => {
                    self.forget_news(task.as_ref()).await;
                    self.after_commit(commit, had_place).await?;
                    return Ok(Committed::Done);
                }
                Ok(Outcome::Stale) => {
                    self.drop_name(task, &job.id).await;
                    return Ok(Committed::Stale);
                }
                Ok(Outcome::Gone) => {
                    self.drop_name(task, &job.id).await;
                    return Ok(Committed::Gone);
                }
                // Whether it was done is not known, so the task stays claimed; should the job not
                // have it after all, the claim is void before long.
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_commit(&self, commit: &Commit, is_claimed: bool) -> Result<Outcome, Error> {
        let job = &commit.job;
        let part = self.link.keys.of(job.id.as_str());
        let [hash, watch, submit, ends, _, open, owed_key, channel, owner] =
            self.keys_of(part, job);
        let (owed, sums) = match commit.entries.is_empty() {
            true => (String::new(), String::new()),
            false => (tag(job), to_json(&Self::debt(&commit.entries, job))?),
        };
        let answer: Vec<String> = self
            .link
            .run_durably(
                &COMMIT,
                vec![hash, watch, submit, ends, open, owed_key, channel, owner],
                vec![
                    self.link.publish().into(),
                    job.id.as_str().into(),
                    to_json(&**job)?.into(),
                    to_json(&*job.ticket)?.into(),
                    to_json(&self.changes(job, commit.agenda))?.into(),
                    commit.expected.to_string().into(),
                    task_field(job).into(),
                    if is_claimed { "1" } else { "" }.into(),
                    owed.into(),
                    sums.into(),
                ],
            )
            .await?;
        Ok(match answer.first().map(String::as_str) {
            Some("gone") => Outcome::Gone,
            Some("stale") => Outcome::Stale,
            Some("unbound") => Outcome::Unbound,
            _ => Outcome::Done {
                had_place: answer.get(1).is_some_and(|had| had == "1"),
            },
        })
    }

    /// What only points at the job. Should it not come to it, whoever follows it looks at the job.
    async fn after_commit(&self, commit: &Commit, had_place: bool) -> Result<(), Error> {
        let job = &commit.job;
        let has_place = commit.agenda.holds_place && !job.is_final();
        let places = async {
            match (had_place, has_place) {
                (true, false) => self.free_place(job).await,
                (false, true) => self.hold_place(job).await,
                (true, true) | (false, false) => Ok(()),
            }
        };
        let (placed, closed, booked) = tokio::join!(
            places,
            self.close_in_list(job),
            self.pay(job, &commit.entries)
        );
        for error in [placed, closed, booked].into_iter().filter_map(Result::err) {
            tracing::debug!(job.id = %job.id, %error, "what follows from a commit is left to a sweep");
        }
        Ok(())
    }

    /// The keys of all that a script does to a job.
    fn keys_of(&self, part: Partition<'_>, job: &Job) -> [String; 9] {
        [
            part.job(&job.id),
            part.watch(),
            part.submit(job.provider.as_deref().unwrap_or_default()),
            part.ends(),
            part.jobs(None),
            part.open(None),
            part.owed(),
            part.channel(&job.id),
            part.owner_channel(&job.owner),
        ]
    }

    fn changes(&self, job: &Job, agenda: Agenda) -> Changes {
        // An ended job wants nobody's attention.
        let agenda = if job.is_final() {
            Agenda::default()
        } else {
            agenda
        };
        let kept = match job.is_final() {
            true => self.retention.done,
            false => self.retention.active,
        };
        let since = match job.is_final() {
            true => job.finished_at.unwrap_or(job.updated_at),
            false => job.updated_at,
        };
        let submit = agenda.submit.map(|at| at.millis().to_string());
        let flag = |is: bool| if is { "1" } else { "0" }.to_owned();
        let fields = [
            ("version", job.version.to_string()),
            ("final", flag(job.is_final())),
            ("place", flag(agenda.holds_place)),
            ("submit", submit.clone().unwrap_or_default()),
            ("every", agenda.every.as_millis().to_string()),
            ("patient", flag(agenda.patient)),
            ("deadline", job.deadline_at.millis().to_string()),
            ("updated", job.updated_at.millis().to_string()),
        ];
        Changes {
            fields: fields
                .into_iter()
                .flat_map(|(name, value)| [name.to_owned(), value])
                .collect(),
            watch: agenda.watch.map(|at| at.millis().to_string()),
            submit,
            forget: (since + kept).millis().to_string(),
            ttl: millis(kept + SLACK),
            longest: self.longest(),
            r#final: job.is_final(),
        }
    }

    /// How long what belongs to no one job is kept after its last use.
    pub(super) fn longest(&self) -> String {
        millis(self.retention.done.max(self.retention.active) + SLACK)
    }

    pub(super) async fn read(&self, id: &JobId) -> Result<Option<Arc<Job>>, Error> {
        let key = self.link.keys.of(id.as_str()).job(id);
        let found: Vec<Option<String>> = self
            .link
            .client()
            .hmget(key, vec!["doc", "ticket"])
            .await
            .map_err(|error| away(&error))?;
        match found.as_slice() {
            [Some(doc), Some(ticket)] => job_from(doc, ticket).map(Some),
            _ => Ok(None),
        }
    }

    /// An unreadable job is told to the log and left out, so that it does not hide the others.
    pub(super) async fn read_many(&self, ids: &[JobId]) -> Result<Vec<Arc<Job>>, Error> {
        let reads = ids.iter().map(async |id| match self.read(id).await {
            Err(Error::Corrupt(error)) => {
                tracing::error!(job.id = %id, error, "the store holds something unreadable");
                Ok(None)
            }
            read => read,
        });
        let read = try_join_all(reads).await?;
        Ok(read.into_iter().flatten().collect())
    }
}

/// What became of a try at a commit.
enum Outcome {
    Gone,
    Stale,
    /// Its task is new: it has to be claimed first.
    Unbound,
    Done {
        had_place: bool,
    },
}

/// What is set once in a job's life: names and values in turn.
fn lasting(job: &Job, key: Option<&Name>) -> Vec<String> {
    let whole = Duration::from_millis(10 * 1024);
    let spread = (spread(whole, job.id.as_str()) - whole).as_millis();
    let fields = [
        ("owner", job.owner.clone()),
        ("provider", job.provider.clone().unwrap_or_default()),
        ("task", task_field(job)),
        (
            "key",
            key.map(|name| name.text().to_owned()).unwrap_or_default(),
        ),
        ("spread", spread.to_string()),
    ];
    let pairs = fields.into_iter();
    pairs
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

/// The provider's task, where it is known.
pub(super) fn task_of(job: &Job) -> Option<(&str, &str)> {
    job.provider.as_deref().zip(job.provider_task_id.as_deref())
}

fn task_field(job: &Job) -> String {
    job.provider_task_id.clone().unwrap_or_default()
}

/// Under which name a document's bookings are made once.
pub(super) fn tag(job: &Job) -> String {
    format!("{}:{}", job.id, job.version)
}

/// The job that a hash or a script's answer holds.
pub(super) fn job_from(doc: &str, ticket: &str) -> Result<Arc<Job>, Error> {
    let mut job: Job = from_json(doc)?;
    job.ticket = Arc::new(from_json(ticket)?);
    Ok(Arc::new(job))
}

pub(super) fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt(error.to_string()))
}
