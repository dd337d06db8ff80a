//! The command `load`: provides the load test with a hub and tokens, and prints its report.
//!
//! Secrets come from the configuration and the environment, never from options.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use progress_hub::config::Config;
use progress_hub_auth::jwt::Minter;
use progress_hub_load::{
    Access, ArgumentErrors, Arguments, Hub, OWNER, READER_SCOPE, Report, Tokens, UpdateMethod,
};
use secrecy::SecretString;

use crate::arguments::ConfigArgs;
use crate::error::UsageError;
use crate::{print, random_secret, shutdown_signal};

/// Environment variable with a token of scope `admin`, used if there is no secret to sign tokens.
const TOKEN: &str = "PROGRESS_HUB_TOKEN";

/// Environment variable with the secret of webhooks. Overrides the configuration.
const WEBHOOK_SECRET: &str = "PROGRESS_HUB_WEBHOOK_SECRET";

/// Lifetime of the tokens of a run, which is also its maximum duration.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) const EXAMPLES: &str = "\
Examples:
  progress-hub load
      Starts a hub. 1,000 sockets, 100 jobs, 100 updates per second for 10 s
  progress-hub load -n 10000 -j 1000 -r 1000 -d 30s --reconnect-storm --html load.html
      A larger run that ends with a reconnect storm and writes a page with charts
  progress-hub load --url http://127.0.0.1:8080 --config hub.toml --pid $(pgrep -f 'progress-hub serve')
      Tests a running hub, with the secrets of its configuration
  progress-hub load --url http://127.0.0.1:8080 --config hub.toml --by webhook --provider studio
      Sends updates as signed webhooks of the provider 'studio'
  progress-hub load -n 2000 --slow 5% --churn 2% --by standard-webhook --json - | jq .latency
      Slow and reconnecting clients, results as JSON

Secrets for a hub at --url: auth.hs256_secrets signs the tokens. It comes from --config or
PROGRESS_HUB__AUTH__HS256_SECRETS. Alternatively, PROGRESS_HUB_TOKEN is a token of scope admin, with
which the hub mints them. PROGRESS_HUB_WEBHOOK_SECRET or providers.<NAME>.webhook_secrets signs
webhooks. The provider must have the definition 'generic' (--by webhook) or 'kling'
(--by standard-webhook).

Exit codes: 0 if all checks pass, 1 if a check or the run fails, 2 for invalid arguments or
configuration.";

#[derive(Args)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    arguments: Arguments,
}

fn load_error(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<ArgumentErrors>() {
        Ok(errors) => UsageError(errors.to_string()).into(),
        Err(error) => error,
    }
}

pub(crate) async fn run(args: LoadArgs) -> anyhow::Result<()> {
    let LoadArgs {
        config,
        mut arguments,
    } = args;
    arguments
        .check()
        .map_err(|errors| UsageError(errors.to_string()))?;
    let shutdown = shutdown_signal()?;
    let (hub, url, pid, access) = if let Some(url) = arguments.url.clone() {
        let access = access_to_running_hub(config, &arguments)?;
        (None, url, arguments.pid, access)
    } else {
        let (settings, access) = settings_of_started_hub(&mut arguments, config)?;
        let program = std::env::current_exe().context("failed to find the executable")?;
        let hub = Hub::start(&program, &settings).await?;
        let (url, pid) = (hub.url.clone(), hub.pid());
        (Some(hub), url, pid, access)
    };
    let report = tokio::select! {
        report = progress_hub_load::run(arguments.clone(), url, pid, access) => report.map_err(load_error),
        () = shutdown.cancelled() => Err(anyhow!("run stopped before completion; no results")),
    };
    if let Some(hub) = hub {
        hub.stop().await;
    }
    let report = report?;
    write_report(&report, &arguments)?;
    if report.ok {
        return Ok(());
    }
    bail!("{} violations; see the checks", report.violations())
}

