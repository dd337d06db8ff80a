//! A client for server-sent events. It is stricter than the standard: a blank line without an event
//! that has data is an error, because common clients deliver an empty message for it. Every wait has
//! a timeout.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::app::{TEST_TIMEOUT, TestApp};

pub struct SseClient {
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    unread: String,
}

/// An event. `retry` and comments before it are included.
#[derive(Debug, Default, PartialEq)]
pub struct Event {
    pub event: String,
    pub id: String,
    pub data: Value,
    pub retry: Option<u64>,
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

    /// Returns the next line without its line feed, or `None` at the regular end of the stream.
    pub async fn next_line(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.unread.split_once('\n') {
                let line = line.to_owned();
                self.unread = rest.to_owned();
                return Some(line);
            }
            let more = tokio::time::timeout(TEST_TIMEOUT, self.bytes.next())
                .await
                .expect("a chunk within the timeout");
            let Some(more) = more else {
                assert_eq!(self.unread, "", "the stream ended within a line");
                return None;
            };
            let more = more.expect("a regular end of the stream");
            self.unread.push_str(std::str::from_utf8(&more).unwrap());
        }
    }

    /// Returns the next event, or `None` at the regular end of the stream. Skips comments.
    pub async fn next_event(&mut self) -> Option<Event> {
        let mut event = Event::default();
        loop {
            let line = self.next_line().await?;
            if line.is_empty() {
                assert!(
                    !event.event.is_empty() && !event.data.is_null(),
                    "a blank line without an event: {event:?}"
                );
                return Some(event);
            }
            match line.split_once(": ").expect("a field") {
                ("event", name) => name.clone_into(&mut event.event),
                ("id", id) => id.clone_into(&mut event.id),
                ("data", text) => event.data = serde_json::from_str(text).unwrap(),
                ("retry", time) => event.retry = Some(time.parse().unwrap()),
                ("", _comment) => {}
                (other, _) => panic!("unknown field: {other}"),
            }
        }
    }

    /// Returns the next job.
    pub async fn next_job(&mut self) -> Value {
        let event = self.next_event().await.expect("a job");
        assert_eq!(event.event, "job", "{event:?} instead of a job");
        event.data
    }
}
