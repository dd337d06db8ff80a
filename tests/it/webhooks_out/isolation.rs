//! An endpoint affects neither others nor jobs, and webhooks reach no address that is not allowed.

use super::receiver::{Receiver, Reply, never};
use super::*;

on_each_engine! {
    stalled_endpoint_delays_no_other_and_no_job(engine) {
        const JOBS: usize = 40;
        let server = engine.start().await;
        let stalled = Receiver::start_with(|_, _| never()).await;
        let fast = Receiver::start().await;
        let hub = hub().endpoint("a-stalled", &stalled.url).endpoint("fast", &fast.url);
        let hub = hub.set("webhook_defaults.timeout", "1m");
        let app = server.configure(hub).spawn().await;
        stalled_and_fast(&app, &stalled, &fast, JOBS).await;
        // Two attempts at a time, whatever waits.
        assert_eq!(stalled.received().len(), 2);
        let waiting = destination(&app, "a-stalled").await["waiting"].as_u64();
        assert_eq!(waiting, Some(JOBS as u64));
    }
}

/// Ends jobs while an endpoint does not respond, and waits until the other one has all of them.
async fn stalled_and_fast(app: &TestApp, stalled: &Receiver, fast: &Receiver, jobs: usize) {
    let mut expected = Vec::new();
    for _ in 0..jobs {
        expected.push(finish_job(app, "alice").await);
    }
    let received = fast.wait_for_count(jobs).await;
    let mut delivered: Vec<String> = received.iter().map(receiver::Webhook::job).collect();
    delivered.sort();
    expected.sort();
    assert_eq!(delivered, expected);
    stalled.wait_for_count(2).await;
}

/// The configuration cannot know the addresses of a name, so it is refused when it is resolved.
#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_refused_after_resolution() {
    let receiver = Receiver::start().await;
    let port = receiver.host().split(':').nth(1).unwrap();
    let app = TestApp::builder()
        .set("webhook_defaults.allow", "10.0.0.0/8")
        .endpoint("encrypted", &format!("https://localhost:{port}/"))
        .endpoint("plain", &format!("http://localhost:{port}/"))
        .spawn()
        .await;
    let id = finish_job(&app, "alice").await;
    for name in ["encrypted", "plain"] {
        let has_attempt = |delivery: &Value| delivery["attempts"][0].is_object();
        let delivery = wait_for_delivery(&app, &id, name, has_attempt).await;
        let error = delivery["attempts"][0]["error"].as_str().unwrap();
        assert_eq!(error, "host has an address that is not allowed", "{name}");
        assert_eq!(delivery["state"], "waiting");
    }
    assert_eq!(receiver.received().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_of_one_endpoint_does_not_pause_another() {
    let failing = Receiver::start_with(|_, _| async { Reply::from(500) }).await;
    let working = Receiver::start().await;
    let app = hub()
        .endpoint("failing", &failing.url)
        .endpoint("working", &working.url)
        .set("deliveries.pause", "1h")
        .spawn()
        .await;
    for _ in 0..6 {
        finish_job(&app, "alice").await;
    }
    wait_for_destination(&app, "failing", |it| it["state"] == "paused").await;
    working.wait_for_count(6).await;
    let id = finish_job(&app, "alice").await;
    let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
    wait_for_delivery(&app, &id, "working", is_delivered).await;
    assert_eq!(destination(&app, "working").await["state"], "active");
}
