//! A request to a dialect, and the operations that all dialects share.
//!
//! Each operation counts the request, authenticates it, and then parses it.

use actix_web::http::header::AUTHORIZATION;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::api_error::ApiError;
use super::context::Context;
use super::dialect::{Dialect, respond};
use super::state::Counts;
use super::task::Task;

/// A request to a dialect.
pub(super) struct Call<'a> {
    pub context: &'a Data<Context>,
    pub dialect: &'static Dialect,
    pub request: &'a HttpRequest,
    pub body: &'a [u8],
    /// Path segments, without the prefix of the dialect.
    path: Vec<&'a str>,
    /// Path of the dialect.
    prefix: String,
}

impl<'a> Call<'a> {
    pub fn new(
        context: &'a Data<Context>,
        dialect: &'static Dialect,
        request: &'a HttpRequest,
        body: &'a [u8],
    ) -> Self {
        let mut path: Vec<_> = request.path().split('/').skip(1).collect();
        let prefix = match path.first() {
            Some(&first) if first == dialect.name => format!("/{}", path.remove(0)),
            Some(_) | None => String::new(),
        };
        Self {
            context,
            dialect,
            request,
            body,
            path,
            prefix,
        }
    }

    /// Returns method and path segments.
    pub fn route(&self) -> (&str, &[&str]) {
        (self.request.method().as_str(), &self.path)
    }

    /// Returns a query parameter that is not empty.
    pub fn query(&self, key: &str) -> Option<String> {
        let mut query = url::form_urlencoded::parse(self.request.query_string().as_bytes());
        let (_, value) = query.find(|(name, value)| name == key && !value.is_empty())?;
        Some(value.into_owned())
    }

    pub fn count(&self, count: impl Fn(&mut Counts)) {
        self.context.state.count(self.dialect.name, count);
    }

    /// Counts the request, then checks its key and its required header.
    pub fn authorize(&self, count: impl Fn(&mut Counts)) -> Result<(), ApiError> {
        self.count(count);
        let headers = self.request.headers();
        let authorization = headers.get(AUTHORIZATION).ok_or(ApiError::NoKey)?;
        let scheme = self.dialect.scheme.as_bytes();
        let key = authorization.as_bytes().strip_prefix(scheme);
        let key = key.ok_or(ApiError::BadKey)?;
        verify_slices_are_equal(key, self.context.settings.api_key.as_bytes())
            .map_err(|_| ApiError::BadKey)?;
        match self.dialect.required_header {
            Some((name, value)) if headers.get(name).is_none_or(|given| given != value) => {
                Err(ApiError::Malformed(format!("{name} must be {value}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Returns a task that has not been deleted.
    pub fn find(&self, id: &str) -> Result<Task, ApiError> {
        let records = self.context.state.read();
        let task = records.find(self.dialect.name, id);
        task.cloned().ok_or(ApiError::NoSuchTask)
    }

    /// Returns the task with this external id.
    pub fn find_external(&self, id: &str) -> Result<Task, ApiError> {
        let records = self.context.state.read();
        let submits = records.submits(self.dialect.name, id);
        let task =
            submits.and_then(|submits| records.find(self.dialect.name, submits.task.as_deref()?));
        task.cloned().ok_or(ApiError::NoSuchTask)
    }

    /// Returns tasks with smaller numbers, newest first.
    pub fn tasks_before(
        &self,
        number: u64,
        limit: usize,
        wants: impl Fn(&Task) -> bool,
    ) -> Vec<Task> {
        let records = self.context.state.read();
        let tasks = records.tasks.range(..number).rev().map(|(_, task)| task);
        let tasks = tasks.filter(|task| task.is_in(self.dialect.name) && wants(task));
        tasks.take(limit).cloned().collect()
    }

    /// Queries one task.
    pub fn queried(&self, id: &str) -> Result<Task, ApiError> {
        self.authorize(|counts| {
            counts.queries_received += 1;
            counts.tasks_queried += 1;
        })?;
        self.find(id)
    }

    /// Fetches the result of a task.
    pub fn result_of(&self, id: &str) -> Result<Task, ApiError> {
        self.authorize(|counts| counts.results_fetched += 1)?;
        self.find(id)
    }

    /// Cancels a task that has not ended. If `delete` is set, a finished task is deleted.
    pub fn cancel(&self, id: &str, delete: bool) -> Result<Task, ApiError> {
        self.authorize(|counts| counts.cancels_received += 1)?;
        let task = self.context.state.cancel(self.dialect.name, id, delete);
        task.ok_or(ApiError::NoSuchTask)
    }

    /// Returns whether the account has credit.
    pub fn has_credit(&self) -> Result<bool, ApiError> {
        self.authorize(|counts| counts.accounts_read += 1)?;
        let records = self.context.state.read();
        Ok(!records.without_credit.contains(self.dialect.name))
    }

    /// Returns the public keys for webhooks. Needs no authentication.
    pub fn keys(&self) -> HttpResponse {
        self.count(|counts| counts.keys_read += 1);
        respond(200, &[], self.context.keys.jwks())
    }

    /// Returns the base URL of the dialect as the client reaches it.
    pub fn origin(&self) -> String {
        let connection = self.request.connection_info();
        let (scheme, host) = (connection.scheme(), connection.host());
        format!("{scheme}://{host}{}", self.prefix)
    }
}
