//! The command `demo`: a hub and a simulated provider without configuration.
//!
//! Both listen on loopback, because the dashboard signs in every visitor. In a container, the hub
//! listens on all interfaces, and the published port restricts access.

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use progress_hub::config::Config;
use progress_hub::server::{Demo, DemoScenario, Server};
use progress_hub_simulator::{Scenario, Settings, Simulator};
use tokio_util::sync::CancellationToken;

use crate::error::{UsageError, bind_error};
use crate::{print, random_secret, shutdown_signal};

/// Origins that may use the demo in addition to its own: development servers on this machine.
const ALLOWED_ORIGINS: &str = "http://localhost:*, http://127.0.0.1:*, http://[::1]:*, \
                               https://localhost:*, https://127.0.0.1:*, https://[::1]:*";

/// Name of the provider in the demo's configuration.
const PROVIDER: &str = "simulated";

/// Default port of the hub.
const PORT: u16 = 8080;

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Address to listen on [default: 127.0.0.1:8080, or a free port if that one is in use]
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Accept connections from other machines, as in a container [default address: 0.0.0.0:8080]
    ///
    /// Everyone who can reach the address can use the demo. The page signs in only browsers that
    /// open it at a loopback address, for example a container port published on 127.0.0.1.
    #[arg(long, env = "PROGRESS_HUB_DEMO_PUBLIC")]
    public: bool,
}

pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let bind = match args.bind {
        Some(bind) if args.public || bind.ip().is_loopback() => bind,
        Some(_) => {
            let message = "--bind: must be a loopback address unless --public is given, because \
                           everyone who can reach the demo can use it";
            return Err(UsageError(message.to_owned()).into());
        }
        None if args.public => SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
        None => default_address(),
    };
    let provider = Settings {
        api_key: random_secret(),
        webhook_secret: Some(format!("whsec_{}", random_secret())),
        pace: Duration::from_millis(700),
        default_scenario: Scenario::Normal,
    };
    let simulator = Simulator::bind("127.0.0.1:0", provider.clone())
        .context("failed to start the simulated provider")?;
    let directory = tempfile::Builder::new()
        .prefix("progress-hub-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .context("failed to create a temporary directory")?;
    let config = config(bind, directory.path(), &simulator.url(), provider)?;
    let server = Server::bind(config, Some(dashboard())).map_err(bind_error)?;
    // The browser may be able to reach only the hub.
    let simulator = simulator.with_clip_origin(server.url());

    let stop_simulator = CancellationToken::new();
    let simulator = tokio::spawn(simulator.run(stop_simulator.clone()));
    print(&format!(
        "\n  Open  {}/\n\n  A submitted job finishes in ten seconds. Press Ctrl-C to stop.\n",
        server.url()
    ))?;
    let result = server.run(shutdown_signal()?).await;
    stop_simulator.cancel();
    let simulator_result = simulator.await;
    if let Err(error) = directory.close() {
        tracing::warn!(%error, "failed to remove demo directory");
    }
    result.context("server failed")?;
    simulator_result
        .context("simulator panicked")?
        .context("simulator failed")
}

fn config(
    bind: SocketAddr,
    directory: &Path,
    base_url: &str,
    provider: Settings,
) -> anyhow::Result<Config> {
    let provider_key = |key: &str| format!("providers.{PROVIDER}.{key}");
    let database = directory.join("hub.db");
    let settings = vec![
        ("server.bind".to_owned(), bind.to_string()),
        ("server.drain".to_owned(), "2s".to_owned()),
        (
            "server.allowed_origins".to_owned(),
            ALLOWED_ORIGINS.to_owned(),
        ),
        ("auth.hs256_secrets".to_owned(), random_secret()),
        ("callback.secret".to_owned(), random_secret()),
        (
            "store.url".to_owned(),
            format!("sqlite://{}", database.display()),
        ),
        ("defaults.provider".to_owned(), PROVIDER.to_owned()),
        (provider_key("spec"), "kling".to_owned()),
        (provider_key("base_url"), base_url.to_owned()),
        (provider_key("api_key"), provider.api_key),
        (
            provider_key("webhook_secrets"),
            provider.webhook_secret.unwrap_or_default(),
        ),
        (provider_key("poll_after"), "5s".to_owned()),
        (provider_key("poll_every"), "2s".to_owned()),
        (provider_key("deadline"), "45s".to_owned()),
        (provider_key("max_concurrent"), "50".to_owned()),
    ];
    let config = Config::load(None, std::iter::empty(), settings);
    Ok(config.map_err(UsageError::from)?)
}

/// Returns what the dashboard offers in the demo.
fn dashboard() -> Demo {
    let scenario = |scenario: Scenario| DemoScenario {
        name: scenario.name().to_owned(),
        title: scenario.title().to_owned(),
        expect: scenario.expect().to_owned(),
    };
    let scenarios = progress_hub_simulator::playable("kling").into_iter();
    Demo {
        owner: "you".to_owned(),
        provider: PROVIDER.to_owned(),
        model: "kling-v3.0-pro".to_owned(),
        scenarios: scenarios.map(scenario).collect(),
        routes: progress_hub_simulator::clip_route,
    }
}

/// Returns the default address, with port 0 if its port is in use.
fn default_address() -> SocketAddr {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    match TcpListener::bind(address) {
        Ok(_) => address,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}
