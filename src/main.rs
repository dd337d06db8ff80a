//! The command line: `serve`, `demo`, `token`, `check`, `load`, `simulator`.

#[path = "main/demo.rs"]
mod demo;
#[path = "main/load.rs"]
mod load;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use progress_hub::config::{Config, ConfigError};
use progress_hub::provider::HttpClient;
use progress_hub::server::{self, BindError, Demo, Server};
use progress_hub::telemetry::{self, LogFormat};
use progress_hub_auth::jwt::Minter;
use progress_hub_simulator::{Scenario, Settings, Simulator};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Shows your users a long job's progress, and never loses its result.
///
/// progress-hub submits jobs to AI-video providers, verifies their signed webhooks, asks about
/// jobs that have gone silent, and shows every change to the browsers that watch it.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How to log: `pretty` for people, `json` for machines [default: pretty for demo, json else]
    #[arg(long, global = true, value_name = "FORMAT")]
    log: Option<LogFormat>,
    /// What to log, unless RUST_LOG says so: error, warn, info, debug or a filter
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

const AFTER_HELP: &str = "\
Try it:  progress-hub demo
Run it:  progress-hub serve --config hub.toml
Both begin with nothing but this program; hub.toml is described in README.md.";

#[derive(Subcommand)]
enum Command {
    /// Run the hub with a configuration
    ///
    /// Every setting has a default except secrets and providers. Settings come from the file, then
    /// from PROGRESS_HUB__SECTION__KEY in the environment, then from flags; `progress-hub check`
    /// shows what comes out. With any mistake the hub names all of them and exits with 2.
    /// SIGTERM or Ctrl-C drains: clients are told when to come back, and move over.
    Serve(ConfigArgs),
    /// See a job run to its end, in ten seconds and without any configuration
    ///
    /// Starts the hub with an embedded store and a simulated provider, both on loopback only, and
    /// prints the address of a page that is signed in. Nothing is left behind when it ends.
    Demo {
        /// Address to listen on [default: 127.0.0.1:8080, or a free port where that is taken]
        #[arg(long)]
        bind: Option<SocketAddr>,
    },
    /// Mint a token for trying things out
    ///
    /// Signed with the first of auth.hs256_secrets. In production your own backend mints tokens, or
    /// asks `POST /v1/tokens` for them.
    Token {
        #[command(flatten)]
        configured: ConfigArgs,
        /// Whose token it is: the owner of jobs
        #[arg(long)]
        sub: String,
        /// Space-separated: jobs:read jobs:write jobs:publish admin
        #[arg(long, default_value = "jobs:read")]
        scope: String,
        /// Only these jobs; may be repeated
        #[arg(long = "job", value_name = "JOB")]
        jobs: Vec<String>,
        /// How long it lasts, as 15m or 1h
        #[arg(long, default_value = "15m", value_parser = duration)]
        ttl: Duration,
    },
    /// Check a configuration and print what it comes to, without secrets
    Check(ConfigArgs),
    /// Drive a hub with sockets and updates, measure it, and check what it measures
    ///
    /// Starts a hub of its own with an embedded store, or drives the one at --url. Every socket must
    /// be shown rising versions of its jobs and end with the last of each; if one does not, the counts
    /// are told and the exit code is 1.
    #[command(after_help = load::EXAMPLES)]
    Load(Box<load::Load>),
    /// Run the simulated provider alone, for tests of your own
    ///
    /// It speaks the APIs of Kling, fal, Atlas Cloud, MiniMax, Runway, Replicate and the /v1/videos
    /// family, each below its own path; a job's `input.scenario` makes it misbehave.
    Simulator {
        /// Address to listen on; port 0 takes a free one
        #[arg(long, default_value = "127.0.0.1:8090")]
        bind: SocketAddr,
        /// The key that callers must have
        #[arg(long, default_value = "simulated")]
        api_key: String,
        /// Signs Standard Webhooks, as whsec_…; without it they are unsigned
        #[arg(long)]
        webhook_secret: Option<String>,
        /// Where the webhooks of `videos` go, which has one address per account and none per job
        #[arg(long, value_name = "URL")]
        project_webhook: Option<String>,
        /// The time of one step of progress
        #[arg(long, default_value = "700ms", value_parser = duration)]
        pace: Duration,
    },
}

#[derive(Args)]
struct ConfigArgs {
    /// A TOML file
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, as `--set server.bind=0.0.0.0:80`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = jiff::fmt::friendly::SpanParser::new().parse_unsigned_duration(text);
    parsed.map_err(|_| "must be a duration such as 500ms, 15m or 1h30m".to_owned())
}

