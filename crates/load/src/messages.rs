//! Server messages of the WebSocket protocol, reduced to the fields that a run needs.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

/// Message from the hub.
#[derive(Debug, PartialEq)]
pub(super) enum ServerMessage<'a> {
    /// A job document.
    Job(Document<'a>),
    /// Response to `subscribe`: the outcome per job id.
    Subscribed(HashMap<String, String>),
    /// Error with its message.
    Error(Cow<'a, str>),
    /// Any other message, such as `hello`, `heartbeat` or `degraded`.
    Other,
}

/// Fields of a job document that a run checks.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Document<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    pub version: u64,
    #[serde(rename = "final")]
    pub is_final: bool,
    pub progress: Option<f64>,
    #[serde(borrow)]
    pub stage: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    job: Option<Document<'a>>,
    jobs: Option<HashMap<String, String>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
}

/// Parses a message. Returns `None` if it is not valid.
pub(super) fn parse(text: &str) -> Option<ServerMessage<'_>> {
    let message: Message<'_> = serde_json::from_str(text).ok()?;
    match (&*message.kind, message.job, message.jobs) {
        ("job", Some(job), _) => Some(ServerMessage::Job(job)),
        ("subscribed", _, Some(jobs)) => Some(ServerMessage::Subscribed(jobs)),
        ("error", _, _) => Some(ServerMessage::Error(message.message.unwrap_or_default())),
        ("job" | "subscribed", _, _) => None,
        _ => Some(ServerMessage::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_document_is_parsed_in_any_field_order() {
        for text in [
            r#"{"type":"job","job":{"id":"job_a","version":7,"final":true,"progress":42.5,"stage":"step 3","x":{"id":"y"}}}"#,
            r#"{"job":{"stage":"step 3","progress":42.5,"metadata":{"version":9},"final":true,"version":7,"id":"job_a"},"type":"job"}"#,
        ] {
            let job = Document {
                id: "job_a".into(),
                version: 7,
                is_final: true,
                progress: Some(42.5),
                stage: Some("step 3".into()),
            };
            assert_eq!(parse(text), Some(ServerMessage::Job(job)), "{text}");
        }
    }

    #[test]
    fn message_types_are_distinguished() {
        let subscribed =
            r#"{"type":"subscribed","id":1,"jobs":{"job_a":"current","job_b":"not_found"}}"#;
        let Some(ServerMessage::Subscribed(jobs)) = parse(subscribed) else {
            panic!("not parsed")
        };
        assert_eq!(jobs["job_b"], "not_found");
        let error = r#"{"type":"error","id":4,"code":"not_found","message":"no"}"#;
        assert_eq!(parse(error), Some(ServerMessage::Error("no".into())));
        let bye = r#"{"type":"bye","code":1012,"reason":"restart"}"#;
        assert_eq!(parse(bye), Some(ServerMessage::Other));
        assert_eq!(
            parse(r#"{"type":"hello","protocol":1}"#),
            Some(ServerMessage::Other)
        );
    }

    #[test]
    fn invalid_message_returns_none() {
        for text in [
            "hello",
            "{}",
            r#"{"type":"job"}"#,
            r#"{"type":"job","job":{"id":"job_a","version":-1,"final":false}}"#,
            r#"{"type":"job","job":{"id":"job_a","version":1}}"#,
        ] {
            assert_eq!(parse(text), None);
        }
    }
}
