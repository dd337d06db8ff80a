//! Every way in which providers prove their webhooks, over real HTTP: by secrets, by keys that they
//! publish, by several ways at once, and by none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use progress_hub::config::Config;
use progress_hub::provider::HttpClient;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, TestResponse, WEBHOOK_SECRET, send};
use crate::issuer::Signer;
use crate::mock_provider::{MockProvider, MockResponse};
use crate::webhook_signatures;

const FAL: &str = r#"
scheme = "ed25519"
header = "x-fal-webhook-signature"
encoding = "hex"
timestamp_header = "x-fal-webhook-timestamp"
id_header = "x-fal-webhook-request-id"
signed = "{header:x-fal-webhook-request-id}\n{header:x-fal-webhook-user-id}\n{header:x-fal-webhook-timestamp}\n{sha256:body}"
"#;

const ATLAS: &str = r#"
scheme = "ed25519"
header = ["x-atlascloud-webhook-signature-ed25519", "x-atlascloud-webhook-signature"]
encoding = "base64url"
timestamp_header = "x-atlascloud-webhook-timestamp"
key_id_header = "x-atlascloud-webhook-key-id"
signed = "{header:x-atlascloud-webhook-timestamp}.{body}"
"#;

const GEMINI: &str = r#"
scheme = "standard_webhooks"
[[signature]]
scheme = "jwt"
header = "webhook-signature"
issuer = "https://issuer.example.com"
"#;

pub const POLL: &str = "[poll]\nurl = '{{ base_url }}/tasks/{{ tasks[0] }}'\n";

pub type Headers = Vec<(String, String)>;

/// A hub with a provider `acme` that proves its webhooks so, and tells of its tasks in the plainest way.
pub struct Acme {
    builder: TestAppBuilder,
    folder: TempDir,
}

impl Acme {
    pub fn new(signature: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acme.toml");
        let spec = format!(
            "title = 'Acme'\nbase_url = 'http://127.0.0.1:9'\n[[signature]]\n{signature}\n{more}\n\
             [read]\ntask_id = 'payload.id'\nreference = 'payload.reference'\nstatus = 'payload.status'\n\
             outputs = 'payload.outputs'\n[read.statuses]\nqueued = 'queued'\nrunning = 'running'\n\
             done = 'succeeded'\n"
        );
        std::fs::write(&path, spec).unwrap();
        let builder = TestApp::builder().set("providers.acme.spec", path.display());
        Self { builder, folder }
    }

    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.builder = self.builder.set(&format!("providers.acme.{key}"), value);
        self
    }

    pub async fn spawn(self) -> TestApp {
        let app = self.builder.spawn().await;
        drop(self.folder);
        app
    }

    /// What is wrong with it.
    fn mistakes(self, settings: &[(&str, &str)]) -> Vec<String> {
        let path = self.folder.path().join("acme.toml").display().to_string();
        let set = |key: &str, value: &str| (format!("providers.acme.{key}"), value.to_owned());
        let secret = "a secret of at least thirty-two bytes";
        let mut flags = vec![("auth.hs256_secrets".to_owned(), secret.to_owned())];
        flags.push(set("spec", &path));
        flags.extend(settings.iter().map(|(key, value)| set(key, value)));
        let config = Config::load(None, std::iter::empty(), flags).unwrap();
        let checked = progress_hub::server::validate(&config, &HttpClient::new().unwrap());
        let mistakes = checked.err().unwrap_or_default();
        let mistakes = mistakes.iter().map(ToString::to_string);
        mistakes.map(|text| text.replace(&path, "acme")).collect()
    }
}

/// A place that publishes keys, and anything else that is asked for at `/tasks`.
struct Publisher {
    standin: MockProvider,
    published: Arc<Mutex<Option<Value>>>,
}

impl Publisher {
    async fn start() -> Self {
        let published = Arc::new(Mutex::new(None));
        let shown = Arc::clone(&published);
        let standin = MockProvider::start(move |asked| {
            let reply = match &*shown.lock().unwrap() {
                _ if asked.path.starts_with("/tasks/") => {
                    let task = asked.path.trim_start_matches("/tasks/");
                    MockResponse::json(200, &json!({ "id": task, "status": "running" }))
                }
                Some(keys) => MockResponse::json(200, &json!({ "keys": keys })),
                None => MockResponse::text(502, "out of order"),
            };
            async move { reply }
        });
        Self {
            standin: standin.await,
            published,
        }
    }

