//! What travels: the hub's own document of a job, with a stamp in it.
//!
//! Invariant: every server sends the same number of bytes for the same update, and each message says
//! which update it is and when it was due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use progress_hub::job::{Job, NewJob, Source, Status, StatusReport};
use progress_hub::protocol::Frame;
use progress_hub::time::Time;
use serde_json::{Map, Value};

/// Who owns the jobs.
pub const OWNER: &str = "alice";

const BEFORE: &[u8] = b"\"stage\":\"";
const DIGITS: usize = 20;
const LENGTH: usize = 2 * DIGITS + 1;

/// Which update it is, and when it was due, by the run's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// 1, 2, 3 …
    pub number: u64,
    /// Nanoseconds since the run began.
    pub due: u64,
}

impl Stamp {
    /// As it stands in a document.
    pub fn text(self) -> String {
        format!("{:020}.{:020}", self.number, self.due)
    }

    /// The stamp of a message, where it has one.
    pub fn find(message: &[u8]) -> Option<Self> {
        let first = BEFORE[0];
        let at = message
            .windows(BEFORE.len())
            .position(|window| window[0] == first && window == BEFORE)?;
        let text = message.get(at + BEFORE.len()..at + BEFORE.len() + LENGTH)?;
        Some(Self {
            number: number(&text[..DIGITS])?,
            due: number(&text[DIGITS + 1..])?,
        })
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(sum * 10 + digit)
    })
}

/// The run's clock.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

/// How late a timer may come.
const TIMER: Duration = Duration::from_millis(2);

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since it began.
    pub fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Waits until so many nanoseconds after it began. A timer comes up to two milliseconds late, which
    /// would be told of the server: so the last of them are spent looking at the clock.
    pub async fn reach(self, nanos: u64) {
        let due = self.0 + Duration::from_nanos(nanos);
        tokio::time::sleep_until((due - TIMER).into()).await;
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
    }
}

/// The text of an update as the hub would send it, for the servers that send what they are given.
pub struct Template {
    before: String,
    after: String,
}

impl Template {
    /// A running job of a worker's own, padded to about `bytes` by its metadata where that is more.
    pub fn new(bytes: usize) -> anyhow::Result<Self> {
        let plain = Self::with(metadata(0))?;
        let padding = bytes.saturating_sub(plain.message("").len() + LENGTH);
        if padding == 0 {
            return Ok(plain);
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
            .context("a first report is news")?;
        let frame = Frame::new(Arc::new(job));
        let document = std::str::from_utf8(frame.document())?;
        let text = format!("{{\"type\":\"job\",\"job\":{document}}}");
        let (before, after) = text.split_once("STAMP").context("it has its stage")?;
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// The text with this stamp.
    pub fn message(&self, stamp: &str) -> String {
        format!("{}{stamp}{}", self.before, self.after)
    }

    /// How long a message is.
    pub fn length(&self) -> usize {
        self.before.len() + LENGTH + self.after.len()
    }
}

/// What a job of the run carries, with so much padding.
pub fn metadata(padding: usize) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("title".to_owned(), "A paper boat at dawn".into());
    if padding > 0 {
        metadata.insert("padding".to_owned(), "x".repeat(padding).into());
    }
    metadata
}
