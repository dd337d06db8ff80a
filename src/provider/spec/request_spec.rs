//! Requests that a spec describes.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use minijinja::Value;
use serde::Deserialize;

use super::expression::{Expression, Template};
use super::input_rules::InputRules;

/// HTTP method of a request.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Delete,
}

/// A parameter that a definition can read from a rendered submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Parameter {
    Model,
    Duration,
    AspectRatio,
    Resolution,
    Width,
    Height,
    /// Number of outputs.
    Count,
}

impl Parameter {
    /// Returns the name in expressions.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Duration => "duration",
            Self::AspectRatio => "aspect_ratio",
            Self::Resolution => "resolution",
            Self::Width => "width",
            Self::Height => "height",
            Self::Count => "count",
        }
    }
}

/// A request, and where its response contains the tasks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestSpec {
    /// Default: GET for queries, POST for submissions and cancellations.
    pub(crate) method: Option<Method>,
    pub(crate) url: Template,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Template>,
    pub(crate) body: Option<Expression>,
    /// The task or the list of tasks in the response. Default: the whole response.
    #[serde(default = "whole_payload", alias = "item")]
    pub(crate) items: Expression,
    /// Part of the response to a submission that later requests need.
    pub(crate) handle: Option<Expression>,
    /// Rules for the caller's `input` in a submission.
    #[serde(default)]
    pub(crate) input: InputRules,
    /// Expressions that read the variables of prices, checks and tiers from a rendered submission.
    #[serde(default)]
    pub(crate) parameters: BTreeMap<Parameter, Expression>,
    /// Maximum number of tasks per poll.
    #[serde(default = "one")]
    pub(crate) batch: NonZeroUsize,
    /// Whether tasks can be found by the reference that the hub sent with the submission.
    #[serde(default)]
    pub(crate) by_reference: bool,
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

/// Returns the expression `payload`.
#[expect(clippy::expect_used, reason = "the constant is valid")]
pub(super) fn whole_payload() -> Expression {
    Expression::new("payload").expect("valid expression")
}

impl RequestSpec {
    /// Returns whether the request contains the callback URL of the job.
    pub(crate) fn uses_callback_url(&self) -> bool {
        let body = self.body.as_ref();
        self.url.uses_callback_url() || body.is_some_and(Expression::uses_callback_url)
    }

    /// Returns whether the provider has this request for a job. It has none if the URL renders to
    /// an empty text.
    pub(crate) fn applies_to(&self, context: &Value) -> bool {
        self.url
            .render(context)
            .is_ok_and(|url| !url.trim().is_empty())
    }
}

/// The `[balance]` table: how to read the balance of the account.
#[derive(Deserialize)]
#[serde(from = "BalanceFields")]
pub(crate) struct BalanceSpec {
    pub(crate) request: RequestSpec,
    pub(crate) amount: Expression,
    pub(crate) unit: Option<Template>,
}

/// The fields as they are in the file. `#[serde(flatten)]` would lose the line numbers of errors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalanceFields {
    method: Option<Method>,
    url: Template,
    #[serde(default)]
    headers: BTreeMap<String, Template>,
    body: Option<Expression>,
    /// Expression over `payload`.
    amount: Expression,
    /// A currency or another unit such as `credits`. Template over `payload`.
    unit: Option<Template>,
}

impl From<BalanceFields> for BalanceSpec {
    fn from(fields: BalanceFields) -> Self {
        Self {
            request: RequestSpec {
                method: fields.method,
                url: fields.url,
                headers: fields.headers,
                body: fields.body,
                items: whole_payload(),
                handle: None,
                input: InputRules::default(),
                parameters: BTreeMap::new(),
                batch: one(),
                by_reference: false,
            },
            amount: fields.amount,
            unit: fields.unit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_balance_spec_is_reported() {
        let parse = |text: &str| toml::from_str::<BalanceSpec>(text).map(|_| ());
        parse("url = 'https://a/b'\namount = 'payload.left'\nunit = '{{ payload.of }}'").unwrap();
        for (text, expected) in [
            ("url = 'https://a/b'", "missing field `amount`"),
            ("amount = 'payload'", "missing field `url`"),
            ("url = 'https://a/b'\namount = 'payload.'", "syntax error"),
            ("url = 'https://a/b'\namount = 'payload'\ntypo = 1", "typo"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
