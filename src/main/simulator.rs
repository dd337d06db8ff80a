//! The command `simulator`: runs the simulated provider without a hub.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use progress_hub_simulator::{Scenario, Settings, Simulator};

use crate::arguments::duration;
use crate::{print, shutdown_signal};

#[derive(Args)]
pub(crate) struct SimulatorArgs {
    /// Address to listen on; port 0 selects a free port
    #[arg(long, default_value = "127.0.0.1:8090")]
    bind: SocketAddr,
    /// API key that callers must send
    #[arg(long, default_value = "simulated")]
    api_key: String,
    /// Secret that signs Standard Webhooks, as whsec_...; without it, webhooks are unsigned
    #[arg(long)]
    webhook_secret: Option<String>,
    /// Webhook URL of the `videos` API, which has one URL per account
    #[arg(long, value_name = "URL")]
    project_webhook: Option<String>,
    /// Secret that verifies the webhooks at /receiver, as whsec_...; may be repeated
    #[arg(long, value_name = "SECRET")]
    receiver_secret: Vec<String>,
    /// Duration of one step of progress
    #[arg(long, default_value = "700ms", value_parser = duration)]
    pace: Duration,
}

pub(crate) async fn run(args: SimulatorArgs) -> anyhow::Result<()> {
    let settings = Settings {
        api_key: args.api_key,
        webhook_secret: args.webhook_secret,
        pace: args.pace,
        default_scenario: Scenario::Normal,
    };
    let mut simulator = Simulator::bind(args.bind, settings)
        .with_context(|| format!("failed to bind {}", args.bind))?;
    if let Some(url) = args.project_webhook {
        simulator = simulator
            .with_project_webhook(&url)
            .context("invalid --project-webhook")?;
    }
    for secret in &args.receiver_secret {
        simulator = simulator
            .with_receiver_secret(secret)
            .context("invalid --receiver-secret")?;
    }
    let url = simulator.url();
    print(&format!("The simulated provider is at {url}"))?;
    for dialect in progress_hub_simulator::dialects() {
        print(&format!("  {dialect:<10} base_url = \"{url}/{dialect}\""))?;
    }
    print(&format!("It receives webhooks of a hub at {url}/receiver"))?;
    let shutdown = shutdown_signal()?;
    simulator.run(shutdown).await.context("simulator failed")
}
