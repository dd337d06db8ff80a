//! The `/v1/videos` API against OpenAI's published documentation.

use reqwest::Method;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, RANGE};
use serde_json::{Value, json};

use super::super::{Product, Scenario, Settings, Simulator, Status};
use super::dialects::{VIDEOS, fixture, keys};
use super::receiver::Callback;
use super::{API_KEY, Stage, in_time};

#[tokio::test]
async fn video_ends_with_a_thin_signed_event() {
    let stage = Stage::set().await;
    let (status, accepted) = VIDEOS.submit(&stage, Scenario::Normal).await;
    let expected = fixture("openai-video-in-progress");
    assert_eq!((status.as_u16(), keys(&accepted)), (200, keys(&expected)));
    assert_eq!(accepted["status"], fixture("openai-video-queued")["status"]);
    assert_eq!(accepted["seconds"], "8");

    let task = VIDEOS.rest(&stage).await;
    let callbacks = stage.receiver.all();
    assert_eq!(callbacks.len(), 1);
    assert!(callbacks.iter().all(Callback::is_genuine));
    let event = &callbacks[0].body;
    let expected = fixture("openai-webhook-video-completed");
    assert_eq!(
        (keys(event), keys(&event["data"])),
        (keys(&expected), keys(&expected["data"]))
    );
    assert_eq!(
        (&event["type"], &event["object"]),
        (&expected["type"], &expected["object"])
    );
    assert_eq!(event["data"]["id"], task.id);
    let body = VIDEOS.queried(&stage, &task).await;
    assert_eq!(
        (&body["status"], &body["progress"]),
        (&json!("completed"), &json!(100))
    );
    assert!(body["expires_at"].as_u64() > body["completed_at"].as_u64());
}

#[tokio::test]
async fn active_video_reports_its_percentage() {
    let stage = Stage::set().await;
    in_time(VIDEOS.order_of(&stage, &json!({"steps": 1})).send())
        .await
        .unwrap();
    let half = stage.inspector.until(|inspector| {
        let task = inspector.tasks().into_iter().next()?;
        (task.status != Status::Submitted).then_some(task)
    });
    let task = in_time(half).await;
    let body = VIDEOS.queried(&stage, &task).await;
    assert!(["in_progress", "completed"].contains(&body["status"].as_str().unwrap()));
    assert!([0, 50, 100].contains(&body["progress"].as_u64().unwrap()));
}

#[tokio::test]
async fn content_requires_the_key_and_supports_ranges() {
    let stage = Stage::set().await;
    let task = VIDEOS.play(&stage, Scenario::Normal).await;
    for path in ["/videos", "/v1/videos"] {
        let path = format!("{path}/{}/content", task.id);
        let whole = in_time(VIDEOS.request(&stage, Method::GET, &path).send())
            .await
            .unwrap();
        assert_eq!(
            (whole.status().as_u16(), &whole.headers()["content-type"]),
            (200, &"video/mp4".parse().unwrap())
        );
        let part = VIDEOS
            .request(&stage, Method::GET, &path)
            .header(RANGE, "bytes=4-7");
        let part = in_time(part.send()).await.unwrap();
        assert_eq!(part.status().as_u16(), 206);
        assert_eq!(part.bytes().await.unwrap(), "ftyp".as_bytes());
        let keyless = stage.client.get(format!("{}/videos{path}", stage.url));
        assert_eq!(
            in_time(keyless.send()).await.unwrap().status().as_u16(),
            401
        );
    }
    assert_eq!(stage.inspector.calls_in("videos").downloads, 6);
    assert!(
        !VIDEOS
            .queried(&stage, &task)
            .await
            .to_string()
            .contains("http")
    );

    for scenario in [Scenario::ExpiredResult, Scenario::Silence] {
        let stage = Stage::set().await;
        let task = VIDEOS.play(&stage, scenario).await;
        let path = format!("/v1/videos/{}/content", task.id);
        assert_eq!(
            VIDEOS.call(&stage, Method::GET, &path).await.0.as_u16(),
            404
        );
    }
}

