//! Commands and the options they share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use progress_hub::config::{AuthConfig, Config, ConfigError, ServerConfig};
use progress_hub::provider::HttpClient;
use progress_hub::server;
use progress_hub::telemetry::LogFormat;

use crate::check::CheckArgs;
use crate::deliveries::DeliveriesArgs;
use crate::demo::DemoArgs;
use crate::destinations::DestinationsArgs;
use crate::error::UsageError;
use crate::load::{self, LoadArgs};
use crate::simulator::SimulatorArgs;
use crate::token::TokenArgs;

/// Real-time progress for long-running jobs, with durable results
///
/// progress-hub submits jobs to AI-video providers, verifies their webhooks, polls when webhooks
/// stop arriving, and sends every change to the browsers that subscribe to it.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Log format: pretty or json [default: json for serve, otherwise pretty]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log: Option<LogFormat>,
    /// Log filter: error, warn, info, debug, or directives such as info,progress_hub=debug
    /// (RUST_LOG overrides)
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: String,
}

const AFTER_HELP: &str = "\
Try it:  progress-hub demo
Run it:  progress-hub serve --config hub.toml

docs/reference/configuration.md describes hub.toml.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the hub
    ///
    /// Settings come from the configuration file, then from environment variables such as
    /// PROGRESS_HUB__SERVER__BIND, then from --set; later sources override earlier ones. Every
    /// setting has a default except secrets and providers. If the configuration is invalid, all
    /// errors are reported and the exit code is 2. On SIGTERM or Ctrl-C, the hub drains: it sends
    /// each client a time to reconnect, and closes the connection. On SIGHUP, it reloads the TLS
    /// certificate.
    Serve(ConfigArgs),
    /// Run a hub and a simulated provider, without configuration
    ///
    /// Prints the URL of a dashboard that is already signed in. Listens on loopback unless --public
    /// is given. All data is deleted on exit.
    Demo(DemoArgs),
    /// Create a token
    ///
    /// The first of auth.hs256_secrets signs it. Only the section [auth] is read. In production,
    /// your backend signs tokens itself or requests them from the hub with `POST /v1/tokens`.
    Token(TokenArgs),
    /// Validate a configuration and print the effective values, without secrets
    Check(CheckArgs),
    /// Check that a hub on this machine responds, for example as the health check of a container
    ///
    /// Reads server.bind from the same configuration as serve, and requests /v1/health/live. The
    /// exit code is 0 if the hub is healthy and 1 if it is not.
    Health(ConfigArgs),
    /// List, show and repeat the deliveries of a running hub: webhooks, mails and archive copies
    Deliveries(DeliveriesArgs),
    /// List, test, enable and disable the destinations of a running hub
    Destinations(DestinationsArgs),
    /// Load-test a hub and verify correctness
    ///
    /// Starts a hub with an embedded store for the run, or connects to the one at --url. The
    /// versions of a job must increase on each socket, and every socket must end with the last
    /// version of each of its jobs. Otherwise the violations are listed and the exit code is 1.
    #[command(after_help = load::EXAMPLES)]
    Load(Box<LoadArgs>),
    /// Run the simulated provider alone
    ///
    /// It implements the APIs of Kling, fal, Atlas Cloud, MiniMax, Runway, Replicate and the
    /// /v1/videos family, each under a path of its name. In a submission, `input.scenario` selects a
    /// behavior such as lost-webhooks or rate-limited.
    Simulator(SimulatorArgs),
}

#[derive(Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(long, short, value_name = "FILE", env = "PROGRESS_HUB_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, such as `--set server.bind=0.0.0.0:80`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
}

impl ConfigArgs {
    /// Loads and validates the configuration, including the provider definitions it uses. Returns all
    /// errors together.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        self.load_with_warnings().map(|(config, _)| config)
    }

    /// As [`ConfigArgs::load`], and also returns warnings about settings that weaken security.
    pub(crate) fn load_with_warnings(&self) -> anyhow::Result<(Config, Vec<ConfigError>)> {
        let (config, mut errors) = self.read();
        let http = HttpClient::new().context("failed to create the HTTP client")?;
        let validated = server::validate(&config, &http);
        let mut warnings = config.warnings();
        let mut found = match validated {
            Ok(validated) => {
                warnings.extend(validated.providers.warnings());
                Vec::new()
            }
            Err(found) => found,
        };
        // An invalid setting was replaced by its default. Errors that follow from that are dropped.
        let is_consequence = |new: &ConfigError| errors.iter().any(|old| old.is_about(&new.key));
        found.retain(|error| !is_consequence(error));
        errors.append(&mut found);
        unless_invalid(config, errors).map(|config| (config, warnings))
    }

    /// Loads the section `[auth]`. Ignores errors in other sections.
    pub(crate) fn load_auth(&self) -> anyhow::Result<AuthConfig> {
        Ok(self.load_section("auth")?.auth)
    }

    /// Loads the section `[server]`. Ignores errors in other sections.
    pub(crate) fn load_server(&self) -> anyhow::Result<ServerConfig> {
        Ok(self.load_section("server")?.server)
    }

    fn load_section(&self, section: &str) -> anyhow::Result<Config> {
        let (config, mut errors) = self.read();
        let file = self.config.as_ref().map(|path| path.to_string_lossy());
        let is_about_file = |error: &ConfigError| {
            let file = file.as_deref();
            file.is_some_and(|file| error.is_about_file(file))
        };
        errors.retain(|error| error.is_about(section) || is_about_file(error));
        unless_invalid(config, errors)
    }

    fn read(&self) -> (Config, Vec<ConfigError>) {
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        Config::read(self.config.as_deref(), environment, self.set.clone())
    }
}

fn unless_invalid(config: Config, errors: Vec<ConfigError>) -> anyhow::Result<Config> {
    if errors.is_empty() {
        Ok(config)
    } else {
        Err(UsageError::from(errors).into())
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = jiff::fmt::friendly::SpanParser::new().parse_unsigned_duration(text);
    parsed.map_err(|_| "must be a duration such as 500ms, 15m or 1h30m".to_owned())
}
