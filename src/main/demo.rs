//! The command `demo`: a hub and a simulated provider that need nothing and leave nothing.
//!
//! Invariant: both listen on loopback only, since whoever opens the page is signed in.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use progress_hub::config::Config;
use progress_hub::server::{Demo, DemoScenario};
use progress_hub_simulator::{Scenario, Settings, Simulator};
use tokio_util::sync::CancellationToken;

use super::{CommandError, bind_server, print, secret, shutdown_signal};

/// What the demo's hub is made from: everything is new, on loopback and gone with it.
pub(crate) async fn demo(bind: Option<SocketAddr>) -> Result<(), CommandError> {
    let bind = bind.unwrap_or_else(free_address);
    if !bind.ip().is_loopback() {
        return Err(
            anyhow::anyhow!("the demo signs everybody in, so it listens on loopback only").into(),
        );
    }
    let (api_key, webhook_secret) = (secret(), format!("whsec_{}", secret()));
    let settings = Settings {
        api_key: api_key.clone(),
        webhook_secret: Some(webhook_secret.clone()),
        pace: Duration::from_millis(700),
        default_scenario: Scenario::Normal,
    };
    let simulator =
        Simulator::bind("127.0.0.1:0", settings).context("can't start the simulated provider")?;
    let folder = std::env::temp_dir().join(format!(
        "progress-hub-demo-{}",
        uuid::Uuid::now_v7().simple()
    ));
    std::fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let settings = [
        ("server.bind", bind.to_string()),
        ("server.drain", "2s".to_owned()),
        ("auth.hs256_secrets", secret()),
        ("callback.secret", secret()),
        (
            "store.url",
            format!("sqlite://{}", folder.join("hub.db").display()),
        ),
        ("defaults.provider", "simulated".to_owned()),
        ("providers.simulated.spec", "kling".to_owned()),
        ("providers.simulated.base_url", simulator.url()),
        ("providers.simulated.api_key", api_key),
        ("providers.simulated.webhook_secrets", webhook_secret),
        ("providers.simulated.poll_after", "5s".to_owned()),
        ("providers.simulated.poll_every", "2s".to_owned()),
        ("providers.simulated.deadline", "45s".to_owned()),
        ("providers.simulated.max_concurrent", "50".to_owned()),
    ];
    let settings = settings
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec();
    let config = Config::load(None, std::iter::empty(), settings)?;
    let scenario = |scenario: Scenario| DemoScenario {
        name: scenario.name().to_owned(),
        title: scenario.title().to_owned(),
        expect: scenario.expect().to_owned(),
    };
    let page = Demo {
        owner: "you".to_owned(),
        provider: "simulated".to_owned(),
        model: "kling-v3.0-pro".to_owned(),
        scenarios: progress_hub_simulator::playable("kling")
            .into_iter()
            .map(scenario)
            .collect(),
    };
    let stop = CancellationToken::new();
    let provider = tokio::spawn(simulator.run(stop.clone()));
    let server = bind_server(config, Some(page))?;
    print(&format!(
        "\n  Open  {}/\n\n  A job runs to its end there in ten seconds. Ctrl-C ends the demo.\n",
        server.url()
    ))?;
    let served = server.run(shutdown_signal()?).await;
    stop.cancel();
    let simulated = provider.await;
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        tracing::warn!(%error, folder = %folder.display(), "can't clean up");
    }
    served.context("the demo's hub failed")?;
    Ok(simulated
        .context("the simulated provider failed")?
        .context("the simulated provider failed")?)
}

/// The usual port, or one that is free.
fn free_address() -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], 8080));
    match std::net::TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
    }
}
