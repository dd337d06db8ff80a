//! The processes that the benchmarks measure, Redis and a hub, and connections to them.
//!
//! Each process ends when it is dropped.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Config as RedisConfig};
use fred::types::{ClusterHash, CustomCommand, FromValue};
use futures_util::{SinkExt, StreamExt};
use progress_hub::config::Config;
use progress_hub_auth::jwt::Minter;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const JWT_SECRET: &str = "signs the tokens of a bench and nothing else";

/// Maximum time to wait for a message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);

/// Interval between checks whether a process is ready.
pub const READINESS_INTERVAL: Duration = Duration::from_millis(20);

/// A process that ends when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `redis-server` process.
pub struct RedisProcess {
    port: u16,
    client: Client,
    _process: Process,
    _directory: TempDir,
}

impl RedisProcess {
    /// Starts a server with this `appendfsync` policy, or without persistence.
    pub async fn start(appendfsync: Option<&str>) -> Self {
        // The port is free again when the temporary listener is dropped.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let directory = tempfile::tempdir().unwrap();
        let append_only = if appendfsync.is_some() { "yes" } else { "no" };
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", append_only])
            .args(["--appendfsync", appendfsync.unwrap_or("everysec"), "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let process = Process(process);
        let client = loop {
            match connect(port).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(READINESS_INTERVAL).await,
            }
        };
        Self {
            port,
            client,
            _process: process,
            _directory: directory,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Opens a TCP connection for the baselines, without a client library.
    pub async fn raw_connection(&self) -> RawConnection {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        RawConnection(stream)
    }

    /// Sends a command, given as its words.
    pub async fn query<R: FromValue>(&self, words: &[&str]) -> R {
        let command = CustomCommand::new(words[0], ClusterHash::FirstKey, false);
        let reply = self.client.custom(command, words[1..].to_vec()).await;
        reply.unwrap()
    }

    /// Returns a number from `INFO`.
    pub async fn info(&self, section: &str, name: &str) -> f64 {
        let info: String = self.query(&["INFO", section]).await;
        let value = info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap().trim().parse().unwrap()
    }

    /// Returns the CPU time of the main thread, in seconds.
    pub async fn cpu_seconds(&self) -> f64 {
        self.info("cpu", "used_cpu_user_main_thread").await
            + self.info("cpu", "used_cpu_sys_main_thread").await
    }
}

async fn connect(port: u16) -> Result<Client, Error> {
    let config = RedisConfig::from_url(&format!("redis://127.0.0.1:{port}"))?;
    let client = Builder::from_config(config).build()?;
    client.init().await?;
    Ok(client)
}

/// Encodes a command.
pub fn encode_command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

/// A TCP connection to Redis.
pub struct RawConnection(pub TcpStream);

impl RawConnection {
    /// Sends a command whose reply is a single line.
    pub async fn send(&mut self, command: &[u8]) {
        self.0.write_all(command).await.unwrap();
        let mut reply = Vec::new();
        while !reply.ends_with(b"\r\n") {
            let length = self.0.read_buf(&mut reply).await.unwrap();
            assert!(length > 0, "Redis has closed the connection");
        }
        assert!(
            !reply.starts_with(b"-"),
            "{}",
            String::from_utf8_lossy(&reply)
        );
    }
}

/// A hub process.
pub struct HubProcess {
    address: String,
    minter: Minter,
    process: Process,
}

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl HubProcess {
    pub fn start(redis: &RedisProcess) -> Self {
        let settings = [
            ("server.bind", "127.0.0.1:0".to_owned()),
            ("store.url", redis.url()),
            ("auth.hs256_secrets", JWT_SECRET.to_owned()),
            // Sockets that are idle during a measurement stay open.
            ("socket.heartbeat", "10m".to_owned()),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_progress-hub"));
        command.args([
            "--log",
            "json",
            "--log-level",
            "progress_hub::server=info",
            "serve",
        ]);
        for (key, value) in &settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let command = command.env_remove("RUST_LOG").stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let event: Value = serde_json::from_str(&line.unwrap()).ok()?;
            event["address"].as_str().map(str::to_owned)
        });
        // The process must not block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let settings = settings.map(|(key, value)| (key.to_owned(), value));
        let config = Config::load(None, std::iter::empty(), settings.to_vec()).unwrap();
        Self {
            address: address.unwrap(),
            minter: Minter::new(&config.auth).unwrap(),
            process: Process(process),
        }
    }

    /// Opens a socket with a token of `owner`.
    pub async fn connect(&self, owner: &str) -> Socket {
        let ttl = Duration::from_secs(3600);
        let minted = self
            .minter
            .mint(owner, None, None, ttl, jiff::Timestamp::now())
            .unwrap();
        let url = format!("ws://{}/v1/ws", self.address);
        let mut request = url.into_client_request().unwrap();
        let bearer = format!("Bearer {}", minted.token);
        request
            .headers_mut()
            .insert("authorization", bearer.parse().unwrap());
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
        expect_message(&mut socket, "hello").await;
        socket
    }

    /// Returns the resident memory in bytes.
    pub fn memory(&self) -> f64 {
        let path = format!("/proc/{}/status", self.process.0.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<f64>().unwrap() * 1024.0
    }
}

pub async fn send_json(socket: &mut Socket, message: &Value) {
    socket
        .send(Message::text(message.to_string()))
        .await
        .unwrap();
}

/// Returns the next message of one of these types.
pub async fn expect_any(socket: &mut Socket, types: &[&str]) -> String {
    let is_expected = |text: &str| {
        let message_type = text.strip_prefix("{\"type\":\"");
        let is_type = |text: &str, name: &&str| text.starts_with(&format!("{name}\""));
        message_type.is_some_and(|text| types.iter().any(|name| is_type(text, name)))
    };
    let receiving = async {
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Text(text) if is_expected(&text) => return text.as_str().to_owned(),
                Message::Close(reason) => panic!("closed: {reason:?}"),
                Message::Text(_)
                | Message::Binary(_)
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Frame(_) => {}
            }
        }
    };
    let received = tokio::time::timeout(MESSAGE_TIMEOUT, receiving).await;
    received.unwrap_or_else(|_| panic!("no message of {types:?}"))
}

/// Returns the next message of a type.
pub async fn expect_message(socket: &mut Socket, message_type: &str) -> String {
    expect_any(socket, &[message_type]).await
}
