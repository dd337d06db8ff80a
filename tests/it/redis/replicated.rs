//! A primary, its replicas, and Sentinels that promote a replica.

use std::collections::HashMap;
use std::time::Duration;

use fred::types::Value;

use super::RedisServer;
use crate::wait::wait_for;

const SENTINELS: usize = 3;

/// Name of the primary in the Sentinels' configuration.
const PRIMARY_NAME: &str = "jobs";

/// Time without a response after which Sentinels consider a server failed. It is long while a test
/// expects no failover, so that a busy machine does not cause one.
const LONG_DOWN_AFTER: Duration = Duration::from_secs(300);
const SHORT_DOWN_AFTER: Duration = Duration::from_secs(1);

/// Settings that let a replica follow its primary without delay.
const REPLICATION: [&str; 4] = [
    "--repl-diskless-sync-delay",
    "0",
    "--repl-ping-replica-period",
    "1",
];

/// A primary with replicas, and three Sentinels with a quorum of two.
pub struct ReplicatedRedis {
    /// The first server is the initial primary.
    pub servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
    _configs: Vec<tempfile::TempDir>,
}

impl ReplicatedRedis {
    /// Starts the servers, and waits until the replicas are connected and the Sentinels know each
    /// other.
    pub async fn start(replicas: usize) -> Self {
        let mut servers = vec![RedisServer::start_with(&REPLICATION).await];
        let port = servers[0].port.to_string();
        for _ in 0..replicas {
            let arguments = [&["--replicaof", "127.0.0.1", &port], REPLICATION.as_slice()];
            servers.push(RedisServer::start_with(&arguments.concat()).await);
        }
        let (mut sentinels, mut configs) = (Vec::new(), Vec::new());
        for _ in 0..SENTINELS {
            // A Sentinel stores its state in its configuration file.
            let directory = tempfile::tempdir().unwrap();
            let config = directory.path().join("sentinel.conf");
            let text = format!(
                "sentinel monitor {PRIMARY_NAME} 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds {PRIMARY_NAME} {}\n\
                 sentinel failover-timeout {PRIMARY_NAME} 6000\n\
                 sentinel parallel-syncs {PRIMARY_NAME} 1\n",
                LONG_DOWN_AFTER.as_millis()
            );
            std::fs::write(&config, text).unwrap();
            let config = config.display().to_string();
            sentinels.push(RedisServer::start_with(&[&config, "--sentinel"]).await);
            configs.push(directory);
        }
        let redis = Self {
            servers,
            sentinels,
            _configs: configs,
        };
        for replica in 1..=replicas {
            redis.wait_until_replica(replica).await;
        }
        for sentinel in &redis.sentinels {
            let knows_all = |state: &HashMap<String, String>| {
                state.get("num-other-sentinels") == Some(&(SENTINELS - 1).to_string())
                    && state.get("num-slaves") == Some(&replicas.to_string())
            };
            let state = format!("SENTINEL MASTER {PRIMARY_NAME}");
            sentinel.wait_for_reply(&state, knows_all).await;
        }
        redis
    }

    /// Returns the store URL of the primary behind the Sentinels.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(RedisServer::address).collect();
        format!("redis-sentinel://{}/{PRIMARY_NAME}", sentinels.join(","))
    }

    /// Returns the index of the server that the Sentinels name as the primary.
    pub async fn primary(&self) -> usize {
        let lookup = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {PRIMARY_NAME}");
        let (_, port): (String, u16) = self.sentinels[0].query(&lookup).await;
        let position = self.servers.iter().position(|server| server.port == port);
        position.expect("a server of this test")
    }

    /// Lets the Sentinels detect the failure of the primary, and waits until they have promoted a
    /// replica. Returns its index.
    pub async fn fail_over(&self, failed: usize) -> usize {
        self.set_down_after(SHORT_DOWN_AFTER).await;
        let promoted = self.wait_for_new_primary(failed).await;
        self.set_down_after(LONG_DOWN_AFTER).await;
        promoted
    }

    async fn set_down_after(&self, down_after: Duration) {
        let value = down_after.as_millis();
        let command = format!("SENTINEL SET {PRIMARY_NAME} down-after-milliseconds {value}");
        for sentinel in &self.sentinels {
            sentinel.run(&command).await;
        }
    }

    /// Waits until the Sentinels name another primary and it accepts writes. Returns its index.
    pub async fn wait_for_new_primary(&self, old: usize) -> usize {
        wait_for("another server is the primary", async || {
            let new = self.primary().await;
            let role = self.servers[new].try_query::<Vec<Value>>("ROLE").await;
            let is_primary = role.is_ok_and(|role| role[0].as_str().as_deref() == Some("master"));
            (new != old && is_primary).then_some(new)
        })
        .await
    }

    /// Waits until a server is a replica that is in sync with its primary.
    pub async fn wait_until_replica(&self, server: usize) {
        let is_connected_replica = |role: &Vec<Value>| {
            role[0].as_str().as_deref() == Some("slave")
                && role[3].as_str().as_deref() == Some("connected")
        };
        self.servers[server]
            .wait_for_reply("ROLE", is_connected_replica)
            .await;
    }

    /// Starts a planned failover.
    pub async fn start_failover(&self) {
        let command = format!("SENTINEL FAILOVER {PRIMARY_NAME}");
        assert_eq!(self.sentinels[0].query::<String>(&command).await, "OK");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_is_promoted_when_the_primary_is_killed() {
    let mut redis = ReplicatedRedis::start(2).await;
    assert_eq!(redis.primary().await, 0);
    redis.servers[0].run("SET key value").await;
    for replica in &redis.servers[1..] {
        replica
            .wait_for_reply("GET key", |value: &Option<String>| {
                value.as_deref() == Some("value")
            })
            .await;
    }
    redis.servers[0].kill();
    let promoted = redis.fail_over(0).await;
    let value: String = redis.servers[promoted].query("GET key").await;
    assert_eq!(value, "value");
}
