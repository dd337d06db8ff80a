//! Behavior that all dialects share: every scenario in every dialect.

use std::collections::BTreeSet;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::super::plan::{Plan, SubmitBehavior};
use super::super::{PROVIDERS, Scenario, Status, Task, dialects, playable};
use super::receiver::Callback;
use super::{API_KEY, Stage, answer, in_time};

/// A client of one dialect.
#[derive(Clone, Copy)]
pub struct Client {
    pub name: &'static str,
    submit: &'static str,
    pub query: &'static str,
    scheme: &'static str,
}

pub const FAL: Client = Client {
    name: "fal",
    submit: "/fal-ai/kling-video/v2/text-to-video",
    query: "/fal-ai/kling-video/requests/{id}/status?logs=1",
    scheme: "Key",
};
pub const ATLAS: Client = Client {
    name: "atlas",
    submit: "/api/v1/model/generateVideo",
    query: "/api/v1/model/prediction/{id}",
    scheme: "Bearer",
};
pub const VIDEOS: Client = Client {
    name: "videos",
    submit: "/v1/videos",
    query: "/v1/videos/{id}",
    scheme: "Bearer",
};
pub const MINIMAX: Client = Client {
    name: "minimax",
    submit: "/v1/video_generation",
    query: "/v1/query/video_generation?task_id={id}",
    scheme: "Bearer",
};
pub const RUNWAY: Client = Client {
    name: "runway",
    submit: "/v1/text_to_video",
    query: "/v1/tasks/{id}",
    scheme: "Bearer",
};
pub const REPLICATE: Client = Client {
    name: "replicate",
    submit: "/v1/models/kwaivgi/kling-v2/predictions",
    query: "/v1/predictions/{id}",
    scheme: "Bearer",
};
const KLING: Client = Client {
    name: "kling",
    submit: "/text-to-video/kling-2.6",
    query: "/tasks?task_ids={id}",
    scheme: "Bearer",
};
const ALL: [Client; 7] = [KLING, FAL, ATLAS, VIDEOS, MINIMAX, RUNWAY, REPLICATE];

impl Client {
    /// Builds a request under the path of the dialect, with its key.
    pub fn request(&self, stage: &Stage, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/{}{path}", stage.url, self.name);
        let request = stage.client.request(method, url);
        let request = request.header("authorization", format!("{} {API_KEY}", self.scheme));
        match self.name {
            "runway" => request.header("x-runway-version", "2024-11-06"),
            _ => request,
        }
    }

    pub async fn call(&self, stage: &Stage, method: Method, path: &str) -> (StatusCode, Value) {
        let request = self.request(stage, method, path);
        answer(in_time(request.send()).await.unwrap()).await
    }

    /// Builds a submit as a hub sends it.
    pub fn submit_body(&self, stage: &Stage, scenario: Scenario) -> RequestBuilder {
        self.order_of(stage, &json!({"scenario": scenario}))
    }

    /// As `submit`, with other keys for the simulator.
    pub fn order_of(&self, stage: &Stage, wishes: &Value) -> RequestBuilder {
        // A separate job for each scenario.
        let hook = match wishes["scenario"].as_str() {
            Some(scenario) => format!("{}?{scenario}", stage.receiver.url()),
            None => stage.receiver.url().to_owned(),
        };
        let mut body = match self.name {
            "kling" => json!({"prompt": "a sunrise", "options": {"callback_url": hook}}),
            "fal" => json!({"prompt": "a sunrise"}),
            "atlas" => json!({"model": "a/b", "prompt": "a sunrise", "webhook_url": hook}),
            "minimax" => json!({"model": "Hailuo-02", "prompt": "a sunrise", "callback_url": hook}),
            "runway" => json!({"model": "gen4_turbo", "promptText": "a sunrise"}),
            "replicate" => json!({"input": {"prompt": "a sunrise"}, "webhook": hook}),
            _ => json!({"model": "sora-2", "prompt": "a sunrise"}),
        };
        let into = match self.name {
            "replicate" => &mut body["input"],
            _ => &mut body,
        };
        let wishes = wishes.as_object().unwrap().clone();
        into.as_object_mut().unwrap().extend(wishes);
        let path = match self.name {
            "fal" => format!("{}?fal_webhook={hook}", self.submit),
            _ => self.submit.to_owned(),
        };
        self.request(stage, Method::POST, &path).json(&body)
    }

