//! The command line: `serve`, `demo`, `token`, `check`, `health`, `deliveries`, `destinations`, `load`,
//! `simulator`.

#[path = "main/arguments.rs"]
mod arguments;
#[path = "main/check.rs"]
mod check;
#[path = "main/deliveries.rs"]
mod deliveries;
#[path = "main/demo.rs"]
mod demo;
#[path = "main/destinations.rs"]
mod destinations;
#[path = "main/error.rs"]
mod error;
#[path = "main/health.rs"]
mod health;
#[path = "main/hub_api.rs"]
mod hub_api;
#[path = "main/load.rs"]
mod load;
#[path = "main/simulator.rs"]
mod simulator;
#[path = "main/table.rs"]
mod table;
#[path = "main/token.rs"]
mod token;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use progress_hub::config::Config;
use progress_hub::server::{Certificate, Server};
use progress_hub::telemetry::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use arguments::{Cli, Command};

use error::{UsageError, bind_error};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time for background tasks to finish after a command.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let Err(error) = run(Cli::parse()) else {
        return ExitCode::SUCCESS;
    };
    if error.is::<UsageError>() {
        eprintln!("{error}");
        ExitCode::from(2)
    } else {
        eprintln!("progress-hub: {error:#}");
        ExitCode::FAILURE
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let init_logging = |default: LogFormat| {
        telemetry::init(cli.log.unwrap_or(default), &cli.log_level)
            .context("failed to initialize logging")
    };
    match cli.command {
        Command::Serve(args) => {
            let config = args.load()?;
            let _log = init_logging(LogFormat::Json)?;
            block_on(serve(config))
        }
        Command::Demo(args) => {
            let _log = init_logging(LogFormat::Pretty)?;
            block_on(demo::run(args))
        }
        Command::Token(args) => token::run(args),
        Command::Check(args) => block_on(check::run(args)),
        Command::Health(args) => block_on(health::run(args)),
        Command::Deliveries(args) => block_on(deliveries::run(args)),
        Command::Destinations(args) => block_on(destinations::run(args)),
        Command::Load(args) => {
            let _log = init_logging(LogFormat::Pretty)?;
            block_on(load::run(*args))
        }
        Command::Simulator(args) => {
            let _log = init_logging(LogFormat::Pretty)?;
            block_on(simulator::run(args))
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    if !config.overridden.is_empty() {
        let settings = Vec::from_iter(config.overridden.iter().map(String::as_str)).join(", ");
        tracing::info!(
            settings,
            "configuration file overridden by environment or flags"
        );
    }
    let server = Server::bind(config, None).map_err(bind_error)?;
    reload_on_hangup(server.certificate())?;
    server
        .run(shutdown_signal()?)
        .await
        .context("server failed")
}

fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("failed to start the runtime")?;
    let result = runtime.block_on(command);
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    result
}

/// Returns a token that is cancelled by SIGTERM or SIGINT.
fn shutdown_signal() -> anyhow::Result<CancellationToken> {
    let listen = |kind| signal(kind).context("failed to install a signal handler");
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let cancel = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(shutdown)
}

/// Reloads the certificate on SIGHUP. Without a certificate, the signal has no effect.
fn reload_on_hangup(certificate: Option<Arc<Certificate>>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("failed to install a signal handler")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match &certificate {
                Some(certificate) => certificate.reload(),
                None => tracing::info!("SIGHUP ignored; there is no TLS certificate to reload"),
            }
        }
    });
    Ok(())
}

/// Prints a line to standard output. Unlike `println!`, returns an error if the reader has closed it.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("failed to write to standard output")
}

/// Returns 256 random bits in base64, which is also the format of webhook secrets.
fn random_secret() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>())
}
