//! What a provider takes, and what a job there costs: judged over a request's parameters.
//!
//! Invariant: both see exactly the names that a submission's templates see of the request.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use minijinja::Value;
use serde::Deserialize;

use crate::config::Price;
use crate::job::VideoRequest;
use crate::provider::Provider;
use crate::provider::spec::expression::Expression;

/// The most that one job may cost, in the prices' unit.
const MAX_PRICE: f64 = 1e9;

/// What a provider is known to refuse, so that it is not asked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::provider) struct Check {
    /// Holds where the request can't succeed.
    when: Expression,
    /// What to tell the caller, as `duration: must be 5 or 10`.
    problem: String,
}

/// The price table of a provider: names first, then patterns, longer ones first.
#[derive(Default)]
pub(in crate::provider) struct Prices(Vec<(String, PriceFormula)>);

enum PriceFormula {
    Each(f64),
    By(Expression),
}

impl Prices {
    /// # Errors
    /// What is no expression, each by its key.
    pub(in crate::provider) fn new(
        settings: &BTreeMap<String, Price>,
    ) -> Result<Self, Vec<(String, String)>> {
        let mut prices = Vec::new();
        let mut mistakes = Vec::new();
        for (pattern, price) in settings {
            match price {
                Price::Fixed(amount) => prices.push((pattern.clone(), PriceFormula::Each(*amount))),
                Price::Expression(text) => match Expression::new(text) {
                    Ok(expression) => prices.push((pattern.clone(), PriceFormula::By(expression))),
                    Err(problem) => mistakes.push((format!("prices.{pattern}"), problem)),
                },
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        prices.sort_by_key(|(pattern, _)| (pattern.contains('*'), Reverse(pattern.len())));
        Ok(Self(prices))
    }

    fn of(&self, model: &str) -> Option<&(String, PriceFormula)> {
        self.0
            .iter()
            .find(|(pattern, _)| matches_pattern(pattern, model))
    }
}

/// Whether a name fits a pattern, in which `*` stands for any letters or none.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|left| {
            left.char_indices()
                .map(|(at, _)| at)
                .chain([left.len()])
                .any(|at| matches_pattern(rest, &left[at..]))
        }),
    }
}

impl Provider {
    /// Why its provider would refuse the request, where the spec knows; the first that holds.
    #[must_use]
    pub fn validate_request(&self, request: &VideoRequest) -> Option<&str> {
        let names = Value::from_serialize(request.template_params());
        let holds = |check: &&Check| check.when.evaluate_in(&names).is_true();
        let check = self.spec.checks.iter().find(holds)?;
        Some(&check.problem)
    }

    /// What the request will cost by the configured prices, in `budgets.unit`; none where no price
    /// fits its model.
    ///
    /// # Errors
    /// Why its price gives no sum, by the price's key.
    pub fn price(&self, request: &VideoRequest) -> Result<Option<f64>, String> {
        let Some((pattern, formula)) = self.prices.of(&request.model) else {
            return Ok(None);
        };
        let amount = match formula {
            PriceFormula::Each(amount) => Ok(*amount),
            PriceFormula::By(expression) => expression
                .json(&Value::from_serialize(request.template_params()))
                .and_then(|value| {
                    value
                        .as_f64()
                        .ok_or_else(|| format!("'{value}' is no number"))
                }),
        };
        amount
            .and_then(|amount| {
                let is_sum = (0.0..=MAX_PRICE).contains(&amount);
                is_sum
                    .then_some(Some(amount))
                    .ok_or_else(|| format!("{amount} is no sum"))
            })
            .map_err(|problem| {
                let name = &self.name;
                format!(
                    "providers.{name}.prices: '{pattern}' has no price for this request: {problem}"
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_matching_price_pattern_wins() {
        let each = |amount| Price::Fixed(amount);
        let settings = [
            ("*", 1.0),
            ("kling-*", 2.0),
            ("kling-v3*pro", 3.0),
            ("kling-v3-pro", 4.0),
            ("*/video", 5.0),
        ];
        let settings = settings.map(|(pattern, amount)| (pattern.to_owned(), each(amount)));
        let prices = Prices::new(&settings.into()).ok().unwrap();
        for (model, expected) in [
            ("veo", 1.0),
            ("kling-v2", 2.0),
            ("kling-v3-turbo-pro", 3.0),
            ("kling-v3pro", 3.0),
            ("kling-v3-pro", 4.0),
            ("fal/é/video", 5.0),
            ("", 1.0),
        ] {
            let (_, formula) = prices.of(model).unwrap();
            assert!(
                matches!(formula, PriceFormula::Each(it) if *it == expected),
                "{model}"
            );
        }
        assert!(Prices::default().of("veo").is_none());
    }

    #[test]
    fn invalid_price_expression_names_its_key() {
        let settings = [("kling-*".to_owned(), Price::Expression("0.07 *".to_owned()))];
        let mistakes = Prices::new(&settings.into()).err().unwrap();
        assert_eq!(mistakes[0].0, "prices.kling-*");
    }
}
