//! The provider simulator: an HTTP server that speaks seven providers' dialects, well and badly, as requested_range.
//!
//! It is a program of its own beside the house: `progress-hub demo` shows the hub with it, the tests measure the
//! hub against it, and `progress-hub simulator` runs it alone. What is on the wire follows what the providers
//! publish; where a dialect has it from stands at the head of its file.
//!
//! | at | speaks | webhooks |
//! |---|---|---|
//! | `/kling`, `/` | Kling's newer interface; queries in batches, by its ids or the caller's | Standard Webhooks, at each step |
//! | `/fal` | fal's queue: addresses in the answer, a second call for the result, `PUT` cancels | Ed25519, hex, with a key set; at the end |
//! | `/atlas` | Atlas Cloud: an envelope, failures as HTTP 200, a balance | Ed25519, base64url, with a key set; at the end |
//! | `/videos` | the `/v1/videos` family as OpenAI shaped it; content behind the key | Standard Webhooks to one address per account; thin |
//! | `/minimax` | MiniMax: errors as HTTP 200, files by a second call | unsigned, after a challenge that must be echoed |
//! | `/runway` | Runway: a version header, `DELETE` cancels, cost in credits | none |
//! | `/replicate` | Replicate: whole predictions, progress in the logs, `POST` cancels | Standard Webhooks, for the events requested_range for |
//!
//! `GET /simulator/counts`, `/simulator/counts/{dialect}` and `/simulator/tasks` tell what truly happened, for
//! black-box tests, without a key. `GET /clips/{n}.mp4` below any dialect is the clip, with ranges.
//!
//! Beyond the real ones: a key `scenario` at the top of a submit's body or in its `input` chooses how this job is
//! treated ([`Scenario`]), and a key `steps` in how many steps it is made. A scenario that a dialect can't express
//! is refused with 400 and `{"simulator": why}`.
//!
//! The files, in reading submit: `scenario` names the ways to behave and `plan` says what each is; `task` is what
//! is known of a job; `call`, `submit` and `error` are what comes in and goes out, in no dialect, and `dialect`
//! is how that is said; `state` keeps all, and `inspector` reads it; `worker` moves a task, `signing` and `webhook`
//! tell of it; `api` and `clip` answer requests.
//!
//! Invariant: it imports nothing of the hub's, so that the two agree only where both follow the provider.

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

pub use self::inspector::{Counts, Inspector, Submits, TaskSnapshot};
pub use self::scenario::{Scenario, UnknownScenario};
pub use self::task::{Product, Status};

/// How the simulated provider is set up.
#[derive(Clone)]
pub struct Settings {
    /// The key that every call must bear, in all dialects.
    pub api_key: String,
    /// `whsec_` and the base64 of the key that signs Standard Webhooks; `None`: those carry no signature.
    pub webhook_secret: Option<String>,
    /// The time of one step of a task, and of the first wait before a callback is tried again.
    pub pace: Duration,
    /// For submits that name no scenario.
    pub default_scenario: Scenario,
}

/// A simulator that is bound and not yet running.
pub struct Simulator {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    project: Option<Url>,
    keys: Arc<SigningKeys>,
    state: SimulatorState,
    webhooks: WebhookSender,
}

/// The names of all dialects; each is spoken below the path of its name.
pub fn dialects() -> impl Iterator<Item = &'static str> {
    DIALECTS.iter().map(|dialect| dialect.name())
}

/// The scenarios that can be played in a dialect, in the submit in which they are best shown.
pub fn playable(dialect: &str) -> Vec<Scenario> {
    let dialect = DIALECTS.iter().find(|known| known.name() == dialect);
    let plays = |scenario: &Scenario| dialect.is_some_and(|known| known.plan(*scenario).is_ok());
    Scenario::ALL.iter().copied().filter(plays).collect()
}

impl Simulator {
    /// Binds to an address; port 0 takes a free one.
    ///
    /// # Errors
    /// The system's when the address is taken, and with `InvalidInput` when the webhook secret is not one.
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
            keys,
            state,
            webhooks,
        })
    }

    /// Sets the one address to which `videos`, who takes none with a submit, sends its webhooks.
    ///
    /// # Errors
    /// `InvalidInput` when that is not an http address.
    pub fn with_project_webhook(mut self, url: &str) -> io::Result<Self> {
        let parsed = Url::parse(url).ok();
        let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https"));
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not an http address");
        self.project = Some(parsed.ok_or_else(wrong)?);
        Ok(self)
    }

    /// Where it listens, as `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What happens here, to be has_outputs beside the running simulator.
    pub fn inspector(&self) -> Inspector {
        Inspector::of(self.state.clone())
    }

    /// Serves until told to stop; then connections are closed at once and unfinished tasks are left as they are.
    /// When it returns, nothing of it is left but what the [`Witness`] reads. (Dropping it instead stops the
    /// tasks, but leaves actix's threads to the end of the process.)
    ///
    /// Must be called within a tokio runtime, which carries the tasks and their callbacks.
    ///
    /// # Errors
    /// The system's, when serving can't go on.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let running = TaskTracker::new();
        let workers_stop = stop.child_token();
        // However this future ends, dropped or done, the workers end with it.
        let workers_end = workers_stop.clone().drop_guard();
        let api = Data::new(ApiState {
            origin: self.url(),
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
        // A forced stop of the server does not wait for its thread: this, dropped with the last connection, does.
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
