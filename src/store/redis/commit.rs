//! Commits of a job's next version.
//!
//! The script is the commit. The steps after it remove references that are no longer needed. If one
//! fails, the sweep or the next reader completes it.

use super::RedisStore;
use super::budgets::BudgetOutboxEntry;
use super::jobs::document_key;
use super::scripts::COMMIT_JOB;
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::job::Job;
use crate::store::codec::{EncodedJob, to_json};
use crate::store::{CommitJob, CommitOutcome, Error};

impl RedisStore {
    pub(super) async fn commit_job(&self, commit: &CommitJob) -> Result<CommitOutcome, Error> {
        let job = &commit.job;
        let encoded = EncodedJob::new(job, commit.schedule)?;
        let charges = (!commit.budget_entries.is_empty())
            .then(|| BudgetOutboxEntry::new(&commit.budget_entries, job));
        let mut claimed_task = None;
        let (mut reply, mut held_slot) = self
            .try_commit(commit, &encoded, charges.as_ref(), false)
            .await?;
        if reply == "task_not_claimed"
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
            (reply, held_slot) = self
                .try_commit(commit, &encoded, charges.as_ref(), true)
                .await?;
        }
        let outcome = match reply.as_str() {
            "committed" => CommitOutcome::Committed,
            "not_found" => CommitOutcome::NotFound,
            _ => CommitOutcome::Conflict,
        };
        if outcome == CommitOutcome::Committed {
            self.apply_side_effects(job, &encoded, held_slot, charges.as_ref())
                .await;
        }
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

    /// Runs the commit script. Returns the outcome as documented there, and whether the job held a
    /// slot before.
    async fn try_commit(
        &self,
        commit: &CommitJob,
        encoded: &EncodedJob,
        charges: Option<&BudgetOutboxEntry>,
        is_task_claimed: bool,
    ) -> Result<(String, bool), Error> {
        let job = &commit.job;
        let outbox_field = charges.map(|_| document_key(job));
        let outbox_entry = charges.map(to_json).transpose()?;
        let (keys, mut args) = self.job_script(job, encoded, Vec::new());
        args.extend([
            commit.expected_version.to_string().into(),
            job.provider_task_id.clone().unwrap_or_default().into(),
            if is_task_claimed { "1" } else { "" }.into(),
            outbox_field.unwrap_or_default().into(),
            outbox_entry.unwrap_or_default().into(),
        ]);
        let reply: Vec<String> = self.connections.run(&COMMIT_JOB, keys, args).await?;
        let mut reply = reply.into_iter();
        let outcome = reply.next().unwrap_or_default();
        Ok((outcome, reply.next().is_some_and(|held| held == "1")))
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
