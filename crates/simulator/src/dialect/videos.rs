//! The `/v1/videos` API of OpenAI (openai-openapi 2.3.0: videos, webhooks), which gateways offer too.
//!
//! The content of a video requires the key. A webhook goes to the one URL of the account and contains only the id of the
//! video. `/v1` in the path is optional.

use reqwest::Url;
use serde_json::{Value, json};

use super::{Dialect, single, uncancellable};
use crate::api_error::ApiError;
use crate::call::{ApiResponse, Call, Name, RequestHead};
use crate::plan::{Failure, Plan};
use crate::scenario::Scenario;
use crate::signing::SigningKeys;
use crate::submit_request::{SubmitRequest, object, text};
use crate::task::{Product, Status, Task};
use crate::webhook::Message;

/// Lifetime of content in seconds.
const CONTENT_TTL_SECONDS: u64 = 24 * 60 * 60;

pub(super) struct Videos;

impl Dialect for Videos {
    fn name(&self) -> &'static str {
        "videos"
    }

    fn call(&self, head: &RequestHead) -> Option<Call> {
        let path = head.path.as_slice();
        match (head.method, path.strip_prefix(&["v1"]).unwrap_or(path)) {
            ("POST", ["videos"]) => Some(Call::Submit),
            ("GET", ["videos", id]) => Some(Call::Query(vec![Name::Task((*id).to_owned())])),
            ("GET" | "HEAD", ["videos", id, "content"]) => Some(Call::Content((*id).to_owned())),
            _ => None,
        }
    }

    fn submit(&self, _head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError> {
        let body = object(body)?;
        let prompt = text(&body, "prompt")?;
        let model = text(&body, "model")?;
        let product = match body.get("input_reference") {
            Some(_) => Product::ImageToVideo,
            None => Product::TextToVideo,
        };
        let text_or =
            |key: &str, otherwise: &str| body[key].as_str().unwrap_or(otherwise).to_owned();
        Ok(SubmitRequest {
            product,
            notes: json!({
                "prompt": prompt,
                "seconds": text_or("seconds", "8"),
                "size": text_or("size", "1280x720"),
            }),
            ..SubmitRequest::new(model, &body)?
        })
    }

    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        uncancellable(scenario)
    }

    fn callback(&self, _order: &SubmitRequest, project: Option<&Url>) -> Option<Url> {
        project.cloned()
    }

    fn id(&self, number: u64) -> String {
        format!("video_{number:x}")
    }

    fn accepted(&self, task: &Task) -> ApiResponse {
        ApiResponse::ok(video(task))
    }

    fn queried(&self, _head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError> {
        Ok(ApiResponse::ok(video(single(tasks)?)))
    }

    fn error_response(&self, error: &ApiError) -> ApiResponse {
        let (status, kind, code) = match error {
            ApiError::NoKey | ApiError::BadKey => (401, REQUEST, "invalid_api_key"),
            ApiError::Quota => (429, "insufficient_quota", "insufficient_quota"),
            ApiError::Safety => (400, REQUEST, "moderation_blocked"),
            ApiError::RateLimit | ApiError::Concurrency => (429, "requests", "rate_limit_exceeded"),
            ApiError::Server => (500, "server_error", "server_error"),
            ApiError::Malformed(_) | ApiError::Invalid(_) | ApiError::Taken => {
                (400, REQUEST, "invalid_value")
            }
            ApiError::NoSuchModel => (404, REQUEST, "model_not_found"),
            ApiError::NoSuchMethod | ApiError::NoSuchTask => (404, REQUEST, "not_found"),
        };
        let message = if matches!(error, ApiError::Safety) {
            MODERATION.to_owned()
        } else {
            error.to_string()
        };
        let body = json!({
            "message": message,
            "type": kind,
            "param": null,
            "code": code,
        });
        let response = ApiResponse::new(status, json!({"error": body}));
        if matches!(error, ApiError::RateLimit) {
            return response
                .with("retry-after-ms", "500")
                .with("retry-after", "1");
        }
        response
    }

    fn webhooks(&self, task: &Task) -> Vec<Value> {
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

    fn sign(&self, keys: &SigningKeys, message: &Message, at: u64) -> Vec<(&'static str, String)> {
        keys.standard(&format!("wh_{}", message.id), at, &message.body)
    }
}

const MODERATION: &str = "Your request was blocked by our moderation system.";
const REQUEST: &str = "invalid_request_error";

fn video(task: &Task) -> Value {
    let (status, progress) = match task.status {
        Status::Submitted => ("queued", 0),
        Status::Processing => ("in_progress", task.progress().unwrap_or_default()),
        Status::Succeeded => ("completed", 100),
        Status::Failed | Status::Cancelled => ("failed", 0),
    };
    let ended = task.ended_ms().map(|ms| ms / 1000);
    // Deleted content has expired at the completion time.
    let expires = ended.filter(|_| task.status == Status::Succeeded);
    let expires = expires.map(|ended| {
        if task.has_outputs {
            ended + CONTENT_TTL_SECONDS
        } else {
            ended
        }
    });
    json!({
        "id": task.id,
        "object": "video",
        "model": task.request.model,
        "status": status,
        "progress": progress,
        "created_at": task.created_ms / 1000,
        "completed_at": ended,
        "expires_at": expires,
        "size": task.request.notes["size"],
        "seconds": task.request.notes["seconds"],
        "prompt": task.request.notes["prompt"],
        "remixed_from_video_id": null,
        "error": task.failure.map(error),
    })
}

fn error(failure: Failure) -> Value {
    match failure {
        Failure::Rendering => {
            json!({"code": "internal_error", "message": "The video could not be generated."})
        }
        Failure::Safety => json!({"code": "moderation_blocked", "message": MODERATION}),
    }
}
