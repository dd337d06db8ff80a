//! What each provider is sent: where, with which key, in which words, and where it is told to call back.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};
use crate::webhook_signatures;

const PUBLIC: &str = "https://hub.example.com/under";

/// The first request that a provider gets for this submission.
async fn sent(spec: &str, request: Value) -> RecordedRequest {
    let provider = MockProvider::start(|_| async { MockResponse::text(400, "{}") }).await;
    let app = TestApp::builder()
        .set("server.public_url", PUBLIC)
        .set("providers.it.spec", spec)
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "key-1")
        .set("providers.it.secret_key", "key-2")
        .spawn()
        .await;
    let answer = send(
        app.request(Method::POST, "/v1/videos", "alice")
            .json(&request),
    )
    .await;
    assert_eq!(answer.status, 202, "{spec}: {}", answer.body);
    provider
        .wait_for_requests(|asked| !asked.is_empty())
        .await
        .remove(0)
}

fn request(model: &str) -> Value {
    json!({
        "provider": "it",
        "model": model,
        "prompt": "a lighthouse",
        "duration": 5,
        "platform": "tiktok",
        "input": { "seed": 7 },
    })
}

/// The callback URL, wherever it stands: it must be the hub's own, with a token.
fn is_callback(url: &str) -> bool {
    url.strip_prefix(PUBLIC)
        .and_then(|rest| rest.strip_prefix("/v1/webhooks/it/job_"))
        .is_some_and(|token| token.contains('.'))
}

fn percent_decoded(text: &str) -> String {
    let (_, query) = text.split_once('?').unwrap_or_default();
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
        let asked = sent(spec, request(model)).await;
        assert_eq!(asked.method, "POST", "{spec}");
        assert_eq!(asked.path.split('?').next(), Some(path), "{spec}");
        assert_eq!(asked.header(header.0), Some(header.1), "{spec}");
        assert_eq!(
            asked.body.pointer(prompt),
            Some(&json!("a lighthouse")),
            "{spec}: {}",
            asked.body
        );
        let url = match callback {
            "" => continue,
            "?" => percent_decoded(&asked.path),
            pointer => asked
                .body
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
        };
        assert!(
            is_callback(&url),
            "{spec}: {url} in {} {}",
            asked.path,
            asked.body
        );
        let whole = asked.body.to_string();
        assert!(
            whole.contains("\"seed\":7"),
            "{spec}: what the caller adds is passed on: {whole}"
        );
        assert!(
            !whole.contains("null"),
            "{spec}: nothing is sent for what was left open: {whole}"
        );
    }
}

#[tokio::test]
async fn frames_are_asked_for_as_each_provider_words_them() {
    for (spec, model, place, wished) in [
        ("kling", "k", "/settings/aspect_ratio", json!("9:16")),
        ("runway", "r", "/ratio", json!("720:1280")),
        ("videos", "v", "/size", json!("720x1280")),
        ("wavespeed", "w", "/size", json!("720*1280")),
        ("veo", "v", "/parameters/aspectRatio", json!("9:16")),
        ("luma", "l", "/duration", json!("5s")),
        ("seedance", "s", "/ratio", json!("9:16")),
    ] {
        let asked = sent(spec, request(model)).await;
        assert_eq!(
            asked.body.pointer(place),
            Some(&wished),
            "{spec}: {}",
            asked.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platforms_frame_reaches_every_provider_in_its_own_words() {
    // Tiktok, youtube, instagram; and tiktok in 1080p.
    let ratio = ["9:16", "16:9", "1:1", "9:16"];
    let pixels = ["720x1280", "1280x720", "1024x1024", "1080x1920"];
    let starred = ["720*1280", "1280*720", "1024*1024", "1080*1920"];
    let runways = ["720:1280", "1280:720", "960:960", "720:1280"];
    let cases = [
        ("kling", "k", "/settings/aspect_ratio", ratio),
        ("videos", "v", "/size", pixels),
        ("wavespeed", "w", "/size", starred),
        ("runway", "r", "/ratio", runways),
        ("minimax", "MiniMax-H3", "/ratio", ratio),
        ("atlas", "a", "/aspect_ratio", ratio),
        ("fal", "fal-ai/x/y", "/aspect_ratio", ratio),
        ("replicate", "own/name", "/input/aspect_ratio", ratio),
        ("seedance", "s", "/ratio", ratio),
        ("luma", "l", "/aspect_ratio", ratio),
        ("veo", "veo-3.1", "/parameters/aspectRatio", ratio),
    ];
    let asked = cases.iter().flat_map(|&(spec, model, place, words)| {
        let platforms = ["tiktok", "youtube", "instagram", "tiktok"].into_iter();
        let asked = platforms.zip(words).enumerate();
        asked.map(move |(n, (platform, wished))| async move {
            let mut order = json!({
                "provider": "it", "model": model, "prompt": "a lighthouse", "platform": platform,
            });
            if n == 3 {
                order["resolution"] = "1080p".into();
            }
            let body = sent(spec, order).await.body;
            let told = body.pointer(place).and_then(Value::as_str);
            (told != Some(wished)).then(|| format!("{spec} {platform}: {body}"))
        })
    });
    // A hub each: more at once take each other's time.
    let wrong: Vec<_> = stream::iter(asked).buffered(4).collect().await;
    let wrong: Vec<_> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_version_stands_in_the_body_where_the_model_is_not_an_official_one() {
    let asked = sent("replicate", request("own/name:5c7d5d")).await;
    assert_eq!(asked.path, "/v1/predictions");
    assert_eq!(asked.body["version"], "5c7d5d");
    let filter = json!(["start", "output", "logs", "completed"]);
    assert_eq!(asked.body["webhook_events_filter"], filter);
}

#[tokio::test]
async fn klings_older_api_gets_a_token_made_of_two_keys() {
    let asked = sent("kling-legacy", request("kling-v1-6")).await;
    assert_eq!(asked.path, "/v1/videos/text2video");
    assert_eq!(asked.body["model_name"], "kling-v1-6");
    assert_eq!(asked.body["duration"], "5", "a text");
    assert!(is_callback(asked.body["callback_url"].as_str().unwrap()));
    let token = asked
        .header("authorization")
        .unwrap()
        .strip_prefix("Bearer ")
        .unwrap();
    let (content, signature) = token.rsplit_once('.').unwrap();
    let by_hand = webhook_signatures::base64("key-2", content.as_bytes());
    let by_hand = by_hand
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_");
    assert_eq!(signature, by_hand);
    let (header, claims) = content.split_once('.').unwrap();
    let read = |part: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    assert_eq!(read(header), json!({ "typ": "JWT", "alg": "HS256" }));
    let claims = read(claims);
    assert_eq!(claims["iss"], "key-1");
    let now = webhook_signatures::now();
    assert!((now + 1700..=now + 1800).contains(&claims["exp"].as_i64().unwrap()));
    assert!((now - 100..now).contains(&claims["nbf"].as_i64().unwrap()));
    assert!(!asked.header("authorization").unwrap().contains("key-2"));
}

#[tokio::test]
async fn a_picture_goes_where_it_belongs_or_is_refused_with_the_reason() {
    let with_picture = |model: &str| {
        let mut request = request(model);
        request["image_url"] = json!("https://cdn.example/a.png");
        request
    };
    for (spec, path, place) in [
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
        let asked = sent(spec, with_picture(model)).await;
        assert!(asked.path.starts_with(path), "{spec}: {}", asked.path);
        let url = asked.body.pointer(place);
        assert_eq!(
            url,
            Some(&json!("https://cdn.example/a.png")),
            "{spec}: {}",
            asked.body
        );
    }
}
