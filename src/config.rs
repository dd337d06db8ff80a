//! Configuration: typed settings, validated before the server starts.
//!
//! Settings come from built-in defaults, the TOML file, the environment and flags. Later sources
//! override earlier ones. An environment variable contains the value, or names a file that contains
//! it. All errors are reported together, each with its key. Secrets appear neither in errors nor in
//! [`Config::to_redacted_toml`] nor in `Debug` output.
//!
//! `sections` declares each setting once. Reading, printing and `docs/reference/configuration.md`
//! follow from the declaration.

mod cross_field;
mod kinds;
mod layers;
mod parse;
mod reader;
mod sections;
mod setting;
mod smtp;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub(crate) use parse::is_redis_credential;
pub use progress_hub_auth::jwt::AuthConfig;
pub use sections::{
    ArchiveConfig, Budgets, CallbackConfig, Defaults, DeliveryConfig, EmailConfig, ForwardedHeader,
    Limits, Price, ProviderConfig, ServerConfig, SocketConfig, StoreConfig, Tier, TlsFiles,
    WebhookConfig, WebhookDefaults,
};
pub use setting::Setting;
pub use smtp::{Encryption, MailServer};

use layers::Layers;
use reader::Reader;
use setting::Section;

/// The configuration of a hub.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`: the HTTP server.
    pub server: ServerConfig,
    /// `[auth]`: verification of bearer tokens.
    pub auth: AuthConfig,
    /// `[store]`: the job store.
    pub store: StoreConfig,
    /// `[socket]`: WebSocket connections.
    pub socket: SocketConfig,
    /// `[callback]`: callback URLs for providers.
    pub callback: CallbackConfig,
    /// `[defaults]`: values for submissions that do not set them.
    pub defaults: Defaults,
    /// `[limits]`: limits on the resources of one client.
    pub limits: Limits,
    /// `[budgets]`: limits of what submitted jobs may cost.
    pub budgets: Budgets,
    /// `[email]`: mails about jobs.
    pub email: EmailConfig,
    /// `[archive]`: copies of the outputs.
    pub archive: ArchiveConfig,
    /// `[providers.<name>]`: provider accounts by name, which appears in webhook URLs and in
    /// `job.provider`.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// `[deliveries]`: attempts to deliver to destinations outside the hub.
    pub deliveries: DeliveryConfig,
    /// `[webhook_defaults]`: settings that concern all outbound webhooks.
    pub webhook_defaults: WebhookDefaults,
    /// `[[webhooks]]`: endpoints that receive webhooks of the hub, by name.
    pub webhooks: BTreeMap<String, WebhookConfig>,
    /// Dotted keys of the file whose values the environment or a flag overrides.
    pub overridden: BTreeSet<String>,
}

/// An error in the configuration. It contains no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ConfigError {
    /// Dotted key (`providers.kling.poll_after`), section, or path of the file, with
    /// `:line:column` for a syntax error.
    pub key: String,
    /// What is wrong, as a lower-case fragment.
    pub message: String,
}

