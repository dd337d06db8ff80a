//! Runway (runwayml 5.24.0; docs.dev.runwayml.com: errors, task failures, usage tiers).
//!
//! There are no webhooks. Every request names the API version. `DELETE` cancels a running task and deletes a finished
//! one.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Dialect, queueing, rfc3339, single, without_nulls};
use crate::api_error::ApiError;
use crate::call::{ApiResponse, Call, Cancelled, Name, RequestHead};
use crate::plan::{Failure, Plan};
use crate::scenario::Scenario;
use crate::signing::SigningKeys;
use crate::submit_request::{SubmitRequest, object, text};
use crate::task::{Product, Status, Task};
use crate::webhook::Message;

const VERSION: &str = "2024-11-06";
/// Cost of a task in credits.
const CREDITS: u16 = 25;

pub(super) struct Runway;

impl Dialect for Runway {
    fn name(&self) -> &'static str {
        "runway"
    }

    fn call(&self, head: &RequestHead) -> Option<Call> {
        match (head.method, head.path.as_slice()) {
            ("POST", ["v1", "image_to_video" | "text_to_video"]) => Some(Call::Submit),
            ("GET", ["v1", "tasks", id]) => Some(Call::Query(vec![Name::Task((*id).to_owned())])),
            ("DELETE", ["v1", "tasks", id]) => Some(Call::Cancel((*id).to_owned())),
            ("GET", ["v1", "organization"]) => Some(Call::Account),
            _ => None,
        }
    }

    fn check(&self, head: &RequestHead) -> Result<(), ApiError> {
        let version = head.headers.get("x-runway-version");
        if version.is_none_or(|version| version != VERSION) {
            let why = format!("X-Runway-Version must be {VERSION}");
            return Err(ApiError::Malformed(why));
        }
        Ok(())
    }

    fn submit(&self, head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError> {
        let body = object(body)?;
        let model = text(&body, "model")?;
        let product = match head.path.as_slice() {
            ["v1", "image_to_video"] => {
                text(&body, "promptImage")?;
                Product::ImageToVideo
            }
            _ => {
                text(&body, "promptText")?;
                Product::TextToVideo
            }
        };
        Ok(SubmitRequest {
            product,
            ..SubmitRequest::new(model, &body)?
        })
    }

    /// Scenarios with webhooks cannot be played. Prompts are declined after acceptance, not at submission.
    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        match scenario {
            Scenario::DuplicateWebhooks
            | Scenario::ReorderedWebhooks
            | Scenario::LateWebhooks
            | Scenario::LostWebhooks
            | Scenario::WebhookBeforeAnswer
            | Scenario::ThinSuccess
            | Scenario::Unsigned
            | Scenario::Forged => Err("it sends no webhooks"),
            Scenario::Safety => Err("it declines no prompt at submit"),
            Scenario::Normal
            | Scenario::Slow
            | Scenario::RateLimited
            | Scenario::ConcurrencyLimited
            | Scenario::ServerErrors
            | Scenario::LostAnswer
            | Scenario::LostAnswerSilent
            | Scenario::FailsAtEnd
            | Scenario::SafetyAtEnd
            | Scenario::ExpiredResult
            | Scenario::Quota
            | Scenario::BadKey
            | Scenario::CancelledLate
            | Scenario::Silence => Ok(queueing(scenario)),
        }
    }

    fn id(&self, _number: u64) -> String {
        Uuid::now_v7().to_string()
    }

    fn accepted(&self, task: &Task) -> ApiResponse {
        ApiResponse::ok(json!({"id": task.id, "estimatedCost": {"credits": CREDITS}}))
    }

    fn queried(&self, _head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError> {
        let task = single(tasks)?;
        let mut body = json!({"id": task.id, "createdAt": rfc3339(task.created_ms)});
        body["status"] = json!(match task.status {
            // Throttled: the account runs too many tasks.
            Status::Submitted if task.ahead > 0 => "THROTTLED",
            Status::Submitted => "PENDING",
            Status::Processing => "RUNNING",
            Status::Succeeded => "SUCCEEDED",
            Status::Failed => "FAILED",
            Status::Cancelled => "CANCELLED",
        });
        let charged = match (task.status, task.failure) {
            (_, Some(Failure::Rendering)) => 0,
            (Status::Cancelled, _) if task.started_ms.is_none() => 0,
            _ => CREDITS,
        };
        if task.status.is_final() {
            body["cost"] = json!({ "credits": charged });
        } else {
            body["estimatedCost"] = json!({"credits": CREDITS});
        }
        let percent = task.progress();
        body["progress"] = json!(percent.map(|percent| f64::from(percent) / 100.0));
        body["failure"] = json!(task.failure.map(message));
        body["failureCode"] = json!(task.failure.map(code));
        body["output"] = match task.status {
            Status::Succeeded if task.has_outputs => json!([task.clip()]),
            Status::Succeeded => json!([]),
            Status::Submitted | Status::Processing | Status::Failed | Status::Cancelled => {
                Value::Null
            }
        };
        Ok(ApiResponse::ok(without_nulls(body)))
    }

    fn cancelled(&self, outcome: &Cancelled) -> Result<ApiResponse, ApiError> {
        match outcome {
            Cancelled::Agreed(_) | Cancelled::Ended => Ok(ApiResponse::empty(204)),
            Cancelled::Unknown => Err(ApiError::NoSuchTask),
        }
    }

    fn deletes_ended(&self) -> bool {
        true
    }

    fn account(&self, _keys: &SigningKeys, has_credit: bool) -> Result<ApiResponse, ApiError> {
        let limits = json!({"maxConcurrentGenerations": 3, "maxDailyGenerations": 500});
        Ok(ApiResponse::ok(json!({
            "creditBalance": if has_credit { 4200 } else { 0 },
            "tier": {"maxMonthlyCreditSpend": 100_000, "models": {"gen4_turbo": limits}},
            "usage": {"models": {"gen4_turbo": {"dailyGenerations": 17}}},
        })))
    }

    fn error_response(&self, error: &ApiError) -> ApiResponse {
        let message = error.to_string();
        let (status, message) = match error {
            ApiError::NoKey | ApiError::BadKey => (401, message),
            ApiError::Quota => {
                let message = "You do not have enough credits to run this task.";
                (400, message.to_owned())
            }
            ApiError::RateLimit | ApiError::Concurrency => (429, message),
            ApiError::Server => (502, message),
            ApiError::Safety | ApiError::Malformed(_) | ApiError::Invalid(_) | ApiError::Taken => {
                (400, message)
            }
            ApiError::NoSuchMethod | ApiError::NoSuchModel | ApiError::NoSuchTask => (404, message),
        };
        ApiResponse::new(status, json!({ "error": message }))
    }

    fn webhooks(&self, _task: &Task) -> Vec<Value> {
        Vec::new()
    }

    fn sign(&self, _: &SigningKeys, _: &Message, _: u64) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

fn message(failure: Failure) -> &'static str {
    match failure {
        Failure::Rendering => "An unexpected error occurred.",
        Failure::Safety => "Text input did not pass moderation",
    }
}

fn code(failure: Failure) -> &'static str {
    match failure {
        Failure::Rendering => "INTERNAL.BAD_OUTPUT.CODE01",
        Failure::Safety => "SAFETY.INPUT.TEXT",
    }
}
