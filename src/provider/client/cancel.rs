//! Asking a provider to cancel a task.
//!
//! Invariant: an agreement is not yet an end; only what is said of the task is, in the answer itself
//! where the spec finds it there, or when it is read afterwards.

use minijinja::{Value, context};

use crate::job::{Job, StatusReport};
use crate::provider::client::http::Method;
use crate::provider::{Provider, Rejection, RequestError, TaskReport};

impl Provider {
    /// Whether this job can be cancelled there.
    #[must_use]
    pub fn can_cancel(&self, job: &Job) -> bool {
        let context = || Value::from_serialize(self.context(job));
        let call = self.spec.cancel.as_ref();
        call.is_some_and(|call| call.applies_to(&context()))
    }

    /// Asks the provider to cancel a job. Some answer with the task as it is then: this is the report,
    /// where it is about this job and tells its end.
    ///
    /// # Errors
    /// [`AskError`] when it did not agree.
    pub async fn cancel(&self, job: &Job) -> Result<Option<StatusReport>, RequestError> {
        let Some(call) = &self.spec.cancel else {
            return Err(RequestError::Rejected(Rejection::unsupported(
                "this provider can't cancel",
            )));
        };
        let context = self.context(job);
        let (http, payload) = self.send_checked(call, Method::Post, &context).await?;
        let task_id = job.provider_task_id.as_deref();
        let item = call.items.evaluate_in(&context! { payload, http, task_id });
        Ok(self
            .spec
            .read
            .read(&item)
            .and_then(|told| final_report(job, told)))
    }
}

fn final_report(job: &Job, told: TaskReport) -> Option<StatusReport> {
    let is_over = told.report.status.is_some_and(|status| status.is_final());
    (told.matches_job(job) && is_over).then_some(StatusReport {
        task_id: told.task_id,
        ..told.report
    })
}
