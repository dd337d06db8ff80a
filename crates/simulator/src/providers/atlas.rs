//! Atlas Cloud (atlascloud.ai/docs: webhooks, predictions, errors, public API).
//!
//! Every response has a `code` beside its HTTP status. A failed prediction is HTTP 200 with code 200. There is one
//! webhook, at the end, and no way to cancel.

use actix_web::HttpResponse;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api_error::ApiError;
use crate::call::Call;
use crate::dialect::{
    Answer, Dialect, Message, NO_CANCEL, NO_REFUSAL, ok, respond, rfc3339, uuid, without_nulls,
};
use crate::plan::Failure;
use crate::scenario::Scenario;
use crate::signing::{Headers, KEY_ID, SigningKeys};
use crate::submit::{Submit, callback, text};
use crate::task::{Status, Task};

const EVENT: &str = "video.task.terminal";
/// Code of content moderation.
const MODERATION: u16 = 1039;

pub(super) static ATLAS: Dialect = Dialect {
    name: "atlas",
    scheme: "Bearer ",
    required_header: None,
    has_queue: false,
    accepts_forms: false,
    unplayable: &[
        (&[Scenario::Safety], NO_REFUSAL),
        (&[Scenario::CancelledLate], NO_CANCEL),
    ],
    challenge_timeout: None,
    id: |_| Uuid::now_v7().simple().to_string(),
    error,
    webhooks,
    sign,
};

pub(super) async fn answer(call: &Call<'_>) -> Answer {
    match call.route() {
        ("POST", ["api", "v1", "model", "generateVideo"]) => call.submit(submit, response).await,
        ("GET", ["api", "v1", "model", "prediction", id]) => Ok(response(&call.queried(id)?)),
        ("GET", ["api", "v1", "webhooks", "jwks.json"]) => Ok(call.keys()),
        ("GET", ["public", "v1", "balance"]) => Ok(balance(call.has_credit()?)),
        _ => Err(ApiError::NoSuchMethod),
    }
}

fn submit(_: &Call, body: &Value) -> Result<Submit, ApiError> {
    text(body, "prompt")?;
    Ok(Submit {
        has_frame: body.get("image").is_some(),
        model: text(body, "model")?.to_owned(),
        callback: callback(body["webhook_url"].as_str())?,
        ..Submit::default()
    })
}

fn response(task: &Task) -> HttpResponse {
    let url = format!("{}/api/v1/model/prediction/{}", task.origin, task.id);
    let prediction = without_nulls(json!({
        "id": task.id,
        "model": task.model,
        "status": word(task),
        "outputs": outputs(task),
        "error": task.failure.map(message),
        "error_code": task.failure.and_then(code),
        "urls": {"get": url},
        "has_nsfw_contents": task.status.is_final().then(|| json!([false])),
        "created_at": rfc3339(task.created_ms),
    }));
    ok(json!({"code": 200, "message": "success", "data": prediction}))
}

fn balance(has_credit: bool) -> HttpResponse {
    let usd = |value: &str| json!({"value": value, "currency": "usd"});
    let left = |value| usd(if has_credit { value } else { "0.000000" });
    ok(json!({
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
        "request_id": uuid(),
    }))
}

/// No `Retry-After` on any error, as documented.
fn error(error: &ApiError) -> HttpResponse {
    let message = &*error.to_string();
    let (status, message) = match error {
        // A wrong path returns unauthorized too.
        ApiError::NoKey | ApiError::BadKey | ApiError::NoSuchMethod => (401, "unauthorized"),
        ApiError::Quota => (402, message),
        ApiError::RateLimit | ApiError::Concurrency => (429, message),
        ApiError::Server => (500, message),
        ApiError::Safety | ApiError::Malformed(_) | ApiError::Invalid(_) => (400, message),
        ApiError::NoSuchModel | ApiError::NoSuchTask => (404, message),
    };
    let request_id = uuid();
    let body = json!({"code": status, "msg": message, "request_id": request_id, "data": null});
    respond(status, &[], body)
}

fn webhooks(task: &Task) -> Vec<Value> {
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
        "model": task.model,
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
fn sign(keys: &SigningKeys, message: &Message, at: u64) -> Headers {
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
