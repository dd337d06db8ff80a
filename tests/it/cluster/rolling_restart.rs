//! A rolling upgrade: the hubs restart one after another.

use super::HubCluster;
use super::workload::Workload;
use crate::redis::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restart_causes_one_reconnect_per_socket() {
    let redis = RedisServer::start().await;
    let urls = [redis.url(), redis.url(), redis.url()];
    let mut cluster = HubCluster::start(&urls, |hub| hub.set("server.drain", "4s")).await;
    let workload = Workload::start(&cluster).await;
    for node in 0..cluster.size() {
        cluster.restart_node(node).await;
        workload.wait_for_updates(1).await;
    }
    let watchers = &workload.watchers;
    let closed = watchers.sum(|state| state.close_codes.len());
    assert!(
        closed >= watchers.size(),
        "only {closed} sockets were closed"
    );
    assert!(
        watchers.all(|state| state.close_codes.iter().all(|code| *code == Some(1012))),
        "every socket is closed with 1012"
    );
    workload.verify(&cluster).await;
}