impl ConfigError {
    /// Returns whether the error is about a key, or about a key of a section.
    pub fn is_about(&self, name: &str) -> bool {
        let rest = self.key.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    /// Returns whether the error is about a file, which was not read or has a syntax error.
    pub fn is_about_file(&self, path: &str) -> bool {
        let rest = self.key.strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }
}

impl Config {
    /// Loads the configuration from the defaults, `file`, `environment` and `flags` (dotted key and
    /// value). Ignores environment variables that do not start with `PROGRESS_HUB__`.
    ///
    /// # Errors
    /// Returns all errors. If the file is not valid TOML, returns only its syntax errors.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let (config, errors) = Self::read(file, environment, flags);
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(errors)
        }
    }

    /// As [`Config::load`], but returns a configuration in any case. Invalid settings have their
    /// default, so that the caller can check the others further.
    #[must_use]
    pub fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> (Self, Vec<ConfigError>) {
        let mut layers = Layers::default();
        if let Some(path) = file
            && let Err(errors) = layers.add_file(path)
        {
            return (Self::defaults(), errors);
        }
        layers.add_environment(environment);
        layers.add_flags(flags);
        let overridden = std::mem::take(&mut layers.overridden);
        let mut reader = Reader::new(layers);
        let mut config = Self::read_sections(&mut reader);
        config.overridden = overridden;
        cross_field::check(&config, &mut reader);
        (config, reader.finish())
    }

    /// Returns a warning for each valid setting that weakens security, with the key of the setting.
    #[must_use]
    pub fn warnings(&self) -> Vec<ConfigError> {
        cross_field::warnings(self)
    }

    /// Returns the built-in defaults. They contain no key that could verify a token.
    #[must_use]
    pub fn defaults() -> Self {
        Self::read_sections(&mut Reader::new(Layers::default()))
    }

    fn read_sections(reader: &mut Reader) -> Self {
        Self {
            server: reader.section("server"),
            auth: reader.section("auth"),
            store: reader.section("store"),
            socket: reader.section("socket"),
            callback: reader.section("callback"),
            defaults: reader.section("defaults"),
            limits: reader.section("limits"),
            budgets: reader.section("budgets"),
            archive: reader.section("archive"),
            providers: reader.sections_in("providers"),
            email: reader.section("email"),
            deliveries: reader.section("deliveries"),
            webhook_defaults: reader.section("webhook_defaults"),
            webhooks: reader.sections_in("webhooks"),
            overridden: BTreeSet::new(),
        }
    }

    /// Returns the settings by section.
    fn sections(&self) -> Vec<(String, Vec<Setting>)> {
        let sections: [(&str, &dyn Section); 12] = [
            ("server", &self.server),
            ("auth", &self.auth),
            ("store", &self.store),
            ("socket", &self.socket),
            ("callback", &self.callback),
            ("defaults", &self.defaults),
            ("limits", &self.limits),
            ("budgets", &self.budgets),
            ("email", &self.email),
            ("archive", &self.archive),
            ("deliveries", &self.deliveries),
            ("webhook_defaults", &self.webhook_defaults),
        ];
        let webhooks = self.webhooks.iter();
        let webhooks =
            webhooks.map(|(name, webhook)| (format!("webhooks.{name}"), webhook as &dyn Section));
        let providers = self
            .providers
            .iter()
            .map(|(name, provider)| (format!("providers.{name}"), provider as &dyn Section));
        sections
            .map(|(name, section)| (name.to_owned(), section))
            .into_iter()
            .chain(webhooks)
            .chain(providers)
            .map(|(name, section)| (name.clone(), section.settings(&name)))
            .collect()
    }

    /// Returns the documentation of all settings. The key of a setting of a provider or a webhook
    /// contains `<name>`.
    #[must_use]
    pub fn reference() -> Vec<Setting> {
        let mut config = Self::defaults();
        let name = "<name>".to_owned();
        let mut empty = Reader::new(Layers::default());
        config.providers.insert(name.clone(), empty.section(""));
        config.webhooks.insert(name, empty.section(""));
        let sections = config.sections().into_iter();
        sections.flat_map(|(_, settings)| settings).collect()
    }

    /// Returns the configuration as TOML, with `(set)` instead of every secret. A configuration
    /// without secrets can be loaded again.
    #[must_use]
    pub fn to_redacted_toml(&self) -> String {
        let section = |(name, settings): (String, Vec<Setting>)| {
            let lines = settings
                .iter()
                .map(|it| format!("{} = {}\n", it.name, it.value));
            let head = match name.strip_prefix("webhooks.") {
                Some(name) => format!("[[webhooks]]\nname = \"{name}\"\n"),
                None => format!("[{name}]\n"),
            };
            head + &lines.collect::<String>()
        };
        let sections = self.sections().into_iter().map(section);
        sections.collect::<Vec<_>>().join("\n")
    }
}
