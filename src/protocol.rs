//! The words that clients and hub exchange on a socket, and the frames a job travels in.
//!
//! Invariant: a job's newest version is encoded once, whoever watches it and however it travels;
//! every way out is a slice of the same bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::Job;
use crate::time::Time;

/// The WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "progress-hub.v1";

/// What a client may say. `id` is the client's own and is echoed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Who it is: as the first frame, or later to renew in place.
    Auth {
        /// A JWT.
        token: String,
    },
    /// Which jobs it wants to see, with the versions it has.
    Subscribe {
        /// Echoed.
        #[serde(default)]
        id: Value,
        /// Single jobs; beside a feed, the versions already known.
        #[serde(default)]
        jobs: Vec<JobVersion>,
        /// All jobs of the caller, future ones too.
        #[serde(default)]
        feed: Option<FeedName>,
    },
    /// Which jobs it no longer wants to see.
    Unsubscribe {
        /// Echoed.
        #[serde(default)]
        id: Value,
        /// Single jobs.
        #[serde(default)]
        jobs: Vec<String>,
        /// The whole feed.
        #[serde(default)]
        feed: Option<FeedName>,
    },
    /// Which job it wants cancelled.
    Cancel {
        /// Echoed.
        #[serde(default)]
        id: Value,
        /// The job.
        job: String,
    },
    /// Are you there?
    Ping {
        /// Echoed.
        #[serde(default)]
        id: Value,
    },
}

/// A job and the version of it that the client has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct JobVersion {
    /// The job's id, as the client wrote it.
    pub job: String,
    /// 0: none.
    #[serde(default)]
    pub version: u64,
}

/// A feed that follows jobs by something else than their id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedName {
    /// The caller's own jobs.
    Mine,
}

/// What the hub says besides jobs.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage<'a> {
    /// The caller is known; said again after each renewal of the token.
    Hello {
        /// Version of this protocol.
        protocol: u8,
        /// This connection's name, as in the hub's log.
        connection: &'a str,
        /// How often to expect something.
        heartbeat_ms: u64,
        /// When the token ends.
        expires_at: Time,
        /// The hub's clock.
        now: Time,
    },
    /// What became of a `subscribe`.
    Subscribed {
        /// The client's own.
        id: &'a Value,
        /// Present for a feed.
        #[serde(skip_serializing_if = "Option::is_none")]
        feed: Option<FeedName>,
        /// Job by job.
        jobs: BTreeMap<&'a str, SubscribeOutcome>,
    },
    /// An `unsubscribe` was done.
    Unsubscribed {
        /// The client's own.
        id: &'a Value,
    },
    /// A `cancel` was asked of the provider, or done; the job itself shows what comes of it.
    Cancelling {
        /// The client's own.
        id: &'a Value,
        /// The job.
        job: &'a str,
    },
    /// I am.
    Pong {
        /// The client's own.
        id: &'a Value,
    },
    /// Still here.
    Heartbeat {
        /// The hub's clock.
        now: Time,
    },
    /// The store is away; what is shown may be old.
    Degraded {
        /// Since when.
        since: Time,
    },
    /// The store is back, and everything shown is current again.
    Restored,
    /// Renew the token, or be closed.
    TokenExpiring {
        /// Milliseconds left.
        in_ms: u64,
    },
    /// Something asked for could not be done.
    Error {
        /// The client's own, where it could be read.
        #[serde(skip_serializing_if = "is_null")]
        id: &'a Value,
        /// A stable word.
        code: &'a str,
        /// For a person.
        message: &'a str,
    },
    /// The connection ends, and this is why.
    Bye {
        /// The close code that follows.
        code: u16,
        /// A stable word.
        reason: &'a str,
        /// When to come back, if at all.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_null(id: &&Value) -> bool {
    id.is_null()
}

/// What became of one job of a `subscribe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscribeOutcome {
    /// The client has the newest version.
    Current,
    /// The newest version follows, or came just before.
    Sent,
    /// There is no such job for this caller.
    NotFound,
    /// It has as many subscriptions as it may have.
    TooMany,
}

