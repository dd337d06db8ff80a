//! Runway (runwayml 5.24.0; docs.dev.runwayml.com: errors, task failures, usage tiers).
//!
//! There are no webhooks. Every request names the API version. `DELETE` cancels a running task and deletes a finished
//! one.

use actix_web::HttpResponse;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::call::Call;
use crate::dialect::{Answer, Dialect, NO_REFUSAL, ok, respond, rfc3339, uuid, without_nulls};
use crate::plan::Failure;
use crate::scenario::Scenario;
use crate::submit::{Submit, text};
use crate::task::{Status, Task};

/// Cost of a task in credits.
const CREDITS: u16 = 25;
const WEBHOOK_SCENARIOS: &[Scenario] = &[
    Scenario::DuplicateWebhooks,
    Scenario::ReorderedWebhooks,
    Scenario::LateWebhooks,
    Scenario::LostWebhooks,
    Scenario::WebhookBeforeAnswer,
    Scenario::ThinSuccess,
    Scenario::Unsigned,
    Scenario::Forged,
];

pub(super) static RUNWAY: Dialect = Dialect {
    name: "runway",
    scheme: "Bearer ",
    required_header: Some(("X-Runway-Version", "2024-11-06")),
    has_queue: true,
    accepts_forms: false,
    // Prompts are declined after acceptance.
    unplayable: &[
        (WEBHOOK_SCENARIOS, "it sends no webhooks"),
        (&[Scenario::Safety], NO_REFUSAL),
    ],
    challenge_timeout: None,
    id: |_| uuid(),
    error,
    webhooks: |_| Vec::new(),
    sign: |_, _, _| Vec::new(),
};

pub(super) async fn answer(call: &Call<'_>) -> Answer {
    match call.route() {
        ("POST", ["v1", "image_to_video" | "text_to_video"]) => call.submit(submit, accepted).await,
        ("GET", ["v1", "tasks", id]) => Ok(status(&call.queried(id)?)),
        ("DELETE", ["v1", "tasks", id]) => {
            call.cancel(id, true)?;
            Ok(HttpResponse::NoContent().finish())
        }
        ("GET", ["v1", "organization"]) => Ok(organization(call.has_credit()?)),
        _ => Err(ApiError::NoSuchMethod),
    }
}

fn submit(call: &Call, body: &Value) -> Result<Submit, ApiError> {
    let model = text(body, "model")?;
    let has_frame = call.route().1 == ["v1", "image_to_video"];
    text(
        body,
        if has_frame {
            "promptImage"
        } else {
            "promptText"
        },
    )?;
    Ok(Submit {
        has_frame,
        model: model.to_owned(),
        ..Submit::default()
    })
}

fn accepted(task: &Task) -> HttpResponse {
    ok(json!({"id": task.id, "estimatedCost": {"credits": CREDITS}}))
}

fn status(task: &Task) -> HttpResponse {
    let status = match task.status {
        // Throttled: the account runs too many tasks.
        Status::Submitted if task.ahead > 0 => "THROTTLED",
        Status::Submitted => "PENDING",
        Status::Processing => "RUNNING",
        Status::Succeeded => "SUCCEEDED",
        Status::Failed => "FAILED",
        Status::Cancelled => "CANCELLED",
    };
    let charged = match (task.status, task.failure) {
        (_, Some(Failure::Rendering)) => 0,
        (Status::Cancelled, _) if task.started_ms.is_none() => 0,
        _ => CREDITS,
    };
    let output = match task.status {
        Status::Succeeded if task.has_outputs => json!([task.clip()]),
        Status::Succeeded => json!([]),
        Status::Submitted | Status::Processing | Status::Failed | Status::Cancelled => Value::Null,
    };
    let has_ended = task.status.is_final();
    ok(without_nulls(json!({
        "id": task.id,
        "createdAt": rfc3339(task.created_ms),
        "status": status,
        "cost": has_ended.then(|| json!({"credits": charged})),
        "estimatedCost": (!has_ended).then(|| json!({"credits": CREDITS})),
        "progress": task.progress.map(|percent| f64::from(percent) / 100.0),
        "failure": task.failure.map(message),
        "failureCode": task.failure.map(code),
        "output": output,
    })))
}

fn organization(has_credit: bool) -> HttpResponse {
    let limits = json!({"maxConcurrentGenerations": 3, "maxDailyGenerations": 500});
    ok(json!({
        "creditBalance": if has_credit { 4200 } else { 0 },
        "tier": {"maxMonthlyCreditSpend": 100_000, "models": {"gen4_turbo": limits}},
        "usage": {"models": {"gen4_turbo": {"dailyGenerations": 17}}},
    }))
}

fn error(error: &ApiError) -> HttpResponse {
    let message = &*error.to_string();
    let (status, message) = match error {
        ApiError::NoKey | ApiError::BadKey => (401, message),
        ApiError::Quota => (400, "You do not have enough credits to run this task."),
        ApiError::RateLimit | ApiError::Concurrency => (429, message),
        ApiError::Server => (502, message),
        ApiError::Safety | ApiError::Malformed(_) | ApiError::Invalid(_) => (400, message),
        ApiError::NoSuchMethod | ApiError::NoSuchModel | ApiError::NoSuchTask => (404, message),
    };
    respond(status, &[], json!({"error": message}))
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
