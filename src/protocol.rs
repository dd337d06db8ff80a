//! The messages of the WebSocket protocol, frames and close codes.
//!
//! Invariant: each version of a job is encoded at most once. All connections and transports share
//! slices of the same buffer.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de};
use serde_json::Value;

use crate::job::Job;
use crate::time::Time;

/// The WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "progress-hub.v1";

/// A message from a client. `id` is chosen by the client.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Authenticates the connection as the first message, or renews the token later.
    Auth {
        /// A JWT.
        token: String,
    },
    /// Subscribes to jobs.
    Subscribe {
        /// Request id, echoed in the response.
        #[serde(default)]
        id: Value,
        /// Jobs to subscribe to. Together with `feed`, the versions that the client already has.
        #[serde(default)]
        jobs: Vec<JobVersion>,
        /// Subscribes to all present and future jobs of the caller.
        #[serde(default)]
        feed: Option<FeedName>,
    },
    /// Ends subscriptions.
    Unsubscribe {
        /// Request id, echoed in the response.
        #[serde(default)]
        id: Value,
        /// Ids of jobs.
        #[serde(default)]
        jobs: Vec<String>,
        /// The feed to unsubscribe from.
        #[serde(default)]
        feed: Option<FeedName>,
    },
    /// Cancels a job.
    Cancel {
        /// Request id, echoed in the response.
        #[serde(default)]
        id: Value,
        /// Id of the job.
        job: String,
    },
    /// Requests a [`ServerMessage::Pong`].
    Ping {
        /// Request id, echoed in the response.
        #[serde(default)]
        id: Value,
    },
}

impl ClientMessage {
    /// Parses a message.
    ///
    /// # Errors
    /// Returns the position and the cause of the first error.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let message = serde_json::from_slice(text)?;
        if is_json_object(text) {
            Ok(message)
        } else {
            Err(de::Error::custom("expected an object"))
        }
    }
}

/// Returns whether a JSON text is an object. Serde also deserializes structs and tagged enums from
/// arrays.
pub fn is_json_object(text: &[u8]) -> bool {
    text.trim_ascii_start().starts_with(b"{")
}

/// A job and the newest version that the client has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct JobVersion {
    /// Id of the job, not validated.
    pub job: String,
    /// Version, or 0 for none.
    #[serde(default)]
    pub version: u64,
}

/// A subscription that selects jobs by another criterion than their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedName {
    /// Jobs owned by the caller.
    Mine,
}

/// A message from the hub other than a job.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage<'a> {
    /// The token was accepted. Sent after each renewal as well.
    Hello {
        /// Version of the protocol.
        protocol: u8,
        /// Id of the connection, as it appears in the hub's log.
        connection: &'a str,
        /// Interval of the heartbeats, in milliseconds.
        heartbeat_ms: u64,
        /// Expiry of the token.
        expires_at: Time,
        /// Current time of the hub.
        now: Time,
    },
    /// Result of a `subscribe`.
    Subscribed {
        /// Request id of the client message.
        id: &'a Value,
        /// The feed, if one was requested.
        #[serde(skip_serializing_if = "Option::is_none")]
        feed: Option<FeedName>,
        /// Result for each requested job.
        jobs: BTreeMap<&'a str, SubscribeOutcome>,
    },
    /// Result of an `unsubscribe`.
    Unsubscribed {
        /// Request id of the client message.
        id: &'a Value,
    },
    /// A `cancel` was accepted. The job document reports the result.
    Cancelling {
        /// Request id of the client message.
        id: &'a Value,
        /// Id of the job.
        job: &'a str,
    },
    /// Response to a `ping`.
    Pong {
        /// Request id of the client message.
        id: &'a Value,
    },
    /// Periodic message that shows that the connection is alive.
    Heartbeat {
        /// Current time of the hub.
        now: Time,
    },
    /// The store is unavailable, so documents may be outdated.
    Degraded {
        /// Start of the outage.
        since: Time,
    },
    /// The store is available and all subscribed documents are up to date.
    Restored,
    /// The token expires soon. The connection is closed unless the client renews it.
    TokenExpiring {
        /// Milliseconds until expiry.
        in_ms: u64,
    },
    /// A client message failed.
    Error {
        /// Request id of the client message, or null if it could not be parsed.
        #[serde(skip_serializing_if = "is_null")]
        id: &'a Value,
        /// Stable error code.
        code: &'a str,
        /// Human-readable description.
        message: &'a str,
    },
    /// The hub is about to close the connection.
    Bye {
        /// Code of the close frame that follows.
        code: u16,
        /// Stable name of the reason.
        reason: &'a str,
        /// Delay before the client should reconnect, or `None` if it should not.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_null(id: &&Value) -> bool {
    id.is_null()
}

/// Result of a `subscribe` for one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscribeOutcome {
    /// The client already has the newest version.
    Current,
    /// The newest version is sent as a separate message.
    Sent,
    /// The job does not exist or the caller may not see it.
    NotFound,
    /// The connection has reached its maximum number of subscriptions.
    TooMany,
}

impl ServerMessage<'_> {
    /// Encodes the message as an unmasked WebSocket text frame.
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

