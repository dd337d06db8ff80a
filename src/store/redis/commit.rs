//! Commits of a job's next version.
//!
//! The script is the commit. The steps after it remove references that are no longer needed. If one
//! fails, the sweep or the next reader completes it.

use super::RedisStore;
use super::jobs::{document_key, task_field};
use super::scripts::COMMIT_JOB;
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::store::codec::{EncodedJob, schedule_of, to_json};
use crate::store::{CommitJob, CommitOutcome, Error};

/// Result of the commit script.
enum Outcome {
    Committed {
        held_slot: bool,
    },
    Conflict,
    NotFound,
    /// The commit binds a task, which must be claimed first.
    TaskNotClaimed,
}

impl RedisStore {
    pub(super) async fn commit_job(&self, commit: &CommitJob) -> Result<CommitOutcome, Error> {
        let job = &commit.job;
        let mut claimed_task = None;
        let mut outcome = self.try_commit(commit, claimed_task.as_ref()).await?;
        if let Outcome::TaskNotClaimed = outcome
            && let Some(task) = UniqueKey::task_of(job)
        {
            match self.claim(&task, job, "", &commit.applied_buffered).await? {
                ClaimOutcome::Acquired => claimed_task = Some(task),
                ClaimOutcome::HeldBy { .. } | ClaimOutcome::UpdatesMissed => {
                    return Ok(CommitOutcome::Conflict);
                }
            }
            // After an error the outcome is unknown, so the claim is kept. It expires unless the job
            // was bound to the task.
            outcome = self.try_commit(commit, claimed_task.as_ref()).await?;
        }
        let outcome = match outcome {
            Outcome::Committed { held_slot } => {
                if let Some(task) = &claimed_task {
                    self.delete_buffered(task).await;
                }
                self.apply_side_effects(commit, held_slot).await;
                return Ok(CommitOutcome::Committed);
            }
            Outcome::Conflict | Outcome::TaskNotClaimed => CommitOutcome::Conflict,
            Outcome::NotFound => CommitOutcome::NotFound,
        };
        if let Some(task) = &claimed_task {
            self.release_key(task, &job.id).await;
        }
        Ok(outcome)
    }

    async fn try_commit(
        &self,
        commit: &CommitJob,
        claimed_task: Option<&UniqueKey>,
    ) -> Result<Outcome, Error> {
        let job = &commit.job;
        let (outbox_field, outbox_entry) = if commit.budget_entries.is_empty() {
            (String::new(), String::new())
        } else {
            let entry = Self::outbox_entry(&commit.budget_entries, job);
            (document_key(job), to_json(&entry)?)
        };
        let EncodedJob { document, internal } = EncodedJob::new(job)?;
        let is_task_claimed = if claimed_task.is_some() { "1" } else { "" };
        let args = vec![
            self.connections.publish_command().into(),
            job.id.as_str().into(),
            document.into(),
            internal.into(),
            to_json(&self.commit_fields(job, commit.schedule))?.into(),
            commit.expected_version.to_string().into(),
            task_field(job).into(),
            is_task_claimed.into(),
            outbox_field.into(),
            outbox_entry.into(),
        ];
        let outcome: Vec<String> = self
            .connections
            .run_script_replicated(&COMMIT_JOB, self.job_keys(job), args)
            .await?;
        Ok(match outcome.first().map(String::as_str) {
            Some("not_found") => Outcome::NotFound,
            Some("conflict") => Outcome::Conflict,
            Some("task_not_claimed") => Outcome::TaskNotClaimed,
            _ => Outcome::Committed {
                held_slot: outcome.get(1).is_some_and(|held| held == "1"),
            },
        })
    }

    /// Updates slots, indexes and budget windows after a commit.
    async fn apply_side_effects(&self, commit: &CommitJob, held_slot: bool) {
        let job = &commit.job;
        let holds_slot = schedule_of(job, commit.schedule).holds_slot;
        let slot = async {
            match (held_slot, holds_slot) {
                (true, false) => self.release_slot_of(job).await,
                (false, true) => self.record_slot(job).await,
                (true, true) | (false, false) => Ok(()),
            }
        };
        let (slot, index, budgets) = tokio::join!(
            slot,
            self.remove_from_active_index(job),
            self.apply_outbox_entry(job, &commit.budget_entries)
        );
        for error in [slot, index, budgets].into_iter().filter_map(Result::err) {
            tracing::debug!(
                job.id = %job.id,
                %error,
                "post-commit step failed; will be completed by sweep"
            );
        }
    }
}
