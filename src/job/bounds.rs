//! Limits on the fields that providers and workers report.
//!
//! Invariant: an update is bounded before it is applied by [`Job::apply`](super::Job::apply) and
//! before it is buffered. A document has at most [`MAX_OUTPUTS_BYTES`] of outputs and a few
//! kilobytes of other reported fields, regardless of the size of the report.

use super::{Cost, Failure, JobEvent, Output, StatusReport, Update};

/// Maximum length of a provider's task id, in bytes. A report with a longer one is ignored.
pub const MAX_TASK_ID_BYTES: usize = 512;

/// Maximum length of a model name, in bytes.
pub const MAX_MODEL_BYTES: usize = 128;

/// Maximum length of `stage`, in characters.
pub const MAX_STAGE_CHARS: usize = 200;

/// Maximum length of the message of an error, in characters.
pub const MAX_ERROR_MESSAGE_CHARS: usize = 1000;

/// Maximum length of a provider's error code, in characters.
pub const MAX_ERROR_CODE_CHARS: usize = 128;

/// Maximum number of outputs.
pub const MAX_OUTPUTS: usize = 100;

/// Maximum length of the URL of an output, in bytes.
pub const MAX_URL_BYTES: usize = 4096;

/// Maximum length of the type of an output, in characters.
pub const MAX_OUTPUT_TYPE_CHARS: usize = 32;

/// Maximum size of all outputs, in bytes of URLs. Includes `data:` URLs, which have no other limit.
pub const MAX_OUTPUTS_BYTES: usize = 512 << 10;

/// Maximum number of moderation remarks.
const MAX_REMARKS: usize = 16;

/// Maximum length of a moderation remark, in characters.
const MAX_REMARK_CHARS: usize = 500;

/// Maximum length of the unit of a cost, in characters.
const MAX_UNIT_CHARS: usize = 32;

/// Maximum size of a handle, in bytes of JSON. A larger one is not stored.
const MAX_HANDLE_BYTES: usize = 8 << 10;

/// Largest estimate, in seconds: about 30 years.
const MAX_ETA_SECONDS: f64 = 1e9;

impl Update {
    /// Returns the update with every field within its bounds. Texts are truncated, outputs beyond
    /// the bounds are dropped, and numbers that are not finite are ignored.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        match &mut self.event {
            JobEvent::RetryScheduled { error, .. }
            | JobEvent::SubmissionOutcomeUnknown { error } => {
                bound_failure(error);
            }
            JobEvent::Reported(report) => bound_report(report),
            JobEvent::SubmissionStarted
            | JobEvent::Postponed { .. }
            | JobEvent::CancelledBeforeSubmission => {}
        }
        self
    }
}

fn bound_report(report: &mut StatusReport) {
    if let Some(stage) = &mut report.stage {
        truncate(stage, MAX_STAGE_CHARS);
    }
    let is_estimate = |seconds: &f64| (0.0..=MAX_ETA_SECONDS).contains(seconds);
    report.eta_seconds = report.eta_seconds.filter(is_estimate);
    report.moderation.truncate(MAX_REMARKS);
    for remark in &mut report.moderation {
        truncate(remark, MAX_REMARK_CHARS);
    }
    report.cost = report.cost.take().and_then(bounded_cost);
    if let Some(error) = &mut report.error {
        bound_failure(error);
    }
    if !report.handle.is_null() && report.handle.to_string().len() > MAX_HANDLE_BYTES {
        report.handle = serde_json::Value::Null;
    }
    bound_outputs(report);
}

fn bound_failure(failure: &mut Failure) {
    truncate(&mut failure.message, MAX_ERROR_MESSAGE_CHARS);
    if let Some(code) = &mut failure.provider_code {
        truncate(code, MAX_ERROR_CODE_CHARS);
    }
}

fn bounded_cost(mut cost: Cost) -> Option<Cost> {
    truncate(&mut cost.unit, MAX_UNIT_CHARS);
    cost.amount.is_finite().then_some(cost)
}

/// Drops outputs beyond the bounds together with their sources. The result does not change when the
/// tracker sets the URLs of outputs with a source to links of the hub.
fn bound_outputs(report: &mut StatusReport) {
    let has_sources = !report.output_sources.is_empty();
    report.output_sources.resize(report.outputs.len(), None);
    let (outputs, sources) = (
        std::mem::take(&mut report.outputs),
        std::mem::take(&mut report.output_sources),
    );
    let mut bytes = 0;
    for (mut output, source) in outputs.into_iter().zip(sources) {
        bound_output(&mut output);
        let url = source.as_ref().map_or(&output.url, |source| &source.url);
        let added = url.len() + output.watermark_url.as_ref().map_or(0, String::len);
        let is_usable = is_bounded_url(url)
            && bytes + added <= MAX_OUTPUTS_BYTES
            && report.outputs.len() < MAX_OUTPUTS;
        if is_usable {
            report.outputs.push(output);
            report.output_sources.push(source);
            bytes += added;
        }
    }
    if !has_sources {
        report.output_sources.clear();
    }
}

