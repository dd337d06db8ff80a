//! A cluster of three primaries. Slots can be moved while it is in use.

use fred::clients::Client;
use fred::types::Value;

use super::{RedisServer, send_command};
use crate::app::reserve_port;

const NODES: usize = 3;
const SLOTS: usize = 16384;

pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the nodes, and waits until each of them serves all slots.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        let mut bus_ports = Vec::new();
        for number in 0..NODES {
            let (port, address) = reserve_port();
            let (bus_port, bus_address) = reserve_port();
            let bus_number = bus_address.port().to_string();
            let arguments = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus_number,
                "--cluster-node-timeout",
                "15000",
            ];
            let node = RedisServer::launch(address.port(), vec![port, bus_port], &arguments);
            node.wait_until_ready().await;
            let (first, last) = (number * SLOTS / NODES, (number + 1) * SLOTS / NODES - 1);
            node.run(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))
                .await;
            node.run(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1))
                .await;
            nodes.push(node);
            bus_ports.push(bus_number);
        }
        for (node, bus_port) in nodes.iter().zip(&bus_ports).skip(1) {
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus_port}", node.port);
            nodes[0].run(&meet).await;
        }
        for node in &nodes {
            node.wait_for_reply("CLUSTER INFO", |info: &String| {
                info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{NODES}"))
            })
            .await;
        }
        Self { nodes }
    }

    /// Returns the store URL of this cluster.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(RedisServer::address).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// Returns the index of the node that owns a slot.
    pub async fn owner_of(&self, slot: u16) -> usize {
        for range in self.nodes[0].query::<Vec<Value>>("CLUSTER SLOTS").await {
            let (first, last, owner): (u16, u16, Vec<Value>) = {
                let mut range = range.into_array().into_iter();
                let mut next = || range.next().unwrap();
                (
                    next().convert().unwrap(),
                    next().convert().unwrap(),
                    next().into_array(),
                )
            };
            if (first..=last).contains(&slot) {
                let port = owner[1].as_u64().unwrap();
                let is_owner = |node: &RedisServer| u64::from(node.port) == port;
                return self.nodes.iter().position(is_owner).unwrap();
            }
        }
        panic!("no node owns slot {slot}")
    }

    /// Returns all keys that contain a text.
    pub async fn keys_with(&self, text: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for node in &self.nodes {
            keys.extend(node.query::<Vec<String>>(&format!("KEYS *{text}*")).await);
        }
        keys
    }

    /// Moves a slot to another node while it is in use, as `redis-cli --cluster reshard` does.
    /// Returns the number of keys moved.
    pub async fn reshard(&self, slot: u16, to: usize) -> usize {
        let from = self.owner_of(slot).await;
        assert_ne!(from, to, "the node owns the slot already");
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let source_id: String = source.query("CLUSTER MYID").await;
        let target_id: String = target.query("CLUSTER MYID").await;
        target
            .run(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}"))
            .await;
        source
            .run(&format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}"))
            .await;
        let client = source.connect().await;
        let port = target.port.to_string();
        let mut moved = 0;
        loop {
            let list_keys = ["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "10"];
            let keys: Vec<String> = send_command(&client, &list_keys).await.unwrap();
            if keys.is_empty() {
                break;
            }
            for key in keys {
                moved += usize::from(migrate(&client, &port, &key).await);
            }
        }
        // The target comes first, so that no client is redirected to a node that denies ownership.
        let others = (0..NODES).filter(|node| ![to, from].contains(node));
        for node in [to, from].into_iter().chain(others) {
            let assign = format!("CLUSTER SETSLOT {slot} NODE {target_id}");
            self.nodes[node].run(&assign).await;
        }
        moved
    }
}

/// Moves a key. Returns false if it no longer exists.
async fn migrate(source: &Client, port: &str, key: &str) -> bool {
    let migrate = ["MIGRATE", "127.0.0.1", port, key, "0", "60000"];
    let reply: String = send_command(source, &migrate).await.unwrap();
    reply == "OK"
}

#[tokio::test(flavor = "multi_thread")]
async fn resharding_moves_a_slot_with_its_keys() {
    let cluster = RedisCluster::start().await;
    let slot = fred::util::redis_keyslot(b"{a}");
    let from = cluster.owner_of(slot).await;
    for n in 0..25 {
        cluster.nodes[from].run(&format!("SET {{a}}:{n} {n}")).await;
    }
    let to = (from + 1) % NODES;
    assert_eq!(cluster.reshard(slot, to).await, 25);
    assert_eq!(cluster.owner_of(slot).await, to);
    assert_eq!(cluster.nodes[to].query::<u64>("GET {a}:24").await, 24);
    let moved = cluster.nodes[from].try_query::<u64>("GET {a}:24").await;
    assert!(moved.unwrap_err().details().starts_with("MOVED "));
    assert_eq!(cluster.keys_with("{a}:24").await, ["{a}:24"]);
}
