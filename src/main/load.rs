//! The command `load`: gives the load program its hub and its tokens, and shows what it found.
//!
//! Invariant: secrets come from the configuration and the environment, never from a flag of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use progress_hub::config::Config;
use progress_hub_auth::jwt::Minter;
use progress_hub_load::{Access, Arguments, Hub, OWNER, Report, Tokens, UpdateMethod};
use secrecy::SecretString;

use super::{CommandError, ConfigArgs, print, secret, shutdown_signal};

/// Where an admin's token is looked for, when there is no secret to mint one with.
const TOKEN: &str = "PROGRESS_HUB_TOKEN";

/// Where the secret of webhooks is looked for, when the configuration does not have it.
const WEBHOOK_SECRET: &str = "PROGRESS_HUB_WEBHOOK_SECRET";

/// How long the tokens of a run last.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) const EXAMPLES: &str = "\
Examples:
  progress-hub load
      1,000 sockets, 100 jobs, 100 updates a second, for 10 s, at a hub started for it
  progress-hub load -n 10000 -j 1000 -r 1000 -d 30s --storm --html load.html
      The same with more of all, a reconnect storm at its end, and a page with charts
  progress-hub load --url http://127.0.0.1:8080 --config hub.toml --pid $(pgrep -f 'progress-hub serve')
      A hub that runs here, with the secrets of its own configuration
  progress-hub load --url http://127.0.0.1:8080 --config hub.toml --by webhook --provider studio
      Updates as signed webhooks of its provider 'studio'
  progress-hub load -n 2000 --slow 5% --churn 2% --by standard-webhook --json - | jq .latency
      Slow readers and comings and goings, figures as JSON

Secrets, for a hub at --url: auth.hs256_secrets mints the tokens, by --config, or
PROGRESS_HUB__AUTH__HS256_SECRETS; or PROGRESS_HUB_TOKEN is a token of scope admin, by which the hub
mints them. Webhooks are signed with providers.<NAME>.webhook_secrets, or PROGRESS_HUB_WEBHOOK_SECRET.
Webhooks want a provider of the spec 'generic' (--by webhook) or 'kling' (--by standard-webhook).

Exit codes: 0 all is well, 1 a check or the run failed, 2 a mistake in flags or configuration.";

/// The flags of `load`, and where its secrets are.
#[derive(Args)]
pub(crate) struct Load {
    #[command(flatten)]
    configured: ConfigArgs,
    #[command(flatten)]
    arguments: Arguments,
}

impl From<progress_hub_load::Error> for CommandError {
    fn from(error: progress_hub_load::Error) -> Self {
        match error {
            progress_hub_load::Error::Mistakes(mistakes) => Self::Wrong(mistakes.to_string()),
            progress_hub_load::Error::NoProcess(_) => Self::Wrong(error.to_string()),
            progress_hub_load::Error::Token(_)
            | progress_hub_load::Error::Unanswered(..)
            | progress_hub_load::Error::System(_)
            | progress_hub_load::Error::Stopped => Self::Failed(error.into()),
        }
    }
}

impl Load {
    /// Runs it, and shows what came out.
    pub(crate) async fn run(self: Box<Self>) -> Result<(), CommandError> {
        let Self {
            configured,
            mut arguments,
        } = *self;
        progress_hub_load::check(&arguments).map_err(progress_hub_load::Error::from)?;
        let stop = shutdown_signal()?;
        let report = match arguments.url.clone() {
            Some(url) => {
                let access = configured.access(&arguments)?;
                progress_hub_load::run(arguments.clone(), url, arguments.pid, access, stop).await?
            }
            None => {
                let (settings, access) = own(&mut arguments, configured)?;
                let program = std::env::current_exe().context("can't find this program")?;
                let hub = Hub::start(&program, &settings)
                    .await
                    .map_err(anyhow::Error::from)?;
                let url = hub.url().clone();
                let ran =
                    progress_hub_load::run(arguments.clone(), url, hub.pid(), access, stop).await;
                hub.stop().await;
                ran?
            }
        };
        show(&report, &arguments)?;
        if report.ok {
            return Ok(());
        }
        let violations = report.checks.violations;
        Err(anyhow!("{violations} violation(s), see the checks").into())
    }
}

