//! The bare stack: a minimal server with the libraries of the hub. Each [`Step`] adds one kind of work of the hub.
//!
//! One worker of actix-web accepts updates and serves WebSockets with actix-ws. The updates of one turn of its event
//! loop are committed to SQLite in one transaction, before the server delivers them or responds. The difference
//! between two steps is the cost of the added work.

pub mod document;
mod feeds;
mod metrics;
mod store;
pub mod token;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use anyhow::anyhow;
use bytestring::ByteString;
use futures_util::StreamExt;
use tokio::sync::oneshot;

use document::Report;
use feeds::Feeds;
use metrics::Metrics;
use store::Store;
use token::Verifier;

/// Work of the stack. Each step includes all earlier steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Stores and delivers messages without decoding them
    Plain,
    /// Decodes a report and encodes a document
    Json,
    /// Verifies a token
    Token,
    /// Reads the stored document and applies the report to it
    Versions,
    /// Maintains the indexes that the hub needs to find jobs
    Indexes,
    /// Publishes to a feed per job, from which sockets send the newest version, and to a feed per owner
    Feeds,
    /// Records the number and the duration of requests
    Metrics,
}

/// State of the server.
struct Stack {
    step: Step,
    store: Mutex<Store>,
    verifier: Verifier,
    metrics: Metrics,
}

/// An update that waits for the commit of its turn.
struct Update {
    channel: String,
    change: Change,
    committed: oneshot::Sender<ByteString>,
}

/// Content of an update.
pub enum Change {
    /// The message to store and deliver.
    Message(ByteString),
    Report(Report),
}

thread_local! {
    static TURN: RefCell<Vec<Update>> = RefCell::default();
    static FEEDS: RefCell<Feeds> = RefCell::default();
}

/// Serves until the process is killed.
pub fn serve(address: SocketAddr, dir: &Path, step: Step) -> anyhow::Result<()> {
    let stack = web::Data::new(Stack {
        step,
        store: Mutex::new(Store::open(dir, step)?),
        verifier: Verifier::new(),
        metrics: Metrics::default(),
    });
    let server = move || {
        App::new()
            .app_data(stack.clone())
            .route("/ws/{channel}", web::get().to(subscribe))
            .route("/publish/{channel}", web::post().to(publish))
    };
    actix_web::rt::System::new().block_on(async move {
        let server = HttpServer::new(server).workers(1).backlog(4096);
        server.bind(address)?.run().await
    })?;
    Ok(())
}

async fn subscribe(
    stack: web::Data<Stack>,
    request: HttpRequest,
    channel: web::Path<String>,
    body: web::Payload,
) -> actix_web::Result<HttpResponse> {
    let (response, session, mut messages) = actix_ws::handle(&request, body)?;
    let channel = channel.into_inner();
    if stack.step >= Step::Feeds {
        let feed = FEEDS.with_borrow_mut(|feeds| feeds.follow(channel));
        actix_web::rt::spawn(feeds::forward(feed, session, messages));
    } else {
        FEEDS.with_borrow_mut(|feeds| feeds.add(channel, session));
        actix_web::rt::spawn(async move { while let Some(Ok(_)) = messages.next().await {} });
    }
    Ok(response)
}

async fn publish(
    stack: web::Data<Stack>,
    request: HttpRequest,
    channel: web::Path<String>,
    body: web::Bytes,
) -> actix_web::Result<HttpResponse> {
    let start = Instant::now();
    let step = stack.step;
    if step >= Step::Token && !stack.verifier.accepts(&request) {
        return Ok(HttpResponse::Unauthorized().finish());
    }
    let change = if step >= Step::Json {
        Change::Report(serde_json::from_slice(&body)?)
    } else {
        let message = ByteString::try_from(body).map_err(actix_web::error::ErrorBadRequest)?;
        Change::Message(message)
    };
    let channel = channel.into_inner();
    let committed = commit(&stack, channel.clone(), change).await;
    let message = committed.map_err(actix_web::error::ErrorInternalServerError)?;
    if step >= Step::Feeds {
        FEEDS.with_borrow_mut(|feeds| feeds.publish(channel, &message));
    } else {
        for mut session in FEEDS.with_borrow(|feeds| feeds.sessions(&channel)) {
            // Fails only for closed sessions.
            let _ = session.text(message.clone()).await;
        }
    }
    if step >= Step::Metrics {
        stack.metrics.record(start.elapsed());
    }
    Ok(HttpResponse::Accepted().finish())
}

/// Commits a change together with the other changes of this turn. Returns the message for the sockets.
async fn commit(
    stack: &web::Data<Stack>,
    channel: String,
    change: Change,
) -> Result<ByteString, oneshot::error::RecvError> {
    let (committed, result) = oneshot::channel();
    let is_first = TURN.with_borrow_mut(|turn| {
        turn.push(Update {
            channel,
            change,
            committed,
        });
        turn.len() == 1
    });
    if is_first {
        let stack = stack.clone();
        actix_web::rt::spawn(async move {
            // Requests that have already arrived add their changes before the commit.
            tokio::task::yield_now().await;
            let turn = TURN.take();
            // If this fails, the senders are dropped and all updates of the turn fail.
            if let Err(error) = commit_turn(&stack, turn) {
                eprintln!("commit failed: {error:#}");
            }
        });
    }
    result.await
}

fn commit_turn(stack: &Stack, turn: Vec<Update>) -> anyhow::Result<()> {
    let mut store = stack
        .store
        .lock()
        .map_err(|_| anyhow!("the store is poisoned"))?;
    let changes = turn.iter().map(|update| (&*update.channel, &update.change));
    let messages = store.commit(changes)?;
    for (update, message) in turn.into_iter().zip(messages) {
        // The publisher may have disconnected.
        let _ = update.committed.send(message);
    }
    Ok(())
}
