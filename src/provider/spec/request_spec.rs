//! One request that a spec describes.
//!
//! Invariant: what it does not say has one meaning for every kind of call.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use minijinja::Value;
use serde::Deserialize;

use crate::provider::client::http::Method;
use crate::provider::spec::expression::{Expression, Template};

/// A request, and where in its answer things stand.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::provider) struct RequestSpec {
    /// Default: GET to ask, POST for all else.
    pub(in crate::provider) method: Option<Method>,
    pub(in crate::provider) url: Template,
    #[serde(default)]
    pub(in crate::provider) headers: BTreeMap<String, Template>,
    pub(in crate::provider) body: Option<Expression>,
    /// Where in the answer the task or the list of tasks stands. Default: it is the answer.
    #[serde(default = "whole_payload", alias = "item")]
    pub(in crate::provider) items: Expression,
    /// What of the answer to a submission is needed to ask again.
    pub(in crate::provider) handle: Option<Expression>,
    /// How many tasks one question may be about.
    #[serde(default = "one")]
    pub(in crate::provider) batch: NonZeroUsize,
    /// Whether a task can be asked for by the name that the hub gave it.
    #[serde(default)]
    pub(in crate::provider) by_reference: bool,
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

impl RequestSpec {
    /// A call whose answer is about no task.
    pub(in crate::provider) fn new(
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
    pub(in crate::provider) fn applies_to(&self, context: &Value) -> bool {
        self.url
            .render(context)
            .is_ok_and(|url| !url.trim().is_empty())
    }
}

#[expect(clippy::expect_used, reason = "a constant that a test evaluates")]
pub(in crate::provider) fn whole_payload() -> Expression {
    Expression::new("payload").expect("is an expression")
}