impl ConfigArgs {
    /// The configuration, once nothing at all is wrong with it.
    fn load(self) -> Result<Config, CommandError> {
        let environment = std::env::vars_os();
        let environment = environment
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        let (config, mut mistakes) = Config::read(self.config.as_deref(), environment, self.set);
        let http = HttpClient::new().context("no HTTP client")?;
        let further = server::validate(&config, &http).err().unwrap_or_default();
        // What is wrong with a key makes what follows from it no further mistake.
        let is_new = |further: &ConfigError| {
            let mut known = mistakes.iter();
            known.all(|known| !known.key.starts_with(&further.key))
        };
        let further: Vec<ConfigError> = further.into_iter().filter(is_new).collect();
        mistakes.extend(further);
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(mistakes.into())
        }
    }
}

/// How a command ends: mistakes in a configuration are the user's, everything else is ours.
enum CommandError {
    Config(Vec<ConfigError>),
    /// A mistake of another kind, as it is to be told.
    Wrong(String),
    Failed(anyhow::Error),
}

impl From<Vec<ConfigError>> for CommandError {
    fn from(mistakes: Vec<ConfigError>) -> Self {
        Self::Config(mistakes)
    }
}

impl From<anyhow::Error> for CommandError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match run(cli) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(ended) => ended,
    };
    match ended {
        CommandError::Config(mistakes) => {
            eprintln!("the configuration has {} mistake(s):", mistakes.len());
            for ConfigError {
                key,
                message: problem,
            } in mistakes
            {
                eprintln!("  {key}: {problem}");
            }
            ExitCode::from(2)
        }
        CommandError::Wrong(mistake) => {
            eprintln!("progress-hub: {mistake}");
            ExitCode::from(2)
        }
        CommandError::Failed(error) => {
            eprintln!("progress-hub: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), CommandError> {
    let log = |otherwise: LogFormat| -> anyhow::Result<()> {
        telemetry::init(cli.log.unwrap_or(otherwise), &cli.log_level)
            .context("can't set up logging")
    };
    match cli.command {
        Command::Serve(configured) => {
            let config = configured.load()?;
            log(LogFormat::Json)?;
            async_main(serve(config, None))
        }
        Command::Demo { bind } => {
            log(LogFormat::Pretty)?;
            async_main(demo::demo(bind))
        }
        Command::Token {
            configured,
            sub,
            scope,
            jobs,
            ttl,
        } => token(&configured.load()?, &sub, &scope, jobs, ttl),
        Command::Check(configured) => print(&configured.load()?.to_redacted_toml()),
        Command::Load(load) => {
            log(LogFormat::Pretty)?;
            async_main(load.run())
        }
        Command::Simulator {
            bind,
            api_key,
            webhook_secret,
            project_webhook,
            pace,
        } => {
            log(LogFormat::Pretty)?;
            let settings = Settings {
                api_key,
                webhook_secret,
                pace,
                default_scenario: Scenario::Normal,
            };
            async_main(async {
                let mut simulator = Simulator::bind(bind, settings)
                    .with_context(|| format!("can't listen on {bind}"))?;
                if let Some(url) = project_webhook {
                    let told = simulator.with_project_webhook(&url);
                    simulator = told.context("can't send webhooks there")?;
                }
                let url = simulator.url();
                print(&format!("The simulated provider is at {url}"))?;
                for dialect in progress_hub_simulator::dialects() {
                    print(&format!("  {dialect:<10} base_url = \"{url}/{dialect}\""))?;
                }
                Ok(simulator
                    .run(shutdown_signal()?)
                    .await
                    .context("the simulator failed")?)
            })
        }
    }
}

fn async_main(work: impl Future<Output = Result<(), CommandError>>) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

/// Cancelled by SIGTERM or SIGINT.
fn shutdown_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("can't listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen to signals")?;
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

/// Prints for whoever called, who may have gone.
fn print(text: &str) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    Ok(writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("can't print")?)
}

fn bind_server(config: Config, demo: Option<Demo>) -> Result<Server, CommandError> {
    match Server::bind(config, demo) {
        Ok(server) => Ok(server),
        Err(BindError::Config(mistakes)) => Err(mistakes.into()),
        Err(error) => Err(anyhow::Error::from(error).into()),
    }
}

async fn serve(config: Config, demo: Option<Demo>) -> Result<(), CommandError> {
    let server = bind_server(config, demo)?;
    print(&format!("progress-hub is at {}/", server.url()))?;
    Ok(server
        .run(shutdown_signal()?)
        .await
        .context("the server failed")?)
}

fn token(
    config: &Config,
    sub: &str,
    scope: &str,
    jobs: Vec<String>,
    ttl: Duration,
) -> Result<(), CommandError> {
    let minter =
        Minter::new(&config.auth).context("auth.hs256_secrets is needed to mint a token")?;
    let jobs = (!jobs.is_empty()).then_some(jobs);
    let minted = minter.mint(sub, jobs, Some(scope), ttl, jiff::Timestamp::now());
    print(&minted.context("can't mint this token")?.token)
}

/// 256 random bits; base64, so that it can stand in a webhook secret too.
fn secret() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>())
}
