//! A parsed submit, independent of a dialect.
//!
//! The keys `scenario` and `steps`, at the top of the body or in its `input`, mean the same in every dialect.

use aws_lc_rs::digest;
use reqwest::Url;
use serde_json::Value;

use super::api_error::ApiError;
use super::scenario::Scenario;
use super::task::Product;

/// Maximum number of progress steps.
const MAX_STEPS: u64 = 10_000;

/// A valid submit.
pub(super) struct SubmitRequest {
    pub product: Product,
    pub model: String,
    /// External id, chosen by the client. Unique per account.
    pub external_id: Option<String>,
    pub callback: Option<Url>,
    /// Scenario of the job. `None` selects the default.
    pub scenario: Option<Scenario>,
    /// Number of progress steps, instead of that of the scenario.
    pub steps: Option<u16>,
    /// Data that the dialect needs for later responses.
    pub notes: Value,
}

impl SubmitRequest {
    /// Creates a submit with the simulator's keys from the body.
    pub fn new(model: &str, body: &Value) -> Result<Self, ApiError> {
        let option = |key: &str| {
            let inner = body.get("input").and_then(|input| input.get(key));
            body.get(key).or(inner)
        };
        let scenario = option("scenario").map(|name| {
            let name = name.as_str().unwrap_or_default();
            name.parse()
                .map_err(|unknown| ApiError::Invalid(format!("{unknown}")))
        });
        let steps = option("steps").map(|steps| {
            let steps = steps.as_u64().filter(|steps| *steps <= MAX_STEPS);
            let steps = steps.and_then(|steps| u16::try_from(steps).ok());
            steps.ok_or_else(|| {
                ApiError::Invalid(format!("steps must be an integer of at most {MAX_STEPS}"))
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

    /// Returns the identity of the job: the external id, otherwise the webhook URL, otherwise a digest of the body.
    pub fn handle(&self, body: &[u8]) -> String {
        let callback = self.callback.as_ref().map(Url::to_string);
        let digest = || format!("{:?}", digest::digest(&digest::SHA256, body));
        let handle = self.external_id.clone().or(callback);
        handle.unwrap_or_else(digest)
    }
}

/// Parses a body that must be a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Value, ApiError> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| ApiError::Malformed(error.to_string()))?;
    body.is_object()
        .then_some(body)
        .ok_or_else(|| ApiError::Malformed("the body is not an object".to_owned()))
}

/// Returns a required text of the body.
pub(super) fn text<'a>(body: &'a Value, key: &str) -> Result<&'a str, ApiError> {
    let text = body.get(key).and_then(Value::as_str).unwrap_or_default();
    if text.trim().is_empty() {
        return Err(ApiError::Invalid(format!("{key} is required")));
    }
    Ok(text)
}

/// Parses an optional webhook URL.
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
