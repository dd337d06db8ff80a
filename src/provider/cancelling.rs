//! Asking a provider to cancel a task.
//!
//! Invariant: an agreement is not yet an end; only what is read of the task is.

use super::http::Method;
use super::{AskError, Provider, Refused};
use crate::job::Job;

impl Provider {
    /// Asks the provider to cancel a job.
    ///
    /// # Errors
    /// [`AskError`] when it did not agree.
    pub async fn cancel(&self, job: &Job) -> Result<(), AskError> {
        let Some(call) = &self.spec.cancel else {
            return Err(AskError::Refused(Refused::unsupported(
                "this provider can't cancel",
            )));
        };
        let context = self.context(job);
        self.call(call, Method::Post, &context).await.map(|_| ())
    }
}