impl ServerMessage<'_> {
    /// The message as one unmasked WebSocket text frame.
    #[must_use]
    pub fn frame(&self) -> Bytes {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let mut frame = BytesMut::with_capacity(text.len() + MAX_HEADER);
        put_header(&mut frame, TEXT, text.len());
        frame.extend_from_slice(&text);
        frame.freeze()
    }
}

const TEXT: u8 = 0x1;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const CLOSE: u8 = 0x8;
const MAX_HEADER: usize = 10;

/// RFC 6455, 5.2: final fragment, opcode, no mask, and the length in the shortest of three forms.
fn put_header(frame: &mut BytesMut, opcode: u8, length: usize) {
    frame.put_u8(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => frame.put_u8(short),
        (_, Ok(medium)) => {
            frame.put_u8(126);
            frame.put_u16(medium);
        }
        (_, Err(_)) => {
            frame.put_u8(127);
            frame.put_u64(length as u64);
        }
    }
}

fn control(opcode: u8, payload: &[u8]) -> Bytes {
    let payload = &payload[..payload.len().min(125)];
    let mut frame = BytesMut::with_capacity(payload.len() + 2);
    put_header(&mut frame, opcode, payload.len());
    frame.extend_from_slice(payload);
    frame.freeze()
}

/// A ping frame without payload.
#[must_use]
pub fn ping() -> Bytes {
    control(PING, b"")
}

/// The pong that answers a ping.
#[must_use]
pub fn pong(payload: &[u8]) -> Bytes {
    control(PONG, payload)
}

/// A close frame; `reason` is at most 123 bytes of ASCII.
#[must_use]
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..reason.len().min(123)]);
    control(CLOSE, &payload)
}

const BEFORE: &[u8] = br#"{"type":"job","job":"#;
const AFTER: &[u8] = b"}";

/// One version of a job on its way to those who watch it. The bytes are made when the first of
/// them needs some: a version that a newer one overtakes costs nothing.
#[derive(Debug)]
pub struct Frame {
    job: Arc<Job>,
    encoded: OnceLock<Encoded>,
}

#[derive(Debug)]
struct Encoded {
    websocket: Bytes,
    document: Bytes,
}

impl Frame {
    /// A frame that shows this version.
    #[must_use]
    pub fn new(job: Arc<Job>) -> Self {
        Self {
            job,
            encoded: OnceLock::new(),
        }
    }

    /// What it shows.
    #[must_use]
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// A whole WebSocket text frame: `{"type":"job","job":…}`.
    #[must_use]
    pub fn websocket(&self) -> &Bytes {
        &self.encoded().websocket
    }

    /// The document alone, as JSON.
    #[must_use]
    pub fn document(&self) -> &Bytes {
        &self.encoded().document
    }

    fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| {
            let document = serde_json::to_vec(&*self.job).unwrap_or_default();
            let length = BEFORE.len() + document.len() + AFTER.len();
            let mut frame = BytesMut::with_capacity(length + MAX_HEADER);
            put_header(&mut frame, TEXT, length);
            frame.extend_from_slice(BEFORE);
            let start = frame.len();
            frame.extend_from_slice(&document);
            let end = frame.len();
            frame.extend_from_slice(AFTER);
            let websocket = frame.freeze();
            Encoded {
                document: websocket.slice(start..end),
                websocket,
            }
        })
    }
}

/// Why the hub closes a socket. The bands tell a client what to do: 4000–4099 not as you are,
/// 4100–4199 back off and come back, 4200–4299 come back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed, or went.
    Normal,
    /// Nobody answered two heartbeats' pings.
    GoingAway,
    /// RFC 6455 was broken.
    Protocol,
    /// A binary frame.
    Unsupported,
    /// Text that is not UTF-8.
    NotUtf8,
    /// This node restarts.
    Restart,
    /// The token is not good.
    Unauthorized,
    /// The token ended.
    TokenExpired,
    /// No token came in time.
    AuthTimeout,
    /// Ten messages made no sense.
    TooManyBadMessages,
    /// A message is longer than the hub reads.
    MessageTooLarge,
    /// The node has as many connections as it may have.
    OverCapacity,
    /// The client does not read.
    NotReading,
}

