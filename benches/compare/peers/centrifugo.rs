//! Centrifugo: clients authenticate with a JWT, and updates are published through the HTTP API.

use std::fs;

use jiff::Timestamp;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use super::{MAX_CONCURRENT_HANDSHAKES, RunningServer, StartContext};
use crate::clients::{Endpoint, Protocol, Subscription};
use crate::http_connection::post;
use crate::message::OWNER;
use crate::process::{Process, free_address, is_installed};

const TOKEN_SECRET: &str = "a token secret for a single benchmark run";
const TOKEN_LIFETIME_SECONDS: i64 = 3600;
const API_KEY: &str = "an API key for a single benchmark run";

/// History that Centrifugo keeps for each channel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    /// The newest message, in memory. Clients that reconnect can recover it.
    InMemory,
    /// The newest message, on Redis.
    OnRedis,
}

pub(super) fn missing(kept: Kept) -> Option<String> {
    if !is_installed("centrifugo") {
        let install = "go install github.com/centrifugal/centrifugo/v6@v6.9.1";
        return Some(install.to_owned());
    }
    match kept {
        Kept::Nothing | Kept::InMemory => None,
        Kept::OnRedis => super::redis::missing(),
    }
}

pub(super) fn start(context: &StartContext<'_>, kept: Kept) -> anyhow::Result<RunningServer> {
    let mut processes = Vec::new();
    let engine = match kept {
        Kept::Nothing | Kept::InMemory => json!({"type": "memory"}),
        Kept::OnRedis => {
            let (redis, port) = super::redis::start(context)?;
            processes.push(redis);
            let address = format!("redis://127.0.0.1:{port}");
            json!({"type": "redis", "redis": {"address": address}})
        }
    };
    let address = free_address()?;
    let config = json!({
        "http_server": {"address": address.ip().to_string(), "port": address.port()},
        "client": {"token": {"hmac_secret_key": TOKEN_SECRET}},
        "http_api": {"key": API_KEY},
        "engine": engine,
        "channel": {"without_namespace": channel_options(kept)},
    });
    let path = context.dir.join("centrifugo.json");
    fs::write(&path, config.to_string())?;
    let command = ["centrifugo", "--config", &path.to_string_lossy()];
    let mut process = Process::start(&command, context.cores, context.dir, "centrifugo.log")?;
    process.wait_until_listening(address)?;
    processes.push(process);
    let token = token()?;
    let subscription = |channel: usize| Subscription {
        protocol: Protocol::WebSocket,
        path: "/connection/websocket".to_owned(),
        headers: String::new(),
        message: Some(format!(
            "{}\n{}",
            json!({"id": 1, "connect": {"token": token}}),
            json!({"id": 2, "subscribe": {"channel": channel.to_string()}}),
        )),
    };
    let template = std::rc::Rc::clone(&context.template);
    Ok(RunningServer {
        processes,
        endpoint: Endpoint {
            addresses: vec![address],
            subscriptions: (0..context.channels).map(subscription).collect(),
            max_handshakes: MAX_CONCURRENT_HANDSHAKES,
        },
        publish_address: address,
        publish: Box::new(move |channel, stamp| {
            let headers = [("X-API-Key", API_KEY), ("Content-Type", "application/json")];
            let data = template.message(&stamp.text());
            let body = format!(r#"{{"channel":"{channel}","data":{data}}}"#);
            Ok(post("/api/publish", &headers, &body))
        }),
    })
}

fn channel_options(kept: Kept) -> Value {
    match kept {
        Kept::Nothing => json!({"allow_subscribe_for_client": true}),
        Kept::InMemory | Kept::OnRedis => json!({
            "allow_subscribe_for_client": true,
            "history_size": 1,
            "history_ttl": "300s",
            "force_recovery": true,
        }),
    }
}

/// Returns the token of a client.
fn token() -> anyhow::Result<String> {
    let claims = json!({
        "sub": OWNER,
        "exp": Timestamp::now().as_second() + TOKEN_LIFETIME_SECONDS,
    });
    let key = EncodingKey::from_secret(TOKEN_SECRET.as_bytes());
    Ok(jsonwebtoken::encode(&Header::default(), &claims, &key)?)
}
