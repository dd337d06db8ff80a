//! Requests and responses, independent of a dialect.

use std::collections::BTreeMap;

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::Value;

use super::task::{Product, Status, Task};

/// The head of a request, with the prefix of the dialect removed.
pub(super) struct RequestHead<'a> {
    pub method: &'a str,
    /// Path segments.
    pub path: Vec<&'a str>,
    pub query: BTreeMap<String, String>,
    pub headers: &'a HeaderMap,
}

/// The operation that a request requests.
#[derive(Debug)]
pub(super) enum Call {
    Submit,
    /// State of tasks by id. Unknown ids are skipped. A dialect with single queries returns an error for them.
    Query(Vec<Name>),
    /// State of tasks by filter.
    List,
    /// Result of a finished task, in dialects that need a second request for it.
    Result(String),
    Cancel(String),
    /// Content of the output of a finished task, in dialects where it requires the key.
    Content(String),
    /// State of the account.
    Account,
    /// Public keys for webhooks. Needs no authentication.
    Keys,
}

/// Identifies a task in a request.
#[derive(Debug)]
pub(super) enum Name {
    Task(String),
    /// External id, chosen by the client.
    External(String),
}

/// Filter of a list of tasks, newest first.
#[derive(Debug)]
pub(super) struct Listing {
    pub start_ms: Option<u64>,
    pub end_ms: Option<u64>,
    /// Only tasks with a smaller number.
    pub cursor: u64,
    pub limit: usize,
    /// A task must match each of these sets.
    pub statuses: Vec<Vec<Status>>,
    pub products: Vec<Vec<Product>>,
}

/// Result of a cancel request.
#[derive(Debug)]
pub(super) enum Cancelled {
    Unknown,
    /// The task has already ended.
    Ended,
    /// The cancellation is recorded. The task may still end differently.
    Agreed(Box<Task>),
}

/// A response of the provider.
#[derive(Debug)]
pub(super) struct ApiResponse {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    /// `None`: no body.
    pub body: Option<Value>,
}

impl<'a> RequestHead<'a> {
    /// Parses a request. `prefix` is the path of the dialect.
    pub fn of(request: &'a HttpRequest, prefix: &str) -> Self {
        let path = request.path();
        let path = path.strip_prefix(prefix).unwrap_or(path);
        let query = url::form_urlencoded::parse(request.query_string().as_bytes());
        Self {
            method: request.method().as_str(),
            path: path.split('/').skip(1).collect(),
            query: query.into_owned().collect(),
            headers: request.headers(),
        }
    }

    /// Returns a query parameter that is not empty.
    pub fn query(&self, key: &str) -> Option<&str> {
        let value = self.query.get(key)?;
        (!value.is_empty()).then_some(value)
    }
}

impl Listing {
    pub fn wants(&self, task: &Task) -> bool {
        self.start_ms.is_none_or(|start| task.created_ms >= start)
            && self.end_ms.is_none_or(|end| task.created_ms <= end)
            && self
                .statuses
                .iter()
                .all(|among| among.contains(&task.status))
            && self
                .products
                .iter()
                .all(|among| among.contains(&task.request.product))
    }
}

impl ApiResponse {
    pub fn new(status: u16, body: Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Some(body),
        }
    }

    pub fn ok(body: Value) -> Self {
        Self::new(200, body)
    }

    pub fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: None,
        }
    }

    pub fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }
}

impl From<ApiResponse> for HttpResponse {
    fn from(response: ApiResponse) -> Self {
        let status = StatusCode::from_u16(response.status);
        let mut builder = Self::build(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
        for header in response.headers {
            builder.insert_header(header);
        }
        match response.body {
            Some(body) => builder.json(body),
            None => builder.finish(),
        }
    }
}
