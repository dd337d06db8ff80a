//! A provider's spec file: what it says, and how it is found and read.
//!
//! Invariant: every template and expression in a loaded spec compiles; a mistake names its key.

pub(in crate::provider) mod expression;
pub(in crate::provider) mod pricing;
pub(in crate::provider) mod request_spec;
pub(in crate::provider) mod task_mapping;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::provider::client::balance;
use crate::provider::client::error::{ErrorRule, ResponseSpec};
use crate::provider::spec::expression::Template;
use crate::provider::spec::pricing::Check;
use crate::provider::spec::request_spec::RequestSpec;
use crate::provider::spec::task_mapping::TaskMapping;
use crate::provider::webhook::parsing::Webhook;
use progress_hub_auth::signature::Schemes;

/// The specs that come with the hub.
const BUILT_IN: [(&str, &str); 13] = [
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

/// A setting that a spec can't do without.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::provider) enum Requirement {
    ApiKey,
    SecretKey,
    WebhookSecrets,
    BaseUrl,
}

/// One provider's ways, as a spec file tells them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::provider) struct Spec {
    /// Its name for a person.
    pub(in crate::provider) title: String,
    pub(in crate::provider) base_url: Option<String>,
    #[serde(default)]
    pub(in crate::provider) requires: Vec<Requirement>,
    /// Sent with every call.
    #[serde(default)]
    pub(in crate::provider) headers: BTreeMap<String, Template>,
    pub(in crate::provider) signature: Schemes,
    #[serde(default)]
    pub(in crate::provider) answer: ResponseSpec,
    pub(in crate::provider) submit: Option<RequestSpec>,
    pub(in crate::provider) poll: Option<RequestSpec>,
    /// What a task has brought, where its own answer does not say.
    pub(in crate::provider) result: Option<RequestSpec>,
    pub(in crate::provider) cancel: Option<RequestSpec>,
    pub(in crate::provider) balance: Option<balance::BalanceSpec>,
    #[serde(default)]
    pub(in crate::provider) webhook: Webhook,
    /// What the provider is known to refuse; the first that holds is told.
    #[serde(default)]
    pub(in crate::provider) checks: Vec<Check>,
    pub(in crate::provider) read: TaskMapping,
    #[serde(default, rename = "errors")]
    rules: Vec<ErrorRule>,
    #[serde(default = "seconds::<60>", with = "humantime_serde")]
    pub(in crate::provider) poll_after: Duration,
    #[serde(default = "seconds::<15>", with = "humantime_serde")]
    pub(in crate::provider) poll_every: Duration,
    #[serde(default = "seconds::<2>", with = "humantime_serde")]
    pub(in crate::provider) cool_down: Duration,
    #[serde(default = "seconds::<1800>", with = "humantime_serde")]
    pub(in crate::provider) deadline: Duration,
    /// How long the provider keeps a finished task.
    #[serde(default = "seconds::<86400>", with = "humantime_serde")]
    pub(in crate::provider) retention: Duration,
    #[serde(default = "five")]
    pub(in crate::provider) max_concurrent: usize,
}

fn seconds<const N: u64>() -> Duration {
    Duration::from_secs(N)
}

fn five() -> usize {
    5
}

impl Spec {
    /// Finds a built-in spec by its name, or reads one from a file.
    ///
    /// # Errors
    /// What is wrong, by key: `spec` when there is none, else where in the file.
    pub(in crate::provider) fn load(name: &str) -> Result<Self, Vec<(String, String)>> {
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name);
        let text = match built_in {
            Some((_, text)) => (*text).to_owned(),
            None if is_path(name) => std::fs::read_to_string(name).map_err(|error| {
                vec![("spec".to_owned(), format!("can't read '{name}': {error}"))]
            })?,
            None => {
                let known: Vec<&str> = BUILT_IN.iter().map(|(known, _)| *known).collect();
                let problem = format!(
                    "no built-in spec is called '{name}' (there are {}), and it is no path of a file",
                    known.join(", ")
                );
                return Err(vec![("spec".to_owned(), problem)]);
            }
        };
        Self::read(&text)
            .map_err(|problem| vec![("spec".to_owned(), format!("'{name}': {problem}"))])
    }

    fn read(text: &str) -> Result<Self, String> {
        let mut spec: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        for (key, time) in [
            ("deadline", spec.deadline),
            ("poll_after", spec.poll_after),
            ("poll_every", spec.poll_every),
        ] {
            if time >= spec.retention {
                return Err(format!(
                    "{key}: must be shorter than the provider's retention"
                ));
            }
        }
        spec.read.rules.rules = std::mem::take(&mut spec.rules);
        Ok(spec)
    }
}

fn is_path(name: &str) -> bool {
    name.contains('/')
        || Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_specs_load() {
        for (name, _) in BUILT_IN {
            assert!(
                Spec::load(name).is_ok(),
                "{name}: {:?}",
                Spec::load(name).err()
            );
        }
    }

    #[test]
    fn spec_errors_report_key_or_line() {
        let wrong = include_str!("specs/kling.toml").replace("payload.external_id", "payload.");
        let problem = Spec::read(&wrong).err().unwrap();
        assert!(
            problem.contains("reference") && problem.contains("line"),
            "{problem}"
        );

        let unknown = include_str!("specs/generic.toml").replace("title =", "titel =");
        let problem = Spec::read(&unknown).err().unwrap();
        assert!(problem.contains("titel"), "{problem}");

        for line in ["batch = 50", "item = \"payload.data\""] {
            let with_more = format!("{line}\ntypo = 1");
            let unknown = include_str!("specs/kling.toml").replace(line, &with_more);
            let problem = Spec::read(&unknown).err().unwrap();
            assert!(problem.contains("typo"), "{problem}");
        }

        let problem = Spec::load("klign").err().unwrap();
        assert_eq!(problem[0].0, "spec");
        assert!(problem[0].1.contains("kling, kling-legacy"), "{problem:?}");
    }
}
