//! Broadcast with actix-ws: the cost of the hub's web framework without the hub.
//!
//! One worker sends each message to every session of its channel, one after the other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use actix_ws::Session;
use futures_util::StreamExt;

thread_local! {
    static CHANNELS: RefCell<HashMap<String, Vec<Session>>> = RefCell::default();
}

/// Serves until the process is killed.
pub fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let server = || {
        App::new()
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
    request: HttpRequest,
    channel: web::Path<String>,
    body: web::Payload,
) -> actix_web::Result<HttpResponse> {
    let (response, session, mut messages) = actix_ws::handle(&request, body)?;
    CHANNELS.with_borrow_mut(|channels| {
        channels
            .entry(channel.into_inner())
            .or_default()
            .push(session);
    });
    actix_web::rt::spawn(async move { while let Some(Ok(_)) = messages.next().await {} });
    Ok(response)
}

async fn publish(channel: web::Path<String>, message: String) -> HttpResponse {
    let sessions = CHANNELS.with_borrow(|channels| channels.get(&*channel).cloned());
    for mut session in sessions.unwrap_or_default() {
        // Fails only for closed sessions.
        let _ = session.text(message.as_str()).await;
    }
    HttpResponse::Accepted().finish()
}