fn bound_output(output: &mut Output) {
    truncate(&mut output.kind, MAX_OUTPUT_TYPE_CHARS);
    output.duration = output.duration.filter(|seconds| seconds.is_finite());
    output.watermark_url = output
        .watermark_url
        .take()
        .filter(|url| is_bounded_url(url));
}

fn is_bounded_url(url: &str) -> bool {
    url.len() <= MAX_URL_BYTES || url.starts_with("data:")
}

/// Truncates a text to `max` characters.
fn truncate(text: &mut String, max: usize) {
    if let Some((end, _)) = text.char_indices().nth(max) {
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::job::{FailureKind, Job, NewJob, OutputSource, Source, Status};
    use crate::time::Time;

    fn job() -> Job {
        let new = NewJob {
            owner: "ada".to_owned(),
            provider: None,
            provider_task_id: None,
            model: None,
            metadata: serde_json::Map::new(),
            request: None,
            deadline: std::time::Duration::from_secs(60),
        };
        Job::new(new, Time::from_millis(0))
    }

    fn output(kind: &str, url: &str) -> Output {
        serde_json::from_value(json!({ "type": kind, "url": url })).unwrap()
    }

    fn applied(report: StatusReport, source: Source) -> Job {
        let update = report.into_update(source);
        job().apply(update, Time::from_millis(1)).unwrap()
    }

    #[test]
    fn document_is_bounded_whatever_is_reported() {
        let long = "é".repeat(10_000);
        let url = format!("https://cdn.example/{}", "a".repeat(4000));
        for source in Source::ALL {
            for status in [Status::Running, Status::Succeeded, Status::Failed] {
                let outputs = (0..200).map(|_| Output {
                    watermark_url: Some(url.clone()),
                    ..output(&long, &url)
                });
                let mut error = Failure::new(FailureKind::Technical, long.clone());
                error.provider_code = Some(long.clone());
                let report = StatusReport {
                    stage: Some(long.clone()),
                    eta_seconds: Some(f64::INFINITY),
                    outputs: outputs.collect(),
                    cost: Some(Cost {
                        amount: 1.0,
                        unit: long.clone(),
                    }),
                    moderation: vec![long.clone(); 100],
                    error: Some(error),
                    handle: json!({ "url": long }),
                    ..StatusReport::with_status(status)
                };
                let job = applied(report, source);
                let size = serde_json::to_string(&job).unwrap().len();
                assert!(size < 600 << 10, "{source:?} {status:?}: {size} bytes");
                assert_eq!(job.internal.handle, Value::Null);
                assert_eq!(job.eta_seconds, None);
            }
        }
    }

    #[test]
    fn outputs_within_the_bounds_are_unchanged() {
        let inline = format!("data:video/mp4;base64,{}", "A".repeat(60 << 10));
        let outputs = vec![output("video", "https://a/b"), output("video", &inline)];
        let report = StatusReport {
            outputs: outputs.clone(),
            ..StatusReport::with_status(Status::Succeeded)
        };
        assert_eq!(applied(report, Source::Poll).outputs, outputs);
    }

    #[test]
    fn dropped_outputs_keep_their_sources_aligned() {
        let long = format!("https://a/{}", "b".repeat(MAX_URL_BYTES));
        let private = || OutputSource {
            url: "private".to_owned(),
            is_private: true,
        };
        let report = StatusReport {
            outputs: vec![
                output("video", &long),
                output("image", "hub"),
                output("audio", "https://c"),
            ],
            output_sources: vec![None, Some(private()), None],
            ..StatusReport::with_status(Status::Succeeded)
        };
        let job = applied(report, Source::Poll);
        let kinds: Vec<&str> = job
            .outputs
            .iter()
            .map(|output| output.kind.as_str())
            .collect();
        assert_eq!(kinds, ["image", "audio"]);
        assert_eq!(job.internal.output_sources, [Some(private()), None]);
    }

    #[test]
    fn report_of_a_task_with_an_oversized_id_is_ignored() {
        let report = StatusReport {
            task_id: Some("x".repeat(MAX_TASK_ID_BYTES + 1)),
            ..StatusReport::with_status(Status::Running)
        };
        let update = report.into_update(Source::Webhook);
        assert_eq!(job().apply(update, Time::from_millis(1)), None);
    }
}
