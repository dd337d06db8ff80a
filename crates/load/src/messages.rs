//! What the hub says on a socket, as far as a run needs it.
//!
//! Invariant: a message is read as the protocol says, by its names and not by their order.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

/// A message of the hub's.
#[derive(Debug, PartialEq)]
pub(super) enum ServerMessage<'a> {
    /// A job's document.
    Job(Document<'a>),
    /// What became of each job of a `subscribe`.
    Subscribed(HashMap<String, String>),
    /// Something asked for was not done, in the hub's words.
    Error(Cow<'a, str>),
    /// Anything else: a welcome, a heartbeat, a word on the store.
    Other,
}

/// What is looked at of a document.
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

/// Reads one message; `None` for what is none.
pub(super) fn read(text: &[u8]) -> Option<ServerMessage<'_>> {
    let message: Message<'_> = serde_json::from_slice(text).ok()?;
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
    fn a_document_is_read_in_any_order_of_its_names() {
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
            assert_eq!(
                read(text.as_bytes()),
                Some(ServerMessage::Job(job)),
                "{text}"
            );
        }
    }

    #[test]
    fn answers_and_ends_are_told_apart() {
        let subscribed =
            br#"{"type":"subscribed","id":1,"jobs":{"job_a":"current","job_b":"not_found"}}"#;
        let Some(ServerMessage::Subscribed(jobs)) = read(subscribed) else {
            panic!("not read")
        };
        assert_eq!(jobs["job_b"], "not_found");
        let error = br#"{"type":"error","id":4,"code":"not_found","message":"no"}"#;
        assert_eq!(read(error), Some(ServerMessage::Error("no".into())));
        let bye = br#"{"type":"bye","code":1012,"reason":"restart"}"#;
        assert_eq!(read(bye), Some(ServerMessage::Other));
        assert_eq!(
            read(br#"{"type":"hello","protocol":1}"#),
            Some(ServerMessage::Other)
        );
    }

    #[test]
    fn invalid_message_returns_none() {
        for text in [
            &b"hello"[..],
            b"{}",
            br#"{"type":"job"}"#,
            br#"{"type":"job","job":{"id":"job_a","version":-1,"final":false}}"#,
            br#"{"type":"job","job":{"id":"job_a","version":1}}"#,
        ] {
            assert_eq!(read(text), None);
        }
    }
}
