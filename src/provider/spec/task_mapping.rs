//! Maps a task as the provider describes it to a status report.
//!
//! An unknown status maps to no status, never to a final one. Missing fields stay empty.

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;

use super::error_rules::{ErrorDetails, ErrorRules};
use super::expression::Expression;
use super::value::{boolean, integer, items, number, text, timestamp};
use crate::job::{Cost, Job, MAX_TASK_ID_BYTES, Output, OutputSource, Status, StatusReport};
use crate::time::Time;

/// A task and its state at the provider.
#[derive(Clone, Debug)]
pub struct TaskReport {
    /// Id of the task at the provider.
    pub task_id: Option<String>,
    /// Id of the job, which the hub sent with the submission.
    pub reference: Option<String>,
    /// State of the task. Its `task_id` is not set.
    pub report: StatusReport,
    /// Whether the task has a status, known or unknown.
    pub(crate) has_status: bool,
    /// Whether a signature covers the report. An untrusted report may only trigger a poll.
    pub is_trusted: bool,
    /// Whether the sender is verified, even if the signature does not cover the report. If not, the
    /// report can be forged.
    pub is_sender_verified: bool,
}

impl TaskReport {
    /// Returns whether the task belongs to `job`: by the task id if both have one, else by the
    /// reference.
    pub(crate) fn matches_job(&self, job: &Job) -> bool {
        match (&job.provider_task_id, &self.task_id) {
            (Some(expected), Some(task_id)) => expected == task_id,
            (None, _) | (_, None) => self.reference.as_deref() == Some(job.id.as_str()),
        }
    }
}

/// The `[read]` table: where a task has its fields, and what its statuses mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskMapping {
    task_id: Option<Expression>,
    reference: Option<Expression>,
    status: Expression,
    statuses: BTreeMap<String, Status>,
    progress: Option<Expression>,
    queue_position: Option<Expression>,
    stage: Option<Expression>,
    eta_seconds: Option<Expression>,
    /// A list of URLs, or of mappings with `url`, `type` or `content_type`, `duration`,
    /// `expires_at`, `watermark_url`, `nsfw` and `private`. Instead of `url`, a mapping can have `base64`.
    outputs: Option<Expression>,
    /// How long the provider keeps an output without `expires_at`.
    #[serde(default, with = "humantime_serde")]
    output_lifetime: Option<Duration>,
    /// A list of booleans, one for each output.
    nsfw: Option<Expression>,
    /// A number, or a mapping with `amount` and `unit`.
    cost: Option<Expression>,
    /// A list of moderation findings.
    moderation: Option<Expression>,
    error_code: Option<Expression>,
    error_message: Option<Expression>,
}

impl TaskMapping {
    /// Reads a task. Returns `None` if it has neither a task id nor a reference.
    pub(super) fn read(&self, task: &Value, rules: &ErrorRules) -> Option<TaskReport> {
        let value = |expression: &Option<Expression>| Some(expression.as_ref()?.evaluate(task));
        let string = |expression| text(&value(expression)?);
        let task_id = string(&self.task_id).filter(|id| id.len() <= MAX_TASK_ID_BYTES);
        let reference = string(&self.reference);
        if task_id.is_none() && reference.is_none() {
            return None;
        }
        let provider_status = text(&self.status.evaluate(task));
        let has_status = provider_status.is_some();
        let status = provider_status
            .as_ref()
            .and_then(|status| self.statuses.get(status))
            .copied();
        let error = (status == Some(Status::Failed)).then(|| {
            let details = ErrorDetails {
                code: string(&self.error_code),
                status: provider_status,
                http_status: None,
                message: string(&self.error_message),
            };
            rules.failure(details, task).0
        });
        let (outputs, output_sources) = self.outputs(task);
        let findings = value(&self.moderation).map(|list| items(&list));
        let report = StatusReport {
            status,
            progress: value(&self.progress).as_ref().and_then(number),
            queue_position: value(&self.queue_position).as_ref().and_then(integer),
            stage: string(&self.stage),
            eta_seconds: value(&self.eta_seconds).as_ref().and_then(number),
            outputs,
            output_sources,
            cost: value(&self.cost).as_ref().and_then(cost),
            moderation: findings.iter().flatten().filter_map(text).collect(),
            error,
            ..StatusReport::default()
        };
        Some(TaskReport {
            task_id,
            reference,
            report,
            has_status,
            is_trusted: false,
            is_sender_verified: false,
        })
    }

    /// Returns the outputs of a task, and the sources of those that need the API key. The second list
    /// is empty if there are none, else it has an entry for each output.
    fn outputs(&self, task: &Value) -> (Vec<Output>, Vec<Option<OutputSource>>) {
        let list = |expression: &Option<Expression>| match expression {
            Some(expression) => items(&expression.evaluate(task)),
            None => Vec::new(),
        };
        let nsfw = list(&self.nsfw);
        let default_expiry = self.output_lifetime.map(|lifetime| Time::now() + lifetime);
        let (mut outputs, mut sources) = (Vec::new(), Vec::new());
        for (index, item) in list(&self.outputs).iter().enumerate() {
            let Some((mut output, is_private)) = output(item) else {
                continue;
            };
            output.nsfw = output.nsfw.or(nsfw.get(index).and_then(boolean));
            output.expires_at = output.expires_at.or(default_expiry);
            sources.push(is_private.then(|| OutputSource {
                url: std::mem::take(&mut output.url),
                is_private,
            }));
            outputs.push(output);
        }
        if sources.iter().all(Option::is_none) {
            sources.clear();
        }
        (outputs, sources)
    }
}

