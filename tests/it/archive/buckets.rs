//! Buckets on servers of other projects, and on one that fails.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::gcs_adapter::GcsAdapter;
use super::servers::{ACCESS_KEY, SECRET_KEY, StorageServer};
use super::source::{CLIP, Source, large};
use super::*;
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::wait::wait_until;

/// Starts a hub whose archive is a bucket of an S3 server, with the credentials in its environment.
async fn s3_hub(source: &Source, endpoint: &str, settings: &[(&str, &str)]) -> (TestApp, TempDir) {
    let (hub, directory) = hub(source, "s3://outputs/videos");
    let hub = hub
        .set("archive.endpoint", endpoint)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    let settings = settings.iter();
    let hub = settings.fold(hub, |hub, (key, value)| hub.set(key, value));
    (hub.spawn_process(&[]).await, directory)
}

/// Returns the URL that a link redirects to.
async fn redirect(app: &TestApp, method: Method, job: &Value, n: usize) -> String {
    let response = fetch(app, method, link(app, job, n)).await;
    assert_eq!(response.status(), 307, "{:?}", response.text().await);
    assert_eq!(header(&response, "cache-control"), "private, no-store");
    assert_eq!(header(&response, "referrer-policy"), "no-referrer");
    header(&response, "location").to_owned()
}

