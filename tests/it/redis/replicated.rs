//! A primary, its replicas, and Sentinels that put a replica in its place.

use std::time::Duration;

use super::resp_client::{Reply, RespClient};
use super::{LOOK, RedisServer};
use crate::app::TEST_TIMEOUT;

const SENTINELS: usize = 3;

/// What the Sentinels call the primary.
const NAME: &str = "jobs";

/// A primary with replicas, and three Sentinels of which two decide.
pub struct Replicated {
    /// The first began as the primary.
    pub servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
    _configs: Vec<tempfile::TempDir>,
}

impl Replicated {
    /// Starts it, and waits until all replicas follow and all Sentinels know of each other.
    pub async fn start(replicas: usize) -> Self {
        let primary = RedisServer::start_with(&[
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
        ])
        .await;
        let mut servers = vec![primary];
        let port = servers[0].port.to_string();
        for _ in 0..replicas {
            let arguments = [
                "--replicaof",
                "127.0.0.1",
                &port,
                "--repl-diskless-sync-delay",
                "0",
                "--repl-ping-replica-period",
                "1",
            ];
            servers.push(RedisServer::start_with(&arguments).await);
        }
        for replica in &servers[1..] {
            replica.until("ROLE", follows).await;
        }
        let (mut sentinels, mut configs) = (Vec::new(), Vec::new());
        for _ in 0..SENTINELS {
            // A Sentinel writes what it learns into its own file.
            let folder = tempfile::tempdir().unwrap();
            let config = folder.path().join("sentinel.conf");
            let text = format!(
                "sentinel monitor {NAME} 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds {NAME} 700\n\
                 sentinel failover-timeout {NAME} 6000\n\
                 sentinel parallel-syncs {NAME} 1\n"
            );
            std::fs::write(&config, text).unwrap();
            let config = config.display().to_string();
            sentinels.push(RedisServer::start_with(&[&config, "--sentinel"]).await);
            configs.push(folder);
        }
        let whole = Self {
            servers,
            sentinels,
            _configs: configs,
        };
        for sentinel in &whole.sentinels {
            let knows = |kind: &str, count: usize| {
                let kind = kind.to_owned();
                move |reply: &Reply| {
                    let known = field(reply, &kind).and_then(|known| known.parse().ok());
                    known == Some(count)
                }
            };
            let about = format!("SENTINEL MASTER {NAME}");
            sentinel
                .until(&about, knows("num-other-sentinels", SENTINELS - 1))
                .await;
            sentinel.until(&about, knows("num-slaves", replicas)).await;
        }
        whole
    }

    /// The URL of a store in it.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(RedisServer::address).collect();
        format!("redis-sentinel://{}/{NAME}", sentinels.join(","))
    }

    /// The number of the server that the Sentinels name as the primary.
    pub async fn primary(&self) -> usize {
        let asked = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {NAME}");
        let named = self.sentinels[0].ask(&asked).await;
        let port: u16 = named.list()[1].text().parse().unwrap();
        let found = self.servers.iter().position(|server| server.port == port);
        found.expect("one of ours")
    }

    /// Waits until all Sentinels name another primary than this one, and that one takes writes.
    pub async fn until_another_leads(&self, old: usize) -> usize {
        let leading = async {
            loop {
                let new = self.primary().await;
                if new != old && is_primary(&self.servers[new]).await {
                    return new;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        // A failover of real Sentinels: it is noticed, agreed on, and the vote may have to be repeated.
        tokio::time::timeout(TEST_TIMEOUT + Duration::from_secs(15), leading)
            .await
            .unwrap_or_else(|_| panic!("no failover: {}", self.sentinels[0].log()))
    }

    /// Waits until this server is a replica that has everything from its primary.
    pub async fn until_it_follows(&self, server: usize) {
        self.servers[server].until("ROLE", follows).await;
    }

    /// Has the Sentinels put a replica in the place of a primary that is well.
    pub async fn hand_over(&self) {
        let asked = format!("SENTINEL FAILOVER {NAME}");
        assert_eq!(self.sentinels[0].ask(&asked).await.text(), "OK");
    }
}

fn follows(role: &Reply) -> bool {
    role.list()[0].text() == "slave" && role.list()[3].text() == "connected"
}

async fn is_primary(server: &RedisServer) -> bool {
    let Ok(mut speaker) = RespClient::connect(&server.address()).await else {
        return false;
    };
    match speaker.try_ask("ROLE").await {
        Ok(role) => role.list()[0].text() == "master",
        Err(_) => false,
    }
}

/// A value of a list of names and values.
fn field<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    let pairs = reply.list().chunks(2);
    let mut found = pairs.filter(|pair| pair[0].text() == name);
    found.next().map(|pair| pair[1].text())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_takes_the_place_of_a_primary_that_is_gone() {
    let mut whole = Replicated::start(2).await;
    let first = whole.primary().await;
    assert_eq!(first, 0);
    whole.servers[0].ask("SET key word").await;
    for replica in &whole.servers[1..] {
        let has_it = |reply: &Reply| *reply == Reply::Text("word".to_owned());
        replica.until("GET key", has_it).await;
    }
    whole.servers[0].kill();
    let second = whole.until_another_leads(first).await;
    let answer = whole.servers[second].ask("GET key").await;
    assert_eq!(answer, Reply::Text("word".to_owned()));
}
