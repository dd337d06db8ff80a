//! Provider definitions ("specs"): the file format, the built-in files and how they are loaded.
//!
//! Every template and expression of a loaded spec compiles. Errors name the key or the line.

pub(super) mod error_rules;
pub(crate) mod expression;
mod filters;
pub(super) mod input_rules;
pub(super) mod pricing;
pub(super) mod request_spec;
pub(super) mod task_mapping;
pub(super) mod value;
pub(super) mod webhook_spec;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use minijinja::Value;
use progress_hub_auth::signature::Schemes;
use serde::Deserialize;

use self::error_rules::{ErrorRules, ResponseSpec};
use self::expression::Template;
use self::pricing::RequestCheck;
use self::request_spec::{BalanceSpec, RequestSpec};
use self::task_mapping::{TaskMapping, TaskReport};
use self::webhook_spec::WebhookSpec;
use crate::config::ConfigError;

/// Built-in specs, by name.
pub(crate) const BUILT_IN: [(&str, &str); 13] = [
    ("kling", include_str!("specs/kling.toml")),
    ("kling-legacy", include_str!("specs/kling-legacy.toml")),
    ("atlas", include_str!("specs/atlas.toml")),
    ("fal", include_str!("specs/fal.toml")),
    ("replicate", include_str!("specs/replicate.toml")),
    ("runway", include_str!("specs/runway.toml")),
    ("veo", include_str!("specs/veo.toml")),
    ("minimax", include_str!("specs/minimax.toml")),
    ("videos", include_str!("specs/videos.toml")),
    ("seedance", include_str!("specs/seedance.toml")),
    ("wavespeed", include_str!("specs/wavespeed.toml")),
    ("luma", include_str!("specs/luma.toml")),
    ("generic", include_str!("specs/generic.toml")),
];

/// A setting that the configuration must contain for a spec.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Requirement {
    ApiKey,
    SecretKey,
    WebhookSecrets,
    BaseUrl,
}

/// A provider definition.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// Display name.
    pub(super) title: String,
    pub(super) base_url: Option<String>,
    #[serde(default)]
    pub(super) requires: Vec<Requirement>,
    /// Sent with every request.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, Template>,
    pub(crate) signature: Schemes,
    #[serde(default)]
    pub(super) answer: ResponseSpec,
    pub(super) submit: Option<RequestSpec>,
    pub(super) poll: Option<RequestSpec>,
    /// Fetches the outputs of a succeeded task if the poll response does not contain them.
    pub(super) result: Option<RequestSpec>,
    pub(super) cancel: Option<RequestSpec>,
    pub(super) balance: Option<BalanceSpec>,
    /// The account check of a provider without a balance: a request that every valid key may send
    /// and that does not depend on any job.
    pub(super) account: Option<RequestSpec>,
    #[serde(default)]
    pub(super) webhook: WebhookSpec,
    /// Requests that the provider is known to reject. The first that matches is reported.
    #[serde(default)]
    pub(super) checks: Vec<RequestCheck>,
    read: TaskMapping,
    #[serde(default)]
    pub(super) errors: ErrorRules,
    #[serde(default = "seconds::<60>", with = "humantime_serde")]
    pub(super) poll_after: Duration,
    #[serde(default = "seconds::<15>", with = "humantime_serde")]
    pub(super) poll_every: Duration,
    #[serde(default = "seconds::<2>", with = "humantime_serde")]
    pub(super) cool_down: Duration,
    #[serde(default = "seconds::<1800>", with = "humantime_serde")]
    pub(super) deadline: Duration,
    /// How long the provider keeps a finished task.
    #[serde(default = "seconds::<86400>", with = "humantime_serde")]
    pub(super) retention: Duration,
    #[serde(default = "default_max_concurrent")]
    pub(super) max_concurrent: usize,
}

fn seconds<const N: u64>() -> Duration {
    Duration::from_secs(N)
}

fn default_max_concurrent() -> usize {
    5
}

impl Spec {
    /// Loads a built-in spec by name, or a spec from a file.
    ///
    /// # Errors
    /// Returns an error for the key `spec` if there is no such spec or if it is invalid.
    pub(super) fn load(name: &str) -> Result<Self, ConfigError> {
        let error = |message| ConfigError {
            key: "spec".to_owned(),
            message,
        };
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name);
        let text = match built_in {
            Some((_, text)) => (*text).to_owned(),
            None if is_path(name) => std::fs::read_to_string(name)
                .map_err(|cause| error(format!("failed to read '{name}': {cause}")))?,
            None => {
                return Err(error(format!(
                    "'{name}' is neither a built-in spec ({}) nor the path of a file",
                    BUILT_IN.map(|(known, _)| known).join(", ")
                )));
            }
        };
        Self::parse(&text).map_err(|message| error(format!("'{name}': {message}")))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let spec: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        for (key, duration) in [
            ("deadline", spec.deadline),
            ("poll_after", spec.poll_after),
            ("poll_every", spec.poll_every),
        ] {
            if duration >= spec.retention {
                return Err(format!("{key}: must be less than `retention`"));
            }
        }
        Ok(spec)
    }

    /// Reads a task. Returns `None` if it has neither a task id nor a reference.
    pub(super) fn read_task(&self, task: &Value) -> Option<TaskReport> {
        self.read.read(task, &self.errors)
    }
}

fn is_path(name: &str) -> bool {
    let extension = Path::new(name).extension();
    name.contains('/') || extension.is_some_and(|extension| extension == "toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_specs_load() {
        for (name, _) in BUILT_IN {
            let error = Spec::load(name).err();
            assert!(error.is_none(), "{name}: {error:?}");
        }
    }

    #[test]
    fn spec_errors_report_key_or_line() {
        let parse_error = |text: &str| Spec::parse(text).err().unwrap();
        let kling = include_str!("specs/kling.toml");
        let error = parse_error(&kling.replace("payload.external_id", "payload."));
        assert!(
            error.contains("reference") && error.contains("line"),
            "{error}"
        );

        let generic = include_str!("specs/generic.toml");
        let error = parse_error(&generic.replace("title =", "titel ="));
        assert!(error.contains("titel"), "{error}");

        for line in ["batch = 50", "item = \"payload.data\""] {
            let error = parse_error(&kling.replace(line, &format!("{line}\ntypo = 1")));
            assert!(error.contains("typo"), "{error}");
        }

        let error = Spec::load("klign").err().unwrap();
        assert_eq!(error.key, "spec");
        assert!(error.message.contains("kling, kling-legacy"), "{error:?}");
    }
}
