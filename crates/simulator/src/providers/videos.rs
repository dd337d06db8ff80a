//! The `/v1/videos` API of OpenAI (openai-openapi 2.3.0: videos, webhooks), which gateways offer too.
//!
//! The content of a video requires the key. A webhook goes to the one URL of the account and contains only the id of the
//! video. `/v1` in the path is optional. A submit is `multipart/form-data`, as the SDKs of OpenAI send it, or JSON.

use actix_web::HttpResponse;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::call::Call;
use crate::clip;
use crate::dialect::{Answer, Dialect, NO_CANCEL, ok, respond};
use crate::plan::Failure;
use crate::scenario::Scenario;
use crate::submit::{Submit, text};
use crate::task::{Status, Task};

/// Lifetime of content in seconds.
const CONTENT_TTL_SECONDS: u64 = 24 * 60 * 60;
const MODERATION: &str = "Your request was blocked by our moderation system.";
const REQUEST: &str = "invalid_request_error";

pub(super) static VIDEOS: Dialect = Dialect {
    name: "videos",
    scheme: "Bearer ",
    required_header: None,
    has_queue: false,
    accepts_forms: true,
    unplayable: &[(&[Scenario::CancelledLate], NO_CANCEL)],
    challenge_timeout: None,
    id: |number| format!("video_{number:x}"),
    error,
    webhooks,
    sign: |keys, message, at| keys.standard(&format!("wh_{}", message.id), at, &message.body),
};

pub(super) async fn answer(call: &Call<'_>) -> Answer {
    let (method, path) = call.route();
    match (method, path.strip_prefix(&["v1"]).unwrap_or(path)) {
        ("POST", ["videos"]) => call.submit(submit, video).await,
        ("GET", ["videos", id]) => Ok(video(&call.queried(id)?)),
        ("GET" | "HEAD", ["videos", id, "content"]) => {
            call.authorize(|counts| counts.downloads += 1)?;
            if !call.find(id)?.has_outputs {
                return Err(ApiError::NoSuchTask);
            }
            Ok(clip::serve(call.request))
        }
        _ => Err(ApiError::NoSuchMethod),
    }
}

fn submit(_: &Call, body: &Value) -> Result<Submit, ApiError> {
    let text_or = |key: &str, otherwise| body[key].as_str().unwrap_or(otherwise);
    Ok(Submit {
        has_frame: body.get("input_reference").is_some(),
        uses_project_webhook: true,
        notes: json!({
            "prompt": text(body, "prompt")?,
            "seconds": text_or("seconds", "8"),
            "size": text_or("size", "1280x720"),
        }),
        model: text(body, "model")?.to_owned(),
        ..Submit::default()
    })
}

fn video(task: &Task) -> HttpResponse {
    let (status, progress) = match task.status {
        Status::Submitted => ("queued", 0),
        Status::Processing => ("in_progress", task.progress.unwrap_or_default()),
        Status::Succeeded => ("completed", 100),
        Status::Failed | Status::Cancelled => ("failed", 0),
    };
    let ended = task.ended_ms().map(|ms| ms / 1000);
    // Deleted content has expired at the completion time.
    let ttl = if task.has_outputs {
        CONTENT_TTL_SECONDS
    } else {
        0
    };
    let expires = ended.filter(|_| task.status == Status::Succeeded);
    ok(json!({
        "id": task.id,
        "object": "video",
        "model": task.model,
        "status": status,
        "progress": progress,
        "created_at": task.created_ms / 1000,
        "completed_at": ended,
        "expires_at": expires.map(|ended| ended + ttl),
        "size": task.notes["size"],
        "seconds": task.notes["seconds"],
        "prompt": task.notes["prompt"],
        "remixed_from_video_id": null,
        "error": task.failure.map(failure),
    }))
}

fn failure(failure: Failure) -> Value {
    match failure {
        Failure::Rendering => {
            json!({"code": "internal_error", "message": "The video could not be generated."})
        }
        Failure::Safety => json!({"code": "moderation_blocked", "message": MODERATION}),
    }
}

fn error(error: &ApiError) -> HttpResponse {
    let mut message = &*error.to_string();
    let (status, kind, code) = match error {
        ApiError::NoKey | ApiError::BadKey => (401, REQUEST, "invalid_api_key"),
        ApiError::Quota => (429, "insufficient_quota", "insufficient_quota"),
        ApiError::Safety => {
            message = MODERATION;
            (400, REQUEST, "moderation_blocked")
        }
        ApiError::RateLimit | ApiError::Concurrency => (429, "requests", "rate_limit_exceeded"),
        ApiError::Server => (500, "server_error", "server_error"),
        ApiError::Malformed(_) | ApiError::Invalid(_) => (400, REQUEST, "invalid_value"),
        ApiError::NoSuchModel => (404, REQUEST, "model_not_found"),
        ApiError::NoSuchMethod | ApiError::NoSuchTask => (404, REQUEST, "not_found"),
    };
    let headers: &[_] = if *error == ApiError::RateLimit {
        &[("retry-after-ms", "500"), ("retry-after", "1")]
    } else {
        &[]
    };
    let body = json!({"message": message, "type": kind, "param": null, "code": code});
    respond(status, headers, json!({"error": body}))
}

fn webhooks(task: &Task) -> Vec<Value> {
    let event = match task.status {
        Status::Submitted | Status::Processing | Status::Cancelled => return Vec::new(),
        Status::Succeeded => "video.completed",
        Status::Failed => "video.failed",
    };
    vec![json!({
        "id": format!("evt_{:x}", task.number),
        "object": "event",
        "created_at": task.updated_ms / 1000,
        "type": event,
        "data": {"id": task.id},
    })]
}
