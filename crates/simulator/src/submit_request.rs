//! An submit: what matters of a submit that has passed, in no dialect.
//!
//! Invariant: an `Order` exists only for a body that has passed. Two keys are the simulator's own and mean the
//! same in every dialect, at the top of the body or in its `input`: `scenario` and `steps`.

use aws_lc_rs::digest;
use reqwest::Url;
use serde_json::Value;

use super::api_error::ApiError;
use super::scenario::Scenario;
use super::task::Product;

/// The most steps of progress that a submit may ask for.
const MAX_STEPS: u64 = 10_000;

/// What matters of a submit.
pub(super) struct SubmitRequest {
    pub product: Product,
    pub model: String,
    /// The caller's own id, where the provider has such a thing: unique per account.
    pub external_id: Option<String>,
    pub callback: Option<Url>,
    /// How to treat the job; the simulator's default where none is named.
    pub scenario: Option<Scenario>,
    /// Steps of progress, in place of the scenario's.
    pub steps: Option<u16>,
    /// What the dialect needs again when it tells of the task.
    pub notes: Value,
}

impl SubmitRequest {
    /// With the simulator's own wishes read from the body.
    pub fn new(model: &str, body: &Value) -> Result<Self, ApiError> {
        let wish = |key: &str| {
            let inner = body.get("input").and_then(|input| input.get(key));
            body.get(key).or(inner)
        };
        let scenario = wish("scenario").map(|name| {
            let name = name.as_str().unwrap_or_default();
            name.parse()
                .map_err(|unknown| ApiError::Invalid(format!("{unknown}")))
        });
        let steps = wish("steps").map(|steps| {
            let steps = steps.as_u64().filter(|steps| *steps <= MAX_STEPS);
            let steps = steps.and_then(|steps| u16::try_from(steps).ok());
            steps.ok_or_else(|| {
                ApiError::Invalid(format!("steps is not a whole number up to {MAX_STEPS}"))
            })
        });
        Ok(Self {
            product: Product::TextToVideo,
            model: model.to_owned(),
            external_id: None,
            callback: None,
            scenario: scenario.transpose()?,
            steps: steps.transpose()?,
            notes: Value::Null,
        })
    }

    /// What makes two submits the same job: the caller's own id, else the address to call back, else the body.
    pub fn handle(&self, body: &[u8]) -> String {
        let callback = self.callback.as_ref().map(Url::to_string);
        let digest = || format!("{:?}", digest::digest(&digest::SHA256, body));
        let handle = self.external_id.clone().or(callback);
        handle.unwrap_or_else(digest)
    }
}

/// A body that is a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Value, ApiError> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| ApiError::Malformed(error.to_string()))?;
    body.is_object()
        .then_some(body)
        .ok_or_else(|| ApiError::Malformed("the body is not an object".to_owned()))
}

/// A text of the body that must be there.
pub(super) fn text<'a>(body: &'a Value, key: &str) -> Result<&'a str, ApiError> {
    let text = body.get(key).and_then(Value::as_str).unwrap_or_default();
    if text.trim().is_empty() {
        return Err(ApiError::Invalid(format!("{key} is required")));
    }
    Ok(text)
}

/// An address to call back, where one is given.
pub(super) fn callback(url: Option<&str>) -> Result<Option<Url>, ApiError> {
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let parsed = Url::parse(url).ok();
    let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https"));
    parsed
        .map(Some)
        .ok_or_else(|| ApiError::Invalid("the callback is not an http address".to_owned()))
}
