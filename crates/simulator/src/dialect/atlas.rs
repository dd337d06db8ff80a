//! Atlas Cloud (atlascloud.ai/docs: webhooks, predictions, errors, public API).
//!
//! Every response has a `code` beside its HTTP status. A failed prediction is HTTP 200 with code 200. There is one
//! webhook, at the end, and no way to cancel.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Dialect, rfc3339, single, uncancellable, without_nulls};
use crate::api_error::ApiError;
use crate::call::{ApiResponse, Call, Name, RequestHead};
use crate::plan::{Failure, Plan};
use crate::scenario::Scenario;
use crate::signing::{KEY_ID, SigningKeys};
use crate::submit_request::{SubmitRequest, callback, object, text};
use crate::task::{Product, Status, Task};
use crate::webhook::Message;

const EVENT: &str = "video.task.terminal";
/// Code of content moderation.
const MODERATION: u16 = 1039;

pub(super) struct Atlas;

impl Dialect for Atlas {
    fn name(&self) -> &'static str {
        "atlas"
    }

    fn call(&self, head: &RequestHead) -> Option<Call> {
        match (head.method, head.path.as_slice()) {
            ("POST", ["api", "v1", "model", "generateVideo"]) => Some(Call::Submit),
            ("GET", ["api", "v1", "model", "prediction", id]) => {
                Some(Call::Query(vec![Name::Task((*id).to_owned())]))
            }
            ("GET", ["api", "v1", "webhooks", "jwks.json"]) => Some(Call::Keys),
            ("GET", ["public", "v1", "balance"]) => Some(Call::Account),
            _ => None,
        }
    }

    fn submit(&self, _head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError> {
        let body = object(body)?;
        text(&body, "prompt")?;
        let model = text(&body, "model")?;
        let product = match body.get("image") {
            Some(_) => Product::ImageToVideo,
            None => Product::TextToVideo,
        };
        Ok(SubmitRequest {
            product,
            callback: callback(body["webhook_url"].as_str())?,
            ..SubmitRequest::new(model, &body)?
        })
    }

    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        if scenario == Scenario::Safety {
            return Err("it declines no prompt at submit");
        }
        uncancellable(scenario)
    }

    fn id(&self, _number: u64) -> String {
        Uuid::now_v7().simple().to_string()
    }

    fn accepted(&self, task: &Task) -> ApiResponse {
        success(&prediction(task))
    }

    fn queried(&self, _head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError> {
        Ok(success(&prediction(single(tasks)?)))
    }

    fn account(&self, _keys: &SigningKeys, has_credit: bool) -> Result<ApiResponse, ApiError> {
        let usd = |value: &str| json!({"value": value, "currency": "usd"});
        let left = |value| usd(if has_credit { value } else { "0.000000" });
        Ok(ApiResponse::ok(json!({
            "object": "balance",
            "scope": "account",
            "account": {"id": "acc_1", "name": "simulated", "type": "personal"},
            "available": left("125.500000"),
            "cash": left("100.000000"),
            "bonus": left("25.500000"),
            "subscription_bonus": usd("0.000000"),
            "frozen": usd("1.250000"),
            "credit_grant": {
                "status": "none",
                "granted": usd("0.000000"),
                "used": usd("0.000000"),
                "remaining_overdraft": usd("0.000000"),
                "overdrawn": false,
            },
            "request_id": Uuid::now_v7().to_string(),
        })))
    }

    /// No `Retry-After` on any error, as documented.
    fn error_response(&self, error: &ApiError) -> ApiResponse {
        let message = error.to_string();
        let (status, message) = match error {
            // A wrong path returns unauthorized too.
            ApiError::NoKey | ApiError::BadKey | ApiError::NoSuchMethod => {
                (401, "unauthorized".to_owned())
            }
            ApiError::Quota => (402, message),
            ApiError::RateLimit | ApiError::Concurrency => (429, message),
            ApiError::Server => (500, message),
            ApiError::Safety | ApiError::Malformed(_) | ApiError::Invalid(_) | ApiError::Taken => {
                (400, message)
            }
            ApiError::NoSuchModel | ApiError::NoSuchTask => (404, message),
        };
        let request_id = Uuid::now_v7().to_string();
        let body = json!({"code": status, "msg": message, "request_id": request_id, "data": null});
        ApiResponse::new(status, body)
    }

    fn webhooks(&self, task: &Task) -> Vec<Value> {
        let status = match task.status {
            Status::Submitted | Status::Processing => return Vec::new(),
            Status::Succeeded => "OK",
            Status::Failed | Status::Cancelled => "ERROR",
        };
        let outputs = if task.omits_outputs {
            json!([])
        } else {
            outputs(task)
        };
        let payload = without_nulls(json!({
            "model": task.request.model,
            "status": word(task),
            "outputs": outputs,
            "error_code": task.failure.and_then(code),
        }));
        vec![without_nulls(json!({
            "session_id": task.id,
            "event_type": EVENT,
            "status": status,
            "created_at": task.updated_ms,
            "payload": payload,
            "error": task.failure.map(message),
        }))]
    }

    /// Signs timestamp, a dot and the body. The id in the header is not signed.
    fn sign(&self, keys: &SigningKeys, message: &Message, at: u64) -> Vec<(&'static str, String)> {
        let signed = [format!("{at}.").as_bytes(), &message.body].concat();
        let signature = URL_SAFE_NO_PAD.encode(keys.ed25519(&signed));
        vec![
            ("x-atlascloud-webhook-id", message.task.clone()),
            ("x-atlascloud-webhook-event", EVENT.to_owned()),
            ("x-atlascloud-webhook-timestamp", at.to_string()),
            ("x-atlascloud-webhook-key-id", KEY_ID.to_owned()),
            ("x-atlascloud-webhook-signature-ed25519", signature),
        ]
    }
}

fn success(data: &Value) -> ApiResponse {
    ApiResponse::ok(json!({"code": 200, "message": "success", "data": data}))
}

fn prediction(task: &Task) -> Value {
    let url = format!(
        "{}/api/v1/model/prediction/{}",
        task.request.origin, task.id
    );
    without_nulls(json!({
        "id": task.id,
        "model": task.request.model,
        "status": word(task),
        "outputs": outputs(task),
        "error": task.failure.map(message),
        "error_code": task.failure.and_then(code),
        "urls": {"get": url},
        "has_nsfw_contents": task.status.is_final().then(|| json!([false])),
        "created_at": rfc3339(task.created_ms),
    }))
}

fn word(task: &Task) -> &'static str {
    match task.status {
        Status::Submitted | Status::Processing => "processing",
        Status::Succeeded => "completed",
        Status::Failed => "failed",
        Status::Cancelled => "cancelled",
    }
}

fn outputs(task: &Task) -> Value {
    if task.has_outputs {
        json!([task.clip()])
    } else {
        json!([])
    }
}

fn message(failure: Failure) -> &'static str {
    match failure {
        Failure::Rendering => "internal rendering error",
        Failure::Safety => "content moderation rejected",
    }
}

fn code(failure: Failure) -> Option<u16> {
    match failure {
        Failure::Rendering => None,
        Failure::Safety => Some(MODERATION),
    }
}
