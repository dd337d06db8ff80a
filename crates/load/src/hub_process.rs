//! A hub that is started for one run and stopped after it.
//!
//! Invariant: settings, including secrets, are passed in the environment of the process. The process and its files
//! are removed however the run ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use url::Url;

/// Maximum time for the hub to listen, and to exit.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(20);

/// Interval between reads of the log until it contains the URL.
const LOG_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Log filter of the hub: warnings, and the event with its URL.
const LOG_FILTER: &str = "warn,progress_hub::server=info";

/// Prefix of environment variables with settings.
const ENVIRONMENT_PREFIX: &str = "PROGRESS_HUB__";

/// Environment variable that names a configuration file.
const CONFIG_VARIABLE: &str = "PROGRESS_HUB_CONFIG";

/// Maximum characters of the hub's log in an error.
const MAX_LOG_EXCERPT_CHARS: usize = 1000;

/// A running hub. Dropping it kills the process.
pub struct Hub {
    /// URL that the hub listens on.
    pub url: Url,
    child: Child,
    directory: TempDir,
}

impl Hub {
    /// Starts `program serve` with `settings`. Without `store.url`, the store is in a temporary directory.
    ///
    /// # Errors
    /// The process cannot be started, or does not log its URL. The error contains an excerpt of the log.
    pub async fn start(program: &Path, settings: &[(String, String)]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("progress-hub-load-")
            .tempdir()?;
        let log = directory.path().join("hub.log");
        let store = format!("sqlite://{}", directory.path().join("hub.db").display());
        let mut command = Command::new(program);
        // Variables of the caller may configure a hub of their own. They must not affect this one.
        let variables = std::env::vars_os().map(|(name, _)| name);
        for name in variables.filter(|name| is_setting(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command
            .env(variable("store.url"), store)
            .envs(settings.iter().map(|(key, value)| (variable(key), value)))
            .args(["serve", "--log", "json", "--log-level", LOG_FILTER])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            // Ctrl-C reaches only the load generator, which then stops the hub.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a hub")?;
        let url = tokio::time::timeout(PROCESS_TIMEOUT, wait_for_url(&mut child, &log)).await;
        let Some(url) = url.ok().flatten() else {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let log: String = log.trim().chars().take(MAX_LOG_EXCERPT_CHARS).collect();
            bail!("spawned hub did not become ready: {log}");
        };
        Ok(Self {
            child,
            url,
            directory,
        })
    }

    /// Returns the process id, or `None` if the process has exited.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills the process and removes its files. The jobs are discarded, so there is nothing to drain.
    pub async fn stop(mut self) {
        // Fails only if the process has already exited.
        let _ = tokio::time::timeout(PROCESS_TIMEOUT, self.child.kill()).await;
        drop(self.directory);
    }
}

/// Waits until the log contains the URL. Returns `None` if the process exits.
async fn wait_for_url(child: &mut Child, log: &Path) -> Option<Url> {
    loop {
        let has_exited = !matches!(child.try_wait(), Ok(None));
        let log = std::fs::read_to_string(log).unwrap_or_default();
        if let Some(url) = log.lines().find_map(url_in_log) {
            return Some(url);
        }
        if has_exited {
            return None;
        }
        tokio::time::sleep(LOG_POLL_INTERVAL).await;
    }
}

/// Returns the URL in the line that the hub logs when it listens.
fn url_in_log(line: &str) -> Option<Url> {
    let event: Value = serde_json::from_str(line).ok()?;
    let url = event
        .get("url")
        .filter(|_| event["message"] == "listening")?;
    Url::parse(url.as_str()?).ok()
}

/// Returns whether an environment variable configures a hub.
fn is_setting(variable: &str) -> bool {
    variable.starts_with(ENVIRONMENT_PREFIX) || variable == CONFIG_VARIABLE
}

/// Returns the environment variable of a setting.
fn variable(key: &str) -> String {
    let name = key.replace('.', "__").replace('-', "_").to_uppercase();
    format!("{ENVIRONMENT_PREFIX}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_maps_to_its_environment_variable() {
        let name = variable("providers.load.webhook_secrets");
        assert_eq!(name, "PROGRESS_HUB__PROVIDERS__LOAD__WEBHOOK_SECRETS");
    }

    #[tokio::test]
    async fn starting_a_non_hub_program_fails_and_cleans_up() {
        for (program, expected) in [
            ("/bin/false", "did not become ready"),
            ("/nowhere/hub", "cannot start a hub"),
        ] {
            let result = Hub::start(Path::new(program), &[]).await;
            let error = result.err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains(expected)));
        }
    }
}
