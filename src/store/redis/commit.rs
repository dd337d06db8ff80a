//! Commits of a job's next version.
//!
//! The script is the commit. The steps after it remove references that are no longer needed. If one
//! fails, the sweep or the next reader completes it.

use std::sync::Arc;

use fred::types::Value;

use super::RedisStore;
use super::budgets::BudgetOutboxEntry;
use super::jobs::{document_key, millis_of};
use super::outbox::encode_deliveries;
use super::pubsub::message_head;
use super::scripts::{COMMIT_JOB, UPDATE_JOB};
use super::unique_keys::{ClaimOutcome, UniqueKey};
use crate::job::{Job, JobId};
use crate::store::codec::{EncodedJob, decode_job, skip_corrupt, to_json};
use crate::store::{CommitJob, CommitOutcome, Error, RecentJob, Revision, Schedule};
use crate::time::Time;

/// Updates extend the TTL of a job once in this period, which is much shorter than the margin of
/// TTLs.
const TTL_EXTENSION_PERIOD_MILLISECONDS: i64 = 3_600_000;

/// The parameters of one run of the commit script or the update script.
struct CommitAttempt<'a> {
    commit: &'a CommitJob,
    encoded: &'a EncodedJob,
    revision: Revision,
    charges: Option<&'a BudgetOutboxEntry>,
    is_task_claimed: bool,
}

/// The reply of the commit script or the update script.
enum CommitReply {
    Committed {
        /// Whether the job held a slot before. `None` after an update, which changes nothing outside
        /// the partition of the job.
        held_slot: Option<bool>,
    },
    Conflict {
        /// The stored version with its size in bytes, or `None` if it is corrupt.
        current: Option<(RecentJob, usize)>,
    },
    TaskNotClaimed,
    NotFound,
}

impl CommitReply {
    /// Parses a reply. The scripts document its format.
    fn parse(id: &JobId, reply: &[Option<String>]) -> Result<Self, Error> {
        let words: Vec<&str> = reply.iter().map_while(Option::as_deref).collect();
        Ok(match words.as_slice() {
            ["committed"] => Self::Committed { held_slot: None },
            ["committed", held_slot] => Self::Committed {
                held_slot: Some(*held_slot == "1"),
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
        let revision = self.recent.begin(job, &encoded);
        let mut attempt = CommitAttempt {
            commit,
            encoded: &encoded,
            revision,
            charges: charges.as_ref(),
            is_task_claimed: false,
        };
        let mut reply = match self.base_of_update(&attempt) {
            Some((base, schedule)) => self.try_update(&attempt, &base, schedule).await?,
            None => self.try_commit(&attempt).await?,
        };
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
                if let Some(held_slot) = held_slot {
                    self.apply_side_effects(job, &encoded, held_slot, charges.as_ref())
                        .await;
                }
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

    /// Returns the version that a commit replaces, with its schedule, if the update script can
    /// store the commit. The commit must change only the document, the internal state and the next
    /// poll, and extend no TTL.
    fn base_of_update(&self, attempt: &CommitAttempt<'_>) -> Option<(Arc<Job>, Schedule)> {
        let (job, encoded) = (&attempt.commit.job, attempt.encoded);
        let revision = attempt.commit.expected_revision?;
        let (base, schedule) = self.recent.stored_by_this_node(&job.id, revision)?;
        let without_poll = |schedule: Schedule| Schedule {
            poll_at: None,
            ..schedule
        };
        let period = |time: Time| time.millis().div_euclid(TTL_EXTENSION_PERIOD_MILLISECONDS);
        let extends_ttl = period(job.updated_at) != period(base.updated_at);
        let is_update = encoded.finished_at.is_none()
            && attempt.charges.is_none()
            && attempt.commit.deliveries.is_empty()
            && !extends_ttl
            && encoded.schedule.submit_at.is_none()
            && encoded.schedule.poll_at.is_some()
            && without_poll(encoded.schedule) == without_poll(schedule)
            && job.deadline_at == base.deadline_at
            && job.provider_task_id == base.provider_task_id;
        is_update.then_some((base, schedule))
    }

    /// Runs the update script.
    async fn try_update(
        &self,
        attempt: &CommitAttempt<'_>,
        base: &Job,
        base_schedule: Schedule,
    ) -> Result<CommitReply, Error> {
        let (commit, job, encoded) = (attempt.commit, &attempt.commit.job, attempt.encoded);
        let partition = self.partition_for(job.id.as_str());
        let keys = vec![
            partition.job(&job.id),
            partition.poll_queue(),
            partition.channel(&job.id),
            partition.owner_channel(&job.owner),
        ];
        let poll_at = encoded.schedule.poll_at;
        let poll_at = poll_at.filter(|_| poll_at != base_schedule.poll_at);
        let expected_revision = commit.expected_revision.map(|it| it.to_string());
        let mut args: Vec<Value> = vec![
            Value::from_static_str(self.connections.publish_command),
            job.id.as_str().into(),
            message_head(attempt.revision, &job.id).into(),
            expected_revision.unwrap_or_default().into(),
            poll_at.map(millis_of).unwrap_or_default().into(),
            self.shared_key_ttl().into(),
        ];
        let mut set = |name, value| args.extend([Value::from_static_str(name), value]);
        set("document", encoded.document.as_str().into());
        set("revision", attempt.revision.to_string().into());
        set("version", job.version.to_string().into());
        set("updated_at", millis_of(job.updated_at).into());
        if !Arc::ptr_eq(&job.internal, &base.internal) {
            set("internal", encoded.internal.as_str().into());
        }
        let reply: Vec<Option<String>> = self.connections.run(&UPDATE_JOB, keys, args).await?;
        CommitReply::parse(&job.id, &reply)
    }

    /// Runs the commit script, which can store any commit.
    async fn try_commit(&self, attempt: &CommitAttempt<'_>) -> Result<CommitReply, Error> {
        let (commit, job) = (attempt.commit, &attempt.commit.job);
        let charges_field = attempt.charges.map(|_| document_key(job));
        let encoded_charges = attempt.charges.map(to_json).transpose()?;
        let expected_revision = commit.expected_revision.map(|it| it.to_string());
        let task = job.provider_task_id.clone().unwrap_or_default();
        let arguments = [
            commit.expected_version.to_string().into(),
            expected_revision.unwrap_or_default().into(),
            task.clone().into(),
            Value::from_static_str(if attempt.is_task_claimed { "1" } else { "" }),
            encode_deliveries(job, &commit.deliveries)?.into(),
            self.outbox_ttl().into(),
            charges_field.unwrap_or_default().into(),
            encoded_charges.unwrap_or_default().into(),
        ];
        let (encoded, revision) = (attempt.encoded, attempt.revision);
        let (mut keys, args) = self.job_script(job, encoded, revision, arguments, [("task", task)]);
        keys.extend(self.outbox_keys(job, &commit.deliveries));
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
