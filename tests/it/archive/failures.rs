//! Sources that fail, expire or never end, and hubs that are killed.

use serde_json::json;

use super::source::{CLIP, Source, large};
use super::*;
use crate::wait::wait_until;

/// Returns the error of the last attempt of a failed delivery.
fn last_error(delivery: &Value) -> &str {
    assert_eq!(delivery["state"], "failed", "{delivery}");
    let attempts = delivery["attempts"].as_array().unwrap();
    attempts.last().unwrap()["error"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_output_is_reported_and_not_attempted_again() {
    let source = Source::start(json!(["/gone.mp4", "/expired.mp4"])).await;
    let (hub, folder, _directory) = folder_hub(&source);
    let app = hub.spawn().await;
    let job = succeeded_job(&app).await;
    for (n, cause) in [
        (0, "output no longer exists"),
        (1, "provider responded with status 403"),
    ] {
        let delivery = ended_delivery(&app, &job, n).await;
        let expected = format!("the output expired before it was copied: {cause}");
        assert_eq!(last_error(&delivery), expected);
        assert_eq!(delivery["attempt_count"], 2);
        let shown = app.get_job(id(&job), "alice").await;
        assert_eq!(shown["outputs"][n]["archived"], false);
        assert_eq!(shown["outputs"][n]["archive_error"], expected);
    }
    assert_eq!(get(&app, &job, 0).await.status(), 410);
    assert_eq!(count_files(&folder), 0);
    let expired = "archive_failures_total{reason=\"expired\"}";
    app.wait_for_metric(expired, |count| count == 4.0).await;
    // The job itself is not affected.
    assert_eq!(app.get_job(id(&job), "alice").await["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_is_asked_for_a_new_url_when_the_first_has_expired() {
    let source = Source::start(json!(["/expired.mp4"])).await;
    let (hub, _folder, _directory) = folder_hub(&source);
    // The first attempt fails before the provider has a new URL.
    let app = hub.set("deliveries.retries", "300ms,300ms").spawn().await;
    let job = succeeded_job(&app).await;
    source.set_outputs(json!(["/fresh.mp4"]));
    wait_until_archived(&app, &job).await;
    assert_eq!(source.requests("/fresh.mp4"), 1);
    assert_eq!(get(&app, &job, 0).await.bytes().await.unwrap(), CLIP);
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_and_wrong_content_is_never_stored() {
    let outputs = ["/cut.mp4", "/cut-chunk.mp4", "/page.mp4"];
    let source = Source::start(json!(outputs)).await;
    let (hub, folder, _directory) = folder_hub(&source);
    let app = hub.set("deliveries.retries", "20ms").spawn().await;
    let job = succeeded_job(&app).await;
    for (n, expected) in [
        (0, "the source ended before its content was complete"),
        (1, "the source ended before its content was complete"),
        (2, "the source returned HTML instead of media"),
    ] {
        let delivery = ended_delivery(&app, &job, n).await;
        assert_eq!(last_error(&delivery), expected);
        assert_eq!(source.requests(outputs[n]), 2, "{}", outputs[n]);
    }
    wait_until("no parts are left", async || count_files(&folder) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_without_end_is_stopped_at_the_limit() {
    let source = Source::start(json!(["/endless.mp4", "/large.mp4"])).await;
    let (hub, folder, _directory) = folder_hub(&source);
    let app = hub.set("archive.max_bytes", "12MiB").spawn().await;
    let job = succeeded_job(&app).await;
    for n in 0..2 {
        let delivery = ended_delivery(&app, &job, n).await;
        let expected = "the output is larger than archive.max_bytes (12582912)";
        assert_eq!(last_error(&delivery), expected);
        assert_eq!(
            delivery["attempt_count"], 1,
            "a further attempt would be the same"
        );
    }
    // What the hub has not read is in the buffers of the sockets.
    assert!(source.sent() < 64 << 20, "{} bytes", source.sent());
    wait_until("no parts are left", async || count_files(&folder) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_source_does_not_stop_the_copies_of_others() {
    let busy = Source::start(json!(["/busy.mp4"])).await;
    busy.set_busy(4);
    let (hub, _folder, _directory) = folder_hub(&busy);
    let app = hub.spawn().await;
    let job = succeeded_job(&app).await;
    wait_until_archived(&app, &job).await;
    assert_eq!(busy.requests("/busy.mp4"), 5);
    let admin = app.token("operator", "admin");
    let request = app.request_with_token(Method::GET, "/v1/destinations", &admin);
    let destination = send(request).await.body["destinations"][0].clone();
    assert_eq!(destination["name"], "archive");
    assert_eq!(destination["kind"], "archive");
    assert_eq!(destination["consecutive_failures"], 0, "{destination}");
    let request = app.request_with_token(Method::POST, "/v1/destinations/archive/test", &admin);
    assert_eq!(send(request).await.body["delivered"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_resumes_after_the_hub_is_killed() {
    let source = Source::start(json!(["/slow.mp4"])).await;
    source.set_slow(true);
    let (hub, folder, _directory) = folder_hub(&source);
    let app = hub.spawn_process(&[]).await;
    let job = succeeded_job(&app).await;
    wait_until("the copy has begun", async || count_files(&folder) == 1).await;
    let data = app.kill();

    source.set_slow(false);
    let (hub, _, _spec) = folder_hub(&source);
    let hub = hub.set("archive.url", format!("file://{}", folder.display()));
    let app = hub.data_dir(data).spawn_process(&[]).await;
    wait_until_archived(&app, &job).await;
    let copy = folder.join(format!("alice/{}/0.mp4", id(&job)));
    assert!(std::fs::read(copy).unwrap() == large());
    app.kill();
}
