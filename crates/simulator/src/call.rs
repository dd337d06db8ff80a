//! What is requested_range of the provider and how it answers, in no dialect.
//!
//! Invariant: a [`Call`] says what is wanted and nothing of how that was written; an [`Answer`] is whole, so
//! that whoever sends it adds nothing of its own.

use std::collections::BTreeMap;

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::Value;

use super::task::{Product, Status, Task};

/// The head of a request, below the address of its dialect.
pub(super) struct RequestHead<'a> {
    pub method: &'a str,
    /// The segments of its path.
    pub path: Vec<&'a str>,
    pub query: BTreeMap<String, String>,
    pub headers: &'a HeaderMap,
}

/// What a request wants.
#[derive(Debug)]
pub(super) enum Call {
    Submit,
    /// The state of tasks. An unknown one is no error here; a dialect that has but one says so.
    Query(Vec<Name>),
    /// The state of tasks, by what they are.
    List,
    /// What a finished task has made, where that takes a second call.
    Result(String),
    Cancel(String),
    /// The bytes of what a finished task has made, where they lie behind the key.
    Content(String),
    /// How the account stands.
    Account,
    /// The public keys of webhooks, for anybody.
    Keys,
}

/// How a task is named by whoever asks.
#[derive(Debug)]
pub(super) enum Name {
    Task(String),
    /// The caller's own id.
    External(String),
}

/// Which tasks a list is of, newest first.
#[derive(Debug)]
pub(super) struct Listing {
    pub start_ms: Option<u64>,
    pub end_ms: Option<u64>,
    /// Only tasks whose number is below.
    pub cursor: u64,
    pub limit: usize,
    /// Each is a choice that the task must be among.
    pub statuses: Vec<Vec<Status>>,
    pub products: Vec<Vec<Product>>,
}

/// What became of a request to cancel.
#[derive(Debug)]
pub(super) enum Cancelled {
    Unknown,
    /// Too late.
    Ended,
    /// Taken note of; the task may still end otherwise.
    Agreed(Box<Task>),
}

/// An answer of the provider.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    /// `None`: no body at all.
    pub body: Option<Value>,
}

impl<'a> RequestHead<'a> {
    /// `prefix` is the path of the dialect.
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

    /// A value of the query that is not empty.
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

impl Answer {
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

impl From<Answer> for HttpResponse {
    fn from(answer: Answer) -> Self {
        let status = StatusCode::from_u16(answer.status);
        let mut response = Self::build(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
        for header in answer.headers {
            response.insert_header(header);
        }
        match answer.body {
            Some(body) => response.json(body),
            None => response.finish(),
        }
    }
}
