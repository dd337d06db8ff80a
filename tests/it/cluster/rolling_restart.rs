//! A new version is rolled out: each hub goes in good order and its clients go to the others.

use super::Fleet;
use super::workload::Traffic;
use crate::redis::RedisServer;

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restart_causes_one_reconnect_per_socket() {
    let redis = RedisServer::start().await;
    let urls = [redis.url(), redis.url(), redis.url()];
    let mut fleet = Fleet::start(&urls, |hub| hub.set("server.drain", "4s")).await;
    let traffic = Traffic::begin("rolling restart", &fleet).await;
    for node in 0..fleet.size() {
        fleet.restart(node).await;
        traffic.flows(1).await;
    }
    let told = |seen: &super::watchers::Seen| seen.closed.iter().flatten().count();
    let (all, told) = (
        traffic.audience.sum(|seen| seen.closed.len()),
        traffic.audience.sum(told),
    );
    println!("{told} of {all} sockets that ended were told to come back, each when");
    assert!(all >= traffic.audience.size(), "each hub went once: {all}");
    assert!(
        traffic
            .audience
            .all(|seen| seen.closed.iter().all(|code| *code == Some(1012))),
        "none was dropped"
    );
    traffic.settle(&fleet).await;
}
