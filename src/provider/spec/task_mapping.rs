//! From what a provider says of a task to the hub's own words.
//!
//! Invariant: an unknown status is no status, never an end; what a body lacks stays open.

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;

use crate::job::{Cost, Job, Output, Status, StatusReport};
use crate::provider::client::error::{ErrorDetails, ErrorRules};
use crate::provider::spec::expression::{Expression, items, text};
use crate::time::Time;

/// Which task a body is about, and what it says of it.
#[derive(Clone, Debug)]
pub struct TaskReport {
    /// The provider's id.
    pub task_id: Option<String>,
    /// The name that the hub gave it.
    pub reference: Option<String>,
    /// What it says, without the task's id.
    pub report: StatusReport,
    /// Whether it has a status at all, known or not.
    pub(in crate::provider) has_status: bool,
    /// Whether its sender is proven; otherwise it is a reason to ask, and nothing more.
    pub is_trusted: bool,
}

impl TaskReport {
    /// Whether it is about this job: by the provider's id where both have one, else by ours.
    pub(in crate::provider) fn matches_job(&self, job: &Job) -> bool {
        match (&job.provider_task_id, &self.task_id) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, _) | (_, None) => self.reference.as_deref() == Some(job.id.as_str()),
        }
    }
}

/// The body is not what this provider sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Not JSON at all.
    #[error("the body is not JSON")]
    NotJson,
    /// No task is named.
    #[error("the body names no task")]
    NoTask,
    /// There is no status.
    #[error("the body has no status")]
    NoStatus,
}

/// Where things stand in a task, and what its words mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::provider) struct TaskMapping {
    task_id: Option<Expression>,
    reference: Option<Expression>,
    status: Expression,
    statuses: BTreeMap<String, Status>,
    progress: Option<Expression>,
    queue_position: Option<Expression>,
    stage: Option<Expression>,
    eta_seconds: Option<Expression>,
    /// A list of URLs or of mappings with `url`, `type` or `content_type`, `duration`, `expires_at`,
    /// `watermark_url`, `nsfw`, `private`.
    outputs: Option<Expression>,
    /// How long the provider keeps an output that does not say it itself.
    #[serde(default, with = "humantime_serde")]
    output_lifetime: Option<Duration>,
    /// A list beside the outputs: whether the provider marked each of them.
    nsfw: Option<Expression>,
    /// A number or a mapping with `amount` and `unit`.
    cost: Option<Expression>,
    /// A list of the moderation's remarks.
    moderation: Option<Expression>,
    error_code: Option<Expression>,
    error_message: Option<Expression>,
    #[serde(skip)]
    pub(in crate::provider) rules: ErrorRules,
}

impl TaskMapping {
    /// What `item` tells; `None` where it names no task, neither by the provider's id nor by ours.
    pub(in crate::provider) fn read(&self, item: &Value) -> Option<TaskReport> {
        let value = |expression: &Option<Expression>| {
            expression
                .as_ref()
                .map(|expression| expression.evaluate(item))
        };
        let word = |expression: &Option<Expression>| value(expression).as_ref().and_then(text);
        let task_id = word(&self.task_id);
        let reference = word(&self.reference);
        if task_id.is_none() && reference.is_none() {
            return None;
        }
        let status_word = text(&self.status.evaluate(item));
        let status = status_word
            .as_ref()
            .and_then(|word| self.statuses.get(word))
            .copied();
        let has_status_word = status_word.is_some();
        let complaint = || ErrorDetails {
            code: word(&self.error_code),
            status: status_word.clone(),
            message: word(&self.error_message),
        };
        let error = (status == Some(Status::Failed)).then(|| self.rules.failure(complaint(), item));
        let (outputs, sources) = self.outputs(item);
        let remarks = value(&self.moderation)
            .map(|list| items(&list))
            .unwrap_or_default();
        let report = StatusReport {
            status,
            progress: value(&self.progress).as_ref().and_then(number),
            queue_position: value(&self.queue_position).as_ref().and_then(whole),
            stage: word(&self.stage),
            eta_seconds: value(&self.eta_seconds).as_ref().and_then(number),
            outputs,
            private_urls: sources,
            cost: value(&self.cost).as_ref().and_then(cost),
            moderation: remarks.iter().filter_map(text).collect(),
            error,
            ..StatusReport::default()
        };
        Some(TaskReport {
            task_id,
            reference,
            report,
            has_status: has_status_word,
            is_trusted: false,
        })
    }
}

