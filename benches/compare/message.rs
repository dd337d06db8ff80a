//! Messages of the benchmark: a job document of the hub with a stamp in `stage`.
//!
//! Invariant: for the same update, every server sends the same number of bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use progress_hub::job::{Job, NewJob, Source, Status, StatusReport};
use progress_hub::protocol::Frame;
use progress_hub::time::Time;
use serde_json::{Map, Value};

/// Owner of the jobs.
pub const OWNER: &str = "alice";

const STAMP_PREFIX: &[u8] = b"\"stage\":\"";
const NUMBER_DIGITS: usize = 20;
const STAMP_BYTES: usize = 2 * NUMBER_DIGITS + 1;

/// Number and due time of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number, from 1.
    pub number: u64,
    /// Due time in nanoseconds since the start of the clock.
    pub due: u64,
}

impl Stamp {
    /// Formats the stamp for a document.
    pub fn text(self) -> String {
        format!("{:020}.{:020}", self.number, self.due)
    }

    /// Returns the stamps of all documents in a message. Some servers send several documents in one message.
    pub fn all(mut message: &[u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let (stamp, rest) = Self::first(message)?;
            message = rest;
            Some(stamp)
        })
    }

    /// Returns the first stamp in a message, and the rest of the message.
    fn first(message: &[u8]) -> Option<(Self, &[u8])> {
        let first = STAMP_PREFIX[0];
        let start = message
            .windows(STAMP_PREFIX.len())
            .position(|window| window[0] == first && window == STAMP_PREFIX)?;
        let text = &message[start + STAMP_PREFIX.len()..];
        let (text, rest) = text.split_at_checked(STAMP_BYTES)?;
        let stamp = Self {
            number: parse_number(&text[..NUMBER_DIGITS])?,
            due: parse_number(&text[NUMBER_DIGITS + 1..])?,
        };
        Some((stamp, rest))
    }
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(sum * 10 + digit)
    })
}

/// Clock of a run.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

/// Maximum delay of a timer.
const TIMER_DELAY: Duration = Duration::from_millis(2);

impl Clock {
    /// Starts a clock.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the nanoseconds since the start.
    pub fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Waits until a time in nanoseconds since the start. Timers may be two milliseconds late, which would be counted
    /// as latency of the server. The last two milliseconds are therefore spent polling the clock.
    pub async fn wait_until(self, nanos: u64) {
        let due = self.0 + Duration::from_nanos(nanos);
        tokio::time::sleep_until((due - TIMER_DELAY).into()).await;
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until a time in nanoseconds since the start, or up to two milliseconds longer.
    pub async fn sleep_until(self, nanos: u64) {
        tokio::time::sleep_until((self.0 + Duration::from_nanos(nanos)).into()).await;
    }
}

/// Message of the hub for an update, for servers that forward what is published.
pub struct Template {
    before: String,
    after: String,
}

impl Template {
    /// Creates a message of a running job. Its metadata is padded so that the message has at least `bytes` bytes.
    pub fn new(bytes: usize) -> anyhow::Result<Self> {
        let unpadded = Self::with(metadata(0))?;
        let padding = bytes.saturating_sub(unpadded.message("").len() + STAMP_BYTES);
        if padding == 0 {
            return Ok(unpadded);
        }
        Self::with(metadata(padding))
    }

    fn with(metadata: Map<String, Value>) -> anyhow::Result<Self> {
        let new = NewJob {
            owner: OWNER.to_owned(),
            provider: None,
            provider_task_id: None,
            model: None,
            metadata,
            request: None,
            deadline: Duration::from_secs(1800),
        };
        let now = Time::now();
        let report = StatusReport {
            stage: Some("STAMP".to_owned()),
            ..StatusReport::with_status(Status::Running)
        };
        let job = Job::new(new, now)
            .apply(report.into_update(Source::Push), now)
            .context("the first report changes the job")?;
        let frame = Frame::new(Arc::new(job));
        let document = std::str::from_utf8(frame.document())?;
        let text = format!("{{\"type\":\"job\",\"job\":{document}}}");
        let (before, after) = text
            .split_once("STAMP")
            .context("the document has a stage")?;
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// Returns the message with a stamp.
    pub fn message(&self, stamp: &str) -> String {
        format!("{}{stamp}{}", self.before, self.after)
    }

    /// Returns the length of a message in bytes.
    pub fn length(&self) -> usize {
        self.before.len() + STAMP_BYTES + self.after.len()
    }
}

/// Returns the metadata of a job with `padding` additional bytes.
pub fn metadata(padding: usize) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("title".to_owned(), "A paper boat at dawn".into());
    if padding > 0 {
        metadata.insert("padding".to_owned(), "x".repeat(padding).into());
    }
    metadata
}
