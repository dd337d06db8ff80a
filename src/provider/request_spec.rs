//! One request that a spec describes.
//!
//! Invariant: what it does not say has one meaning for every kind of call.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use minijinja::Value;
use serde::Deserialize;

use super::expression::{Expression, Template};
use super::http::Method;

/// A request, and where in its answer things stand.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestSpec {
    /// Default: GET to ask, POST for all else.
    pub(super) method: Option<Method>,
    pub(super) url: Template,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, Template>,
    pub(super) body: Option<Expression>,
    /// Where in the answer the task or the list of tasks stands. Default: it is the answer.
    #[serde(default = "whole_payload", alias = "item")]
    pub(super) items: Expression,
    /// What of the answer to a submission is needed to ask again.
    pub(super) handle: Option<Expression>,
    /// How many tasks one question may be about.
    #[serde(default = "one")]
    pub(super) batch: NonZeroUsize,
    /// Whether a task can be asked for by the name that the hub gave it.
    #[serde(default)]
    pub(super) by_reference: bool,
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

impl RequestSpec {
    /// A call whose answer is about no task.
    pub(super) fn new(
        method: Option<Method>,
        url: Template,
        headers: BTreeMap<String, Template>,
        body: Option<Expression>,
    ) -> Self {
        Self {
            method,
            url,
            headers,
            body,
            items: whole_payload(),
            handle: None,
            batch: one(),
            by_reference: false,
        }
    }

    /// Whether there is such a call for a job: its URL is not empty then.
    pub(super) fn applies_to(&self, context: &Value) -> bool {
        self.url
            .render(context)
            .is_ok_and(|url| !url.trim().is_empty())
    }
}

#[expect(clippy::expect_used, reason = "a constant that a test evaluates")]
pub(super) fn whole_payload() -> Expression {
    Expression::new("payload").expect("is an expression")
}
