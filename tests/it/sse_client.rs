//! A client for server-sent events that also returns comments. Every wait has a timeout.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::app::{TEST_TIMEOUT, TestApp};

pub struct SseClient {
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    unread: String,
}

/// A block of the stream.
#[derive(Debug, Default, PartialEq)]
pub struct Event {
    pub event: String,
    pub id: String,
    pub data: Value,
    pub retry: Option<u64>,
    pub comment: Option<String>,
}

impl SseClient {
    /// Opens a stream as `sub`.
    pub async fn open(app: &TestApp, query: &str, sub: &str) -> Self {
        let path = format!("/v1/events?{query}");
        Self::open_with(app.request(Method::GET, &path, sub)).await
    }

    pub async fn open_with(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("a response");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            bytes: response.bytes_stream().boxed(),
            unread: String::new(),
        }
    }

    /// Returns the next block, or `None` at the regular end of the stream.
    pub async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.unread.split_once("\n\n") {
                let event = parse(block);
                self.unread = rest.to_owned();
                return Some(event);
            }
            let more = tokio::time::timeout(TEST_TIMEOUT, self.bytes.next())
                .await
                .expect("a chunk within the timeout");
            let Some(more) = more else {
                assert_eq!(self.unread, "", "the stream ended within an event");
                return None;
            };
            let more = more.expect("a regular end of the stream");
            self.unread.push_str(std::str::from_utf8(&more).unwrap());
        }
    }

    /// Returns the next job. Skips comments and `retry`.
    pub async fn next_job(&mut self) -> Value {
        loop {
            let event = self.next_event().await.expect("a job");
            if event.event == "job" {
                return event.data;
            }
            assert_eq!(event.event, "", "{event:?} instead of a job");
        }
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event::default();
    for line in block.lines() {
        match line.split_once(": ").expect("a field") {
            ("event", name) => name.clone_into(&mut event.event),
            ("id", id) => id.clone_into(&mut event.id),
            ("data", text) => event.data = serde_json::from_str(text).unwrap(),
            ("retry", time) => event.retry = Some(time.parse().unwrap()),
            ("", comment) => event.comment = Some(comment.to_owned()),
            (other, _) => panic!("unknown field: {other}"),
        }
    }
    event
}
