//! Two hubs that are well: what happens at one is seen at the other.

use reqwest::Method;
use serde_json::json;

use super::Fleet;
use super::workload::Traffic;
use crate::app::send;
use crate::redis::RedisServer;
use crate::sse_client::SseClient;

async fn pair(redis: &RedisServer) -> Fleet {
    Fleet::start(&[redis.url(), redis.url()], |hub| hub).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_on_two_nodes_converge() {
    let redis = RedisServer::start().await;
    let fleet = pair(&redis).await;
    let traffic = Traffic::begin("two hubs", &fleet).await;
    traffic.flows(5).await;
    traffic.settle(&fleet).await;

    let keys = redis.ask("KEYS *").await;
    let mut speaker = redis.speaker().await;
    for key in keys.list() {
        let key = key.text();
        assert!(key.starts_with("ph:"), "{key}: a stranger among keys");
        let left = speaker.ask(&format!("PTTL {key}")).await.number();
        assert!(left > 0, "{key}: stays for ever");
    }
    println!(
        "{} keys, all of them with the prefix and an end",
        keys.list().len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cross_node_updates_reach_every_transport() {
    let redis = RedisServer::start().await;
    let fleet = pair(&redis).await;
    let (here, there) = (fleet.node(0), fleet.node(1));
    let mut follower = there.connect("alice").await;
    follower
        .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
        .await;
    follower.expect_message("subscribed").await;
    // Nobody watched this job when it came to be; the feed has it at once.
    let job = here.register_worker_job("alice").await;
    let others = here.register_worker_job("bob").await;
    assert_eq!(follower.next_job().await["id"], job);

    let mut watcher = there.connect("alice").await;
    watcher.subscribe(&[(&job, 1)]).await;
    let mut stream = SseClient::open(there, &format!("job={job}"), "alice").await;
    assert_eq!(stream.next_job().await["version"], 1);
    let held = there.request(
        Method::GET,
        &format!("/v1/jobs/{job}?wait=60&since=1"),
        "alice",
    );
    let held = tokio::spawn(send(held));
    there
        .wait_for_metric("connections{kind=\"poll\"}", |open| open == 1.0)
        .await;
    here.push_update(&others, json!({ "progress": 10 })).await;
    assert_eq!(
        here.push_update(&job, json!({ "progress": 10 }))
            .await
            .status,
        200
    );
    let seen = watcher.next_job().await;
    assert_eq!(
        (&seen["version"], &seen["progress"]),
        (&json!(2), &json!(10.0))
    );
    assert_eq!(follower.next_job().await, seen, "and nothing of bob's");
    assert_eq!(stream.next_job().await, seen);
    assert_eq!(held.await.unwrap().body, seen);

    // There and back again: the end comes from the other side.
    there
        .push_update(&job, json!({ "status": "succeeded" }))
        .await;
    let ended = here.get_job(&job, "alice").await;
    assert_eq!(ended["final"], true);
    for client in [&mut watcher, &mut follower] {
        assert_eq!(client.next_job().await, ended);
        client.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_who_comes_back_after_the_last_has_gone_is_shown_everything() {
    let redis = RedisServer::start().await;
    let fleet = pair(&redis).await;
    let (here, there) = (fleet.node(0), fleet.node(1));
    let job = here.register_worker_job("alice").await;
    for n in 1..=20_u64 {
        let mut watcher = there.connect("alice").await;
        watcher.subscribe(&[(&job, n)]).await;
        here.push_update(&job, json!({ "progress": n })).await;
        assert_eq!(watcher.next_job().await["version"], n + 1);
        watcher.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_subscribers_end_current() {
    let redis = RedisServer::start().await;
    let fleet = pair(&redis).await;
    let (here, there) = (fleet.node(0), fleet.node(1));
    for _ in 0..30 {
        let job = here.register_worker_job("alice").await;
        let mut watcher = there.connect("alice").await;
        let (unknown, update) = ([(job.as_str(), 0)], json!({ "progress": 1 }));
        let (told, pushed) =
            tokio::join!(watcher.subscribe(&unknown), here.push_update(&job, update));
        assert_eq!((&told[&job], pushed.status.as_u16()), (&json!("sent"), 200));
        let mut shown = watcher.next_job().await;
        while shown["version"] != 2 {
            assert_eq!(shown["version"], 1);
            shown = watcher.next_job().await;
        }
        watcher.assert_no_messages().await;
    }
}
