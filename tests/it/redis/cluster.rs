//! A cluster of three primaries, whose slots can be moved while it is in use.

use super::RedisServer;
use super::resp_client::{Reply, RespClient};
use crate::app::reserve_port;

const NODES: usize = 3;
const SLOTS: usize = 16384;

pub struct Cluster {
    pub nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Starts it, and waits until every node serves all slots.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            let (port, address) = reserve_port();
            let (bus, bus_address) = reserve_port();
            let bus_port = bus_address.port().to_string();
            let arguments = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus_port,
                "--cluster-node-timeout",
                "2000",
            ];
            let node = RedisServer::launch_at(address.port(), vec![port, bus], &arguments);
            nodes.push((node, bus_port));
        }
        for (n, (node, _)) in nodes.iter().enumerate() {
            node.until_it_answers().await;
            let (first, last) = (n * SLOTS / NODES, (n + 1) * SLOTS / NODES - 1);
            node.ask(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))
                .await;
            node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1))
                .await;
        }
        for (node, bus_port) in &nodes[1..] {
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus_port}", node.port);
            nodes[0].0.ask(&meet).await;
        }
        let nodes: Vec<RedisServer> = nodes.into_iter().map(|(node, _)| node).collect();
        for node in &nodes {
            let is_whole = |reply: &Reply| {
                let told = reply.text();
                told.contains("cluster_state:ok")
                    && told.contains(&format!("cluster_known_nodes:{NODES}"))
            };
            node.until("CLUSTER INFO", is_whole).await;
        }
        Self { nodes }
    }

    /// The URL of a store in it.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(RedisServer::address).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// The slot of a key.
    pub async fn slot_of(&self, key: &str) -> u16 {
        let slot = self.nodes[0].ask(&format!("CLUSTER KEYSLOT {key}")).await;
        slot.number().try_into().unwrap()
    }

    /// The number of the node that has a slot.
    pub async fn owner_of(&self, slot: u16) -> usize {
        for range in self.nodes[0].ask("CLUSTER SLOTS").await.list() {
            let range = range.list();
            if (range[0].number()..=range[1].number()).contains(&i64::from(slot)) {
                let port = range[2].list()[1].number();
                let is_it = |node: &RedisServer| i64::from(node.port) == port;
                return self.nodes.iter().position(is_it).expect("one of ours");
            }
        }
        panic!("nobody has slot {slot}")
    }

    /// Every key of the cluster that contains a text.
    pub async fn keys_with(&self, text: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for node in &self.nodes {
            let found = node.ask(&format!("KEYS *{text}*")).await;
            keys.extend(found.list().iter().map(|key| key.text().to_owned()));
        }
        keys
    }

    /// Moves a slot and its keys to another node, key by key and while everybody uses them, as
    /// `redis-cli --cluster reshard` does. Returns how many keys moved.
    pub async fn reshard(&self, slot: u16, to: usize) -> usize {
        let from = self.owner_of(slot).await;
        assert_ne!(from, to, "it is there already");
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let source_id = source.ask("CLUSTER MYID").await.text().to_owned();
        let target_id = target.ask("CLUSTER MYID").await.text().to_owned();
        target
            .ask(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}"))
            .await;
        source
            .ask(&format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}"))
            .await;
        let mut speaker = source.speaker().await;
        let port = target.port.to_string();
        let mut moved = 0;
        loop {
            let keys = speaker
                .ask(&format!("CLUSTER GETKEYSINSLOT {slot} 10"))
                .await;
            if keys.list().is_empty() {
                break;
            }
            for key in keys.list() {
                moved += migrate(&mut speaker, &port, key.text()).await;
            }
        }
        // The target first, so that no client is ever sent to a node that knows nothing of it.
        for node in [to, from]
            .into_iter()
            .chain((0..NODES).filter(|n| ![to, from].contains(n)))
        {
            let settle = format!("CLUSTER SETSLOT {slot} NODE {target_id}");
            self.nodes[node].ask(&settle).await;
        }
        moved
    }
}

/// Moves one key; it may have been deleted meanwhile.
async fn migrate(speaker: &mut RespClient, port: &str, key: &str) -> usize {
    let words = ["MIGRATE", "127.0.0.1", port, key, "0", "5000"];
    let moved = speaker.try_ask_words(&words).await;
    match moved.expect("it moves").text() {
        "OK" => 1,
        _ => 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moves_with_its_keys() {
    let cluster = Cluster::start().await;
    let slot = cluster.slot_of("{a}").await;
    let from = cluster.owner_of(slot).await;
    for n in 0..25 {
        cluster.nodes[from].ask(&format!("SET {{a}}:{n} {n}")).await;
    }
    let to = (from + 1) % NODES;
    assert_eq!(cluster.reshard(slot, to).await, 25);
    assert_eq!(cluster.owner_of(slot).await, to);
    let answer = cluster.nodes[to].ask("GET {a}:24").await;
    assert_eq!(answer, Reply::Text("24".to_owned()));
    let mut speaker = cluster.nodes[from].speaker().await;
    let refused = speaker.try_ask("GET {a}:24").await.unwrap_err();
    assert!(refused.starts_with("MOVED "), "{refused}");
    assert_eq!(cluster.keys_with("{a}:24").await, ["{a}:24"]);
}
