//! What the measuring stands on: a Redis and a hub as processes, and bare connections to both.
//!
//! Invariant: each process ends when it is dropped.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

const SECRET: &str = "signs the tokens of a bench and nothing else";

/// The longest that anything is waited for.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(120);

/// A process that ends when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `redis-server` of its own.
pub struct Redis {
    port: u16,
    _process: Process,
    _folder: TempDir,
}

impl Redis {
    /// One that writes to its disk as `appendfsync` says, or not at all.
    pub async fn start(appendfsync: Option<&str>) -> Self {
        // Nobody else takes it in the moment between.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .args([
                "--appendonly",
                if appendfsync.is_some() { "yes" } else { "no" },
            ])
            .args(["--appendfsync", appendfsync.unwrap_or("everysec"), "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let redis = Self {
            port,
            _process: Process(process),
            _folder: folder,
        };
        while redis.connect().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        redis
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connection that speaks its protocol and no more.
    pub async fn bare(&self) -> Bare {
        Bare(self.connect().await.unwrap())
    }

    /// A number from `INFO`.
    pub async fn info(&self, section: &str, name: &str) -> f64 {
        let text = self.bare().await.ask_bulk(&["INFO", section]).await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().trim().parse().unwrap()
    }

    /// Seconds that its one thread has worked.
    pub async fn worked(&self) -> f64 {
        self.info("cpu", "used_cpu_user_main_thread").await
            + self.info("cpu", "used_cpu_sys_main_thread").await
    }
}

/// A command as Redis reads it.
pub fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

/// A connection to Redis that does nothing unasked.
pub struct Bare(pub TcpStream);

impl Bare {
    /// Asks for something that is answered in one line.
    pub async fn ask(&mut self, command: &[u8]) -> String {
        self.0.write_all(command).await.unwrap();
        self.line().await
    }

    async fn line(&mut self) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            assert!(
                self.0.read_buf(&mut answer).await.unwrap() > 0,
                "Redis has gone"
            );
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(!answer.starts_with('-'), "{answer}");
        answer
    }

    /// Asks for something that is answered in a text.
    pub async fn ask_bulk(&mut self, words: &[&str]) -> String {
        self.0.write_all(&command(words)).await.unwrap();
        let mut answer = Vec::new();
        loop {
            assert!(
                self.0.read_buf(&mut answer).await.unwrap() > 0,
                "Redis has gone"
            );
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with('$'), "{text}");
            let Some((length, rest)) = text[1..].split_once("\r\n") else {
                continue;
            };
            let length: usize = length.parse().unwrap();
            if rest.len() >= length + 2 {
                return rest[..length].to_owned();
            }
        }
    }
}

/// A hub as a process, on a Redis.
pub struct Serving {
    address: String,
    minter: Minter,
    process: Process,
}

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Serving {
    pub fn start(redis: &Redis) -> Self {
        let settings = [
            ("server.bind", "127.0.0.1:0".to_owned()),
            ("store.url", redis.url()),
            ("auth.hs256_secrets", SECRET.to_owned()),
            // Sockets that are left alone for a while stay.
            ("socket.heartbeat", "10m".to_owned()),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_progress-hub"));
        command.args(["--log-level", "off", "serve"]);
        for (key, value) in &settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = piped.spawn().unwrap();
        let mut greeting = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut greeting).unwrap();
        let address = greeting.trim().strip_prefix("progress-hub is at http://");
        let settings = settings.map(|(key, value)| (key.to_owned(), value));
        let config = Config::load(None, std::iter::empty(), settings.to_vec()).unwrap();
        Self {
            address: address.unwrap().trim_end_matches('/').to_owned(),
            minter: Minter::new(&config.auth).unwrap(),
            process: Process(process),
        }
    }

    /// A socket of this owner's.
    pub async fn socket(&self, owner: &str) -> Socket {
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
        hear(&mut socket, "hello").await;
        socket
    }

    /// Bytes of memory that it has.
    pub fn memory(&self) -> f64 {
        let path = format!("/proc/{}/status", self.process.0.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<f64>().unwrap() * 1024.0
    }
}

pub async fn say(socket: &mut Socket, message: &Value) {
    socket
        .send(Message::text(message.to_string()))
        .await
        .unwrap();
}

/// The next message of one of these types.
pub async fn hear_any(socket: &mut Socket, kinds: &[&str]) -> String {
    let is_it = |text: &str| {
        let kind = text.strip_prefix("{\"type\":\"");
        kind.is_some_and(|text| {
            kinds
                .iter()
                .any(|kind| text.starts_with(&format!("{kind}\"")))
        })
    };
    let hearing = async {
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Text(text) if is_it(&text) => return text.as_str().to_owned(),
                Message::Close(why) => panic!("closed: {why:?}"),
                Message::Text(_)
                | Message::Binary(_)
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Frame(_) => {}
            }
        }
    };
    let heard = tokio::time::timeout(STARTUP_TIMEOUT, hearing).await;
    heard.unwrap_or_else(|_| panic!("nothing of {kinds:?} came"))
}

/// The next message of a type.
pub async fn hear(socket: &mut Socket, kind: &str) -> String {
    hear_any(socket, &[kind]).await
}