fn field(item: &Value, name: &str) -> Value {
    item.get_attr(name).unwrap_or_default()
}

fn cost(value: &Value) -> Option<Cost> {
    let amount = number(value).or_else(|| number(&field(value, "amount")))?;
    let unit = text(&field(value, "unit")).unwrap_or_else(|| "unit".to_owned());
    Some(Cost {
        amount,
        unit: unit.to_lowercase(),
    })
}

/// Returns an output, and whether only the API key can read it.
fn output(item: &Value) -> Option<(Output, bool)> {
    let url = if item.kind() == ValueKind::String {
        text(item)
    } else {
        text(&field(item, "url")).or_else(|| inline_url(item))
    }?;
    let kind_by_content_type =
        || media_kind(&text(&field(item, "content_type"))?).map(str::to_owned);
    let output = Output {
        kind: text(&field(item, "type"))
            .or_else(kind_by_content_type)
            .unwrap_or_else(|| kind_by_url(&url).to_owned()),
        duration: number(&field(item, "duration")),
        expires_at: timestamp(&field(item, "expires_at")),
        watermark_url: text(&field(item, "watermark_url")),
        nsfw: boolean(&field(item, "nsfw")),
        url,
    };
    Some((output, field(item, "private").is_true()))
}

/// Returns a `data:` URL for an output whose content is in the field `base64`.
fn inline_url(item: &Value) -> Option<String> {
    let content_type = text(&field(item, "content_type")).unwrap_or_default();
    let content = text(&field(item, "base64"))?;
    Some(format!("data:{content_type};base64,{content}"))
}

/// Returns the type of an output with this content type, or `None` if it is not media.
fn media_kind(content_type: &str) -> Option<&'static str> {
    let (kind, _) = content_type.split_once('/')?;
    let mut kinds = ["video", "image", "audio"].into_iter();
    kinds.find(|known| *known == kind)
}

fn kind_by_url(url: &str) -> &'static str {
    if let Some(inline) = url.strip_prefix("data:") {
        return media_kind(inline).unwrap_or("file");
    }
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let extension = path.rsplit('.').next().unwrap_or_default().to_lowercase();
    match extension.as_str() {
        "png" | "jpg" | "jpeg" | "webp" | "gif" | "avif" => "image",
        "mp3" | "wav" | "ogg" | "flac" | "m4a" => "audio",
        _ => "video",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn read(item: &Json) -> Option<TaskReport> {
        let mapping = r#"
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
        let mapping: TaskMapping = toml::from_str(mapping).unwrap();
        mapping.read(&Value::from_serialize(item), &ErrorRules::default())
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
            assert!(read(&item).is_none(), "{item}");
        }
    }

    #[test]
    fn numbers_and_numeric_strings_are_equivalent() {
        let task = read(&json!({ "id": 1, "status": 7, "progress": "12.5" })).unwrap();
        assert_eq!(task.task_id.as_deref(), Some("1"));
        assert_eq!(task.report.status, Some(Status::Running));
        assert_eq!(task.report.progress, Some(12.5));
        for invalid in [json!("much"), json!(null), json!("NaN"), json!([1])] {
            let task = read(&json!({ "id": 1, "status": "7", "progress": invalid })).unwrap();
            assert_eq!(task.report.progress, None, "{invalid}");
        }
    }

    #[test]
    fn unknown_status_maps_to_none() {
        let task = read(&json!({ "id": 1, "status": "Done" })).unwrap();
        assert_eq!((task.report.status, task.has_status), (None, true));
        let task = read(&json!({ "id": 1 })).unwrap();
        assert_eq!((task.report.status, task.has_status), (None, false));
    }

    #[test]
    fn outputs_accept_urls_and_objects() {
        let kinds = |outputs: Json| -> Vec<(String, String)> {
            let item = json!({ "id": 1, "status": "done", "outputs": outputs });
            let outputs = read(&item).unwrap().report.outputs;
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
        assert_eq!(
            kinds(json!([{ "base64": "AAAA", "content_type": "image/png" }])),
            one("image", "data:image/png;base64,AAAA")
        );
        assert_eq!(
            kinds(json!(["data:audio/wav;base64,AAAA"])),
            one("audio", "data:audio/wav;base64,AAAA")
        );
        assert_eq!(kinds(json!(5)), []);
        assert_eq!(kinds(json!(null)), []);
    }

    #[test]
    fn error_fields_are_read_for_failures_only() {
        let failed = read(&json!({ "id": 1, "status": "bad", "code": 9 })).unwrap();
        let error = failed.report.error.unwrap();
        assert_eq!(error.provider_code.as_deref(), Some("9"));
        let running = read(&json!({ "id": 1, "status": 7, "code": 9 })).unwrap();
        assert_eq!(running.report.error, None);
    }
}