impl ConfigArgs {
    /// Tokens and secrets for a hub that runs already.
    fn access(self, arguments: &Arguments) -> Result<Access, CommandError> {
        let environment = |name: &str| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty());
            value.map(SecretString::from)
        };
        let admin = environment(TOKEN).filter(|_| self.config.is_none());
        let given = environment(WEBHOOK_SECRET);
        if let Some(admin) = admin {
            return Ok(Access {
                tokens: Tokens::Admin(admin),
                webhook_secret: given,
            });
        }
        let config = self.load()?;
        let provider = config.providers.get(&arguments.provider);
        let configured = provider.and_then(|provider| provider.webhook_secrets.first().cloned());
        let webhook_secret = given.or(configured);
        if arguments.is_by_webhook() && webhook_secret.is_none() {
            return Err(CommandError::Wrong(format!(
                "--provider {}: neither {WEBHOOK_SECRET} nor the configuration has the secret of its \
                 webhooks",
                arguments.provider
            )));
        }
        Ok(Access {
            tokens: minted(&config)?,
            webhook_secret,
        })
    }
}

fn minted(config: &Config) -> Result<Tokens, CommandError> {
    let no_secret = || {
        CommandError::Wrong(format!(
            "auth.hs256_secrets is needed to mint tokens, or an admin's token in {TOKEN}"
        ))
    };
    let minter = Minter::new(&config.auth).ok_or_else(no_secret)?;
    let mint = |scope: &str| -> anyhow::Result<SecretString> {
        let minted = minter.mint(OWNER, None, Some(scope), TTL, jiff::Timestamp::now());
        Ok(minted.context("can't mint a token")?.token.into())
    };
    Ok(Tokens::Minted {
        reader: mint("jobs:read")?,
        worker: mint("jobs:publish")?,
    })
}

/// Settings of a hub, each by its key.
type Settings = Vec<(String, String)>;

/// A hub for one run: its settings, and what may be done there. What the caller sets is on top.
fn own(
    arguments: &mut Arguments,
    configured: ConfigArgs,
) -> Result<(Settings, Access), CommandError> {
    if configured.config.is_some() {
        let text = "--config: is for a hub at --url; the one that is started takes --set";
        return Err(CommandError::Wrong(text.to_owned()));
    }
    let webhook_secret = format!("whsec_{}", secret());
    let mut settings = vec![
        ("server.bind", "127.0.0.1:0".to_owned()),
        ("auth.hs256_secrets", secret()),
        (
            "socket.max_subscriptions",
            arguments.subscriptions.max(256).to_string(),
        ),
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
        // It is never asked: nobody is there, and webhooks say it all.
        settings.extend([
            ("providers.load.api_key", "none".to_owned()),
            ("providers.load.base_url", "http://127.0.0.1:9".to_owned()),
            ("providers.load.poll_after", "24h".to_owned()),
        ]);
    }
    let ours = settings
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value));
    let settings: Settings = ours.chain(configured.set).collect();
    let tokens = minted(&Config::load(None, std::iter::empty(), settings.clone())?)?;
    let access = Access {
        tokens,
        webhook_secret: Some(webhook_secret.into()),
    };
    Ok((settings, access))
}

fn show(report: &Report, arguments: &Arguments) -> Result<(), CommandError> {
    let json = || serde_json::to_string_pretty(report).context("can't write the figures");
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
    };
    if let Some(path) = &arguments.html {
        write(path, report.page().context("can't make the page")?)?;
    }
    match arguments.json.as_deref() {
        Some(path) if path == Path::new("-") => return print(&json()?),
        Some(path) => write(path, json()? + "\n")?,
        None => {}
    }
    print(&report.table())
}