    fn publish(&self, keys: impl IntoIterator<Item = Value>) {
        *self.published.lock().unwrap() = Some(keys.into_iter().collect());
    }

    fn url(&self) -> String {
        format!("{}/keys", self.standin.url)
    }

    fn fetches(&self) -> usize {
        let asked = self.standin.requests();
        asked.iter().filter(|asked| asked.path == "/keys").count()
    }
}

struct Ed25519(Ed25519KeyPair);

impl Ed25519 {
    fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    fn jwk(&self, kid: &str) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x })
    }

    fn fal(&self, body: &str) -> Headers {
        let now = webhook_signatures::now();
        let digest = hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref());
        let content = format!("request-1\nuser-1\n{now}\n{digest}");
        owned_headers(&[
            ("X-Fal-Webhook-Request-Id", "request-1"),
            ("X-Fal-Webhook-User-Id", "user-1"),
            ("X-Fal-Webhook-Timestamp", &now.to_string()),
            (
                "X-Fal-Webhook-Signature",
                &hex(self.0.sign(content.as_bytes()).as_ref()),
            ),
        ])
    }

    fn atlas(&self, kid: &str, body: &str) -> Headers {
        let now = webhook_signatures::now();
        let tag = self.0.sign(format!("{now}.{body}").as_bytes());
        owned_headers(&[
            ("X-AtlasCloud-Webhook-Timestamp", &now.to_string()),
            ("X-AtlasCloud-Webhook-Key-Id", kid),
            (
                "X-AtlasCloud-Webhook-Signature-Ed25519",
                &URL_SAFE_NO_PAD.encode(tag),
            ),
        ])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn owned_headers(headers: &[(&str, &str)]) -> Headers {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    headers.iter().map(pair).collect()
}

pub fn standard_headers(secret: &str, body: &str) -> Headers {
    let headers =
        webhook_signatures::standard(secret, "1", webhook_signatures::now(), body.as_bytes());
    let pair = |(name, value): (&str, String)| (name.to_owned(), value);
    headers.into_iter().map(pair).collect()
}

pub async fn post_webhook(
    app: &TestApp,
    path: &str,
    headers: &Headers,
    body: &str,
) -> TestResponse {
    let mut request = app.request_without_token(Method::POST, &format!("/v1/webhooks/{path}"));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    send(request.body(body.to_owned())).await
}

fn news(task: &str) -> String {
    json!({ "id": task, "status": "running" }).to_string()
}

/// A job of alice's that was submitted elsewhere.
pub async fn register_task(app: &TestApp, task: &str) -> String {
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "acme", "provider_task_id": task, "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let answer = send(request.json(&body)).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.body["id"].as_str().unwrap().to_owned()
}

#[track_caller]
pub fn assert_accepted(answer: &TestResponse, matched: bool, applied: bool) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let expected = json!({ "matched": matched, "applied": applied });
    assert_eq!(answer.body, expected);
}

