//! Real Redis servers for tests: alone, watched by Sentinels, and as a cluster.
//!
//! Invariant: each listens on loopback on ports of its own, keeps nothing on any disk that outlives
//! it, and ends when it is dropped.

pub mod cluster;
pub mod replicated;
pub mod resp_client;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use self::resp_client::{Reply, RespClient};
use crate::app::{TEST_TIMEOUT, reserve_port};

/// Between two looks at a server that is not yet as wished.
const LOOK: Duration = Duration::from_millis(20);

/// A `redis-server` process. Dropping it kills it.
pub struct RedisServer {
    pub port: u16,
    arguments: Vec<String>,
    process: Option<Child>,
    folder: TempDir,
    /// Keep the ports from every other test while this server is down.
    _ports: Vec<socket2::Socket>,
}

impl RedisServer {
    /// One that stands alone.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// One with further arguments, as on its command line.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let server = Self::launch(arguments);
        server.until_it_answers().await;
        server
    }

    /// One that may not answer yet.
    fn launch(arguments: &[&str]) -> Self {
        let (port, address) = reserve_port();
        Self::launch_at(address.port(), vec![port], arguments)
    }

    fn launch_at(port: u16, ports: Vec<socket2::Socket>, arguments: &[&str]) -> Self {
        let mut server = Self {
            port,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            process: None,
            folder: tempfile::tempdir().unwrap(),
            _ports: ports,
        };
        server.run();
        server
    }

    fn run(&mut self) {
        let folder = self.folder.path();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("redis.log"))
            .unwrap();
        let process = Command::new("redis-server")
            .args(&self.arguments)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(folder)
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

    /// The URL of a store in it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// One connection to it.
    pub async fn speaker(&self) -> RespClient {
        let connected = RespClient::connect(&self.address()).await;
        connected.unwrap_or_else(|error| panic!("{error}; {}", self.log()))
    }

    /// Asks on a connection of its own; an error is a failure of the test.
    pub async fn ask(&self, command: &str) -> Reply {
        self.speaker().await.ask(command).await
    }

    /// Kills it as a power cut would: what it knew is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is killed");
            process.wait().expect("it has ended");
        }
    }

    /// Starts it again, empty, on the same port and with these arguments on top.
    pub async fn start_again(&mut self, arguments: &[&str]) {
        assert!(self.process.is_none(), "it still runs");
        self.arguments
            .extend(arguments.iter().map(ToString::to_string));
        self.run();
        self.until_it_answers().await;
    }

    /// Stops its clock: it keeps its connections and says nothing, until [`RedisServer::thaw`].
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs");
        let sent = Command::new("kill")
            .args(["-s", signal, &process.id().to_string()])
            .status();
        assert!(sent.unwrap().success(), "it gets the signal");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("redis.log")).unwrap_or_default()
    }

    async fn until_it_answers(&self) {
        let answering = async {
            loop {
                if let Ok(mut speaker) = RespClient::connect(&self.address()).await
                    && speaker.try_ask("PING").await == Ok(Reply::Text("PONG".to_owned()))
                {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout(TEST_TIMEOUT, answering).await;
        assert!(waited.is_ok(), "it does not answer: {}", self.log());
    }

    /// Waits until its answer to a command is as wished; an error is as good as another answer.
    pub async fn until(&self, command: &str, wish: impl Fn(&Reply) -> bool) -> Reply {
        let mut last = Reply::Nil;
        let waiting = async {
            loop {
                if let Ok(mut speaker) = RespClient::connect(&self.address()).await
                    && let Ok(reply) = speaker.try_ask(command).await
                {
                    last = reply;
                    if wish(&last) {
                        return;
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout(TEST_TIMEOUT, waiting).await;
        assert!(waited.is_ok(), "{command} came to {last:?}; {}", self.log());
        last
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A frozen process dies of this as well.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_keeps_its_port_and_forgets_everything() {
    let mut server = RedisServer::start().await;
    server.ask("SET key word").await;
    assert_eq!(server.ask("GET key").await, Reply::Text("word".to_owned()));
    server.kill();
    assert!(RespClient::connect(&server.address()).await.is_err());
    server.start_again(&[]).await;
    assert_eq!(server.ask("GET key").await, Reply::Nil);
}
