//! Submitting: a paid request, and what its answer means.
//!
//! Invariant: a request is sent at most once a call, and an answer that may have been an acceptance
//! is never told as a refusal.

use minijinja::Value;
use serde_json::Value as Json;
use url::Url;

use crate::job::{Job, StatusReport};
use crate::provider::client::http::{Method, SendError};
use crate::provider::{Provider, Rejection, TaskReport, UnknownOutcome};

/// How a try at submitting ended.
#[derive(Clone, Debug)]
pub enum SubmitOutcome {
    /// The provider has the job, under the report's `task_id`.
    Accepted(Box<StatusReport>),
    /// It does not have the job, for sure.
    Rejected(Rejection),
    /// It may or may not have the job.
    Unknown(UnknownOutcome),
}

impl Provider {
    /// Sends a job; whoever calls has leave to.
    pub(in crate::provider) async fn send(
        &self,
        job: &Job,
        callback_url: Option<&Url>,
    ) -> SubmitOutcome {
        let (Some(call), Some(_)) = (&self.spec.submit, &job.internal.request) else {
            return SubmitOutcome::Rejected(Rejection::unsupported(
                "this provider takes no submissions from the hub",
            ));
        };
        let mut context = self.context(job);
        context.insert(
            "callback_url".to_owned(),
            callback_url.map_or(Json::Null, |url| url.as_str().into()),
        );
        let request = match self.request(call, Method::Post, &context) {
            Ok(request) => request,
            Err(problem) => return SubmitOutcome::Rejected(Rejection::unsupported(problem)),
        };
        let answer = match self.http.send_once(request).await {
            Ok(answer) => answer,
            Err(SendError::NotSent(why)) => {
                return SubmitOutcome::Rejected(Rejection::technical(why));
            }
            Err(SendError::OutcomeUnknown(why)) => {
                return SubmitOutcome::Unknown(UnknownOutcome(why));
            }
        };
        let payload = answer.json();
        if let Some(refused) = self.rejection(&answer, &payload) {
            return match refused.is_definitive {
                true => SubmitOutcome::Rejected(refused),
                false => SubmitOutcome::Unknown(UnknownOutcome(refused.failure.message)),
            };
        }
        let item = call.items.evaluate(&payload);
        match self.spec.read.read(&item) {
            Some(TaskReport {
                mut report,
                task_id: Some(task_id),
                ..
            }) => {
                report.task_id = Some(task_id);
                report.status = report.status.filter(|status| !status.is_final());
                report.status.get_or_insert(crate::job::Status::Queued);
                let names = minijinja::context! { payload, ..Value::from_serialize(&context) };
                let handle = call.handle.as_ref().map(|it| it.evaluate_in(&names));
                report.handle = handle
                    .and_then(|handle| serde_json::to_value(handle).ok())
                    .unwrap_or_default();
                SubmitOutcome::Accepted(Box::new(report))
            }
            Some(_) | None => SubmitOutcome::Unknown(UnknownOutcome(
                "the answer to the submission names no task".to_owned(),
            )),
        }
    }
}
