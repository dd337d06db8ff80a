//! The requests of the built-in specs: URL, credentials, parameters and callback URL.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::webhook_signatures;

const PUBLIC_URL: &str = "https://hub.example.com/under";

/// Returns the first request that a provider receives for a submission.
async fn first_request(spec: &str, submission: Value) -> RecordedRequest {
    let provider = MockProvider::start(|_| async { MockResponse::text(400, "{}") }).await;
    let app = TestApp::builder()
        .set("server.public_url", PUBLIC_URL)
        .set("providers.it.spec", spec)
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "key-1")
        .set("providers.it.secret_key", "key-2")
        .spawn()
        .await;
    let request = app.request(Method::POST, "/v1/videos", "alice");
    let response = send(request.json(&submission)).await;
    assert_eq!(response.status, 202, "{spec}: {}", response.body);
    provider
        .wait_for_requests(|requests| !requests.is_empty())
        .await
        .remove(0)
}

fn submission(model: &str) -> Value {
    json!({
        "provider": "it",
        "model": model,
        "prompt": "a lighthouse",
        "duration": 5,
        "platform": "tiktok",
        "input": { "seed": 7 },
    })
}

/// Returns whether a URL is a callback URL of the hub with a token.
fn is_callback(url: &str) -> bool {
    url.strip_prefix(PUBLIC_URL)
        .and_then(|rest| rest.strip_prefix("/v1/webhooks/it/job_"))
        .is_some_and(|token| token.contains('.'))
}