    pub async fn submit(&self, stage: &Stage, scenario: Scenario) -> (StatusCode, Value) {
        answer(
            in_time(self.submit_body(stage, scenario).send())
                .await
                .unwrap(),
        )
        .await
    }

    /// Submits a job that is accepted, and waits until it is settled.
    pub async fn play(&self, stage: &Stage, scenario: Scenario) -> Task {
        let (status, body) = self.submit(stage, scenario).await;
        assert!(status.is_success(), "{}: {body}", self.name);
        self.rest(stage).await
    }

    /// Waits until the newest job is settled.
    pub async fn rest(&self, stage: &Stage) -> Task {
        let rest = stage.inspector.until(|inspector| {
            let mut tasks = inspector.tasks();
            tasks.retain(|task| task.dialect == self.name);
            tasks.pop().filter(|task| task.is_settled)
        });
        in_time(rest).await
    }

    fn plan(&self, scenario: Scenario) -> Plan {
        let provider = PROVIDERS
            .iter()
            .find(|(dialect, _)| dialect.name == self.name);
        provider.unwrap().0.plan(scenario).unwrap()
    }

    /// Queries a task.
    pub async fn queried(&self, stage: &Stage, task: &Task) -> Value {
        let path = self.query.replace("{id}", &task.id);
        self.call(stage, Method::GET, &path).await.1
    }
}

