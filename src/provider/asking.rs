//! Asking a provider about its tasks.
//!
//! Invariant: a report goes to the job whose task it is, by the provider's id or by ours, or to none.

use std::sync::Arc;

use serde_json::Value as Json;

use super::expression;
use super::http::Method;
use super::{AskError, Provider};
use crate::job::{Job, JobId, Report};

impl Provider {
    /// How many jobs one [`Provider::ask`] may be about.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.spec.poll.as_ref().map_or(1, |poll| poll.batch.get())
    }

    /// Whether this job can be asked about: by the provider's id, or where there is none yet, by ours.
    #[must_use]
    pub fn can_ask(&self, job: &Job) -> bool {
        self.spec
            .poll
            .as_ref()
            .is_some_and(|poll| job.provider_task_id.is_some() || poll.by_reference)
    }

    /// Asks about jobs, at most [`Provider::batch`] of them, either all with the provider's id or all
    /// without. A job the provider does not know has no report.
    ///
    /// # Errors
    /// [`AskError`] when there was no usable answer.
    pub async fn ask(&self, jobs: &[Arc<Job>]) -> Result<Vec<(JobId, Report)>, AskError> {
        let (Some(poll), Some(first)) = (&self.spec.poll, jobs.first()) else {
            return Ok(Vec::new());
        };
        let tasks: Vec<Json> = jobs
            .iter()
            .filter_map(|job| job.provider_task_id.clone())
            .map(Json::from)
            .collect();
        let references: Vec<Json> = jobs.iter().map(|job| job.id.as_str().into()).collect();
        let mut context = self.context(first);
        context.insert("tasks".to_owned(), tasks.into());
        context.insert("references".to_owned(), references.into());
        let payload = self.call(poll, Method::Get, &context).await?;
        let mut reports = Vec::new();
        for item in expression::items(&poll.items.evaluate(&payload)) {
            let Some(mut told) = self.spec.read.told(&item) else {
                continue;
            };
            let is_its = |job: &&Arc<Job>| match (&job.provider_task_id, &told.task_id) {
                (Some(ours), Some(theirs)) => ours == theirs,
                (None, _) | (_, None) => told.reference.as_deref() == Some(job.id.as_str()),
            };
            let Some(job) = jobs.iter().find(is_its) else {
                continue;
            };
            told.report.task_id = told.task_id.take();
            told.report.conclusive = true;
            reports.push((job.id.clone(), told.report));
        }
        Ok(reports)
    }
}
