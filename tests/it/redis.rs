//! Real Redis servers for tests: single servers, Sentinels and clusters.
//!
//! Each server listens on ports of its own on loopback, keeps its files in a temporary directory, and
//! ends when it is dropped.

pub mod cluster;
pub mod replicated;

use std::process::{Child, Command, Stdio};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::ClientLike;
use fred::prelude::{Builder, Config};
use fred::types::{ClusterHash, CustomCommand, FromValue};
use progress_hub::config::{Config as HubConfig, StoreConfig};
use progress_hub::store::redis::{RedisStore, Timeouts};
use progress_hub::store::{ChangeListener, Retention, Store};
use tempfile::TempDir;

use crate::app::{TEST_TIMEOUT, reserve_port};
use crate::wait::{wait_for, wait_until};

/// Pub/sub messages that a client keeps until they are read.
const MESSAGE_BUFFER: usize = 64 * 1024;

/// Opens a store that does not report an outage while a busy machine delays Redis.
pub fn open_store(
    url: &str,
    prefix: Option<&str>,
    retention: Retention,
    listener: ChangeListener,
) -> RedisStore {
    let mut config = StoreConfig {
        url: url.to_owned(),
        ..HubConfig::defaults().store
    };
    if let Some(prefix) = prefix {
        prefix.clone_into(&mut config.prefix);
    }
    let timeouts = Timeouts {
        command: TEST_TIMEOUT,
        claim: TEST_TIMEOUT,
        health_check: TEST_TIMEOUT,
        probe: TEST_TIMEOUT,
    };
    RedisStore::open(&config, retention, listener, timeouts).expect("a store")
}

pub async fn wait_until_store_ready(store: &dyn Store) {
    wait_until("the store is ready", async || store.ping().await.is_ok()).await;
}

/// Opens a connection that ends with the server, because it never reconnects.
///
/// # Errors
/// The reason why the connection failed.
pub async fn connect(address: &str) -> Result<Client, Error> {
    let client = Builder::from_config(Config::from_url(&format!("redis://{address}"))?)
        .with_performance_config(|performance| {
            performance.default_command_timeout = TEST_TIMEOUT;
            performance.broadcast_channel_capacity = MESSAGE_BUFFER;
        })
        .with_connection_config(|connection| connection.max_command_attempts = 1)
        .build()?;
    client.init().await?;
    Ok(client)
}

/// Sends a command, given as its words.
///
/// # Errors
/// The server's error, or the reason why there is no reply.
pub async fn send_command<R: FromValue>(client: &Client, words: &[&str]) -> Result<R, Error> {
    let command = CustomCommand::new(words[0], ClusterHash::FirstKey, false);
    client.custom(command, words[1..].to_vec()).await
}

/// A `redis-server` process.
pub struct RedisServer {
    pub port: u16,
    arguments: Vec<String>,
    process: Option<Child>,
    directory: TempDir,
    /// Keep the ports reserved while the server is stopped.
    _ports: Vec<socket2::Socket>,
}

impl RedisServer {
    /// Starts a single server.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with additional command line arguments.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let (port, address) = reserve_port();
        let server = Self::launch(address.port(), vec![port], arguments);
        server.wait_until_ready().await;
        server
    }

    /// Starts the process without waiting until it is ready.
    fn launch(port: u16, ports: Vec<socket2::Socket>, arguments: &[&str]) -> Self {
        let mut server = Self {
            port,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            process: None,
            directory: tempfile::tempdir().unwrap(),
            _ports: ports,
        };
        server.spawn();
        server
    }

    fn spawn(&mut self) {
        let directory = self.directory.path();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(directory.join("redis.log"))
            .unwrap();
        let process = Command::new("redis-server")
            .args(&self.arguments)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        self.process = Some(process);
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the store URL of this server.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub async fn connect(&self) -> Client {
        let connected = connect(&self.address()).await;
        connected.unwrap_or_else(|error| panic!("{error}; {}", self.log()))
    }

    /// Sends a command whose words contain no spaces, on a new connection.
    ///
    /// # Errors
    /// The server's error, or the reason why there is no reply.
    pub async fn try_query<R: FromValue>(&self, command: &str) -> Result<R, Error> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let client = connect(&self.address()).await?;
        let reply = send_command(&client, &words).await;
        // Fails if the server or the command has closed the connection.
        drop(client.quit().await);
        reply
    }

    /// Sends a command like [`RedisServer::try_query`]. Panics on an error.
    pub async fn query<R: FromValue>(&self, command: &str) -> R {
        let reply = self.try_query(command).await;
        reply.unwrap_or_else(|error| panic!("{command}: {error}; {}", self.log()))
    }

    /// Sends a command and ignores the reply. Panics on an error.
    pub async fn run(&self, command: &str) {
        self.query::<()>(command).await;
    }

    /// Kills the process. Its data is lost.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("redis-server can be killed");
            process.wait().expect("redis-server has exited");
        }
    }

    /// Starts a killed server again, without data, on the same port.
    pub async fn restart(&mut self) {
        assert!(self.process.is_none(), "the server is running");
        self.spawn();
        self.wait_until_ready().await;
    }

    /// Suspends the process. It keeps its connections but does not answer.
    pub fn suspend(&self) {
        self.send_signal("STOP");
    }

    /// Resumes a suspended process.
    pub fn resume(&self) {
        self.send_signal("CONT");
    }

    fn send_signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("the server is running");
        let status = Command::new("kill")
            .args(["-s", signal, &process.id().to_string()])
            .status();
        assert!(status.unwrap().success(), "the signal is delivered");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("redis.log")).unwrap_or_default()
    }

    async fn wait_until_ready(&self) {
        self.wait_for_reply("PING", |reply: &String| reply == "PONG")
            .await;
    }

    /// Repeats a command until its reply meets a condition. Errors are ignored.
    pub async fn wait_for_reply<R: FromValue>(
        &self,
        command: &str,
        is_expected: impl Fn(&R) -> bool,
    ) -> R {
        let condition = format!("{command} on port {} returns as expected", self.port);
        wait_for(&condition, async || {
            self.try_query(command).await.ok().filter(&is_expected)
        })
        .await
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL ends a suspended process as well.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_server_keeps_its_port_and_is_empty() {
    let mut server = RedisServer::start().await;
    server.run("SET key value").await;
    assert_eq!(server.query::<String>("GET key").await, "value");
    server.kill();
    assert!(connect(&server.address()).await.is_err());
    server.restart().await;
    assert_eq!(server.query::<Option<String>>("GET key").await, None);
}