impl TaskMapping {
    /// What a task has brought, and where that lies which only the provider's key can read.
    fn outputs(&self, item: &Value) -> (Vec<Output>, Vec<Option<String>>) {
        let list = |expression: &Option<Expression>| {
            expression
                .as_ref()
                .map(|expression| items(&expression.evaluate(item)))
                .unwrap_or_default()
        };
        let marks = list(&self.nsfw);
        let (mut outputs, mut sources) = (Vec::new(), Vec::new());
        for (at, found) in list(&self.outputs).iter().enumerate() {
            let Some((mut output, is_private)) = output(found) else {
                continue;
            };
            output.nsfw = output.nsfw.or(marks.get(at).and_then(as_bool));
            let end = self.output_lifetime.map(|lifetime| Time::now() + lifetime);
            output.expires_at = output.expires_at.or(end);
            sources.push(is_private.then(|| std::mem::take(&mut output.url)));
            outputs.push(output);
        }
        if sources.iter().all(Option::is_none) {
            sources.clear();
        }
        (outputs, sources)
    }
}

/// A number, also one that is written as text.
fn number(value: &Value) -> Option<f64> {
    text(value)?
        .trim()
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
}

fn whole(value: &Value) -> Option<u32> {
    text(value)?.trim().parse().ok()
}

fn as_bool(value: &Value) -> Option<bool> {
    (value.kind() == ValueKind::Bool).then(|| value.is_true())
}

fn cost(value: &Value) -> Option<Cost> {
    let at = |name: &str| value.get_attr(name).unwrap_or_default();
    let amount = number(value).or_else(|| number(&at("amount")))?;
    let unit = text(&at("unit")).unwrap_or_else(|| "unit".to_owned());
    Some(Cost {
        amount,
        unit: unit.to_lowercase(),
    })
}

/// An output, and whether only the provider's key can read it.
fn output(item: &Value) -> Option<(Output, bool)> {
    let at = |name: &str| item.get_attr(name).unwrap_or_default();
    let url = if item.kind() == ValueKind::String {
        text(item)
    } else {
        text(&at("url"))
    }?;
    let media_type = || {
        let text = text(&at("content_type"))?;
        let (kind, _) = text.split_once('/')?;
        matches!(kind, "video" | "image" | "audio").then(|| kind.to_owned())
    };
    let output = Output {
        kind: text(&at("type"))
            .or_else(media_type)
            .unwrap_or_else(|| kind_by_name(&url)),
        duration: number(&at("duration")),
        expires_at: parse_timestamp(&at("expires_at")),
        watermark_url: text(&at("watermark_url")),
        nsfw: as_bool(&at("nsfw")),
        url,
    };
    Some((output, at("private").is_true()))
}

/// RFC 3339, or seconds or milliseconds since the epoch.
fn parse_timestamp(value: &Value) -> Option<Time> {
    let text = text(value)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "held to the range of times"
    )]
    let from_number =
        |number: f64| Time::from_millis(if number < 1e11 { number * 1e3 } else { number } as i64);
    text.parse().ok().or_else(|| number(value).map(from_number))
}

