//! MiniJinja, as provider definitions and destinations use it.

use minijinja::{AutoEscape, Environment, Error, UndefinedBehavior};

/// Maximum number of steps of one evaluation. Templates need a fraction of it. The limit bounds the
/// cost of hostile values.
const MAX_EVALUATION_STEPS: u64 = 100_000;

/// Creates an environment with a step limit and without automatic escaping.
///
/// A path that does not exist evaluates to `undefined` instead of an error, so templates can refer to
/// optional fields directly.
#[must_use]
pub fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(MAX_EVALUATION_STEPS));
    environment
}

/// Returns the kind and detail of an error without the values of the evaluation, which may be
/// secret.
#[must_use]
pub fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
