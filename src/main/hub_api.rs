//! Requests to the HTTP API of a running hub, with the rights of an administrator.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use progress_hub_auth::jwt::{Minter, is_encrypted_or_local};
use reqwest::{Client, Method};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use crate::arguments::ConfigArgs;
use crate::error::UsageError;

/// Environment variable with a token.
const TOKEN: &str = "PROGRESS_HUB_TOKEN";

/// Lifetime of a token that the command signs for itself.
const TOKEN_TTL: Duration = Duration::from_secs(5 * 60);

/// Time limit of a request. A test of a destination can take a minute.
const TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) const HELP: &str = "\
The token comes from --token-file, else from the environment variable PROGRESS_HUB_TOKEN, else the
command signs one with auth.hs256_secrets of the configuration. It is never an option. A token with
the scope admin may do everything; another one sees the deliveries of its own jobs.

Exit codes: 0 on success, 1 if the request or a test fails, 2 for invalid arguments or
configuration.";

/// Options of the commands that use a running hub.
#[derive(Args)]
pub(crate) struct HubArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// URL of the hub [default: this machine, with server.bind of the configuration]
    #[arg(long, value_name = "URL", env = "PROGRESS_HUB_URL")]
    url: Option<Url>,
    /// File with a token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the hub's response as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A hub and the token for it.
pub(crate) struct HubApi {
    base: Url,
    token: SecretString,
    http: Client,
}

impl HubArgs {
    /// Determines the hub and the token.
    pub(crate) fn connect(&self) -> anyhow::Result<HubApi> {
        let mut http = Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        let base = if let Some(url) = &self.url {
            if !is_encrypted_or_local(url) {
                let message = "--url must be https, or http on loopback".to_owned();
                return Err(UsageError(message).into());
            }
            url.clone()
        } else {
            let server = self.config.load_server()?;
            let url = server.local_url(server.bind);
            // The certificate is issued for the public name, not for loopback.
            http = http
                .no_proxy()
                .danger_accept_invalid_certs(server.bind.ip().is_loopback());
            url.parse().context("server.bind is not a URL")?
        };
        Ok(HubApi {
            base,
            token: self.token()?,
            http: http.build().context("failed to create the HTTP client")?,
        })
    }

    fn token(&self) -> anyhow::Result<SecretString> {
        if let Some(path) = &self.token_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| UsageError(format!("--token-file {}: {error}", path.display())))?;
            return Ok(text.trim().into());
        }
        if let Ok(token) = std::env::var(TOKEN)
            && !token.is_empty()
        {
            return Ok(token.into());
        }
        let auth = self.config.load_auth()?;
        let minter = Minter::new(&auth).ok_or_else(|| {
            let message =
                "set --token-file, PROGRESS_HUB_TOKEN, or auth.hs256_secrets in the configuration";
            UsageError(message.to_owned())
        })?;
        let now = jiff::Timestamp::now();
        let minted = minter
            .mint("command line", None, Some("admin"), TOKEN_TTL, now)
            .context("failed to create the token")?;
        Ok(minted.token.into())
    }
}

impl HubApi {
    /// Sends a request and returns the body of the response. `segments` are the path after `/v1`.
    pub(crate) async fn send(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<Value> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(segments);
        }
        for (name, value) in query {
            url.query_pairs_mut().append_pair(name, value);
        }
        let request = self.http.request(method, url);
        let response = request
            .bearer_auth(self.token.expose_secret())
            .send()
            .await
            .map_err(reqwest::Error::without_url)
            .with_context(|| format!("no response from {}", self.base))?;
        let status = response.status();
        let body = response.bytes().await.context("incomplete response")?;
        let body: Option<Value> = serde_json::from_slice(&body).ok();
        match body {
            Some(body) if status.is_success() => Ok(body),
            Some(problem) => {
                let code = problem["code"].as_str().unwrap_or("error");
                let detail = problem["detail"].as_str().unwrap_or("no detail");
                bail!("{}: {code}: {detail}", status.as_u16())
            }
            None => bail!(
                "{}: the response is not JSON; is it a progress-hub?",
                status.as_u16()
            ),
        }
    }
}
