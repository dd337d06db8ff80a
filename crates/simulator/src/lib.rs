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
//! The receiver at `/receiver` and `/receiver/{name}` takes the hub's own outbound webhooks, verifies their signatures,
//! and fails as the query of its URL demands. `GET /simulator/received` returns what it received.
//!
//! `GET /simulator/counts`, `/simulator/counts/{dialect}` and `/simulator/tasks` return the true state for black-box
//! tests and need no key. `GET /clips/{n}.mp4` under any path returns the clip and supports ranges.
//!
//! A submit may contain two keys that the real APIs do not have, at the top of the body or in `input`: `scenario`
//! selects the behavior for this job ([`Scenario`]), and `steps` sets its number of progress steps. A scenario that a
//! dialect cannot play is rejected with 400 and `{"simulator": reason}`.
//!
//! A request is a `Call`. The file of its provider maps it to one of the operations that all dialects share, and its
//! `Dialect` writes the response. A submit creates a [`Task`] with the `Plan` of its scenario. `Work` moves the task through
//! the plan and delivers its webhooks. `SimulatorState` holds all tasks and counts, and an [`Inspector`] reads them.
//!
//! A file imports only from files below it. From the top: `api`, `receiver`, `providers`, `submit`, `worker` and `call`, `context`,
//! `dialect`, `form`, `inspector`, `state`, `task`, `scenario`, `plan`.

mod api;
mod api_error;
mod call;
mod clip;
mod context;
mod dialect;
mod form;
mod inspector;
mod plan;
mod providers;
mod receiver;
mod scenario;
mod signing;
mod state;
mod submit;
mod task;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;

use actix_web::web::Data;
use actix_web::{App, HttpServer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::context::Context;
use self::providers::PROVIDERS;
use self::receiver::Receiver;
use self::signing::SigningKeys;
use self::state::SimulatorState;

pub use self::api::clip_route;
pub use self::context::Settings;
pub use self::inspector::Inspector;
pub use self::receiver::Received;
pub use self::scenario::{Scenario, UnknownScenario};
pub use self::state::{Counts, Submits};
pub use self::task::{Product, Status, Task};

/// A simulator that is bound and not yet running.
pub struct Simulator {
    listener: TcpListener,
    address: SocketAddr,
    context: Context,
    receiver: Receiver,
}

/// Returns the names of all dialects. Each is served under the path of its name.
pub fn dialects() -> impl Iterator<Item = &'static str> {
    PROVIDERS.iter().map(|(dialect, _)| dialect.name)
}

/// Returns the scenarios that a dialect can play, in display order.
pub fn playable(dialect: &str) -> Vec<Scenario> {
    let dialect = PROVIDERS.iter().find(|(known, _)| known.name == dialect);
    let plays =
        |scenario: &Scenario| dialect.is_some_and(|(known, _)| known.plan(*scenario).is_ok());
    Scenario::ALL.iter().copied().filter(plays).collect()
}

impl Simulator {
    /// Binds to an address. Port 0 selects a free port.
    ///
    /// # Errors
    /// Returns the error of the operating system if the address is in use, and `InvalidInput` if the webhook secret is
    /// malformed.
    pub fn bind(address: impl ToSocketAddrs, settings: Settings) -> io::Result<Self> {
        let context = Context {
            keys: SigningKeys::new(settings.webhook_secret.as_deref())?,
            forged_keys: SigningKeys::forged()?,
            settings,
            project: None,
            clip_origin: None,
            client: worker::client()?,
            state: Arc::new(SimulatorState::new()),
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            context,
            receiver: Receiver::default(),
        })
    }

    /// Sets the URL for webhooks of the `videos` dialect, whose submits carry none.
    ///
    /// # Errors
    /// Returns `InvalidInput` if `url` is not an http or https URL.
    pub fn with_project_webhook(mut self, url: &str) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not an http address");
        self.context.project = Some(submit::http_url(url).ok_or_else(wrong)?);
        Ok(self)
    }

    /// Adds a secret, as `whsec_` and base64, that verifies the webhooks at `/receiver`. Without one, they are not
    /// verified.
    ///
    /// # Errors
    /// Returns `InvalidInput` if the secret is malformed.
    pub fn with_receiver_secret(mut self, secret: &str) -> io::Result<Self> {
        self.receiver.secrets.push(SigningKeys::new(Some(secret))?);
        Ok(self)
    }

    /// Sets the base URL of clips. The server at this URL must have [`clip_route`]. By default, clips have the address
    /// that the API was called at.
    #[must_use]
    pub fn with_clip_origin(mut self, url: String) -> Self {
        self.context.clip_origin = Some(url);
        self
    }

    /// Returns the base URL, as `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns an inspector, which stays valid while the simulator runs and after it stops.
    pub fn inspector(&self) -> Inspector {
        Inspector(self.context.state.clone())
    }

    /// Serves until `stop` is cancelled, then closes all connections and leaves unfinished tasks as they are. When it
    /// returns, no task or thread is left. If the future is dropped, the tasks stop, but the threads of actix run on.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Returns the I/O error that ended serving.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let running = self.context.running.clone();
        // Stops the work on tasks when this future ends or is dropped.
        let work_end = self.context.stop.clone().drop_guard();
        // A forced stop of the server does not wait for its thread. This token is dropped with the last connection.
        let presence = running.token();
        let context = Data::new(self.context);
        let receiver = Data::new(self.receiver);
        let app = move || {
            App::new()
                .app_data(context.clone())
                .app_data(receiver.clone())
                .app_data(presence.clone())
                .configure(api::routes)
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
        drop(work_end);
        running.close();
        running.wait().await;
        served
    }
}
