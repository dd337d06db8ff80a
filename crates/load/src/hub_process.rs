//! A hub that is started for a run, and gone after it.
//!
//! Invariant: its settings, secrets among them, go through its environment, which is its own; whatever
//! way the run ends, the process ends and its folder goes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use url::Url;

/// How long it may take to listen, and to end.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(20);

/// What begins the name of every setting in the environment.
const ENVIRONMENT: &str = "PROGRESS_HUB__";

/// What its first line says.
const GREETING: &str = "progress-hub is at ";

/// A running hub, which ends with this value.
pub struct Hub {
    child: Child,
    url: Url,
    folder: Folder,
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The hub was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum NoHub {
    /// The system's word.
    #[error("can't start a hub: {0}")]
    Start(#[from] std::io::Error),
    /// Its own, as far as it said one.
    #[error("the hub that was started does not serve: {0}")]
    Silent(String),
}

impl Hub {
    /// Starts `program serve` with these settings, and unless they say otherwise with its store in a
    /// folder of its own.
    ///
    /// # Errors
    /// [`NoHub`].
    pub async fn start(program: &Path, settings: &[(String, String)]) -> Result<Self, NoHub> {
        let name = format!("progress-hub-load-{:016x}", rand::random::<u64>());
        let folder = Folder(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&folder.0)?;
        let log = folder.0.join("hub.log");
        let mut command = Command::new(program);
        // What is meant for a hub of the caller's own is not for this one.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(ENVIRONMENT) {
                command.env_remove(name);
            }
        }
        for (key, value) in settings {
            command.env(variable(key), value);
        }
        let store = format!("sqlite://{}", folder.0.join("hub.db").display());
        if !settings.iter().any(|(key, _)| key == "store.url") {
            command.env(variable("store.url"), store);
        }
        command
            .args(["serve", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            // Ctrl-C is for the run, which then ends its hub.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let silent = || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            NoHub::Silent(said.trim().chars().take(1000).collect())
        };
        let stdout = child.stdout.take().ok_or_else(silent)?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(STARTUP_TIMEOUT, lines.next_line()).await;
        let line = line.ok().and_then(Result::ok).flatten();
        let url = line.as_deref().and_then(|line| line.strip_prefix(GREETING));
        let url = url
            .and_then(|url| Url::parse(url).ok())
            .ok_or_else(silent)?;
        Ok(Self { child, url, folder })
    }

    /// Where it is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Its process; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it.
    pub async fn stop(mut self) {
        // Its jobs are nobody's any more, so there is nothing to drain.
        let _ = self.child.start_kill();
        let _ = tokio::time::timeout(STARTUP_TIMEOUT, self.child.wait()).await;
        drop(self.folder);
    }
}

/// The environment's name of a setting.
fn variable(key: &str) -> String {
    let name = key.replace('.', "__").replace('-', "_").to_uppercase();
    format!("{ENVIRONMENT}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_its_name_in_the_environment() {
        let name = variable("providers.load.webhook_secrets");
        assert_eq!(name, "PROGRESS_HUB__PROVIDERS__LOAD__WEBHOOK_SECRETS");
    }

    #[tokio::test]
    async fn starting_a_non_hub_program_fails_and_cleans_up() {
        let failed = Hub::start(Path::new("/bin/false"), &[]).await;
        assert!(matches!(failed, Err(NoHub::Silent(_))));
        let missing = Hub::start(Path::new("/nowhere/hub"), &[]).await;
        assert!(matches!(missing, Err(NoHub::Start(_))));
    }
}