fn kind_by_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let extension = path.rsplit('.').next().unwrap_or_default().to_lowercase();
    match extension.as_str() {
        "png" | "jpg" | "jpeg" | "webp" | "gif" | "avif" => "image",
        "mp3" | "wav" | "ogg" | "flac" | "m4a" => "audio",
        _ => "video",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn told(item: &Json) -> Option<TaskReport> {
        let reading = r#"
            task_id = "payload.id"
            status = "payload.status"
            progress = "payload.progress"
            outputs = "payload.outputs"
            error_code = "payload.code"
            [statuses]
            7 = "running"
            done = "succeeded"
            bad = "failed"
        "#;
        let reading: TaskMapping = toml::from_str(reading).unwrap();
        reading.read(&Value::from_serialize(item))
    }

    #[test]
    fn payload_without_task_id_yields_no_report() {
        for item in [
            json!(null),
            json!([]),
            json!("text"),
            json!({ "status": 7 }),
            json!({ "id": "" }),
            json!({ "id": {} }),
        ] {
            assert!(told(&item).is_none(), "{item}");
        }
    }

    #[test]
    fn numbers_and_numeric_strings_are_equivalent() {
        let read = told(&json!({ "id": 1, "status": 7, "progress": "12.5" })).unwrap();
        assert_eq!(read.task_id.as_deref(), Some("1"));
        assert_eq!(read.report.status, Some(Status::Running));
        assert_eq!(read.report.progress, Some(12.5));
        for odd in [json!("much"), json!(null), json!("NaN"), json!([1])] {
            let read = told(&json!({ "id": 1, "status": "7", "progress": odd })).unwrap();
            assert_eq!(read.report.progress, None, "{odd}");
        }
    }

    #[test]
    fn unknown_status_word_maps_to_none() {
        let read = told(&json!({ "id": 1, "status": "Done" })).unwrap();
        assert_eq!((read.report.status, read.has_status), (None, true));
        let read = told(&json!({ "id": 1 })).unwrap();
        assert_eq!((read.report.status, read.has_status), (None, false));
    }

    #[test]
    fn outputs_accept_urls_and_objects() {
        let kinds = |outputs: Json| -> Vec<(String, String)> {
            let item = json!({ "id": 1, "status": "done", "outputs": outputs });
            let outputs = told(&item).unwrap().report.outputs;
            outputs
                .into_iter()
                .map(|output| (output.kind, output.url))
                .collect()
        };
        let one = |kind: &str, url: &str| vec![(kind.to_owned(), url.to_owned())];
        assert_eq!(kinds(json!("https://a/b")), one("video", "https://a/b"));
        assert_eq!(
            kinds(json!(["https://a/b.mp3#t"])),
            one("audio", "https://a/b.mp3#t")
        );
        assert_eq!(
            kinds(json!({ "url": "https://a/b.WEBP?c" })),
            one("image", "https://a/b.WEBP?c")
        );
        assert_eq!(
            kinds(json!([{ "url": "u", "type": "file" }, { "id": 1 }, null, 5])),
            one("file", "u")
        );
        assert_eq!(kinds(json!(5)), []);
        assert_eq!(kinds(json!(null)), []);
    }

    #[test]
    fn timestamps_accept_seconds_milliseconds_and_rfc3339() {
        let at = |value: Json| parse_timestamp(&Value::from_serialize(value)).map(Time::millis);
        assert_eq!(at(json!(1_800_000_000)), Some(1_800_000_000_000));
        assert_eq!(at(json!(1_800_000_000_000_i64)), Some(1_800_000_000_000));
        assert_eq!(at(json!("1800000000.5")), Some(1_800_000_000_500));
        assert_eq!(at(json!("2027-01-15T08:00:00Z")), Some(1_800_000_000_000));
        assert_eq!(at(json!("tomorrow")), None);
    }

    #[test]
    fn error_fields_are_read_for_failures_only() {
        let failed = told(&json!({ "id": 1, "status": "bad", "code": 9 })).unwrap();
        let error = failed.report.error.unwrap();
        assert_eq!(error.provider_code.as_deref(), Some("9"));
        let running = told(&json!({ "id": 1, "status": 7, "code": 9 })).unwrap();
        assert_eq!(running.report.error, None);
    }
}
