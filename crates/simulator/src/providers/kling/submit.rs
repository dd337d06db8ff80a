//! Validation of a submit by Kling's rules.
//!
//! Unknown keys are ignored, as Kling ignores `scenario`. Limits are those of the text-to-video and image-to-video pages.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::call::Call;
use crate::submit::{self, Submit};

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

#[derive(Default, Deserialize)]
struct Settings {
    resolution: Option<String>,
    aspect_ratio: Option<String>,
    duration: Option<u64>,
}

#[derive(Default, Deserialize)]
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
pub(super) fn parse(call: &Call, body: &Value) -> Result<Submit, ApiError> {
    let (needs_frame, model) = match call.route().1 {
        [kind, model] if model.starts_with("kling-") => (*kind == "image-to-video", *model),
        _ => return Err(ApiError::NoSuchModel),
    };
    let body = Body::deserialize(body)?;
    let contents = body.contents.unwrap_or_default();
    let texts = contents.iter().filter(|content| content.kind == "prompt");
    let texts = texts.filter_map(|content| content.text.as_deref());
    let prompt: String = texts.chain(body.prompt.as_deref()).collect();
    let has_frame = contents.iter().any(|content| {
        content.kind.ends_with("_frame") && content.url.as_ref().is_some_and(|url| !url.is_empty())
    });
    check(!prompt.trim().is_empty(), "prompt is required")?;
    check(
        prompt.chars().count() <= MAX_PROMPT_CHARS,
        format!("prompt is longer than {MAX_PROMPT_CHARS} characters"),
    )?;
    check(
        has_frame || !needs_frame,
        "contents has no frame with a url",
    )?;
    let settings = body.settings.unwrap_or_default();
    check(
        settings
            .duration
            .is_none_or(|seconds| DURATIONS.contains(&seconds)),
        "settings.duration is not a whole number from 3 to 15",
    )?;
    check_choice(
        "aspect_ratio",
        settings.aspect_ratio.as_deref(),
        &ASPECT_RATIOS,
    )?;
    check_choice("resolution", settings.resolution.as_deref(), &RESOLUTIONS)?;
    let options = body.options.unwrap_or_default();
    let watermark = options.watermark_info.is_some_and(|info| info.enabled);
    Ok(Submit {
        has_frame: needs_frame,
        model: model.to_owned(),
        external_id: options.external_task_id.filter(|id| !id.is_empty()),
        callback: submit::callback(options.callback_url.as_deref())?,
        notes: json!({ "watermark": watermark }),
        ..Submit::default()
    })
}

fn check_choice(key: &str, value: Option<&str>, choices: &[&str]) -> Result<(), ApiError> {
    check(
        value.is_none_or(|value| choices.contains(&value)),
        format!("settings.{key} is none of {}", choices.join(", ")),
    )
}

fn check(is_valid: bool, otherwise: impl Into<String>) -> Result<(), ApiError> {
    if is_valid {
        return Ok(());
    }
    Err(ApiError::Invalid(otherwise.into()))
}
