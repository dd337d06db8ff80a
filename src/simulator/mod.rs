//! The provider simulator: an HTTP server that speaks Kling's newer interface, well and badly, as asked.
//!
//! It is a program of its own beside the house: `progress-hub demo` shows the hub with it, the tests measure the
//! hub against it, and `progress-hub simulator` runs it alone. What is on the wire follows Kling's published
//! pages (klingai.com/document-api: text-to-video, image-to-video, query task, callbacks, error codes).
//!
//! | call | does |
//! |---|---|
//! | `POST /text-to-video/{model}`, `/image-to-video/{model}` | submit, with `Authorization: Bearer <api key>`; models are those named `kling-…` |
//! | `GET /tasks?task_ids=a,b` or `?external_task_ids=a,b` | query by exactly one of the two; unknown ids are left out |
//! | `POST /tasks` | list by time, status and product, newest first, page by page |
//! | `GET /clips/{n}.mp4` | the clip, with ranges, for any page |
//! | `GET /simulator/counts`, `GET /simulator/tasks` | what truly happened, for black-box tests, without a key |
//!
//! Beyond the real one, three things: a key `scenario` at the top of a submit's body chooses how this job is
//! treated ([`Scenario`]), callbacks and queries tell a `progress` (whole percent) while a task is processing, and
//! the rate limit comes with `Retry-After`.
//!
//! The files, in reading order: `scenario` says how a job is treated and `task` what is known of it; `order` and
//! `refusal` are what comes in and what is turned away; `ledger` keeps all, and `witness` reads it; `worker` moves
//! a task and `webhook` tells of it; `api` and `clip` answer requests.
//!
//! Invariant: it imports nothing of the hub's, so that the two agree only where both follow the provider.

mod api;
mod clip;
mod ledger;
mod order;
mod refusal;
mod scenario;
mod task;
#[cfg(test)]
mod tests;
mod webhook;
mod witness;
mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use actix_web::web::{self, Data};
use actix_web::{App, HttpServer};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::api::Terms;
use self::ledger::Ledger;
use self::webhook::{Postman, Secret};
use self::worker::Workers;

pub use self::scenario::{Scenario, UnknownScenario};
pub use self::task::{Product, Status};
pub use self::witness::{Counts, Submits, TaskFacts, Witness};

/// How the simulated provider is set up.
#[derive(Clone)]
pub struct Settings {
    /// The key that submits and queries must bear.
    pub api_key: String,
    /// `whsec_` and the base64 of the key that signs callbacks; `None`: callbacks carry no signature.
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
    ledger: Ledger,
    postman: Postman,
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
        let ledger = Ledger::new();
        let postman = Postman::new(secret, settings.pace, ledger.clone())?;
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            settings,
            ledger,
            postman,
        })
    }

    /// Where it listens, as `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What happens here, to be kept beside the running simulator.
    pub fn witness(&self) -> Witness {
        Witness::of(self.ledger.clone())
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
        let ledger = Data::new(self.ledger.clone());
        let terms = Data::new(Terms {
            origin: self.url(),
            api_key: self.settings.api_key,
            default_scenario: self.settings.default_scenario,
        });
        let workers = Data::new(Workers {
            ledger: self.ledger,
            postman: self.postman,
            pace: self.settings.pace,
            runtime: Handle::current(),
            running: running.clone(),
            stop: workers_stop,
        });
        // A forced stop of the server does not wait for its thread: this, dropped with the last connection, does.
        let presence = running.token();
        let app = move || {
            App::new()
                .app_data(terms.clone())
                .app_data(ledger.clone())
                .app_data(workers.clone())
                .app_data(presence.clone())
                .configure(api::routes)
                .configure(clip::routes)
                .default_service(web::to(api::unknown))
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
