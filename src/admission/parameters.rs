//! What no provider could make sense of; the rest is the provider's to judge.
//!
//! Invariant: a model's name is safe as part of a path, and numbers are within what a video can be.

use super::AdmissionError;
use crate::job::VideoRequest;

/// The most characters of a prompt; providers take fewer, and say so themselves.
const MAX_PROMPT: usize = 20_000;

/// The most pixels of a side.
const MAX_SIDE: u32 = 16_384;

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
        || model.len() > 128
        || !model.bytes().all(is_path_safe)
        || model.contains("..")
        || model.starts_with('/')
    {
        let problem = "model: must be 1 to 128 letters, digits, '.', '_', ':', '/' or '-'";
        return Some(problem.to_owned());
    }
    if request.prompt.is_empty() && request.image_url.is_none() && request.input.is_empty() {
        return Some("prompt: is needed where there is neither image_url nor input".to_owned());
    }
    if request.prompt.chars().count() > MAX_PROMPT {
        return Some(format!("prompt: must have at most {MAX_PROMPT} characters"));
    }
    let is_length = |seconds: f64| seconds.is_finite() && seconds > 0.0 && seconds <= 3600.0;
    if request.duration.is_some_and(|seconds| !is_length(seconds)) {
        let problem = "duration: must be a number of seconds, more than 0 and at most 3600";
        return Some(problem.to_owned());
    }
    let is_side = |side: u32| (1..=MAX_SIDE).contains(&side);
    match (request.width, request.height) {
        (None, None) => {}
        (Some(width), Some(height)) if is_side(width) && is_side(height) => {}
        (_, _) => {
            return Some(format!(
                "width, height: must come together, in pixels from 1 to {MAX_SIDE}"
            ));
        }
    }
    let is_web = |image: &String| {
        image.len() <= 4096
            && url::Url::parse(image).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
    };
    if !request.image_url.as_ref().is_none_or(is_web) {
        let problem =
            "image_url: must be an http(s) URL of at most 4096 characters, not the image itself";
        return Some(problem.to_owned());
    }
    None
}