/// Returns the keys of an object.
pub fn keys(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// Reads a fixture.
pub fn fixture(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/");
    let text = std::fs::read_to_string(format!("{folder}{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Fetches the public key of the dialect.
pub async fn public_key(client: Client, stage: &Stage, path: &str) -> (String, Vec<u8>) {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let url = format!("{}/{}{path}", stage.url, client.name);
    let (status, set) = answer(in_time(stage.client.get(url).send()).await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);
    let key = &set["keys"][0];
    assert_eq!(
        (&key["kty"], &key["crv"]),
        (&json!("OKP"), &json!("Ed25519"))
    );
    let x = URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap();
    (key["kid"].as_str().unwrap().to_owned(), x)
}

pub fn is_ed25519(key: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

    UnparsedPublicKey::new(&ED25519, key)
        .verify(signed, signature)
        .is_ok()
}

fn is_refused(scenario: Scenario) -> bool {
    matches!(
        scenario,
        Scenario::Safety | Scenario::Quota | Scenario::BadKey
    )
}

/// Returns whether the dialect sends webhooks.
fn sends_webhooks(client: Client) -> bool {
    playable(client.name).contains(&Scenario::DuplicateWebhooks)
}

#[test]
fn every_dialect_has_a_test_client() {
    let clients: Vec<_> = ALL.iter().map(|client| client.name).collect();
    assert_eq!(clients, dialects().collect::<Vec<_>>());
    assert_eq!(PROVIDERS.len(), ALL.len());
}

#[tokio::test]
async fn every_playable_scenario_reaches_its_outcome_in_every_dialect() {
    let stage = Stage::set().await;
    for client in ALL {
        for scenario in playable(client.name) {
            let before = stage.inspector.calls_in(client.name).submits_accepted;
            let name = format!("{} {scenario}", client.name);
            let expected = if is_refused(scenario) {
                None
            } else if matches!(scenario, Scenario::FailsAtEnd | Scenario::SafetyAtEnd) {
                Some(Status::Failed)
            } else if scenario == Scenario::Silence {
                Some(Status::Submitted)
            } else {
                Some(Status::Succeeded)
            };
            // Rejected at most twice. The response may be lost.
            for _ in 0..3 {
                let sent = in_time(client.submit_body(&stage, scenario).send()).await;
                drop(sent);
                if stage.inspector.calls_in(client.name).submits_accepted > before {
                    break;
                }
            }
            match expected {
                None => {
                    let after = stage.inspector.calls_in(client.name).submits_accepted;
                    assert_eq!(after, before, "{name}");
                }
                Some(status) => {
                    let task = client.rest(&stage).await;
                    assert_eq!((task.status, task.scenario), (status, scenario), "{name}");
                    let refused = match client.plan(scenario).submit_behavior {
                        SubmitBehavior::Reject(times, _) => times,
                        SubmitBehavior::Accept | SubmitBehavior::CloseUnanswered => 0,
                        SubmitBehavior::AnswerAfterWebhook => 0,
                    };
                    let submits = stage.inspector.submits_of(&task.handle);
                    assert_eq!(
                        (submits.received, submits.accepted),
                        (refused + 1, 1),
                        "{name}"
                    );
                    let is_told = sends_webhooks(client)
                        && !matches!(
                            scenario,
                            Scenario::LostWebhooks | Scenario::LostAnswerSilent | Scenario::Silence
                        );
                    assert_eq!(task.callbacks_acknowledged > 0, is_told, "{name}");
                    assert_eq!(task.callbacks_sent, task.callbacks_acknowledged, "{name}");
                }
            }
        }
    }
}

#[tokio::test]
async fn unplayable_scenario_is_rejected_with_a_reason() {
    let stage = Stage::set().await;
    for client in ALL {
        let played = playable(client.name);
        let unplayable = Scenario::ALL
            .iter()
            .copied()
            .filter(|scenario| !played.contains(scenario));
        for scenario in unplayable {
            let (status, body) = client.submit(&stage, scenario).await;
            assert_eq!(status, StatusCode::BAD_REQUEST);
            let words = body["simulator"].as_str().unwrap();
            let begin = format!("{scenario} cannot be played in {}: ", client.name);
            assert!(words.starts_with(&begin), "{words}");
        }
    }
    assert!(stage.inspector.tasks().is_empty());
    let unplayed: Vec<_> = ALL
        .iter()
        .map(|client| 23 - playable(client.name).len())
        .collect();
    assert_eq!(unplayed, [1, 0, 2, 1, 2, 9, 1]);
}

#[tokio::test]
async fn duplicate_and_reordered_webhooks_have_unchanged_bodies() {
    for client in ALL.into_iter().filter(|client| sends_webhooks(*client)) {
        let body = async |scenario| {
            let stage = Stage::set().await;
            client.play(&stage, scenario).await;
            let callbacks = stage.receiver.all();
            callbacks
                .into_iter()
                .map(|callback| callback.raw)
                .collect::<Vec<_>>()
        };
        let twice = body(Scenario::DuplicateWebhooks).await;
        assert!(!twice.is_empty(), "{}", client.name);
        for pair in twice.chunks(2) {
            assert_eq!(pair[0], pair[1], "{}", client.name);
        }
        let reversed = body(Scenario::ReorderedWebhooks).await;
        assert_eq!(reversed.len() * 2, twice.len(), "{}", client.name);
    }
}

#[tokio::test]
async fn late_webhooks_follow_the_end_and_early_ones_precede_the_response() {
    for client in ALL.into_iter().filter(|client| sends_webhooks(*client)) {
        let stage = Stage::set().await;
        client.play(&stage, Scenario::LateWebhooks).await;
        let is_over = |callback: &Callback| callback.truth == Status::Succeeded;
        assert!(stage.receiver.all().iter().all(is_over), "{}", client.name);

        let stage = Stage::set().await;
        let (status, _) = client.submit(&stage, Scenario::WebhookBeforeAnswer).await;
        assert!(status.is_success());
        assert!(
            stage.inspector.calls().callbacks_acknowledged > 0,
            "{}",
            client.name
        );
    }
}

#[tokio::test]
async fn unsigned_webhooks_have_no_signature_header() {
    for client in ALL.into_iter().filter(|client| sends_webhooks(*client)) {
        let stage = Stage::set().await;
        client.play(&stage, Scenario::Unsigned).await;
        for callback in stage.receiver.all() {
            let names: Vec<_> = callback.headers.keys().cloned().collect();
            let is_plain = |name: &String| !name.contains("webhook");
            assert!(names.iter().all(is_plain), "{}: {names:?}", client.name);
        }
    }
}

#[tokio::test]
async fn dialects_have_separate_tasks_and_counts() {
    let stage = Stage::set().await;
    for client in ALL {
        client.play(&stage, Scenario::Normal).await;
    }
    for client in ALL {
        let counts = stage.inspector.calls_in(client.name);
        assert_eq!((counts.submits_received, counts.submits_accepted), (1, 1));
        assert_eq!(counts.queries_received, 0);
    }
    assert_eq!(stage.inspector.calls().submits_accepted, ALL.len() as u64);
    for task in stage.inspector.tasks() {
        for client in ALL {
            let path = client.query.replace("{id}", &task.id);
            let (status, body) = client.call(&stage, Method::GET, &path).await;
            let is_here = task.dialect == client.name;
            let text = body.to_string();
            assert_eq!(
                text.contains(&task.id) && status.is_success(),
                is_here,
                "{text}"
            );
        }
    }
    for client in ALL {
        let counts = stage.inspector.calls_in(client.name);
        assert_eq!((counts.queries_received, counts.tasks_queried), (7, 7));
    }
}

#[tokio::test]
async fn every_dialect_requires_the_key() {
    let stage = Stage::set().await;
    for client in ALL {
        let submit_body = client
            .submit_body(&stage, Scenario::Normal)
            .build()
            .unwrap();
        for key in [None, Some("Bearer wrong"), Some("Key wrong"), Some(API_KEY)] {
            let mut submit_body = submit_body.try_clone().unwrap();
            submit_body.headers_mut().remove("authorization");
            if let Some(key) = key {
                submit_body
                    .headers_mut()
                    .insert("authorization", key.parse().unwrap());
            }
            let (status, body) =
                answer(in_time(stage.client.execute(submit_body)).await.unwrap()).await;
            match client.name {
                "minimax" => assert_eq!(
                    (status.as_u16(), &body["base_resp"]["status_code"]),
                    (200, &json!(1004))
                ),
                _ => assert_eq!(status, StatusCode::UNAUTHORIZED, "{}", client.name),
            }
        }
    }
    assert_eq!(stage.inspector.calls().submits_accepted, 0);
}

#[tokio::test]
async fn requested_steps_are_used() {
    let stage = Stage::set().await;
    let wishes = json!({"steps": 9, "scenario": "normal"});
    in_time(KLING.order_of(&stage, &wishes).send())
        .await
        .unwrap();
    KLING.rest(&stage).await;
    assert_eq!(stage.receiver.all().len(), 11);
    for steps in [json!(-1), json!("9"), json!(10_001)] {
        for client in ALL {
            let submit_body = client.order_of(&stage, &json!({ "steps": steps }));
            let (status, body) = answer(in_time(submit_body.send()).await.unwrap()).await;
            match client.name {
                "minimax" => assert_eq!(body["base_resp"]["status_code"], 2013),
                _ => assert!(status.is_client_error(), "{} {steps}", client.name),
            }
        }
    }
}

#[tokio::test]
async fn clips_are_served_under_their_dialect_and_counted() {
    let stage = Stage::set().await;
    for client in ALL {
        let url = format!("{}/{}/clips/7.mp4", stage.url, client.name);
        let clip = in_time(stage.client.get(url).send()).await.unwrap();
        assert_eq!(clip.status(), StatusCode::OK);
        assert_eq!(stage.inspector.calls_in(client.name).downloads, 1);
    }
}
