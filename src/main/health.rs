//! The command `health`: the health check of a container.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::arguments::ConfigArgs;
use crate::print;

/// Maximum time for the hub to respond.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Requests `/v1/health/live` of the hub that runs on this machine with the same configuration.
pub(crate) async fn run(args: ConfigArgs) -> anyhow::Result<()> {
    let server = args.load_server()?;
    let url = format!("{}/v1/health/live", server.local_url(server.bind));
    // The certificate is issued for the public name, not for loopback.
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(TIMEOUT)
        .danger_accept_invalid_certs(true)
        .build()
        .context("failed to create the HTTP client")?;
    let response = http.get(&url).send().await;
    let status = response
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("unhealthy: {url}"))?
        .status();
    ensure!(status.is_success(), "unhealthy: {url}: status {status}");
    print(&format!("healthy: {url}"))
}
