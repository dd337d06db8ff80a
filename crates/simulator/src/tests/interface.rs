//! Submit, query and list: accepted input and errors.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::super::{Counts, Scenario};
use super::{API_KEY, Stage, answer, in_time};

impl Stage {
    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .bearer_auth(API_KEY)
            .json(body);
        answer(in_time(request.send()).await.unwrap()).await
    }

    async fn error(&self, path: &str, body: &Value) -> (u16, u64) {
        let (status, body) = self.post(path, body).await;
        (status.as_u16(), body["code"].as_u64().unwrap())
    }
}

#[tokio::test]
async fn every_route_requires_the_key() {
    let stage = Stage::set().await;
    let submit = format!("{}/text-to-video/kling-2.6", stage.url);
    let tasks = format!("{}/tasks", stage.url);
    for request in [
        stage.client.post(&submit),
        stage.client.get(&tasks),
        stage.client.post(&tasks),
    ] {
        let unsigned = request.try_clone().unwrap();
        let (status, body) = answer(unsigned.send().await.unwrap()).await;
        assert_eq!((status.as_u16(), &body["code"]), (401, &json!(1001)));
        let (status, body) = answer(request.bearer_auth("sim-kez").send().await.unwrap()).await;
        assert_eq!((status.as_u16(), &body["code"]), (401, &json!(1002)));
    }
    let calls = stage.inspector.calls();
    assert_eq!(
        (
            calls.submits_received,
            calls.queries_received,
            calls.submits_accepted
        ),
        (2, 4, 0)
    );
}

#[tokio::test]
async fn invalid_bodies_are_rejected() {
    let stage = Stage::set().await;
    let text = "/text-to-video/kling-2.6";
    let image = "/image-to-video/kling-3.0";
    let long = "ä".repeat(2501);
    for (path, body, code) in [
        (text, json!([]), 1200),
        (text, json!({"prompt": 7}), 1200),
        (
            text,
            json!({"prompt": "x", "settings": {"duration": "5"}}),
            1200,
        ),
        (text, json!({}), 1201),
        (text, json!({"prompt": "  "}), 1201),
        (text, json!({"prompt": long}), 1201),
        (
            text,
            json!({"contents": [{"type": "first_frame", "url": "https://a.test/a.png"}]}),
            1201,
        ),
        (
            text,
            json!({"prompt": "x", "settings": {"duration": 60}}),
            1201,
        ),
        (
            text,
            json!({"prompt": "x", "settings": {"aspect_ratio": "4:5"}}),
            1201,
        ),
        (
            text,
            json!({"prompt": "x", "settings": {"resolution": "8k"}}),
            1201,
        ),
        (
            text,
            json!({"prompt": "x", "options": {"callback_url": "ftp://a.test/"}}),
            1201,
        ),
        (text, json!({"prompt": "x", "scenario": "sunshine"}), 1201),
        (image, json!({"prompt": "x"}), 1201),
        (
            image,
            json!({"prompt": "x", "contents": [{"type": "first_frame"}]}),
            1201,
        ),
    ] {
        assert_eq!(stage.error(path, &body).await, (400, code), "{body}");
    }
    assert_eq!(
        stage
            .error("/text-to-video/gpt", &json!({"prompt": "x"}))
            .await,
        (404, 1203)
    );
    assert_eq!(
        stage.error("/v1/videos/text2video", &json!({})).await,
        (404, 1202)
    );
    assert_eq!(stage.inspector.calls().submits_accepted, 0);
}

