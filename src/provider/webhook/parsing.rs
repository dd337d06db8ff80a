//! Parses verified webhooks into task reports.

use minijinja::Value;
use progress_hub_auth::signature::{Headers, Trust, Verified};
use serde_json::Value as Json;

use crate::provider::spec::Spec;
use crate::provider::spec::task_mapping::TaskReport;

/// Maximum number of polls that one untrusted webhook can trigger. The watchdog polls the other
/// jobs when they are due.
const MAX_UNTRUSTED_TASKS: usize = 100;

/// Content of a webhook.
#[derive(Debug)]
pub enum WebhookContent {
    /// Reports about one or more tasks.
    Tasks(Vec<TaskReport>),
    /// A challenge that must be answered with this JSON.
    Challenge(Json),
}

/// The body is not a webhook of this provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The body is not JSON.
    #[error("payload is not JSON")]
    NotJson,
    /// No task has an id or a reference.
    #[error("payload has no task id")]
    NoTask,
    /// No task has a status.
    #[error("payload has no status")]
    NoStatus,
}

/// Parses a webhook. Skips tasks without an id or a status if there are others.
///
/// # Errors
/// Returns [`PayloadError`] if the body is not a webhook of this provider.
pub(crate) fn parse(
    spec: &Spec,
    verified: &Verified<'_>,
    headers: &dyn Headers,
) -> Result<WebhookContent, PayloadError> {
    let payload: Json =
        serde_json::from_slice(verified.body()).map_err(|_| PayloadError::NotJson)?;
    let payload = Value::from_serialize(&payload);
    if let Some(response) = spec.webhook.challenge_response(&payload, headers) {
        return Ok(WebhookContent::Challenge(response));
    }
    let can_poll = spec.poll.is_some();
    let is_trusted = match verified.trust() {
        Trust::Signed => true,
        // The signature does not cover the body, so a poll is preferred if the provider allows it.
        Trust::SenderOnly => !can_poll,
        Trust::Unsigned => false,
    };
    let max_tasks = if is_trusted {
        usize::MAX
    } else {
        MAX_UNTRUSTED_TASKS
    };
    let tasks = spec.webhook.tasks(&payload, headers);
    let mut tasks = tasks
        .iter()
        .take(max_tasks)
        .filter_map(|task| spec.read_task(task))
        .peekable();
    if tasks.peek().is_none() {
        return Err(PayloadError::NoTask);
    }
    let mut reports: Vec<TaskReport> = tasks.filter(|task| task.has_status).collect();
    if reports.is_empty() {
        return Err(PayloadError::NoStatus);
    }
    for task in &mut reports {
        task.report.is_authoritative = !can_poll;
        task.is_trusted = is_trusted;
        task.is_sender_verified = verified.is_sender_known();
    }
    Ok(WebhookContent::Tasks(reports))
}
