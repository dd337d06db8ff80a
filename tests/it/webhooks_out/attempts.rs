//! What follows from a failed attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::receiver::{Receiver, Reply, never};
use super::*;

on_each_engine! {
    failed_attempts_are_repeated_with_the_same_id(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start_with(|_, earlier| async move {
            Reply::from(if earlier < 3 { 500 } else { 200 })
        })
        .await;
        let app = server.configure(hub().endpoint("app", &receiver.url)).spawn().await;
        let id = finish_job(&app, "alice").await;
        let received = receiver.wait_for_count(4).await;
        for webhook in &received {
            assert_eq!(webhook.id(), received[0].id());
            assert_eq!(webhook.raw, received[0].raw);
            assert!(webhook.is_signed_with(SECRET));
        }
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        let delivery = wait_for_delivery(&app, &id, "app", is_delivered).await;
        assert_eq!(delivery["attempt_count"], 4);
        let attempts = delivery["attempts"].as_array().unwrap();
        let statuses: Vec<&Value> = attempts.iter().map(|attempt| &attempt["status"]).collect();
        assert_eq!(statuses, [500, 500, 500, 200]);
        assert_eq!(attempts[0]["error"], "status 500");
    }

    delivery_fails_after_the_last_attempt(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start_with(|_, _| async { Reply::from(404) }).await;
        let hub = hub().endpoint("app", &receiver.url).set("deliveries.pause", "1ms");
        let app = server.configure(hub).spawn().await;
        let id = finish_job(&app, "alice").await;
        let is_failed = |delivery: &Value| delivery["state"] == "failed";
        let delivery = wait_for_delivery(&app, &id, "app", is_failed).await;
        assert_eq!(delivery["attempt_count"], 7, "the first attempt and six more");
        assert_eq!(delivery["next_attempt_at"], Value::Null);
        assert_eq!(receiver.received().len(), 7);

        // A repetition that is requested is a single attempt.
        let path = format!("/v1/deliveries/{}/redeliver", delivery["id"].as_str().unwrap());
        let response = as_admin(&app, Method::POST, &path).await;
        assert_eq!(response.status, 202, "{}", response.body);
        assert_eq!(response.body["state"], "waiting");
        let is_failed = |delivery: &Value| {
            delivery["state"] == "failed" && delivery["attempt_count"] == 8
        };
        wait_for_delivery(&app, &id, "app", is_failed).await;
        assert_eq!(receiver.received().len(), 8);
        assert_eq!(receiver.received()[7].id(), receiver.received()[0].id());
    }

    requested_wait_counts_as_no_attempt(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start_with(|_, earlier| async move {
            match earlier {
                0 => Reply::from(429).with_header("retry-after", "1"),
                1 => Reply::from(503).with_header("retry-after", "0"),
                _ => Reply::from(200),
            }
        })
        .await;
        let app = server.configure(hub().endpoint("app", &receiver.url)).spawn().await;
        let id = finish_job(&app, "alice").await;
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        let delivery = wait_for_delivery(&app, &id, "app", is_delivered).await;
        assert_eq!(delivery["attempt_count"], 1);
        let attempts = delivery["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 3);
        let time = |attempt: &Value| -> jiff::Timestamp {
            attempt["at"].as_str().unwrap().parse().unwrap()
        };
        for pair in attempts.windows(2) {
            let waited = time(&pair[1]).duration_since(time(&pair[0]));
            assert!(waited >= jiff::SignedDuration::from_secs(1), "{attempts:?}");
        }
    }
}

/// A response with a redirect, one that never comes, and one that never ends.
#[tokio::test(flavor = "multi_thread")]
async fn unusual_responses_are_handled() {
    let elsewhere = Receiver::start().await;
    let target = format!("{}/target", elsewhere.url);
    let redirecting = Receiver::start_with(move |_, _| {
        let reply = Reply::from(307).with_header("location", &target);
        async { reply }
    })
    .await;
    let silent = Receiver::start_with(|_, _| never()).await;
    let long =
        Receiver::start_with(|_, _| async { Reply::from(200).with_body("x".repeat(8 << 20)) })
            .await;
    let app = hub()
        .set("webhook_defaults.timeout", "300ms")
        .endpoint("redirecting", &redirecting.url)
        .endpoint("silent", &silent.url)
        .endpoint("long", &long.url)
        .endpoint("closed", "http://127.0.0.1:9")
        .spawn()
        .await;
    let id = finish_job(&app, "alice").await;
    for (name, status, error) in [
        (
            "redirecting",
            json!(307),
            "status 307; redirects are not followed",
        ),
        ("silent", Value::Null, "request timed out"),
        ("closed", Value::Null, "refused"),
    ] {
        let has_attempt = |delivery: &Value| delivery["attempts"][0].is_object();
        let delivery = wait_for_delivery(&app, &id, name, has_attempt).await;
        let attempt = &delivery["attempts"][0];
        assert_eq!(attempt["status"], status, "{name}");
        let found = attempt["error"].as_str().unwrap();
        assert!(found.contains(error), "{name}: {found}");
    }
    let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
    wait_for_delivery(&app, &id, "long", is_delivered).await;
    assert_eq!(
        elsewhere.received().len(),
        0,
        "the redirect was not followed"
    );
}

on_each_engine! {
    failing_endpoint_is_paused_and_tested_with_one_attempt_at_a_time(engine) {
        let server = engine.start().await;
        let (is_up, up) = tokio::sync::watch::channel(false);
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let most_open = Arc::clone(&most);
        let receiver = Receiver::start_with(move |_, earlier| {
            let (up, open, most) = (up.clone(), Arc::clone(&open), Arc::clone(&most));
            async move {
                let now_open = open.fetch_add(1, Ordering::SeqCst) + 1;
                // The fourth failure pauses the endpoint. An attempt may be in progress then.
                if earlier >= 5 && !*up.borrow() {
                    most.fetch_max(now_open, Ordering::SeqCst);
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                open.fetch_sub(1, Ordering::SeqCst);
                Reply::from(if *up.borrow() { 200 } else { 500 })
            }
        })
        .await;
        let hub = hub().endpoint("app", &receiver.url).set("deliveries.pause", "10ms");
        let app = server.configure(hub).spawn().await;
        let mut jobs = Vec::new();
        for _ in 0..12 {
            jobs.push(finish_job(&app, "alice").await);
        }
        let paused = wait_for_destination(&app, "app", |it| it["state"] == "paused").await;
        assert!(paused["consecutive_failures"].as_u64().unwrap() >= 4, "{paused}");
        assert_eq!(paused["last_error"], "status 500");
        receiver.wait_for_count(9).await;
        assert_eq!(most_open.load(Ordering::SeqCst), 1);
        is_up.send(true).unwrap();
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        for id in &jobs {
            let is_ended = |delivery: &Value| delivery["ended_at"].is_string();
            let delivery = wait_for_delivery(&app, id, "app", is_ended).await;
            assert!(is_delivered(&delivery), "{delivery}");
        }
        let active = wait_for_destination(&app, "app", |it| it["state"] == "active").await;
        assert_eq!(active["consecutive_failures"], 0);
        assert_eq!(active["waiting"], 0);
        let metric = "destination_state{destination=\"app\",state=\"active\"}";
        assert_eq!(app.metric(metric).await, 1.0);
    }

    endpoint_that_is_gone_is_disabled_and_checked_once_more(engine) {
        let server = engine.start().await;
        let (is_up, up) = tokio::sync::watch::channel(false);
        let receiver = Receiver::start_with(move |_, _| {
            let status = if *up.borrow() { 200 } else { 410 };
            async move { Reply::from(status) }
        })
        .await;
        let hub = hub()
            .endpoint("app", &receiver.url)
            .set("deliveries.recheck_after", "200ms");
        let app = server.configure(hub).spawn().await;
        let first = finish_job(&app, "alice").await;
        let is_checked = |it: &Value| {
            it["state"] == "disabled" && it["disabled"]["recheck_at"].is_null()
        };
        let disabled = wait_for_destination(&app, "app", is_checked).await;
        assert_eq!(disabled["disabled"]["reason"], "gone");
        assert_eq!(receiver.received().len(), 2, "one attempt and one check");
        let second = finish_job(&app, "alice").await;
        for id in [&first, &second] {
            let held = wait_for_delivery(&app, id, "app", |it| it["state"] == "held").await;
            assert_eq!(held["attempt_count"], 0);
        }
        let held = deliveries(&app, "state=held").await;
        assert_eq!(held.len(), 2);
        assert_eq!(deliveries(&app, "state=waiting").await.len(), 0);
        assert_eq!(destination(&app, "app").await["waiting"], 2);

        is_up.send(true).unwrap();
        let enabled = operate(&app, "app", "enable").await;
        assert_eq!(enabled["state"], "active");
        for id in [&first, &second] {
            let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
            wait_for_delivery(&app, id, "app", is_delivered).await;
        }
    }

    endpoint_that_returns_is_enabled_by_the_check(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start_with(|_, earlier| async move {
            Reply::from(if earlier == 0 { 410 } else { 200 })
        })
        .await;
        let hub = hub()
            .endpoint("app", &receiver.url)
            .set("deliveries.recheck_after", "100ms");
        let app = server.configure(hub).spawn().await;
        let id = finish_job(&app, "alice").await;
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        wait_for_delivery(&app, &id, "app", is_delivered).await;
        wait_for_destination(&app, "app", |it| it["state"] == "active").await;
    }

    endpoint_that_fails_for_long_is_disabled(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start_with(|_, _| async { Reply::from(500) }).await;
        let hub = hub()
            .endpoint("app", &receiver.url)
            .set("deliveries.retries", format!("[{}]", vec![r#""100ms""#; 200].join(",")))
            .set("deliveries.pause", "1ms")
            .set("deliveries.disable_after", "1s");
        let app = server.configure(hub).spawn().await;
        let id = finish_job(&app, "alice").await;
        let disabled = wait_for_destination(&app, "app", |it| it["state"] == "disabled").await;
        assert_eq!(disabled["disabled"]["reason"], "failing");
        assert!(disabled["failing_since"].is_string());
        wait_for_delivery(&app, &id, "app", |it| it["state"] == "held").await;
    }
}
