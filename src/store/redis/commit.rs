//! Committing a job's next document.
//!
//! Invariant: the script is the commit; what follows from it only tidies up, and whatever of that is
//! not done is found by those who look.

use super::RedisStore;
use super::jobs::{document_key, task_field, task_of, to_json};
use super::keys::task_name;
use super::scripts::COMMIT_JOB;
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::store::{CommitJob, CommitOutcome, Error};

impl RedisStore {
    pub(super) async fn commit_job(&self, commit: &CommitJob) -> Result<CommitOutcome, Error> {
        let job = &commit.job;
        let mut task = None;
        loop {
            let outcome = self.try_commit(commit, task.is_some()).await;
            match outcome {
                Ok(Outcome::TaskNotClaimed) => {
                    let Some((provider, task_id)) = task_of(job) else {
                        return Ok(CommitOutcome::Conflict);
                    };
                    let name = UniqueKey::task(&task_name(provider, task_id));
                    match self.claim(name, job, "", &commit.folded).await? {
                        ClaimOutcome::Acquired(name) => task = name,
                        ClaimOutcome::HeldBy { .. } | ClaimOutcome::UpdatesMissed => {
                            return Ok(CommitOutcome::Conflict);
                        }
                    }
                }
                Ok(Outcome::Done { had_place }) => {
                    self.delete_buffered_updates(task.as_ref()).await;
                    self.apply_side_effects(commit, had_place).await?;
                    return Ok(CommitOutcome::Committed);
                }
                Ok(Outcome::Stale) => {
                    self.release_key(task, &job.id).await;
                    return Ok(CommitOutcome::Conflict);
                }
                Ok(Outcome::Gone) => {
                    self.release_key(task, &job.id).await;
                    return Ok(CommitOutcome::NotFound);
                }
                // Whether it was done is not known, so the task stays claimed; should the job not
                // have it after all, the claim is void before long.
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_commit(&self, commit: &CommitJob, is_claimed: bool) -> Result<Outcome, Error> {
        let job = &commit.job;
        let part = self.link.keys.partition_for(job.id.as_str());
        let [hash, watch, submit, ends, _, open, owed_key, channel, owner] =
            self.keys_of(part, job);
        let (owed, sums) = match commit.entries.is_empty() {
            true => (String::new(), String::new()),
            false => (
                document_key(job),
                to_json(&Self::outbox_entry(&commit.entries, job))?,
            ),
        };
        let answer: Vec<String> = self
            .link
            .run_script_replicated(
                &COMMIT_JOB,
                vec![hash, watch, submit, ends, open, owed_key, channel, owner],
                vec![
                    self.link.publish().into(),
                    job.id.as_str().into(),
                    to_json(&**job)?.into(),
                    to_json(&*job.internal)?.into(),
                    to_json(&self.changes(job, commit.agenda))?.into(),
                    commit.expected_version.to_string().into(),
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
            Some("unbound") => Outcome::TaskNotClaimed,
            _ => Outcome::Done {
                had_place: answer.get(1).is_some_and(|had| had == "1"),
            },
        })
    }

    /// What only points at the job. Should it not come to it, whoever follows it looks at the job.
    async fn apply_side_effects(&self, commit: &CommitJob, had_place: bool) -> Result<(), Error> {
        let job = &commit.job;
        let has_place = commit.agenda.holds_slot && !job.is_final();
        let places = async {
            match (had_place, has_place) {
                (true, false) => self.release_slot(job).await,
                (false, true) => self.record_slot(job).await,
                (true, true) | (false, false) => Ok(()),
            }
        };
        let (placed, closed, booked) = tokio::join!(
            places,
            self.remove_from_active_index(job),
            self.apply_outbox_entry(job, &commit.entries)
        );
        for error in [placed, closed, booked].into_iter().filter_map(Result::err) {
            tracing::debug!(job.id = %job.id, %error, "what follows from a commit is left to a sweep");
        }
        Ok(())
    }
}

/// What became of a try at a commit.
enum Outcome {
    Gone,
    Stale,
    /// Its task is new: it has to be claimed first.
    TaskNotClaimed,
    Done {
        had_place: bool,
    },
}
