//! An archive that is a folder: what clients and documents see of it.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use super::source::{CLIP, Source};
use super::*;

/// Returns the document as a WebSocket delivers it.
async fn delivered_document(app: &TestApp, job: &Value) -> Value {
    let mut client = app.connect("alice").await;
    let jobs = json!([{ "job": id(job) }]);
    let subscribe = json!({ "type": "subscribe", "id": 1, "jobs": jobs });
    client.send_json(subscribe).await;
    client.expect_message("job").await["job"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn output_outlives_its_provider_and_the_document_never_changes() {
    let source =
        Source::start(json!(["/clip.mp4", { "url": "/private.mp4", "private": true }])).await;
    let (hub, folder, _directory) = folder_hub(&source);
    let app = hub.spawn().await;
    let job = succeeded_job(&app).await;
    let before = delivered_document(&app, &job).await;
    assert!(!before.to_string().contains(&source.url), "{before}");
    let archived = wait_until_archived(&app, &job).await;

    source.forget();
    for n in 0..2 {
        let response = get(&app, &job, n).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "content-type"), "video/mp4");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff");
        let policy = header(&response, "content-security-policy");
        assert!(policy.starts_with("sandbox;"), "{policy}");
        assert_eq!(response.bytes().await.unwrap(), CLIP);
    }
    assert_eq!(delivered_document(&app, &job).await, before);
    assert_eq!(document(archived.clone()), before);
    assert_eq!(archived["version"], before["version"]);
    let list = send(app.request(Method::GET, "/v1/jobs", "alice")).await;
    assert_eq!(list.body["jobs"][0], archived);

    let copy = folder.join(format!("alice/{}/0.mp4", id(&job)));
    assert_eq!(fs::read(copy).unwrap(), CLIP);
    app.wait_for_metric("archived_bytes_total", |bytes| {
        bytes == 2.0 * CLIP.len() as f64
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_in_a_folder_is_served_by_range_and_without_body_for_head() {
    let source = Source::start(json!(["/clip.mp4"])).await;
    let (hub, _folder, _directory) = folder_hub(&source);
    let app = hub.spawn().await;
    let job = succeeded_job(&app).await;
    wait_until_archived(&app, &job).await;
    let url = link(&app, &job, 0);

    let head = fetch(&app, Method::HEAD, url.clone()).await;
    assert_eq!(head.status(), 200);
    assert_eq!(header(&head, "content-length"), CLIP.len().to_string());
    assert_eq!(header(&head, "accept-ranges"), "bytes");
    let etag = header(&head, "etag").to_owned();
    assert_eq!(etag.len(), 66, "the SHA-256: {etag}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (range, if_range, status, content) in [
        ("bytes=4-7", None, 206, &CLIP[4..8]),
        ("bytes=-4", Some(etag.as_str()), 206, b"clip".as_slice()),
        ("bytes=4-7", Some("\"other\""), 200, CLIP),
        ("bytes=999-", None, 416, b""),
    ] {
        let mut request = client.get(&url).header("range", range);
        if let Some(tag) = if_range {
            request = request.header("if-range", tag);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{range}");
        assert_eq!(response.bytes().await.unwrap(), content, "{range}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_outputs_have_links_and_are_archived() {
    // "AAAAIGZ0eXBpc29t" is the beginning of an MP4 file.
    let inline = "data:video/mp4;base64,AAAAIGZ0eXBpc29t";
    let outputs = json!([inline, { "base64": "AAAAIGZ0eXBpc29t", "content_type": "video/mp4" }]);
    let source = Source::start(outputs).await;
    let (hub, folder, _directory) = folder_hub(&source);
    let app = hub.spawn().await;
    let job = succeeded_job(&app).await;
    assert!(!job.to_string().contains("base64"), "{job}");
    wait_until_archived(&app, &job).await;
    for n in 0..2 {
        assert_eq!(job["outputs"][n]["type"], "video");
        let response = get(&app, &job, n).await;
        assert_eq!(response.bytes().await.unwrap(), &CLIP[..12]);
        let copy = folder.join(format!("alice/{}/{n}.mp4", id(&job)));
        assert_eq!(fs::read(copy).unwrap(), &CLIP[..12]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_streamed_from_their_source_while_the_archive_fails() {
    let inline = "data:video/mp4;base64,AAAAIGZ0eXBpc29t";
    let private = json!({ "url": "/private.mp4", "private": true });
    let source = Source::start(json!(["/clip.mp4", private, inline])).await;
    let (hub, folder, _directory) = folder_hub(&source);
    // A file in place of the folder.
    fs::write(&folder, "").unwrap();
    let app = hub.spawn().await;
    let job = succeeded_job(&app).await;
    let failed = wait_for_outputs(&app, &job, |output| !output["archive_error"].is_null()).await;
    for n in 0..3 {
        assert_eq!(failed["outputs"][n]["archived"], false);
        let error = failed["outputs"][n]["archive_error"].as_str().unwrap();
        assert!(error.contains("Not a directory"), "{error}");
        let content = get(&app, &job, n).await.bytes().await.unwrap();
        assert_eq!(content, if n == 2 { &CLIP[..12] } else { CLIP });
    }
    let part = reqwest::Client::builder().no_proxy().build().unwrap();
    let part = part.get(link(&app, &job, 2)).header("range", "bytes=4-7");
    let part = part.send().await.unwrap();
    assert_eq!(header(&part, "content-range"), "bytes 4-7/12");
    assert_eq!(part.bytes().await.unwrap(), "ftyp");

    // The copies are made when the folder can be used.
    fs::remove_file(&folder).unwrap();
    wait_until_archived(&app, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_a_worker_is_fetched_only_from_allowed_networks() {
    for (allow, is_archived) in [("", false), ("127.0.0.0/8", true)] {
        let source = Source::start(json!([])).await;
        let (hub, _folder, _directory) = folder_hub(&source);
        let app = hub.set("archive.allow", allow).spawn().await;
        let worker = app.register_worker_job("alice").await;
        let url = format!("{}/clip.mp4", source.url);
        let update = json!({ "status": "succeeded", "outputs": [{ "url": url }] });
        assert_eq!(app.push_update(&worker, update).await.status, 200);
        let job = app.get_job(&worker, "alice").await;
        let delivery = ended_delivery(&app, &job, 0).await;
        let response = get(&app, &job, 0).await;
        if is_archived {
            assert_eq!(delivery["state"], "delivered");
            assert_eq!(response.bytes().await.unwrap(), CLIP);
        } else {
            assert_eq!(delivery["state"], "failed");
            let error = delivery["attempts"][0]["error"].as_str().unwrap();
            assert_eq!(error, "URL not allowed: must be https and public");
            assert_eq!(source.requests("/clip.mp4"), 0);
            // The client may reach what the hub may not.
            assert_eq!(response.status(), 307);
            assert_eq!(header(&response, "location"), url);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_cannot_make_the_hub_send_the_key_of_a_provider() {
    let source = Source::start(json!([])).await;
    let (hub, _folder, _directory) = folder_hub(&source);
    let hub = hub.set("archive.allow", "127.0.0.0/8");
    let app = hub.set("providers.vault.poll_after", "1h").spawn().await;
    let body = json!({ "provider": "vault", "provider_task_id": "t1", "owner": "alice" });
    let token = app.token("worker", "jobs:publish");
    let request = app.request_with_token(Method::POST, "/v1/jobs", &token);
    let job = send(request.json(&body)).await.body;
    let url = format!("{}/private.mp4", source.url);
    let update = json!({ "status": "succeeded", "outputs": [{ "url": url }] });
    assert_eq!(app.push_update(id(&job), update).await.status, 200);
    let job = app.get_job(id(&job), "alice").await;
    let delivery = ended_delivery(&app, &job, 0).await;
    assert_eq!(delivery["state"], "failed", "{delivery}");
    assert_eq!(get(&app, &job, 0).await.status(), 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_keep_their_position_when_one_is_dropped() {
    let too_long = format!("https://cdn.example.com/{}", "a".repeat(5000));
    let source = Source::start(json!([too_long, "/clip.mp4"])).await;
    let (hub, _folder, _directory) = folder_hub(&source);
    let app = hub.spawn().await;
    let job = succeeded_job(&app).await;
    assert_eq!(job["outputs"].as_array().unwrap().len(), 1);
    wait_until_archived(&app, &job).await;
    assert_eq!(get(&app, &job, 0).await.bytes().await.unwrap(), CLIP);
}