#[track_caller]
pub fn assert_rejected(answer: &TestResponse) {
    assert_eq!(answer.status, 401, "{}", answer.body);
    assert_eq!(answer.body["code"], "invalid_signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_keys_are_fetched_once_and_prove_its_webhooks() {
    let (publisher, key) = (Publisher::start().await, Ed25519::new());
    publisher.publish([Ed25519::new().jwk("other"), key.jwk("k")]);
    for scheme in [FAL, ATLAS] {
        let before = publisher.fetches();
        let app = Acme::new(scheme, "").set("jwks_url", publisher.url());
        let app = app.spawn().await;
        register_task(&app, "1").await;
        let sign = |body: &str| match scheme {
            FAL => key.fal(body),
            _ => key.atlas("k", body),
        };
        let body = news("1");
        assert_accepted(
            &post_webhook(&app, "acme", &sign(&body), &body).await,
            true,
            true,
        );
        for _ in 0..20 {
            assert_accepted(
                &post_webhook(&app, "acme", &sign(&body), &body).await,
                true,
                false,
            );
        }
        assert_eq!(publisher.fetches() - before, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_or_missing_is_refused() {
    let (publisher, key) = (Publisher::start().await, Ed25519::new());
    publisher.publish([key.jwk("k")]);
    let app = Acme::new(ATLAS, "").set("jwks_url", publisher.url());
    let app = app.spawn().await;
    let id = register_task(&app, "1").await;
    let body = news("1");
    let headers = key.atlas("k", &body);
    for at in 0..body.len() {
        let mut bytes = body.clone().into_bytes();
        bytes[at] ^= 1;
        let changed = String::from_utf8(bytes).unwrap();
        assert_rejected(&post_webhook(&app, "acme", &headers, &changed).await);
    }
    for header in 0..headers.len() {
        let mut changed = headers.clone();
        let middle = changed[header].1.len() / 2;
        let mut bytes = changed[header].1.clone().into_bytes();
        bytes[middle] ^= 1;
        changed[header].1 = String::from_utf8(bytes).unwrap();
        assert_rejected(&post_webhook(&app, "acme", &changed, &body).await);
    }
    for header in ["timestamp", "ed25519"] {
        let mut fewer = headers.clone();
        fewer.retain(|(name, _)| !name.to_lowercase().ends_with(header));
        assert_rejected(&post_webhook(&app, "acme", &fewer, &body).await);
    }
    assert_eq!(app.get_job(&id, "alice").await["version"], 1);
    assert_accepted(
        &post_webhook(&app, "acme", &headers, &body).await,
        true,
        true,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn other_signature_schemes_are_rejected() {
    let (publisher, key) = (Publisher::start().await, Ed25519::new());
    publisher.publish([key.jwk("k")]);
    let public = key.jwk("k")["x"].as_str().unwrap().to_owned();
    for more in ["", POLL] {
        let app = Acme::new(FAL, more).set("jwks_url", publisher.url());
        let app = app.spawn().await;
        register_task(&app, "1").await;
        let body = news("1");
        let now = webhook_signatures::now().to_string();
        let mac = webhook_signatures::hex(&public, body.as_bytes());
        let mut hmac = key.fal(&body);
        hmac[3].1.clone_from(&mac);
        for headers in [
            Headers::new(),
            owned_headers(&[("x-ai-signature", &mac)]),
            owned_headers(&[("X-Fal-Webhook-Signature", &mac)]),
            owned_headers(&[
                ("X-Fal-Webhook-Timestamp", &now),
                ("X-Fal-Webhook-Signature", &mac),
            ]),
            hmac,
            standard_headers(WEBHOOK_SECRET, &body),
            Ed25519::new().fal(&body),
            key.fal("another body"),
        ] {
            assert_rejected(&post_webhook(&app, "acme", &headers, &body).await);
        }
        assert_accepted(
            &post_webhook(&app, "acme", &key.fal(&body), &body).await,
            true,
            true,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_gets_503_until_jwks_is_available() {
    let (publisher, key) = (Publisher::start().await, Ed25519::new());
    let app = Acme::new(ATLAS, POLL).set("jwks_url", publisher.url());
    let app = app.spawn().await;
    let id = register_task(&app, "1").await;
    let body = news("1");
    let stranger = Ed25519::new();
    for n in 0..20 {
        for signer in [&key, &stranger] {
            let kid = format!("k{n}");
            let answer = post_webhook(&app, "acme", &signer.atlas(&kid, &body), &body).await;
            assert_eq!(answer.status, 503, "{}", answer.body);
            assert_eq!(answer.body["code"], "keys_unavailable");
            assert_eq!(answer.body["retryable"], true);
            let wait: u64 = answer.headers["retry-after"]
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            assert!((1..=60).contains(&wait), "{wait}");
        }
        // What no key could prove is refused all the same.
        assert_rejected(&post_webhook(&app, "acme", &Headers::new(), &body).await);
    }
    assert!(publisher.fetches() <= 3, "{}", publisher.fetches());
    assert_eq!(app.get_job(&id, "alice").await["version"], 1);

    publisher.publish([key.jwk("k")]);
    let retried = async {
        loop {
            let answer = post_webhook(&app, "acme", &key.atlas("k", &body), &body).await;
            if answer.status != 503 {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    let answer = tokio::time::timeout(TEST_TIMEOUT, retried).await;
    assert_accepted(&answer.expect("it is heard in time"), true, true);

    // Keys that were had once stay.
    *publisher.published.lock().unwrap() = None;
    let answer = post_webhook(&app, "acme", &key.atlas("k", &body), &body).await;
    assert_accepted(&answer, true, false);
    let answer = post_webhook(&app, "acme", &stranger.atlas("new", &body), &body).await;
    assert_rejected(&answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_key_is_fetched_and_unknown_keys_are_rate_limited() {
    for scheme in [FAL, ATLAS] {
        let publisher = Publisher::start().await;
        let (old, new, stranger) = (Ed25519::new(), Ed25519::new(), Ed25519::new());
        publisher.publish([old.jwk("old")]);
        let app = Acme::new(scheme, "").set("jwks_url", publisher.url());
        let app = app.spawn().await;
        register_task(&app, "1").await;
        let body = news("1");
        let sign = |key: &Ed25519, kid: &str| match scheme {
            FAL => key.fal(&body),
            _ => key.atlas(kid, &body),
        };
        assert_accepted(
            &post_webhook(&app, "acme", &sign(&old, "old"), &body).await,
            true,
            true,
        );
        publisher.publish([new.jwk("new")]);
        assert_accepted(
            &post_webhook(&app, "acme", &sign(&new, "new"), &body).await,
            true,
            false,
        );
        assert_eq!(publisher.fetches(), 2);
        assert_rejected(&post_webhook(&app, "acme", &sign(&old, "old"), &body).await);
        let flood = (0..50).map(|n| {
            let (app, body) = (&app, &body);
            let headers = sign(&stranger, &format!("unknown-{n}"));
            async move { assert_rejected(&post_webhook(app, "acme", &headers, body).await) }
        });
        futures_util::future::join_all(flood).await;
        assert_eq!(publisher.fetches(), 2);
        assert_accepted(
            &post_webhook(&app, "acme", &sign(&new, "new"), &body).await,
            true,
            false,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_matching_scheme_decides_the_trust_level() {
    let (publisher, signer) = (Publisher::start().await, Signer::rsa());
    publisher.publish([signer.jwk("k")]);
    let acme = Acme::new(GEMINI, POLL).set("jwks_url", publisher.url());
    let acme = acme.set("base_url", &publisher.standin.url);
    let app = acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await;
    let url = format!("{}/v1/webhooks/acme", app.url);
    let in_a_minute = webhook_signatures::now() + 60;
    let claims = json!({ "iss": "https://issuer.example.com", "aud": url, "exp": in_a_minute });
    let token = |claims: &Value| {
        let token = signer.sign(Some("k"), claims);
        owned_headers(&[("webhook-signature", &token), ("webhook-id", "1")])
    };

    // A token proves the sender, so what it says is asked about.
    let id = register_task(&app, "1").await;
    let lie = json!({ "id": "1", "status": "done", "outputs": ["https://a.example/a.mp4"] });
    let answer = post_webhook(&app, "acme", &token(&claims), &lie.to_string()).await;
    assert_accepted(&answer, true, false);
    let job = app
        .wait_for_job(&id, "alice", |job| job["status"] == "running")
        .await;
    assert_eq!(job["source"], "poll");

    // A secret proves the body.
    let id = register_task(&app, "2").await;
    let body = json!({ "id": "2", "status": "done", "outputs": ["https://a.example/a.mp4"] });
    let body = body.to_string();
    let answer = post_webhook(
        &app,
        "acme",
        &standard_headers(WEBHOOK_SECRET, &body),
        &body,
    )
    .await;
    assert_accepted(&answer, true, true);
    assert_eq!(app.get_job(&id, "alice").await["source"], "webhook");

    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let mut without_end = claims.clone();
    without_end.as_object_mut().unwrap().remove("exp");
    for wrong in [
        with("aud", json!(format!("{url}/another"))),
        with("aud", json!("https://elsewhere.example.com")),
        with("iss", json!("https://elsewhere.example.com")),
        with("exp", json!(webhook_signatures::now() - 301)),
        without_end,
    ] {
        assert_rejected(&post_webhook(&app, "acme", &token(&wrong), &body).await);
    }
    let stranger = Signer::rsa().sign(Some("k"), &claims);
    for headers in [
        Headers::new(),
        owned_headers(&[("webhook-signature", &stranger)]),
        standard_headers("whsec_c3RyYW5nZXJzdHJhbmdlcnN0cmFuZ2Vyc3RyYW5nZXI=", &body),
    ] {
        assert_rejected(&post_webhook(&app, "acme", &headers, &body).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_secret_is_refused_though_other_keys_cannot_be_had() {
    let publisher = Publisher::start().await;
    let acme = Acme::new(GEMINI, POLL).set("jwks_url", publisher.url());
    let app = acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await;
    register_task(&app, "1").await;
    let body = news("1");
    let mut forged = standard_headers(WEBHOOK_SECRET, &body);
    forged[2].1 = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned();
    assert_rejected(&post_webhook(&app, "acme", &forged, &body).await);
    assert_eq!(publisher.fetches(), 0);
    let signed = standard_headers(WEBHOOK_SECRET, &body);
    assert_accepted(
        &post_webhook(&app, "acme", &signed, &body).await,
        true,
        true,
    );
    let token = Signer::rsa().sign(None, &json!({ "exp": webhook_signatures::now() + 60 }));
    let answer = post_webhook(
        &app,
        "acme",
        &owned_headers(&[("webhook-signature", &token)]),
        &body,
    )
    .await;
    assert_eq!(answer.status, 503, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_the_address_that_the_provider_was_given() {
    let (publisher, signer) = (Publisher::start().await, Signer::p256());
    publisher.publish([signer.jwk("k")]);
    let submit =
        "[submit]\nurl = '{{ base_url }}/tasks/7'\nbody = \"{'callback': callback_url}\"\n";
    let acme = Acme::new(GEMINI, &format!("{POLL}{submit}")).set("jwks_url", publisher.url());
    let acme = acme.set("base_url", &publisher.standin.url);
    let app = acme.spawn().await;
    let job = json!({ "provider": "acme", "model": "m", "prompt": "p" });
    let request = app.request(Method::POST, "/v1/videos", "alice").json(&job);
    assert_eq!(send(request).await.status, 202);
    let asked = publisher
        .standin
        .wait_for_requests(|all| !all.is_empty())
        .await;
    let url = asked[0].body["callback"].as_str().unwrap();
    let path = url.split_once("/v1/webhooks/").unwrap().1;
    let answer_for = async |audience: &str| {
        let claims = json!({
            "iss": "https://issuer.example.com",
            "aud": audience,
            "exp": webhook_signatures::now() + 60,
        });
        let token = signer.sign(Some("k"), &claims);
        let headers = owned_headers(&[("webhook-signature", &token)]);
        post_webhook(&app, path, &headers, &news("7")).await
    };
    assert_accepted(&answer_for(url).await, true, false);
    assert_rejected(&answer_for(&format!("{}/v1/webhooks/acme", app.url)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn static_token_is_trusted_only_without_polling() {
    let publisher = Publisher::start().await;
    let scheme = "scheme = 'static_token'\nheader = 'authorization'\nprefix = 'Bearer '";
    let body = news("1");
    for (more, applied) in [("", true), (POLL, false)] {
        let acme = Acme::new(scheme, more).set("webhook_secrets", "abc");
        let app = acme.set("base_url", &publisher.standin.url).spawn().await;
        let id = register_task(&app, "1").await;
        let good = owned_headers(&[("Authorization", "Bearer abc")]);
        assert_accepted(
            &post_webhook(&app, "acme", &good, &body).await,
            true,
            applied,
        );
        let job = app
            .wait_for_job(&id, "alice", |job| job["status"] == "running")
            .await;
        assert_eq!(job["source"], if applied { "webhook" } else { "poll" });
        for wrong in ["Bearer abcd", "Bearer ", "xyz"] {
            let headers = owned_headers(&[("Authorization", wrong)]);
            assert_rejected(&post_webhook(&app, "acme", &headers, &body).await);
        }
    }
}

#[test]
fn spec_without_trusted_webhook_or_polling_is_rejected() {
    let kie = "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'base64'\nsigned = '{json:/id}'";
    let jwt = "scheme = 'jwt'\nheader = 'x'\njwks_url = 'https://keys.example.com'";
    for scheme in ["scheme = 'none'", kie, jwt] {
        let found = Acme::new(scheme, "").mistakes(&[("webhook_secrets", "s")]);
        let said = found
            .iter()
            .any(|text| text.starts_with("providers.acme.spec: 'acme': signature: proves no body"));
        assert!(said, "{scheme}: {found:?}");
        let found = Acme::new(scheme, POLL).mistakes(&[]);
        assert_eq!(found, [""; 0], "{scheme}");
    }
    let needed = [
        "providers.acme.jwks_url: is needed: the spec does not say where the provider publishes its keys",
    ];
    assert_eq!(Acme::new(FAL, POLL).mistakes(&[]), needed);
    let token = "scheme = 'static_token'\nheader = 'x'";
    assert_eq!(Acme::new(token, "").mistakes(&[]), [""; 0]);
    let two = Acme::new(GEMINI, POLL).mistakes(&[
        ("jwks_url", "https://keys.example.com"),
        ("webhook_secrets", "%%"),
    ]);
    assert_eq!(two.len(), 1, "{two:?}");
    assert!(two[0].contains("not a Standard Webhooks secret"), "{two:?}");
    let none = Acme::new(
        "scheme = 'none'\n[[signature]]\nscheme = 'standard_webhooks'",
        POLL,
    );
    let none = none.mistakes(&[]);
    assert!(none[0].contains("'none' cannot be combined"), "{none:?}");
}

/// The schemes that the vectors speak of.
fn vector_scheme(name: &str) -> &'static str {
    match name {
        "standard_webhooks_v1" => "scheme = 'standard_webhooks'",
        "hmac_hex_body" => "scheme = 'hmac'\nheader = 'x-ai-signature'\nencoding = 'hex'",
        "hmac_tv1_comma" => {
            "scheme = 'hmac'\nheader = 'x-openrouter-signature'\nencoding = 'hex'\n\
             signature_field = 'v1'\ntimestamp_field = 't'\nsigned = '{t},{body}'"
        }
        "fal_ed25519" => FAL,
        "atlas_ed25519" => ATLAS,
        "static_header_secret" => "scheme = 'static_token'\nheader = 'x-webhook-secret'",
        other => panic!("a vector of an unknown scheme: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_without_a_time_hold_today_and_all_others_are_too_old() {
    let publisher = Publisher::start().await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vectors.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut apps: BTreeMap<String, TestApp> = BTreeMap::new();
    for vector in file["vectors"].as_array().unwrap() {
        let (name, scheme) = (&vector["name"], vector["scheme"].as_str().unwrap());
        let secret = vector["secret"].as_str().unwrap_or_default();
        if let Some(keys) = vector["jwks"]["keys"].as_array() {
            publisher.publish(keys.clone());
        }
        let account = format!("{scheme} {secret}");
        if !apps.contains_key(&account) {
            // Every body counts here, whatever it says: what matters is whether it is let in.
            let more = "[webhook]\nitem = \"{'id': 'x', 'status': 'running'}\"";
            let mut acme = Acme::new(vector_scheme(scheme), more);
            acme = match secret {
                "" => acme.set("jwks_url", publisher.url()),
                secret => acme.set("webhook_secrets", secret),
            };
            apps.insert(account.clone(), acme.spawn().await);
        }
        let headers = vector["headers"].as_object().unwrap();
        let pair =
            |(name, value): (&String, &Value)| (name.clone(), value.as_str().unwrap().to_owned());
        let headers: Headers = headers.into_iter().map(pair).collect();
        let body = vector["body"].as_str().unwrap();
        let answer = post_webhook(&apps[&account], "acme", &headers, body).await;
        let is_timeless = matches!(scheme, "hmac_hex_body" | "static_header_secret");
        let is_good = vector["valid"] == true && is_timeless;
        assert_eq!(answer.status, if is_good { 200 } else { 401 }, "{name}");
        let is_late = vector["valid"] == true && !is_timeless;
        if is_late {
            let detail = "timestamp is outside the tolerance";
            assert_eq!(answer.body["detail"], detail, "{name}");
        }
    }
}