impl CloseReason {
    /// The code on the wire, and a stable word for the reason.
    #[must_use]
    pub fn code_and_reason(self) -> (u16, &'static str) {
        match self {
            Self::Normal => (1000, "bye"),
            Self::GoingAway => (1001, "going_away"),
            Self::Protocol => (1002, "protocol_error"),
            Self::Unsupported => (1003, "text_only"),
            Self::NotUtf8 => (1007, "not_utf8"),
            Self::Restart => (1012, "restart"),
            Self::Unauthorized => (4001, "unauthorized"),
            Self::TokenExpired => (4002, "token_expired"),
            Self::AuthTimeout => (4003, "auth_timeout"),
            Self::TooManyBadMessages => (4008, "too_many_bad_messages"),
            Self::MessageTooLarge => (4009, "message_too_large"),
            Self::OverCapacity => (4100, "over_capacity"),
            Self::NotReading => (4101, "not_reading"),
        }
    }

    /// The close frame itself.
    #[must_use]
    pub fn frame(self) -> Bytes {
        let (code, word) = self.code_and_reason();
        close(code, word)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{Job, NewJob};

    fn job(metadata: &str) -> Arc<Job> {
        let mut map = serde_json::Map::new();
        map.insert("note".into(), metadata.into());
        let new = NewJob {
            owner: "alice".into(),
            provider: None,
            provider_task_id: None,
            model: None,
            metadata: map,
            request: None,
            deadline: std::time::Duration::from_secs(1),
        };
        Arc::new(Job::new(new, Time::from_millis(1_795_428_000_123)))
    }

    /// The payload of an unmasked frame, by RFC 6455, 5.2.
    fn payload(frame: &[u8]) -> &[u8] {
        match frame[1] {
            126 => &frame[4..],
            127 => &frame[10..],
            _ => &frame[2..],
        }
    }

    proptest! {
        #[test]
        fn frame_contains_exactly_the_document(note in "\\PC{0,70000}") {
            let frame = Frame::new(job(&note));
            let whole: Value = serde_json::from_slice(payload(frame.websocket())).unwrap();
            let document: Value = serde_json::from_slice(frame.document()).unwrap();
            prop_assert_eq!(&whole["job"], &document);
            prop_assert_eq!(document["metadata"]["note"].as_str().unwrap(), note);
            prop_assert_eq!(&whole["type"], "job");
        }
    }

    #[test]
    fn frame_lengths_use_the_shortest_encoding() {
        for (length, header) in [(125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut frame = BytesMut::new();
            put_header(&mut frame, TEXT, length);
            assert_eq!(frame.len(), header, "{length}");
        }
    }

    #[test]
    fn messages_match_the_contract() {
        let read: ClientMessage = serde_json::from_str(
            r#"{"type":"subscribe","id":1,"jobs":[{"job":"job_a","version":7},{"job":"job_b"}]}"#,
        )
        .unwrap();
        let jobs = vec![
            JobVersion {
                job: "job_a".into(),
                version: 7,
            },
            JobVersion {
                job: "job_b".into(),
                version: 0,
            },
        ];
        assert_eq!(
            read,
            ClientMessage::Subscribe {
                id: 1.into(),
                jobs,
                feed: None
            }
        );

        let id = Value::from("x");
        let jobs = BTreeMap::from([
            ("job_a", SubscribeOutcome::Current),
            ("job_c", SubscribeOutcome::NotFound),
        ]);
        let written = ServerMessage::Subscribed {
            id: &id,
            feed: None,
            jobs,
        };
        assert_eq!(
            serde_json::to_string(&written).unwrap(),
            r#"{"type":"subscribed","id":"x","jobs":{"job_a":"current","job_c":"not_found"}}"#
        );
        let error = ServerMessage::Error {
            id: &Value::Null,
            code: "bad_message",
            message: "?",
        };
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            text,
            r#"{"type":"error","code":"bad_message","message":"?"}"#
        );
    }
}
