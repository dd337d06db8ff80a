//! A typical server with actix-ws and SQLite: each update is a separate transaction on the blocking pool, and each
//! socket has a task that forwards the messages of a broadcast channel.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::error::ErrorInternalServerError;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytestring::ByteString;
use futures_util::StreamExt;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::stack::document::{Document, Report};
use crate::stack::token::Verifier;

/// Number of messages that a channel buffers for its slowest socket.
const CHANNEL_CAPACITY: usize = 16;

struct State {
    connection: Mutex<Connection>,
    channels: Mutex<HashMap<String, broadcast::Sender<ByteString>>>,
    verifier: Verifier,
}

/// Serves until the process is killed.
pub fn serve(address: SocketAddr, dir: &Path) -> anyhow::Result<()> {
    let connection = Connection::open(dir.join("jobs.db"))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
        PRAGMA synchronous = FULL;
        CREATE TABLE jobs (id TEXT PRIMARY KEY, document TEXT NOT NULL);",
    )?;
    let state = web::Data::new(State {
        connection: Mutex::new(connection),
        channels: Mutex::default(),
        verifier: Verifier::new(),
    });
    let server = move || {
        App::new()
            .app_data(state.clone())
            .route("/ws/{channel}", web::get().to(subscribe))
            .route("/publish/{channel}", web::post().to(publish))
    };
    actix_web::rt::System::new().block_on(async move {
        let server = HttpServer::new(server).workers(1).backlog(4096);
        server.bind(address)?.run().await
    })?;
    Ok(())
}

impl State {
    fn channel(&self, name: &str) -> broadcast::Sender<ByteString> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || broadcast::channel(CHANNEL_CAPACITY).0;
        channels.entry(name.to_owned()).or_insert_with(new).clone()
    }

    /// Applies the report in a transaction and returns the message.
    fn update(&self, id: &str, report: &Report) -> anyhow::Result<ByteString> {
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        let stored: Option<String> = transaction
            .query_row("SELECT document FROM jobs WHERE id = ?1", [id], |row| {
                row.get(0)
            })
            .optional()?;
        let mut document = match stored {
            Some(text) => serde_json::from_str(&text)?,
            None => Document::new(id),
        };
        document.apply(report);
        transaction.execute(
            "INSERT OR REPLACE INTO jobs (id, document) VALUES (?1, ?2)",
            (id, serde_json::to_string(&document)?),
        )?;
        transaction.commit()?;
        Ok(document.message()?)
    }
}

async fn subscribe(
    state: web::Data<State>,
    request: HttpRequest,
    channel: web::Path<String>,
    body: web::Payload,
) -> actix_web::Result<HttpResponse> {
    let (response, mut session, mut messages) = actix_ws::handle(&request, body)?;
    let mut updates = state.channel(&channel).subscribe();
    actix_web::rt::spawn(async move {
        loop {
            tokio::select! {
                update = updates.recv() => match update {
                    Ok(update) => {
                        if session.text(update).await.is_err() {
                            return;
                        }
                    }
                    // The socket continues with the next update.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                message = messages.next() => {
                    if !matches!(message, Some(Ok(_))) {
                        return;
                    }
                }
            }
        }
    });
    Ok(response)
}

async fn publish(
    state: web::Data<State>,
    request: HttpRequest,
    channel: web::Path<String>,
    report: web::Json<Report>,
) -> actix_web::Result<HttpResponse> {
    if !state.verifier.accepts(&request) {
        return Ok(HttpResponse::Unauthorized().finish());
    }
    let (blocking, id) = (Arc::clone(&state), channel.clone());
    let message = web::block(move || blocking.update(&id, &report)).await?;
    let message = message.map_err(ErrorInternalServerError)?;
    // Fails if the channel has no subscribers.
    let _ = state.channel(&channel).send(message);
    Ok(HttpResponse::Accepted().finish())
}