#[tokio::test]
async fn valid_bodies_are_accepted() {
    let stage = Stage::set().await;
    for (path, body) in [
        (
            "/text-to-video/kling-2.6",
            json!({"prompt": "ä".repeat(2500), "unknown": {"key": true}}),
        ),
        (
            "/text-to-video/kling-3.0",
            json!({"contents": [{"type": "prompt", "text": "x"}]}),
        ),
        (
            "/image-to-video/kling-3.0",
            json!({"contents": [{"type": "prompt", "text": "x"}, {"type": "first_frame", "url": "https://a.test/a.png"}]}),
        ),
    ] {
        assert_eq!(stage.post(path, &body).await.0, StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn external_id_is_unique() {
    let stage = Stage::set().await;
    stage.play(Scenario::Normal).await;
    let (status, body) = stage.submit(Scenario::Normal, "job_1").await;
    assert_eq!((status.as_u16(), &body["code"]), (400, &json!(1201)));
    let submits = stage.inspector.submits_of("job_1");
    assert_eq!(
        (submits.received, submits.accepted, submits.task),
        (2, 1, stage.inspector.task_of("job_1"))
    );
}

#[tokio::test]
async fn watermark_is_returned_if_requested() {
    let stage = Stage::set().await;
    let mut submit_body = stage.submit_body(Scenario::LostWebhooks, "job_1");
    submit_body["options"]["watermark_info"] = json!({"enabled": true});
    stage.try_submit(&submit_body).await.unwrap();
    in_time(stage.inspector.settled("job_1")).await;
    let output = stage.queried().await["outputs"][0].clone();
    assert!(
        output["watermark_url"]
            .as_str()
            .unwrap()
            .starts_with(output["url"].as_str().unwrap())
    );
}

#[tokio::test]
async fn query_takes_one_kind_of_id_and_skips_unknown_ids() {
    let stage = Stage::set().await;
    stage.submit(Scenario::Silence, "job_1").await;
    stage.submit(Scenario::Silence, "job_2").await;
    let first = stage.inspector.task_of("job_1").unwrap();
    let second = stage.inspector.task_of("job_2").unwrap();
    let asked = [
        (
            format!("task_ids={second},1,{first}"),
            vec![&second, &first],
        ),
        (
            "external_task_ids=job_1,unknown,job_2".to_owned(),
            vec![&first, &second],
        ),
        ("task_ids=1".to_owned(), vec![]),
        ("external_task_ids=unknown".to_owned(), vec![]),
    ];
    for (query, ids) in asked {
        let (status, body) = stage.get(&format!("/tasks?{query}")).await;
        assert_eq!((status, &body["code"]), (StatusCode::OK, &json!(0)));
        let found: Vec<_> = body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|task| task["id"].as_str().unwrap())
            .collect();
        assert_eq!(found, ids, "{query}");
    }
    for query in ["", "?task_ids=", "?task_ids=1&external_task_ids=job_1"] {
        let (status, body) = stage.get(&format!("/tasks{query}")).await;
        assert_eq!(
            (status.as_u16(), &body["code"]),
            (400, &json!(1201)),
            "{query}"
        );
    }
}

#[tokio::test]
async fn list_is_paged_from_the_newest() {
    let stage = Stage::set().await;
    for job in ["job_1", "job_2", "job_3", "job_4", "job_5"] {
        stage.submit(Scenario::Silence, job).await;
    }
    let mut seen = Vec::new();
    let mut page = json!({"limit": 2});
    loop {
        let (_, body) = stage.post("/tasks", &page).await;
        let tasks = body["data"].as_array().unwrap();
        seen.push(
            tasks
                .iter()
                .map(|task| task["external_id"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>(),
        );
        match body.get("next_cursor") {
            Some(cursor) => page["cursor"] = cursor.clone(),
            None => break,
        }
    }
    assert_eq!(
        seen,
        [
            vec!["job_5", "job_4"],
            vec!["job_3", "job_2"],
            vec!["job_1"]
        ]
    );

    let listed = async |body: Value| {
        stage.post("/tasks", &body).await.1["data"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(
        listed(json!({"filters": [{"key": "status", "values": ["submitted"]}]})).await,
        5
    );
    assert_eq!(
        listed(json!({"filters": [{"key": "status", "values": ["failed", "succeeded"]}]})).await,
        0
    );
    assert_eq!(
        listed(json!({"filters": [{"key": "product_type", "values": ["image-to-video"]}]})).await,
        0
    );
    assert_eq!(listed(json!({"end_time": 1})).await, 0);
    assert_eq!(listed(json!({"start_time": 1})).await, 5);
    assert_eq!(
        stage.error("/tasks", &json!({"limit": 501})).await,
        (400, 1201)
    );
    assert_eq!(
        stage.error("/tasks", &json!({"cursor": "x"})).await,
        (400, 1201)
    );
    assert_eq!(
        stage
            .error(
                "/tasks",
                &json!({"filters": [{"key": "colour", "values": []}]})
            )
            .await,
        (400, 1200)
    );
}

#[tokio::test]
async fn inspector_routes_match_the_inspector() {
    let stage = Stage::set().await;
    stage.play(Scenario::Normal).await;
    stage.queried().await;
    let counts = Counts {
        submits_received: 1,
        submits_accepted: 1,
        queries_received: 1,
        tasks_queried: 1,
        callbacks_sent: 6,
        callbacks_acknowledged: 6,
        ..Counts::default()
    };
    assert_eq!(stage.inspector.calls(), counts);
    assert_eq!(
        stage.get("/simulator/counts").await.1,
        serde_json::to_value(counts).unwrap()
    );
    assert_eq!(
        stage.get("/simulator/counts/kling").await.1,
        serde_json::to_value(counts).unwrap()
    );
    let others = serde_json::to_value(Counts::default()).unwrap();
    assert_eq!(stage.get("/simulator/counts/fal").await.1, others);
    let tasks = serde_json::to_value(stage.inspector.tasks()).unwrap();
    assert_eq!(stage.get("/simulator/tasks").await.1, tasks);
    assert_eq!(
        (&tasks[0]["scenario"], &tasks[0]["status"]),
        (&json!("normal"), &json!("succeeded"))
    );
}