async fn status(app: &TestApp, method: Method, url: &str) -> u16 {
    fetch(app, method, url.to_owned()).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn link_redirects_to_a_signed_url_that_expires() {
    let Some(server) = StorageServer::versitygw().await else {
        return;
    };
    let source = Source::start(json!(["/clip.mp4"])).await;
    let (app, _directory) = s3_hub(&source, &server.url, &[("archive.link_ttl", "2s")]).await;
    let job = succeeded_job(&app).await;
    wait_until_archived(&app, &job).await;
    source.forget();

    let signed = redirect(&app, Method::GET, &job, 0).await;
    let path = format!("{}/outputs/videos/alice/{}/0.mp4?", server.url, id(&job));
    assert!(signed.starts_with(&path), "{signed}");
    let copy = fetch(&app, Method::GET, signed.clone()).await;
    assert_eq!(copy.status(), 200);
    assert_eq!(header(&copy, "content-type"), "video/mp4");
    let name = format!("inline; filename=\"{}-0.mp4\"", id(&job));
    assert_eq!(header(&copy, "content-disposition"), name);
    assert_eq!(header(&copy, "x-amz-meta-job"), id(&job));
    assert_eq!(copy.bytes().await.unwrap(), CLIP);
    // The signature of one method is not valid for another one.
    let signed_head = redirect(&app, Method::HEAD, &job, 0).await;
    assert_eq!(status(&app, Method::HEAD, &signed_head).await, 200);
    assert_eq!(status(&app, Method::GET, &signed_head).await, 403);

    let (unsigned, _) = signed.split_once('?').unwrap();
    assert_eq!(status(&app, Method::GET, unsigned).await, 403);
    let forged = signed.replace("X-Amz-Expires=2", "X-Amz-Expires=3600");
    assert_ne!(forged, signed);
    assert_eq!(status(&app, Method::GET, &forged).await, 403);
    wait_until("the signed URL has expired", async || {
        status(&app, Method::GET, &signed).await == 403
    })
    .await;
    // The link does not expire with the URL.
    let fresh = redirect(&app, Method::GET, &job, 0).await;
    assert_eq!(status(&app, Method::GET, &fresh).await, 200);
    assert!(!app.log().contains("X-Amz-Signature"));
    app.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_output_is_uploaded_in_parts_and_failures_leave_none() {
    let Some(server) = StorageServer::versitygw().await else {
        return;
    };
    let source = Source::start(json!(["/large.mp4", "/cut.mp4", "/endless.mp4"])).await;
    let settings = [
        ("archive.max_bytes", "24MiB"),
        ("deliveries.retries", "20ms"),
    ];
    let (app, _directory) = s3_hub(&source, &server.url, &settings).await;
    let job = succeeded_job(&app).await;
    for (n, state) in [(0, "delivered"), (1, "failed"), (2, "failed")] {
        assert_eq!(ended_delivery(&app, &job, n).await["state"], state);
    }
    let folder = server.bucket().join("videos/alice").join(id(&job));
    assert!(fs::read(folder.join("0.mp4")).unwrap() == large());
    let files = fs::read_dir(&folder).unwrap();
    assert_eq!(files.count(), 1, "failed copies are not visible");
    // versitygw keeps the parts of unfinished uploads here.
    let uploads = server.bucket().join(".sgwtmp/multipart");
    wait_until("no parts are left", async || count_files(&uploads) == 0).await;
    app.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_bucket_and_wrong_credentials_are_reported_and_delay_no_job() {
    let Some(server) = StorageServer::versitygw().await else {
        return;
    };
    for (key, value, expected) in [
        ("archive.url", "s3://missing", "status 404, NoSuchBucket"),
        ("archive.region", "eu-west-7", "status 400"),
    ] {
        let source = Source::start(json!(["/clip.mp4"])).await;
        let (app, _directory) = s3_hub(&source, &server.url, &[(key, value)]).await;
        let job = succeeded_job(&app).await;
        let failed =
            wait_for_outputs(&app, &job, |output| !output["archive_error"].is_null()).await;
        let error = failed["outputs"][0]["archive_error"].as_str().unwrap();
        if key == "archive.url" {
            assert!(error.ends_with(expected), "{error}");
        }
        let response = get(&app, &job, 0).await;
        assert_eq!(response.bytes().await.unwrap(), CLIP);
        wait_until("the hub has logged a warning", async || {
            app.log().contains("archive not usable")
        })
        .await;
        assert!(!app.log().contains(SECRET_KEY));
        app.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_stored_and_uploads_are_aborted() {
    let Some(server) = StorageServer::moto().await else {
        return;
    };
    let outputs = json!([{ "url": "/large.mp4", "nsfw": false }, "/cut.mp4"]);
    let source = Source::start(outputs).await;
    let settings = [("deliveries.retries", "20ms")];
    let (app, _directory) = s3_hub(&source, &server.url, &settings).await;
    let job = succeeded_job(&app).await;
    assert_eq!(ended_delivery(&app, &job, 0).await["state"], "delivered");
    assert_eq!(ended_delivery(&app, &job, 1).await["state"], "failed");
    let signed = redirect(&app, Method::GET, &job, 0).await;
    let copy = fetch(&app, Method::GET, signed).await;
    for (name, value) in [
        ("content-type", "video/mp4"),
        ("cache-control", "private, max-age=31536000, immutable"),
        ("x-amz-meta-job", id(&job)),
        ("x-amz-meta-output", "0"),
        ("x-amz-meta-nsfw", "false"),
    ] {
        assert_eq!(header(&copy, name), value, "{name}");
    }
    assert!(header(&copy, "x-amz-meta-keepuntil").ends_with('Z'));
    assert!(copy.bytes().await.unwrap() == large());
    wait_until("no upload is open", async || {
        let uploads = server.send(Method::GET, "/outputs?uploads").await;
        assert!(uploads.contains("ListMultipartUploadsResult"), "{uploads}");
        !uploads.contains("<UploadId>")
    })
    .await;
    app.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_copied_to_google_cloud_storage() {
    let Some(server) = StorageServer::fake_gcs().await else {
        return;
    };
    let service = GcsAdapter::start(&server.url).await;
    let key = std::process::Command::new("openssl")
        .args(["genrsa", "2048"])
        .output()
        .expect("openssl is installed");
    let account = json!({
        "client_email": "hub@example.iam.gserviceaccount.com",
        "private_key": String::from_utf8(key.stdout).unwrap(),
        "private_key_id": "key-1",
    });
    let source = Source::start(json!(["/clip.mp4"])).await;
    let (hub, _directory) = hub(&source, "gs://outputs/videos");
    let app = hub
        .set("deliveries.retries", "20ms")
        .set("archive.endpoint", &service.url)
        .env("GOOGLE_SERVICE_ACCOUNT_KEY", account)
        .env("GOOGLE_BEARER_TOKEN", "token")
        .spawn_process(&[])
        .await;
    let job = succeeded_job(&app).await;
    let delivery = ended_delivery(&app, &job, 0).await;
    assert_eq!(delivery["state"], "delivered", "{delivery}");
    source.forget();
    let signed = redirect(&app, Method::GET, &job, 0).await;
    assert!(signed.contains("X-Goog-Signature="), "{signed}");
    let copy = fetch(&app, Method::GET, signed).await;
    assert_eq!(header(&copy, "content-type"), "video/mp4");
    assert_eq!(copy.bytes().await.unwrap(), CLIP);
    app.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn public_bucket_is_reached_by_its_public_url() {
    let Some(server) = StorageServer::moto().await else {
        return;
    };
    let source = Source::start(json!(["/clip.mp4"])).await;
    let settings = [("archive.public_url", "https://cdn.example.com/files")];
    let (app, _directory) = s3_hub(&source, &server.url, &settings).await;
    let job = succeeded_job(&app).await;
    wait_until_archived(&app, &job).await;
    let url = redirect(&app, Method::GET, &job, 0).await;
    let expected = format!(
        "https://cdn.example.com/files/videos/alice/{}/0.mp4",
        id(&job)
    );
    assert_eq!(url, expected);
    app.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_wait_while_the_bucket_fails() {
    // More failures than the client repeats within one attempt.
    let failures = Arc::new(AtomicUsize::new(6));
    let bucket = MockProvider::start({
        let failures = Arc::clone(&failures);
        move |request: RecordedRequest| {
            let is_copy = request.path.ends_with(".mp4");
            let count = |left: usize| left.checked_sub(1);
            let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
            let fails = is_copy && failures.fetch_update(set, fetch, count).is_ok();
            let response = match request.method.as_str() {
                _ if fails => MockResponse::text(503, "<Error><Code>SlowDown</Code></Error>"),
                "HEAD" => MockResponse::bytes(200, CLIP)
                    .with_header("last-modified", "Mon, 30 Nov 2026 05:00:00 GMT"),
                _ => MockResponse::text(200, ""),
            };
            let response = response.with_header("etag", "\"tag\"");
            async move { response }
        }
    })
    .await;
    let source = Source::start(json!(["/clip.mp4"])).await;
    let (app, _directory) = s3_hub(&source, &bucket.url, &[]).await;
    let job = succeeded_job(&app).await;
    wait_until_archived(&app, &job).await;
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    let delivery = ended_delivery(&app, &job, 0).await;
    let error = delivery["attempts"][0]["error"].as_str().unwrap();
    assert_eq!(error, "archive: status 503, SlowDown");
    app.kill();
}
