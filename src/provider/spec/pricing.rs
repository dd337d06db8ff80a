//! Prices of jobs, and checks of requests before they are sent.
//!
//! Both are evaluated over the variables of the rendered submission.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use minijinja::Value;
use serde::Deserialize;
use wildmatch::WildMatchPattern;

use super::expression::Expression;
use crate::config::{ConfigError, Price};

/// Maximum price of one job, in `budgets.unit`.
const MAX_PRICE: f64 = 1e9;

/// A request that the provider is known to reject.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestCheck {
    /// True if the request cannot succeed.
    when: Expression,
    /// Error for the caller, such as `duration: must be 5 or 10`.
    problem: String,
}

impl RequestCheck {
    /// Returns the error if the provider would reject a request with these variables.
    pub(crate) fn validate(&self, variables: &Value) -> Option<&str> {
        let is_rejected = self.when.evaluate_in(variables).is_true();
        is_rejected.then_some(self.problem.as_str())
    }
}

/// A case-insensitive pattern in which only `*` is special. A provider may ignore the case of a
/// model.
type ModelPattern = WildMatchPattern<'*', '\0'>;

/// Prices by model: exact names first, then patterns from the longest to the shortest.
#[derive(Default)]
pub(crate) struct Prices(Vec<(ModelPattern, PriceFormula)>);

enum PriceFormula {
    Fixed(f64),
    Expression(Expression),
}

impl Prices {
    /// Compiles the configured prices.
    ///
    /// # Errors
    /// Returns an error for each invalid expression.
    pub(crate) fn new(settings: &BTreeMap<String, Price>) -> Result<Self, Vec<ConfigError>> {
        let mut prices = Vec::new();
        let mut errors = Vec::new();
        for (pattern, price) in settings {
            match price {
                Price::Fixed(amount) => prices.push((pattern, PriceFormula::Fixed(*amount))),
                Price::Expression(source) => match Expression::new(source) {
                    Ok(formula) => prices.push((pattern, PriceFormula::Expression(formula))),
                    Err(message) => errors.push(ConfigError {
                        key: format!("prices.{pattern}"),
                        message,
                    }),
                },
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        prices.sort_by_key(|(pattern, _)| (pattern.contains('*'), Reverse(pattern.len())));
        let compile = |(pattern, formula): (&String, _)| {
            (ModelPattern::new_case_insensitive(pattern), formula)
        };
        Ok(Self(prices.into_iter().map(compile).collect()))
    }

    fn find(&self, model: &str) -> Option<&(ModelPattern, PriceFormula)> {
        self.0.iter().find(|(pattern, _)| pattern.matches(model))
    }

    /// Returns the price of a request, or `None` if the model has no price.
    ///
    /// # Errors
    /// Returns an error that names the pattern if its expression does not yield a valid price.
    pub(crate) fn price(&self, model: &str, variables: &Value) -> Result<Option<f64>, String> {
        let Some((pattern, formula)) = self.find(model) else {
            return Ok(None);
        };
        let amount = match formula {
            PriceFormula::Fixed(amount) => Ok(*amount),
            PriceFormula::Expression(expression) => expression.json(variables).and_then(|value| {
                let amount = value.as_f64();
                amount.ok_or_else(|| format!("{value} is not a number"))
            }),
        };
        match amount {
            Ok(amount) if (0.0..=MAX_PRICE).contains(&amount) => Ok(Some(amount)),
            Ok(amount) => Err(format!(
                "'{pattern}' gives an invalid price: {amount} is not between 0 and {MAX_PRICE}"
            )),
            Err(error) => Err(format!(
                "'{pattern}' gives no price for this request: {error}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_matching_price_pattern_wins() {
        let settings = [
            ("*", 1.0),
            ("kling-*", 2.0),
            ("kling-v3*pro", 3.0),
            ("kling-v3-pro", 4.0),
            ("*/video", 5.0),
        ];
        let settings = settings.map(|(pattern, amount)| (pattern.to_owned(), Price::Fixed(amount)));
        let prices = Prices::new(&settings.into()).ok().unwrap();
        for (model, expected) in [
            ("veo", 1.0),
            ("kling-v2", 2.0),
            ("kling-v3-turbo-pro", 3.0),
            ("kling-v3pro", 3.0),
            ("kling-v3-pro", 4.0),
            ("fal/é/video", 5.0),
            ("", 1.0),
            ("KLING-V3-Pro", 4.0),
            ("FAL/x/Video", 5.0),
        ] {
            let (_, formula) = prices.find(model).unwrap();
            assert!(
                matches!(formula, PriceFormula::Fixed(amount) if *amount == expected),
                "{model}"
            );
        }
        assert!(Prices::default().find("veo").is_none());
    }

    #[test]
    fn invalid_price_expression_names_its_key() {
        let settings = [("kling-*".to_owned(), Price::Expression("0.07 *".to_owned()))];
        let errors = Prices::new(&settings.into()).err().unwrap();
        assert_eq!(errors[0].key, "prices.kling-*");
    }
}
