//! Asking a provider about its tasks.
//!
//! Invariant: a report goes to the job whose task it is, by the provider's id or by ours, or to none.

use std::sync::Arc;

use minijinja::Value;
use serde_json::Value as Json;

use crate::job::{FailureKind, Job, JobId, Status, StatusReport};
use crate::provider::client::http::Method;
use crate::provider::spec::expression;
use crate::provider::{Provider, RequestError};

impl Provider {
    /// How many jobs one [`Provider::ask`] may be about.
    #[must_use]
    pub fn max_query_batch(&self) -> usize {
        self.spec.poll.as_ref().map_or(1, |poll| poll.batch.get())
    }

    /// Whether this job can be asked about: by the provider's id, or where there is none yet, by ours.
    #[must_use]
    pub fn can_query(&self, job: &Job) -> bool {
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
    pub async fn query(
        &self,
        jobs: &[Arc<Job>],
    ) -> Result<Vec<(JobId, StatusReport)>, RequestError> {
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
            let Some(told) = self.spec.read.read(&item) else {
                continue;
            };
            let Some(job) = jobs.iter().find(|job| told.matches_job(job)) else {
                continue;
            };
            let mut report = match self.fetch_result(job, &item, told.report).await {
                Ok(report) => report,
                Err(error) => {
                    tracing::warn!(provider.name = self.name, job.id = %job.id, %error, "can't read a result");
                    continue;
                }
            };
            report.task_id = told.task_id;
            report.is_authoritative = true;
            reports.push((job.id.clone(), report));
        }
        Ok(reports)
    }

    /// What a task has brought, where it has succeeded and does not tell itself. A refusal that is
    /// about the task is its failure; one that says it is gone leaves it without outputs.
    async fn fetch_result(
        &self,
        job: &Job,
        task: &Value,
        report: StatusReport,
    ) -> Result<StatusReport, RequestError> {
        let brings_nothing = report.status == Some(Status::Succeeded) && report.outputs.is_empty();
        let Some(call) = self.spec.result.as_ref().filter(|_| brings_nothing) else {
            return Ok(report);
        };
        let mut context = self.context(job);
        let as_json = serde_json::to_value(task).unwrap_or_default();
        context.insert("task".to_owned(), as_json);
        if !call.applies_to(&Value::from_serialize(&context)) {
            return Ok(report);
        }
        match self.call(call, Method::Get, &context).await {
            Ok(payload) => {
                let names = minijinja::context! { payload, task };
                let item = call.items.evaluate_in(&names);
                let told = self.spec.read.read(&item);
                told.map(|told| told.report).ok_or_else(|| {
                    RequestError::InvalidSpec("result.item: names no task".to_owned())
                })
            }
            Err(RequestError::Rejected(refused)) if refused.is_task_not_found() => Ok(report),
            Err(RequestError::Rejected(refused)) if refused.is_definitive => {
                match refused.failure.kind {
                    FailureKind::Safety | FailureKind::InvalidInput | FailureKind::Timeout => {
                        Ok(StatusReport::failed(refused.failure))
                    }
                    // With an error's status and a code of its own it speaks of the task.
                    FailureKind::Technical
                        if refused.failure.provider_code.is_some()
                            && refused.http_status.is_some_and(|status| status >= 400) =>
                    {
                        Ok(StatusReport::failed(refused.failure))
                    }
                    FailureKind::Quota
                    | FailureKind::RateLimit
                    | FailureKind::Auth
                    | FailureKind::Technical
                    | FailureKind::SubmissionUnknown
                    | FailureKind::ResultExpired => Err(RequestError::Rejected(refused)),
                }
            }
            Err(error) => Err(error),
        }
    }
}
