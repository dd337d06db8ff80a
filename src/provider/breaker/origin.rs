//! Attribution of failures to owners and models.
//!
//! Invariant: counted failures of a single owner never indicate a fault that blocks other owners.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Number of consecutive failures that begins a hold or opens circuits.
pub(super) const FAILURE_THRESHOLD: u32 = 5;

/// Maximum number of failures of one owner, and of one model, that count toward
/// [`FAILURE_THRESHOLD`].
const MAX_FAILURES_PER_SUBJECT: u32 = 3;

/// Maximum number of origins whose failures are counted. Failures of further ones are ignored.
const MAX_ORIGINS: usize = 64;

/// Maximum number of origins of one owner among them, so that one owner cannot use all of them.
const MAX_ORIGINS_PER_OWNER: usize = 8;

/// The owner and the model of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) owner: String,
    pub(crate) model: String,
}

/// Scope of the fault that consecutive failures indicate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FaultScope {
    /// No fault beyond the failed requests and their owners.
    None,
    /// Requests of several owners for one model fail.
    Model(String),
    /// Requests of several owners for several models fail, or no connection can be established.
    /// Contains the origins of the failed requests.
    Provider(Vec<Origin>),
}

/// Failures since the last success.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Failures {
    by_origin: BTreeMap<Origin, u32>,
    /// Failures that do not depend on the request, such as a refused connection.
    unreachable: u32,
}

impl Failures {
    /// Records a failure and returns the fault that the failures so far indicate. `None` is a
    /// failure that does not depend on the request. A fault resets the counts.
    pub(super) fn record(&mut self, origin: Option<&Origin>) -> FaultScope {
        match origin {
            None => self.unreachable += 1,
            Some(origin) if self.is_counted(origin) => {
                *self.by_origin.entry(origin.clone()).or_default() += 1;
            }
            Some(_) => {}
        }
        let scope = self.fault_scope();
        if scope != FaultScope::None {
            *self = Self::default();
        }
        scope
    }

    /// Returns whether failures of this origin are counted.
    fn is_counted(&self, origin: &Origin) -> bool {
        let of_owner = self.by_origin.keys().filter(|it| it.owner == origin.owner);
        self.by_origin.contains_key(origin)
            || self.by_origin.len() < MAX_ORIGINS && of_owner.count() < MAX_ORIGINS_PER_OWNER
    }

    /// Resets the counts, after a success.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn fault_scope(&self) -> FaultScope {
        let reaches_threshold = |subject: fn(&Origin) -> &str, model: Option<&str>| {
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            for (origin, count) in &self.by_origin {
                if model.is_none_or(|model| origin.model == model) {
                    *counts.entry(subject(origin)).or_default() += count;
                }
            }
            let capped = counts
                .values()
                .map(|count| *count.min(&MAX_FAILURES_PER_SUBJECT));
            capped.sum::<u32>() >= FAILURE_THRESHOLD
        };
        let is_provider = reaches_threshold(|origin| &origin.owner, None)
            && reaches_threshold(|origin| &origin.model, None);
        if self.unreachable >= FAILURE_THRESHOLD || is_provider {
            return FaultScope::Provider(self.by_origin.keys().cloned().collect());
        }
        let mut models = self.by_origin.keys().map(|origin| origin.model.as_str());
        models
            .find(|model| reaches_threshold(|origin| &origin.owner, Some(model)))
            .map_or(FaultScope::None, |model| {
                FaultScope::Model(model.to_owned())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(owner: &str, model: &str) -> Origin {
        Origin {
            owner: owner.to_owned(),
            model: model.to_owned(),
        }
    }

    /// Records failures, written as `owner/model`, and returns the scope of the fault after the
    /// last one. A failure without a slash does not depend on the request.
    fn after(failures: &str) -> FaultScope {
        let mut counter = Failures::default();
        let recorded = failures.split(' ').map(|failure| {
            let origin = failure
                .split_once('/')
                .map(|(owner, model)| origin(owner, model));
            counter.record(origin.as_ref())
        });
        recorded.last().unwrap()
    }

    #[test]
    fn one_owner_alone_shows_nothing_about_the_provider() {
        let mut counter = Failures::default();
        for n in 0..1000 {
            let failed = origin("alice", &format!("model-{n}"));
            assert_eq!(counter.record(Some(&failed)), FaultScope::None);
        }
        assert_eq!(counter.record(Some(&origin("bob", "x"))), FaultScope::None);
        assert!(counter.by_origin.len() <= MAX_ORIGINS);
        // The failures of others still count.
        let scope = counter.record(Some(&origin("carol", "y")));
        assert!(matches!(scope, FaultScope::Provider(_)), "{scope:?}");
    }

    #[test]
    fn owners_and_models_decide_what_failures_show() {
        for failures in [
            "a/x a/x a/x a/x b/y",
            "a/x a/y a/z a/x a/y",
            "a/x b/y - - - -",
            "a/x a/x b/x b/x",
        ] {
            assert_eq!(after(failures), FaultScope::None, "{failures}");
        }
        for failures in [
            "a/x a/x b/x b/x b/x",
            "a/x b/x c/x d/x e/x",
            "a/y a/x a/x a/x b/x b/x",
        ] {
            assert_eq!(
                after(failures),
                FaultScope::Model("x".to_owned()),
                "{failures}"
            );
        }
        for failures in ["a/x a/x a/y b/y b/y", "a/x b/y c/z a/y b/x", "- - - - -"] {
            let scope = after(failures);
            assert!(
                matches!(scope, FaultScope::Provider(_)),
                "{failures}: {scope:?}"
            );
        }
    }
}
