//! Commits of a job's next version.
//!
//! The script is the commit. The steps after it remove references that are no longer needed. If one
//! fails, the sweep or the next reader completes it.

use fred::types::Value;

use super::RedisStore;
use super::budgets::BudgetOutboxEntry;
use super::jobs::document_key;
use super::scripts::COMMIT_JOB;
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::job::{Job, JobId};
use crate::store::codec::{EncodedJob, decode_job, skip_corrupt, to_json};
use crate::store::{CommitJob, CommitOutcome, Error, RecentJob, Revision};

/// One run of the commit script.
struct CommitAttempt<'a> {
    commit: &'a CommitJob,
    encoded: &'a EncodedJob,
    revision: Revision,
    charges: Option<&'a BudgetOutboxEntry>,
    is_task_claimed: bool,
}

/// The outcome of the commit script.
enum CommitReply {
    Committed {
        /// Whether the job held a slot before.
        held_slot: bool,
    },
    Conflict {
        /// The stored version with its size, unless it is corrupt.
        current: Option<(RecentJob, usize)>,
    },
    TaskNotClaimed,
    NotFound,
}

impl CommitReply {
    /// Parses the reply as documented in the script.
    fn parse(id: &JobId, reply: &[Option<String>]) -> Result<Self, Error> {
        let words: Vec<&str> = reply.iter().map_while(Option::as_deref).collect();
        Ok(match words.as_slice() {
            ["committed", held_slot] => Self::Committed {
                held_slot: *held_slot == "1",
            },
            ["not_found"] => Self::NotFound,
            ["task_not_claimed"] => Self::TaskNotClaimed,
            ["conflict", revision, document, internal] => {
                let job = skip_corrupt(decode_job(document, internal), id.as_str())?;
                let revision = Revision::parse(revision);
                let bytes = document.len() + internal.len();
                let current = job
                    .zip(revision)
                    .map(|(job, revision)| (RecentJob { job, revision }, bytes));
                Self::Conflict { current }
            }
            _ => Self::Conflict { current: None },
        })
    }
}

impl RedisStore {
    pub(super) async fn commit_job(&self, commit: &CommitJob) -> Result<CommitOutcome, Error> {
        let job = &commit.job;
        let encoded = EncodedJob::new(job, commit.schedule)?;
        let charges = (!commit.budget_entries.is_empty())
            .then(|| BudgetOutboxEntry::new(&commit.budget_entries, job));
        let revision = self.recent.begin(job, encoded.size());
        let mut attempt = CommitAttempt {
            commit,
            encoded: &encoded,
            revision,
            charges: charges.as_ref(),
            is_task_claimed: false,
        };
        let mut reply = self.try_commit(&attempt).await?;
        let mut claimed_task = None;
        if matches!(reply, CommitReply::TaskNotClaimed)
            && let Some(task) = UniqueKey::task_of(job)
        {
            match self.claim(&task, job, "", &commit.applied_buffered).await? {
                ClaimOutcome::Acquired => claimed_task = Some(task),
                ClaimOutcome::HeldBy(_) | ClaimOutcome::UpdatesMissed => {
                    return Ok(CommitOutcome::Conflict);
                }
            }
            // After an error the outcome is unknown, so the claim is kept. It expires unless the job
            // was bound to the task.
            attempt.is_task_claimed = true;
            reply = self.try_commit(&attempt).await?;
        }
        let outcome = match reply {
            CommitReply::Committed { held_slot } => {
                self.recent.confirm(job, revision);
                self.apply_side_effects(job, &encoded, held_slot, charges.as_ref())
                    .await;
                CommitOutcome::Committed
            }
            CommitReply::Conflict { current } => {
                self.recent
                    .correct(&job.id, commit.expected_revision, current);
                CommitOutcome::Conflict
            }
            CommitReply::NotFound => {
                self.recent.forget(&job.id);
                CommitOutcome::NotFound
            }
            CommitReply::TaskNotClaimed => CommitOutcome::Conflict,
        };
        if let Some(task) = &claimed_task {
            match outcome {
                CommitOutcome::Committed => self.delete_buffered(task).await,
                CommitOutcome::Conflict | CommitOutcome::NotFound => {
                    self.release_key(task, job.id.as_str()).await;
                }
            }
        }
        Ok(outcome)
    }

    async fn try_commit(&self, attempt: &CommitAttempt<'_>) -> Result<CommitReply, Error> {
        let (commit, job) = (attempt.commit, &attempt.commit.job);
        let outbox_field = attempt.charges.map(|_| document_key(job));
        let outbox_entry = attempt.charges.map(to_json).transpose()?;
        let expected_revision = commit.expected_revision.map(|it| it.to_string());
        let task = job.provider_task_id.clone().unwrap_or_default();
        let arguments = [
            commit.expected_version.to_string().into(),
            expected_revision.unwrap_or_default().into(),
            task.clone().into(),
            Value::from_static_str(if attempt.is_task_claimed { "1" } else { "" }),
            outbox_field.unwrap_or_default().into(),
            outbox_entry.unwrap_or_default().into(),
        ];
        let (encoded, revision) = (attempt.encoded, attempt.revision);
        let (keys, args) = self.job_script(job, encoded, revision, arguments, [("task", task)]);
        let reply: Vec<Option<String>> = self.connections.run(&COMMIT_JOB, keys, args).await?;
        CommitReply::parse(&job.id, &reply)
    }

    /// Updates slots, indexes and budget windows after a commit.
    async fn apply_side_effects(
        &self,
        job: &Job,
        encoded: &EncodedJob,
        held_slot: bool,
        charges: Option<&BudgetOutboxEntry>,
    ) {
        let slot = async {
            match (held_slot, encoded.schedule.holds_slot) {
                (true, false) => {
                    let provider = job.provider.as_deref();
                    self.release_slot(provider, job.id.as_str()).await
                }
                (false, true) => self.record_slot(job).await,
                (true, true) | (false, false) => Ok(()),
            }
        };
        let budgets = async {
            match charges {
                Some(charges) => self.apply_charges(charges).await,
                None => Ok(()),
            }
        };
        let index = self.remove_from_active_index(job);
        let (slot, index, budgets) = tokio::join!(slot, index, budgets);
        for error in [slot, index, budgets].into_iter().filter_map(Result::err) {
            tracing::debug!(
                job.id = %job.id,
                %error,
                "post-commit step failed; will be completed by sweep"
            );
        }
    }
}
