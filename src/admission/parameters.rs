//! Parameter checks that apply to every provider.
//!
//! Invariant: every part of an accepted model name between slashes is a valid segment of a URL
//! path.

use super::AdmissionError;
use crate::job::{MAX_MODEL_BYTES, VideoRequest};

/// Maximum length of a prompt, in characters. Providers enforce lower limits themselves.
const MAX_PROMPT_CHARS: usize = 20_000;

/// Maximum width and height, in pixels.
const MAX_SIDE_PIXELS: u32 = 16_384;

pub(super) fn check(request: &VideoRequest) -> Result<(), AdmissionError> {
    match parameter_problem(request) {
        Some(problem) => Err(AdmissionError::Parameters(problem)),
        None => Ok(()),
    }
}

fn parameter_problem(request: &VideoRequest) -> Option<String> {
    let is_path_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
    let model = &request.model;
    if model.is_empty()
        || model.len() > MAX_MODEL_BYTES
        || !model.bytes().all(is_path_safe)
        || model.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        return Some(format!(
            "model: must be 1 to {MAX_MODEL_BYTES} letters, digits, '.', '_', ':', '/' or '-', without '.', '..' or empty parts between slashes"
        ));
    }
    if request.prompt.is_empty() && request.image_url.is_none() && request.input.is_empty() {
        return Some("prompt: is required without image_url or input".to_owned());
    }
    if request.prompt.chars().count() > MAX_PROMPT_CHARS {
        return Some(format!(
            "prompt: must have at most {MAX_PROMPT_CHARS} characters"
        ));
    }
    let is_length = |seconds: f64| seconds.is_finite() && seconds > 0.0 && seconds <= 3600.0;
    if request.duration.is_some_and(|seconds| !is_length(seconds)) {
        let problem = "duration: must be a number of seconds greater than 0 and at most 3600";
        return Some(problem.to_owned());
    }
    let is_side = |side: u32| (1..=MAX_SIDE_PIXELS).contains(&side);
    match (request.width, request.height) {
        (None, None) => {}
        (Some(width), Some(height)) if is_side(width) && is_side(height) => {}
        (_, _) => {
            return Some(format!(
                "width, height: must be set together, in pixels from 1 to {MAX_SIDE_PIXELS}"
            ));
        }
    }
    let is_web_url = |image: &String| {
        image.len() <= 4096
            && url::Url::parse(image).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
    };
    if !request.image_url.as_ref().is_none_or(is_web_url) {
        let problem = "image_url: must be an http(s) URL of at most 4096 characters";
        return Some(problem.to_owned());
    }
    None
}