/// Returns the decoded value of the first query parameter.
fn first_query_value(path: &str) -> String {
    let (_, query) = path.split_once('?').unwrap_or_default();
    let (_, value) = query.split_once('=').unwrap_or_default();
    let pairs = url::form_urlencoded::parse(value.as_bytes());
    pairs.map(|(text, _)| text.into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_match_each_provider_api() {
    let bearer = ("authorization", "Bearer key-1");
    for (spec, model, path, header, prompt, callback) in [
        (
            "kling",
            "kling-2.6",
            "/text-to-video/kling-2.6",
            bearer,
            "/prompt",
            "/options/callback_url",
        ),
        (
            "atlas",
            "a/b/c",
            "/api/v1/model/generateVideo",
            bearer,
            "/prompt",
            "/webhook_url",
        ),
        (
            "fal",
            "fal-ai/x/y",
            "/fal-ai/x/y",
            ("authorization", "Key key-1"),
            "/prompt",
            "?",
        ),
        (
            "replicate",
            "own/name",
            "/v1/models/own/name/predictions",
            bearer,
            "/input/prompt",
            "/webhook",
        ),
        (
            "runway",
            "gen4_turbo",
            "/v1/text_to_video",
            ("x-runway-version", "2024-11-06"),
            "/promptText",
            "",
        ),
        (
            "veo",
            "veo-3.1",
            "/v1beta/models/veo-3.1:predictLongRunning",
            ("x-goog-api-key", "key-1"),
            "/instances/0/prompt",
            "/webhook_config/uris/0",
        ),
        (
            "minimax",
            "MiniMax-Hailuo-02",
            "/v1/video_generation",
            bearer,
            "/prompt",
            "/callback_url",
        ),
        (
            "minimax",
            "MiniMax-H3",
            "/v2/video_generation",
            bearer,
            "/content/0/text",
            "/callback_url",
        ),
        (
            "videos",
            "own/name",
            "/videos",
            bearer,
            "/prompt",
            "/callback_url",
        ),
        (
            "seedance",
            "seedance-1",
            "/api/v3/contents/generations/tasks",
            bearer,
            "/content/0/text",
            "/callback_url",
        ),
        (
            "wavespeed",
            "own/name",
            "/api/v3/own/name",
            bearer,
            "/prompt",
            "?",
        ),
        (
            "luma",
            "ray-2",
            "/generations/video",
            bearer,
            "/prompt",
            "/callback_url",
        ),
    ] {
        let request = first_request(spec, submission(model)).await;
        assert_eq!(request.method, "POST", "{spec}");
        assert_eq!(request.path.split('?').next(), Some(path), "{spec}");
        assert_eq!(request.header(header.0), Some(header.1), "{spec}");
        assert_eq!(
            request.body.pointer(prompt),
            Some(&json!("a lighthouse")),
            "{spec}: {}",
            request.body
        );
        let url = match callback {
            "" => continue,
            "?" => first_query_value(&request.path),
            pointer => request
                .body
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        };
        assert!(
            is_callback(&url),
            "{spec}: {url} in {} {}",
            request.path,
            request.body
        );
        let body = request.body.to_string();
        assert!(
            body.contains("\"seed\":7"),
            "{spec}: `input` is merged into the body: {body}"
        );
        assert!(
            !body.contains("null"),
            "{spec}: missing values are left out: {body}"
        );
    }
}

#[tokio::test]
async fn aspect_ratio_and_duration_use_each_providers_format() {
    for (spec, model, pointer, expected) in [
        ("kling", "k", "/settings/aspect_ratio", json!("9:16")),
        ("runway", "r", "/ratio", json!("720:1280")),
        ("videos", "v", "/size", json!("720x1280")),
        ("wavespeed", "w", "/size", json!("720*1280")),
        ("veo", "v", "/parameters/aspectRatio", json!("9:16")),
        ("luma", "l", "/duration", json!("5s")),
        ("seedance", "s", "/ratio", json!("9:16")),
    ] {
        let request = first_request(spec, submission(model)).await;
        assert_eq!(
            request.body.pointer(pointer),
            Some(&expected),
            "{spec}: {}",
            request.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn platform_size_uses_each_providers_format() {
    // TikTok, YouTube, Instagram, and TikTok with 1080p.
    let ratio = ["9:16", "16:9", "1:1", "9:16"];
    let pixels = ["720x1280", "1280x720", "1024x1024", "1080x1920"];
    let pixels_with_star = ["720*1280", "1280*720", "1024*1024", "1080*1920"];
    let runway_ratio = ["720:1280", "1280:720", "960:960", "720:1280"];
    let cases = [
        ("kling", "k", "/settings/aspect_ratio", ratio),
        ("videos", "v", "/size", pixels),
        ("wavespeed", "w", "/size", pixels_with_star),
        ("runway", "r", "/ratio", runway_ratio),
        ("minimax", "MiniMax-H3", "/ratio", ratio),
        ("atlas", "a", "/aspect_ratio", ratio),
        ("fal", "fal-ai/x/y", "/aspect_ratio", ratio),
        ("replicate", "own/name", "/input/aspect_ratio", ratio),
        ("seedance", "s", "/ratio", ratio),
        ("luma", "l", "/aspect_ratio", ratio),
        ("veo", "veo-3.1", "/parameters/aspectRatio", ratio),
    ];
    let checks = cases.iter().flat_map(|&(spec, model, pointer, sizes)| {
        let platforms = ["tiktok", "youtube", "instagram", "tiktok"].into_iter();
        let cases = platforms.zip(sizes).enumerate();
        cases.map(move |(n, (platform, expected))| async move {
            let mut submission = json!({
                "provider": "it", "model": model, "prompt": "a lighthouse", "platform": platform,
            });
            if n == 3 {
                submission["resolution"] = "1080p".into();
            }
            let body = first_request(spec, submission).await.body;
            let size = body.pointer(pointer).and_then(Value::as_str);
            (size != Some(expected)).then(|| format!("{spec} {platform}: {body}"))
        })
    });
    // Each check starts a hub.
    let failures: Vec<Option<String>> = stream::iter(checks).buffered(4).collect().await;
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn replicate_model_with_a_version_is_sent_in_the_body() {
    let request = first_request("replicate", submission("own/name:5c7d5d")).await;
    assert_eq!(request.path, "/v1/predictions");
    assert_eq!(request.body["version"], "5c7d5d");
    let filter = json!(["start", "output", "logs", "completed"]);
    assert_eq!(request.body["webhook_events_filter"], filter);
}

#[tokio::test]
async fn kling_legacy_requests_carry_a_jwt_of_both_keys() {
    let request = first_request("kling-legacy", submission("kling-v1-6")).await;
    assert_eq!(request.path, "/v1/videos/text2video");
    assert_eq!(request.body["model_name"], "kling-v1-6");
    assert_eq!(request.body["duration"], "5", "text, not a number");
    assert!(is_callback(request.body["callback_url"].as_str().unwrap()));
    let token = request
        .header("authorization")
        .unwrap()
        .strip_prefix("Bearer ")
        .unwrap();
    let (content, signature) = token.rsplit_once('.').unwrap();
    let expected = webhook_signatures::base64("key-2", content.as_bytes());
    let expected = expected
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_");
    assert_eq!(signature, expected);
    let (header, claims) = content.split_once('.').unwrap();
    let decode = |part: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    assert_eq!(decode(header), json!({ "typ": "JWT", "alg": "HS256" }));
    let claims = decode(claims);
    assert_eq!(claims["iss"], "key-1");
    let now = webhook_signatures::now();
    assert!((now + 1700..=now + 1800).contains(&claims["exp"].as_i64().unwrap()));
    assert!((now - 100..now).contains(&claims["nbf"].as_i64().unwrap()));
    assert!(!request.header("authorization").unwrap().contains("key-2"));
}

#[tokio::test]
async fn image_url_uses_each_providers_field() {
    let with_image = |model: &str| {
        let mut submission = submission(model);
        submission["image_url"] = json!("https://cdn.example/a.png");
        submission
    };
    for (spec, path, pointer) in [
        ("kling", "/image-to-video/m", "/contents/1/url"),
        ("kling-legacy", "/v1/videos/image2video", "/image"),
        ("fal", "/m?", "/image_url"),
        ("runway", "/v1/image_to_video", "/promptImage"),
        ("minimax", "/v1/video_generation", "/first_frame_image"),
        (
            "seedance",
            "/api/v3/contents/generations/tasks",
            "/content/1/image_url/url",
        ),
        ("videos", "/videos", "/frame_images/0/image_url/url"),
        ("luma", "/generations/video", "/keyframes/frame0/url"),
        (
            "minimax MiniMax-H3",
            "/v2/video_generation",
            "/content/1/image_url/url",
        ),
    ] {
        let (spec, model) = spec.split_once(' ').unwrap_or((spec, "m"));
        let request = first_request(spec, with_image(model)).await;
        assert!(request.path.starts_with(path), "{spec}: {}", request.path);
        let url = request.body.pointer(pointer);
        assert_eq!(
            url,
            Some(&json!("https://cdn.example/a.png")),
            "{spec}: {}",
            request.body
        );
    }
}