#[tokio::test]
async fn failures_and_errors_have_codes() {
    let stage = Stage::set().await;
    let task = VIDEOS.play(&stage, Scenario::SafetyAtEnd).await;
    let (body, expected) = (
        VIDEOS.queried(&stage, &task).await,
        fixture("openai-video-failed-moderation"),
    );
    assert_eq!(
        (keys(&body), &body["error"], &body["status"]),
        (keys(&expected), &expected["error"], &expected["status"])
    );
    assert_eq!(stage.receiver.all()[0].body["type"], "video.failed");

    for (scenario, status, code) in [
        (Scenario::BadKey, 401, "invalid_api_key"),
        (Scenario::Quota, 429, "insufficient_quota"),
        (Scenario::Safety, 400, "moderation_blocked"),
        (Scenario::RateLimited, 429, "rate_limit_exceeded"),
        (Scenario::ServerErrors, 500, "server_error"),
    ] {
        let stage = Stage::set().await;
        let (refused, body) = VIDEOS.submit(&stage, scenario).await;
        assert_eq!(
            (refused.as_u16(), &body["error"]["code"]),
            (status, &json!(code)),
            "{scenario}"
        );
    }
    let stage = Stage::set().await;
    let limited = in_time(VIDEOS.submit_body(&stage, Scenario::RateLimited).send())
        .await
        .unwrap();
    assert_eq!(limited.headers()["retry-after-ms"], "500");
}

#[test]
fn project_webhook_must_be_an_http_url() {
    let settings = Settings {
        api_key: API_KEY.to_owned(),
        webhook_secret: None,
        pace: std::time::Duration::from_millis(1),
        default_scenario: Scenario::Normal,
    };
    let simulator = Simulator::bind("127.0.0.1:0", settings).unwrap();
    let error = simulator
        .with_project_webhook("ftp://a.test/")
        .err()
        .unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

/// Returns the body of a form. Values with a file name are files.
fn form(boundary: &str, fields: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file_name, value) in fields {
        let file_name = file_name.map(|name| format!("; filename=\"{name}\""));
        let head = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"{}\r\n\r\n",
            file_name.unwrap_or_default()
        );
        body.extend([head.as_bytes(), *value, b"\r\n"].concat());
    }
    body.extend(format!("--{boundary}--\r\n").bytes());
    body
}

async fn submit_form(stage: &Stage, boundary: &str, body: Vec<u8>) -> (StatusCode, Value) {
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let request = VIDEOS.request(stage, Method::POST, "/v1/videos");
    let request = request.header(CONTENT_TYPE, content_type).body(body);
    let response = in_time(request.send()).await.unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test]
async fn submit_accepts_a_form_with_a_file() {
    let stage = Stage::set().await;
    let picture: &[u8] = b"\x89PNG\r\n\r\n--not-a-boundary\xff";
    let fields: [(&str, Option<&str>, &[u8]); 6] = [
        ("model", None, b"sora-2"),
        ("prompt", None, "A caf\u{e9} at night".as_bytes()),
        ("seconds", None, b"4"),
        ("size", None, b"720x1280"),
        ("steps", None, b"1"),
        ("input_reference", Some("frame.png"), picture),
    ];
    let (status, video) = submit_form(&stage, "aaaa", form("aaaa", &fields)).await;
    assert_eq!(status, 200, "{video}");
    assert_eq!(
        [
            &video["model"],
            &video["prompt"],
            &video["seconds"],
            &video["size"]
        ],
        ["sora-2", "A caf\u{e9} at night", "4", "720x1280"]
    );
    // A repeated submit has a different boundary but is recognized as the same job.
    submit_form(&stage, "bbbb", form("bbbb", &fields)).await;
    let tasks = stage.inspector.tasks();
    assert!(
        tasks
            .iter()
            .all(|task| task.product == Product::ImageToVideo)
    );
    assert_eq!(tasks[0].handle, tasks[1].handle);

    let (status, _) = submit_form(&stage, "aaaa", form("aaaa", &fields[..5])).await;
    assert_eq!(status, 200);
    let tasks = stage.inspector.tasks();
    let of_text = tasks
        .iter()
        .filter(|task| task.product == Product::TextToVideo);
    assert_eq!(of_text.count(), 1);
}

#[tokio::test]
async fn invalid_forms_are_rejected() {
    let stage = Stage::set().await;
    let model: (&str, Option<&str>, &[u8]) = ("model", None, b"sora-2");
    let prompt: (&str, Option<&str>, &[u8]) = ("prompt", None, b"a");
    let complete = form("aaaa", &[model, prompt]);
    for (body, reason) in [
        (form("aaaa", &[model]), "prompt is required"),
        (
            form("aaaa", &[model, prompt, prompt]),
            "duplicate field prompt",
        ),
        (form("aaaa", &[model, ("prompt", None, b"\xff")]), "UTF-8"),
        (complete[..complete.len() - 10].to_vec(), "invalid request"),
        (form("bbbb", &[model, prompt]), "invalid request"),
    ] {
        let (status, body) = submit_form(&stage, "aaaa", body).await;
        assert_eq!(status, 400, "{reason}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(reason), "{message}");
    }
    assert!(stage.inspector.tasks().is_empty());
}