/// Writes the header of an unmasked, unfragmented frame (RFC 6455, section 5.2).
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

/// Returns a ping frame without payload.
#[must_use]
pub fn ping() -> Bytes {
    control(PING, b"")
}

/// Returns the pong frame for a ping with this payload.
#[must_use]
pub fn pong(payload: &[u8]) -> Bytes {
    control(PONG, payload)
}

/// Returns a close frame. `reason` must be ASCII and is truncated to 123 bytes.
#[must_use]
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..reason.len().min(123)]);
    control(CLOSE, &payload)
}

const JOB_MESSAGE_PREFIX: &[u8] = br#"{"type":"job","job":"#;
const JOB_MESSAGE_SUFFIX: &[u8] = b"}";

/// One version of a job. It is encoded for delivery on first use, unless its document was already
/// encoded when the frame was created.
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
    /// Creates a frame for this version.
    #[must_use]
    pub fn new(job: Arc<Job>) -> Self {
        Self {
            job,
            encoded: OnceLock::new(),
        }
    }

    /// Creates a frame from a job and its document, which is already encoded as JSON.
    #[must_use]
    pub fn with_document(job: Arc<Job>, document: &str) -> Self {
        Self {
            job,
            encoded: OnceLock::from(Encoded::new(document.as_bytes())),
        }
    }

    /// Returns the job.
    #[must_use]
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Returns a complete WebSocket text frame with the message `{"type":"job","job":…}`.
    #[must_use]
    pub fn websocket(&self) -> &Bytes {
        &self.encoded().websocket
    }

    /// Returns the document as JSON.
    #[must_use]
    pub fn document(&self) -> &Bytes {
        &self.encoded().document
    }

    fn encoded(&self) -> &Encoded {
        self.encoded
            .get_or_init(|| Encoded::new(&serde_json::to_vec(&*self.job).unwrap_or_default()))
    }
}

impl Encoded {
    fn new(document: &[u8]) -> Self {
        let length = JOB_MESSAGE_PREFIX.len() + document.len() + JOB_MESSAGE_SUFFIX.len();
        let mut frame = BytesMut::with_capacity(length + MAX_HEADER);
        put_header(&mut frame, TEXT, length);
        frame.extend_from_slice(JOB_MESSAGE_PREFIX);
        let start = frame.len();
        frame.extend_from_slice(document);
        let end = frame.len();
        frame.extend_from_slice(JOB_MESSAGE_SUFFIX);
        let websocket = frame.freeze();
        Self {
            document: websocket.slice(start..end),
            websocket,
        }
    }
}

/// The reason for which the hub closes a WebSocket.
///
/// The range of the code tells the client what to do. 4000–4099: do not reconnect unchanged.
/// 4100–4199: reconnect after a backoff. 4200–4299: reconnect immediately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed the connection.
    Normal,
    /// Two consecutive pings remained unanswered.
    GoingAway,
    /// The client violated RFC 6455.
    Protocol,
    /// The client sent a binary frame.
    Unsupported,
    /// The client sent text that is not valid UTF-8.
    NotUtf8,
    /// The node is shutting down or restarting.
    Restart,
    /// The token is invalid.
    Unauthorized,
    /// The token expired.
    TokenExpired,
    /// The client did not authenticate in time.
    AuthTimeout,
    /// The client sent ten invalid messages.
    TooManyBadMessages,
    /// A message exceeds the size limit.
    MessageTooLarge,
    /// The node has reached its maximum number of connections.
    OverCapacity,
    /// The client does not read from the connection.
    NotReading,
    /// The client sends more messages or subscribes to more jobs per second than allowed.
    RateLimited,
    /// The client's address or subject has reached its maximum number of connections.
    TooManyConnections,
}

impl CloseReason {
    /// Every reason, by code.
    pub const ALL: [Self; 15] = [
        Self::Normal,
        Self::GoingAway,
        Self::Protocol,
        Self::Unsupported,
        Self::NotUtf8,
        Self::Restart,
        Self::Unauthorized,
        Self::TokenExpired,
        Self::AuthTimeout,
        Self::TooManyBadMessages,
        Self::MessageTooLarge,
        Self::OverCapacity,
        Self::NotReading,
        Self::RateLimited,
        Self::TooManyConnections,
    ];

    /// Returns the close code and the stable name of the reason.
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
            Self::RateLimited => (4102, "rate_limited"),
            Self::TooManyConnections => (4103, "too_many_connections"),
        }
    }

    /// Returns the close frame.
    #[must_use]
    pub fn frame(self) -> Bytes {
        let (code, reason) = self.code_and_reason();
        close(code, reason)
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

    /// Returns the payload of an unmasked frame (RFC 6455, section 5.2).
    fn payload(frame: &[u8]) -> &[u8] {
        match frame[1] {
            126 => &frame[4..],
            127 => &frame[10..],
            _ => &frame[2..],
        }
    }

    #[test]
    fn message_in_a_list_is_rejected() {
        assert!(ClientMessage::parse(br#" {"type":"ping"}"#).is_ok());
        assert!(ClientMessage::parse(br#"["ping"]"#).is_err());
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
