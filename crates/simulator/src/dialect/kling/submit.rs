//! Validation of a submit by Kling's rules.
//!
//! Unknown keys are ignored, as Kling ignores `scenario`. Limits are those of the text-to-video and image-to-video pages.

use serde::Deserialize;
use serde_json::json;

use crate::api_error::ApiError;
use crate::submit_request::{SubmitRequest, callback, object};
use crate::task::Product;

const MAX_PROMPT_CHARS: usize = 2500;
const DURATIONS: std::ops::RangeInclusive<u64> = 3..=15;
const ASPECT_RATIOS: [&str; 3] = ["16:9", "9:16", "1:1"];
const RESOLUTIONS: [&str; 3] = ["720p", "1080p", "4k"];

#[derive(Deserialize)]
struct Body {
    prompt: Option<String>,
    contents: Option<Vec<Content>>,
    settings: Option<Settings>,
    options: Option<Options>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    url: Option<String>,
}

#[derive(Deserialize)]
struct Settings {
    resolution: Option<String>,
    aspect_ratio: Option<String>,
    duration: Option<u64>,
}

#[derive(Deserialize)]
struct Options {
    callback_url: Option<String>,
    external_task_id: Option<String>,
    watermark_info: Option<WatermarkInfo>,
}

#[derive(Deserialize)]
struct WatermarkInfo {
    enabled: bool,
}

/// Parses the submit of a model.
pub(super) fn read(product: Product, model: &str, bytes: &[u8]) -> Result<SubmitRequest, ApiError> {
    let submit = SubmitRequest::new(model, &object(bytes)?)?;
    let body: Body =
        serde_json::from_slice(bytes).map_err(|error| ApiError::Malformed(error.to_string()))?;
    check_prompt(product, &body)?;
    if let Some(settings) = &body.settings {
        check_settings(settings)?;
    }
    let submit = SubmitRequest { product, ..submit };
    let Some(options) = body.options else {
        return Ok(submit);
    };
    let watermark = options.watermark_info.is_some_and(|info| info.enabled);
    Ok(SubmitRequest {
        external_id: options.external_task_id.filter(|id| !id.is_empty()),
        callback: callback(options.callback_url.as_deref())?,
        notes: json!({ "watermark": watermark }),
        ..submit
    })
}

fn check_prompt(product: Product, body: &Body) -> Result<(), ApiError> {
    let contents = body.contents.as_deref().unwrap_or_default();
    let prompts = contents.iter().filter(|content| content.kind == "prompt");
    let prompts = prompts
        .filter_map(|content| content.text.as_deref())
        .chain(body.prompt.as_deref());
    let prompt: String = prompts.collect();
    if prompt.trim().is_empty() {
        return Err(invalid("prompt is required"));
    }
    if prompt.chars().count() > MAX_PROMPT_CHARS {
        return Err(invalid(format!(
            "prompt is longer than {MAX_PROMPT_CHARS} characters"
        )));
    }
    match product {
        Product::TextToVideo => Ok(()),
        Product::ImageToVideo => {
            let is_frame = |content: &Content| {
                content.kind.ends_with("_frame")
                    && content.url.as_ref().is_some_and(|url| !url.is_empty())
            };
            let has_frame = contents.iter().any(is_frame);
            has_frame
                .then_some(())
                .ok_or_else(|| invalid("contents has no frame with a url"))
        }
    }
}

fn check_settings(settings: &Settings) -> Result<(), ApiError> {
    if settings
        .duration
        .is_some_and(|seconds| !DURATIONS.contains(&seconds))
    {
        return Err(invalid(
            "settings.duration is not a whole number from 3 to 15",
        ));
    }
    check_choice(
        "settings.aspect_ratio",
        settings.aspect_ratio.as_deref(),
        &ASPECT_RATIOS,
    )?;
    check_choice(
        "settings.resolution",
        settings.resolution.as_deref(),
        &RESOLUTIONS,
    )
}

fn check_choice(key: &str, value: Option<&str>, choices: &[&str]) -> Result<(), ApiError> {
    match value {
        Some(value) if !choices.contains(&value) => {
            Err(invalid(format!("{key} is none of {}", choices.join(", "))))
        }
        Some(_) | None => Ok(()),
    }
}

fn invalid(why: impl Into<String>) -> ApiError {
    ApiError::Invalid(why.into())
}