/// Returns tokens and secrets for a hub that is running already.
fn access_to_running_hub(config: ConfigArgs, arguments: &Arguments) -> anyhow::Result<Access> {
    let environment = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.map(SecretString::from)
    };
    let webhook_secret = environment(WEBHOOK_SECRET);
    if config.config.is_none()
        && let Some(token) = environment(TOKEN)
    {
        return Ok(Access {
            tokens: Tokens::Admin(token),
            webhook_secret,
        });
    }
    let config = config.load()?;
    let configured = || {
        let provider = config.providers.get(&arguments.provider)?;
        provider.webhook_secrets.first().cloned()
    };
    let webhook_secret = webhook_secret.or_else(configured);
    if arguments.is_by_webhook() && webhook_secret.is_none() {
        let message = format!(
            "--provider {}: set {WEBHOOK_SECRET}, or webhook_secrets in the configuration",
            arguments.provider
        );
        return Err(UsageError(message).into());
    }
    Ok(Access {
        tokens: mint_tokens(&config)?,
        webhook_secret,
    })
}

fn mint_tokens(config: &Config) -> anyhow::Result<Tokens> {
    let minter = Minter::new(&config.auth).ok_or_else(|| {
        UsageError(format!(
            "set auth.hs256_secrets to sign tokens, or {TOKEN} to a token of scope admin"
        ))
    })?;
    let mint = |scope: &str| {
        let minted = minter.mint(OWNER, None, Some(scope), TOKEN_TTL, jiff::Timestamp::now());
        minted.map(|minted| SecretString::from(minted.token))
    };
    Ok(Tokens::Minted {
        reader: mint(READER_SCOPE)?,
        worker: mint("jobs:publish")?,
    })
}

/// Returns settings for a hub that is started for the run, as keys and values, and access to it. The
/// settings of `--set` override the others.
fn settings_of_started_hub(
    arguments: &mut Arguments,
    config: ConfigArgs,
) -> anyhow::Result<(Vec<(String, String)>, Access)> {
    if config.config.is_some() {
        let message = "--config: requires --url; use --set for the hub that is started";
        return Err(UsageError(message.to_owned()).into());
    }
    let webhook_secret = format!("whsec_{}", random_secret());
    let max_subscriptions = arguments.subscriptions.max(256).to_string();
    let mut settings = vec![
        ("server.bind", "127.0.0.1:0".to_owned()),
        ("auth.hs256_secrets", random_secret()),
        ("socket.max_subscriptions", max_subscriptions),
    ];
    let spec = match arguments.by {
        UpdateMethod::Push => None,
        UpdateMethod::Webhook => Some("generic"),
        UpdateMethod::StandardWebhook => Some("kling"),
    };
    if let Some(spec) = spec {
        arguments.provider = "load".to_owned();
        settings.extend([
            ("providers.load.spec", spec.to_owned()),
            ("providers.load.webhook_secrets", webhook_secret.clone()),
        ]);
    }
    if arguments.by == UpdateMethod::StandardWebhook {
        // The hub never polls the provider, which does not exist.
        settings.extend([
            ("providers.load.api_key", "none".to_owned()),
            ("providers.load.base_url", "http://127.0.0.1:9".to_owned()),
            ("providers.load.poll_after", "24h".to_owned()),
        ]);
    }
    let settings = settings.into_iter();
    let settings = settings.map(|(key, value)| (key.to_owned(), value));
    let settings: Vec<_> = settings.chain(config.set).collect();
    let config = Config::load(None, std::iter::empty(), settings.clone());
    let config = config.map_err(UsageError::from)?;
    let access = Access {
        tokens: mint_tokens(&config)?,
        webhook_secret: Some(webhook_secret.into()),
    };
    Ok((settings, access))
}

/// Writes the report in the formats that the arguments select.
fn write_report(report: &Report, arguments: &Arguments) -> anyhow::Result<()> {
    let json = || serde_json::to_string_pretty(report).context("failed to serialize the results");
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    };
    if let Some(path) = &arguments.html {
        write(path, report.page().context("failed to render the page")?)?;
    }
    match arguments.json.as_deref() {
        Some(path) if path == Path::new("-") => return print(&json()?),
        Some(path) => write(path, json()? + "\n")?,
        None => {}
    }
    print(&report.table().context("failed to format the results")?)
}
