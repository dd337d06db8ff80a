//! HTTP server that simulates the APIs of seven AI-video providers, with faults on request.
//!
//! `progress-hub demo` runs it beside the hub, tests run the hub against it, and `progress-hub simulator` runs it alone.
//! It follows the providers' published documentation; each dialect names its sources. The crate imports nothing of the
//! hub, so the two agree only where both follow the provider.
//!
//! | path | API | webhooks |
//! |---|---|---|
//! | `/kling`, `/` | Kling's new API; batch queries by task id or external id | Standard Webhooks, on each step |
//! | `/fal` | fal's queue: URLs in the response, a second request for the result, `PUT` to cancel | Ed25519 (hex) with a JWKS, at the end |
//! | `/atlas` | Atlas Cloud: an envelope, failures as HTTP 200, a balance | Ed25519 (base64url) with a JWKS, at the end |
//! | `/videos` | the `/v1/videos` API of OpenAI and gateways; content requires the key | Standard Webhooks to one URL per account, without outputs |
//! | `/minimax` | MiniMax: errors as HTTP 200, files by a second request | unsigned, after the receiver echoes a challenge |
//! | `/runway` | Runway: a version header, `DELETE` to cancel, cost in credits | none |
//! | `/replicate` | Replicate: whole predictions, progress in the logs, `POST` to cancel | Standard Webhooks, for the requested events |
//!
//! `GET /simulator/counts`, `/simulator/counts/{dialect}` and `/simulator/tasks` return the true state for black-box
//! tests and need no key. `GET /clips/{n}.mp4` under any path returns the clip and supports ranges.
//!
//! A submit may contain two keys that the real APIs do not have, at the top of the body or in `input`: `scenario`
//! selects the behavior for this job ([`Scenario`]), and `steps` sets its number of progress steps. A scenario that a
//! dialect cannot play is rejected with 400 and `{"simulator": reason}`.

mod api;
mod api_error;
mod call;
mod clip;
mod dialect;
mod inspector;
mod plan;
mod scenario;
mod signing;
mod state;
mod submit_request;
mod task;
#[cfg(test)]
mod tests;
mod webhook;
mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{self, Data};
use actix_web::{App, HttpServer};
use reqwest::Url;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::api::ApiState;
use self::dialect::DIALECTS;
use self::signing::{Secret, SigningKeys};
use self::state::SimulatorState;
use self::webhook::WebhookSender;
use self::worker::Workers;

pub use self::api::clip_route;
pub use self::inspector::{Counts, Inspector, Submits, TaskSnapshot};
pub use self::scenario::{Scenario, UnknownScenario};
pub use self::task::{Product, Status};

/// Settings of the simulator.
#[derive(Clone)]
pub struct Settings {
    /// API key that every request must carry.
    pub api_key: String,
    /// `whsec_` and the base64 key for Standard Webhooks. `None`: these webhooks are not signed.
    pub webhook_secret: Option<String>,
    /// Duration of one step of a task, and initial delay before a webhook is retried.
    pub pace: Duration,
    /// Scenario of submits that name none.
    pub default_scenario: Scenario,
}

/// A simulator that is bound and not yet running.
pub struct Simulator {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    project: Option<Url>,
    clip_origin: Option<String>,
    keys: Arc<SigningKeys>,
    state: SimulatorState,
    webhooks: WebhookSender,
}

/// Returns the names of all dialects. Each is served under the path of its name.
pub fn dialects() -> impl Iterator<Item = &'static str> {
    DIALECTS.iter().map(|dialect| dialect.name())
}

/// Returns the scenarios that a dialect can play, in display order.
pub fn playable(dialect: &str) -> Vec<Scenario> {
    let dialect = DIALECTS.iter().find(|known| known.name() == dialect);
    let plays = |scenario: &Scenario| dialect.is_some_and(|known| known.plan(*scenario).is_ok());
    Scenario::ALL.iter().copied().filter(plays).collect()
}

impl Simulator {
    /// Binds to an address. Port 0 selects a free port.
    ///
    /// # Errors
    /// Returns the error of the operating system if the address is in use, and `InvalidInput` if the webhook secret is
    /// malformed.
    pub fn bind(address: impl ToSocketAddrs, settings: Settings) -> io::Result<Self> {
        let secret = settings
            .webhook_secret
            .as_deref()
            .map(Secret::parse)
            .transpose();
        let secret = secret.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let keys = Arc::new(SigningKeys::new(secret).map_err(io::Error::other)?);
        let state = SimulatorState::new();
        let webhooks = WebhookSender::new(keys.clone(), settings.pace, state.clone())?;
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            settings,
            project: None,
            clip_origin: None,
            keys,
            state,
            webhooks,
        })
    }

    /// Sets the URL for webhooks of the `videos` dialect, whose submits carry none.
    ///
    /// # Errors
    /// Returns `InvalidInput` if `url` is not an http or https URL.
    pub fn with_project_webhook(mut self, url: &str) -> io::Result<Self> {
        let parsed = Url::parse(url).ok();
        let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https"));
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not an http address");
        self.project = Some(parsed.ok_or_else(wrong)?);
        Ok(self)
    }

    /// Sets the base URL of clips. The server at this URL must have [`clip_route`]. By default, clips have the address
    /// that the API was called at.
    #[must_use]
    pub fn with_clip_origin(mut self, url: String) -> Self {
        self.clip_origin = Some(url);
        self
    }

    /// Returns the base URL, as `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns an inspector, which stays valid while the simulator runs and after it stops.
    pub fn inspector(&self) -> Inspector {
        Inspector::of(self.state.clone())
    }

    /// Serves until `stop` is cancelled, then closes all connections and leaves unfinished tasks as they are. When it
    /// returns, no task or thread is left. If the future is dropped, the tasks stop, but the threads of actix run on.
    ///
    /// Must be called within a tokio runtime, which runs the tasks and their webhooks.
    ///
    /// # Errors
    /// Returns the I/O error that ended serving.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let running = TaskTracker::new();
        let workers_stop = stop.child_token();
        // Stops the workers when this future ends or is dropped.
        let workers_end = workers_stop.clone().drop_guard();
        let api = Data::new(ApiState {
            origin: self.url(),
            clip_origin: self.clip_origin,
            api_key: self.settings.api_key,
            default_scenario: self.settings.default_scenario,
            project: self.project,
            keys: self.keys,
            state: self.state.clone(),
            workers: Workers {
                state: self.state,
                webhooks: self.webhooks,
                pace: self.settings.pace,
                runtime: Handle::current(),
                running: running.clone(),
                stop: workers_stop,
            },
        });
        // A forced stop of the server does not wait for its thread. This token is dropped with the last connection.
        let presence = running.token();
        let app = move || {
            let mut app = App::new()
                .app_data(api.clone())
                .app_data(presence.clone())
                .configure(api::inspector_routes);
            for dialect in DIALECTS {
                let prefix = format!("/{}", dialect.name());
                let scope = web::scope(&prefix);
                let routes = api::routes(api.clone(), dialect, prefix);
                app = app.service(scope.configure(routes));
            }
            let [first, ..] = DIALECTS;
            app.configure(api::routes(api.clone(), first, String::new()))
        };
        let served = {
            let server = HttpServer::new(app)
                .workers(1)
                .disable_signals()
                .listen(self.listener)?
                .run();
            let handle = server.handle();
            tokio::pin!(server);
            tokio::select! {
                served = &mut server => served,
                () = stop.cancelled() => tokio::join!(handle.stop(false), server).1,
            }
        };
        drop(workers_end);
        running.close();
        running.wait().await;
        served
    }
}
