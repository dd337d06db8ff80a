//! `POST /v1/videos`: a job that the hub itself submits.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::caller::Caller;
use super::jobs::answer;
use super::problem::Problem;
use super::request::{Body, idempotency, metadata_fits, provider_named};
use crate::config::Defaults;
use crate::job::{Job, NewJob, VideoRequest};
use crate::provider::Providers;
use crate::time::Time;
use crate::tracker::Tracker;

/// The most characters of a prompt; providers take fewer, and say so themselves.
const MAX_PROMPT: usize = 20_000;

/// Takes a job on, 202, before its provider has heard of it.
pub async fn submit(
    caller: Caller,
    tracker: web::Data<Tracker>,
    providers: web::Data<Providers>,
    defaults: web::Data<Defaults>,
    request: HttpRequest,
    body: Body<VideoRequest>,
) -> Result<HttpResponse, Problem> {
    if !caller.may_submit() {
        return Err(Problem::forbidden("jobs:write"));
    }
    let idempotency = idempotency(&request, &caller, &body)?;
    let mut video = body.value;
    check(&video)?;
    let named = video.provider.as_deref().or(defaults.provider.as_deref());
    let provider = match named {
        Some(name) => provider_named(&providers, name)?,
        None => providers.only_one().ok_or_else(|| {
            Problem::invalid("provider: is needed, since no default is configured")
        })?,
    };
    let name = provider.name().to_owned();
    if !provider.can_submit() {
        return Err(Problem::invalid(format!(
            "provider: the hub can't submit to '{name}', only hear from it"
        )));
    }
    let metadata = std::mem::take(&mut video.metadata);
    video.provider = Some(name.clone());
    let new = NewJob {
        owner: caller.subject().to_owned(),
        provider: Some(name),
        provider_task_id: None,
        model: Some(video.model.clone()),
        metadata,
        request: Some(video),
        deadline: provider.cadence().deadline,
    };
    let (created, job) = tracker
        .create(Job::new(new, Time::now()), idempotency, Vec::new())
        .await?;
    answer(created, job, StatusCode::ACCEPTED)
}

/// What no provider could make sense of; the rest is the provider's to judge.
fn check(video: &VideoRequest) -> Result<(), Problem> {
    let is_path_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
    let model = &video.model;
    if model.is_empty()
        || model.len() > 128
        || !model.bytes().all(is_path_safe)
        || model.contains("..")
        || model.starts_with('/')
    {
        return Err(Problem::invalid(
            "model: must be 1 to 128 letters, digits, '.', '_', ':', '/' or '-'",
        ));
    }
    if video.prompt.is_empty() && video.image_url.is_none() && video.input.is_empty() {
        return Err(Problem::invalid(
            "prompt: is needed where there is neither image_url nor input",
        ));
    }
    if video.prompt.chars().count() > MAX_PROMPT {
        return Err(Problem::invalid(format!(
            "prompt: must have at most {MAX_PROMPT} characters"
        )));
    }
    if video
        .duration
        .is_some_and(|seconds| !seconds.is_finite() || seconds <= 0.0 || seconds > 3600.0)
    {
        return Err(Problem::invalid(
            "duration: must be a number of seconds, more than 0 and at most 3600",
        ));
    }
    if let Some(image) = &video.image_url {
        let is_web =
            url::Url::parse(image).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !is_web || image.len() > 4096 {
            return Err(Problem::invalid(
                "image_url: must be an http(s) URL of at most 4096 characters, not the image itself",
            ));
        }
    }
    metadata_fits(&video.metadata)
}
