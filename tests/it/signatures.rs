//! Webhook signature verification over HTTP: shared secrets, published keys, several schemes of one
//! provider, and unsigned webhooks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use progress_hub::config::Config;
use progress_hub::provider::HttpClient;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TestApp, TestAppBuilder, TestResponse, WEBHOOK_SECRET, send};
use crate::issuer::Signer;
use crate::mock_provider::{MockProvider, MockResponse};
use crate::wait::wait_for;
use crate::webhook_signatures;

/// A hub without keys fetches them again after three seconds at the earliest.
const MIN_SECONDS_BETWEEN_FETCHES: u64 = 3;

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

/// A hub with the provider `acme`, which signs its webhooks with the given scheme.
pub struct Acme {
    builder: TestAppBuilder,
    spec_dir: TempDir,
}

impl Acme {
    /// Writes the provider's spec. `signature` is the content of `[[signature]]`, `more` further TOML.
    pub fn new(signature: &str, more: &str) -> Self {
        let spec_dir = tempfile::tempdir().unwrap();
        let path = spec_dir.path().join("acme.toml");
        let spec = format!(
            "title = 'Acme'\nbase_url = 'http://127.0.0.1:9'\n[[signature]]\n{signature}\n{more}\n\
             [read]\ntask_id = 'payload.id'\nreference = 'payload.reference'\nstatus = 'payload.status'\n\
             outputs = 'payload.outputs'\n[read.statuses]\nqueued = 'queued'\nrunning = 'running'\n\
             done = 'succeeded'\n"
        );
        std::fs::write(&path, spec).unwrap();
        let builder = TestApp::builder().set("providers.acme.spec", path.display());
        Self { builder, spec_dir }
    }

    /// Sets a key below `providers.acme`.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.builder = self.builder.set(&format!("providers.acme.{key}"), value);
        self
    }

    pub async fn spawn(self) -> TestApp {
        self.builder.spawn().await
    }

    /// Returns the configuration errors with these settings.
    fn config_errors(self, settings: &[(&str, &str)]) -> Vec<String> {
        let path = self.spec_dir.path().join("acme.toml").display().to_string();
        let set = |key: &str, value: &str| (format!("providers.acme.{key}"), value.to_owned());
        let secret = "a secret of at least thirty-two bytes";
        let mut flags = vec![("auth.hs256_secrets".to_owned(), secret.to_owned())];
        flags.push(set("spec", &path));
        flags.extend(settings.iter().map(|(key, value)| set(key, value)));
        let config = Config::load(None, std::iter::empty(), flags).unwrap();
        let result = progress_hub::server::validate(&config, &HttpClient::new().unwrap());
        let errors = result.err().unwrap_or_default();
        errors
            .iter()
            .map(|error| error.to_string().replace(&path, "acme"))
            .collect()
    }
}

/// Serves a JWKS at `/keys`. Reports every task below `/tasks/` as running.
struct KeyServer {
    server: MockProvider,
    keys: Arc<Mutex<Option<Value>>>,
}

impl KeyServer {
    /// Starts without keys: `/keys` answers 502.
    async fn start() -> Self {
        let keys = Arc::new(Mutex::new(None));
        let served = Arc::clone(&keys);
        let server = MockProvider::start(move |request| {
            let response = match (
                request.path.strip_prefix("/tasks/"),
                &*served.lock().unwrap(),
            ) {
                (Some(task), _) => {
                    MockResponse::json(200, &json!({ "id": task, "status": "running" }))
                }
                (None, Some(keys)) => MockResponse::json(200, &json!({ "keys": keys })),
                (None, None) => MockResponse::text(502, "unavailable"),
            };
            async move { response }
        });
        Self {
            server: server.await,
            keys,
        }
    }

    fn publish(&self, keys: impl IntoIterator<Item = Value>) {
        *self.keys.lock().unwrap() = Some(keys.into_iter().collect());
    }

    fn take_down(&self) {
        *self.keys.lock().unwrap() = None;
    }

    fn url(&self) -> String {
        format!("{}/keys", self.server.url)
    }

    /// Counts the requests for the keys.
    fn fetches(&self) -> usize {
        let requests = self.server.requests();
        requests
            .iter()
            .filter(|request| request.path == "/keys")
            .count()
    }
}

struct Ed25519Signer(Ed25519KeyPair);

impl Ed25519Signer {
    fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    fn jwk(&self, kid: &str) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x })
    }

    /// Signs a body as fal does.
    fn fal_headers(&self, body: &str) -> Headers {
        let now = webhook_signatures::now();
        let digest =
            webhook_signatures::to_hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref());
        let content = format!("request-1\nuser-1\n{now}\n{digest}");
        owned_headers(&[
            ("X-Fal-Webhook-Request-Id", "request-1"),
            ("X-Fal-Webhook-User-Id", "user-1"),
            ("X-Fal-Webhook-Timestamp", &now.to_string()),
            (
                "X-Fal-Webhook-Signature",
                &webhook_signatures::to_hex(self.0.sign(content.as_bytes()).as_ref()),
            ),
        ])
    }

    /// Signs a body as Atlas does.
    fn atlas_headers(&self, kid: &str, body: &str) -> Headers {
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

/// Returns the headers as owned strings.
pub fn owned_headers(headers: &[(&str, &str)]) -> Headers {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    headers.iter().map(pair).collect()
}

/// Returns the Standard Webhooks headers for a body, signed now.
pub fn standard_headers(secret: &str, body: &str) -> Headers {
    let headers =
        webhook_signatures::standard(secret, "1", webhook_signatures::now(), body.as_bytes());
    let pair = |(name, value): (&str, String)| (name.to_owned(), value);
    headers.into_iter().map(pair).collect()
}

/// Sends a webhook to `/v1/webhooks/{path}`.
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

/// Returns a body that reports the task as running.
fn running(task: &str) -> String {
    json!({ "id": task, "status": "running" }).to_string()
}

/// Registers a job of `alice` for a task that another system submitted. Returns the job id.
pub async fn register_task(app: &TestApp, task: &str) -> String {
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "provider": "acme", "provider_task_id": task, "owner": "alice" });
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 201, "{}", response.body);
    response.body["id"].as_str().unwrap().to_owned()
}

/// Asserts that the webhook was accepted, matched a job or not, and changed it or not.
#[track_caller]
pub fn assert_accepted(response: &TestResponse, matched: bool, applied: bool) {
    assert_eq!(response.status, 200, "{}", response.body);
    let expected = json!({ "matched": matched, "applied": applied });
    assert_eq!(response.body, expected);
}

/// Asserts that the webhook was rejected because of its signature.
#[track_caller]
pub fn assert_rejected(response: &TestResponse) {
    assert_eq!(response.status, 401, "{}", response.body);
    assert_eq!(response.body["code"], "invalid_signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_keys_are_fetched_once_and_verify_webhooks() {
    let (key_server, key) = (KeyServer::start().await, Ed25519Signer::new());
    key_server.publish([Ed25519Signer::new().jwk("other"), key.jwk("k")]);
    for scheme in [FAL, ATLAS] {
        let before = key_server.fetches();
        let app = Acme::new(scheme, "").set("jwks_url", key_server.url());
        let app = app.spawn().await;
        register_task(&app, "1").await;
        let sign = |body: &str| match scheme {
            FAL => key.fal_headers(body),
            _ => key.atlas_headers("k", body),
        };
        let body = running("1");
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
        assert_eq!(key_server.fetches() - before, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn modified_or_incomplete_webhook_is_rejected() {
    let (key_server, key) = (KeyServer::start().await, Ed25519Signer::new());
    key_server.publish([key.jwk("k")]);
    let app = Acme::new(ATLAS, "").set("jwks_url", key_server.url());
    let app = app.spawn().await;
    let id = register_task(&app, "1").await;
    let body = running("1");
    let headers = key.atlas_headers("k", &body);
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
        let mut incomplete = headers.clone();
        incomplete.retain(|(name, _)| !name.to_lowercase().ends_with(header));
        assert_rejected(&post_webhook(&app, "acme", &incomplete, &body).await);
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
    let (key_server, key) = (KeyServer::start().await, Ed25519Signer::new());
    key_server.publish([key.jwk("k")]);
    let public = key.jwk("k")["x"].as_str().unwrap().to_owned();
    for more in ["", POLL] {
        let app = Acme::new(FAL, more).set("jwks_url", key_server.url());
        let app = app.spawn().await;
        register_task(&app, "1").await;
        let body = running("1");
        let now = webhook_signatures::now().to_string();
        let mac = webhook_signatures::hex(&public, body.as_bytes());
        let mut hmac = key.fal_headers(&body);
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
            Ed25519Signer::new().fal_headers(&body),
            key.fal_headers("another body"),
        ] {
            assert_rejected(&post_webhook(&app, "acme", &headers, &body).await);
        }
        assert_accepted(
            &post_webhook(&app, "acme", &key.fal_headers(&body), &body).await,
            true,
            true,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_gets_503_until_jwks_is_available() {
    let (key_server, key) = (KeyServer::start().await, Ed25519Signer::new());
    let app = Acme::new(ATLAS, POLL).set("jwks_url", key_server.url());
    let app = app.spawn().await;
    let id = register_task(&app, "1").await;
    let body = running("1");
    let unknown = Ed25519Signer::new();
    let started_at = Instant::now();
    for n in 0..20 {
        for signer in [&key, &unknown] {
            let kid = format!("k{n}");
            let response =
                post_webhook(&app, "acme", &signer.atlas_headers(&kid, &body), &body).await;
            assert_eq!(response.status, 503, "{}", response.body);
            assert_eq!(response.body["code"], "keys_unavailable");
            assert_eq!(response.body["retryable"], true);
            let wait: u64 = response.headers["retry-after"]
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            assert!((1..=60).contains(&wait), "{wait}");
        }
        // A webhook without signature headers is rejected without any key.
        assert_rejected(&post_webhook(&app, "acme", &Headers::new(), &body).await);
    }
    let max_fetches = 1 + started_at.elapsed().as_secs() / MIN_SECONDS_BETWEEN_FETCHES;
    assert!(
        key_server.fetches() as u64 <= max_fetches,
        "{} fetches, maximum {max_fetches}",
        key_server.fetches()
    );
    assert_eq!(app.get_job(&id, "alice").await["version"], 1);

    key_server.publish([key.jwk("k")]);
    let response = wait_for("the keys are available", async || {
        let headers = key.atlas_headers("k", &body);
        let response = post_webhook(&app, "acme", &headers, &body).await;
        (response.status != 503).then_some(response)
    })
    .await;
    assert_accepted(&response, true, true);

    // Cached keys stay valid when the endpoint fails.
    key_server.take_down();
    let response = post_webhook(&app, "acme", &key.atlas_headers("k", &body), &body).await;
    assert_accepted(&response, true, false);
    let response = post_webhook(&app, "acme", &unknown.atlas_headers("new", &body), &body).await;
    assert_rejected(&response);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_key_is_fetched_and_unknown_keys_are_rate_limited() {
    for scheme in [FAL, ATLAS] {
        let key_server = KeyServer::start().await;
        let (old, new, unknown) = (
            Ed25519Signer::new(),
            Ed25519Signer::new(),
            Ed25519Signer::new(),
        );
        key_server.publish([old.jwk("old")]);
        let app = Acme::new(scheme, "").set("jwks_url", key_server.url());
        let app = app.spawn().await;
        register_task(&app, "1").await;
        let body = running("1");
        let sign = |key: &Ed25519Signer, kid: &str| match scheme {
            FAL => key.fal_headers(&body),
            _ => key.atlas_headers(kid, &body),
        };
        assert_accepted(
            &post_webhook(&app, "acme", &sign(&old, "old"), &body).await,
            true,
            true,
        );
        key_server.publish([new.jwk("new")]);
        assert_accepted(
            &post_webhook(&app, "acme", &sign(&new, "new"), &body).await,
            true,
            false,
        );
        assert_eq!(key_server.fetches(), 2);
        assert_rejected(&post_webhook(&app, "acme", &sign(&old, "old"), &body).await);
        let flood = (0..50).map(|n| {
            let (app, body) = (&app, &body);
            let headers = sign(&unknown, &format!("unknown-{n}"));
            async move { assert_rejected(&post_webhook(app, "acme", &headers, body).await) }
        });
        futures_util::future::join_all(flood).await;
        assert_eq!(key_server.fetches(), 2);
        assert_accepted(
            &post_webhook(&app, "acme", &sign(&new, "new"), &body).await,
            true,
            false,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_matching_scheme_decides_the_trust_level() {
    let (key_server, signer) = (KeyServer::start().await, Signer::rsa());
    key_server.publish([signer.jwk("k")]);
    let acme = Acme::new(GEMINI, POLL).set("jwks_url", key_server.url());
    let acme = acme.set("base_url", &key_server.server.url);
    let app = acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await;
    let url = format!("{}/v1/webhooks/acme", app.url);
    let in_a_minute = webhook_signatures::now() + 60;
    let claims = json!({ "iss": "https://issuer.example.com", "aud": url, "exp": in_a_minute });
    let token = |claims: &Value| {
        let token = signer.sign(Some("k"), claims);
        owned_headers(&[("webhook-signature", &token), ("webhook-id", "1")])
    };

    // A token authenticates the sender only, so the hub polls instead of trusting the body.
    let id = register_task(&app, "1").await;
    let forged_success =
        json!({ "id": "1", "status": "done", "outputs": ["https://a.example/a.mp4"] });
    let response = post_webhook(&app, "acme", &token(&claims), &forged_success.to_string()).await;
    assert_accepted(&response, true, false);
    let job = app
        .wait_for_job(&id, "alice", |job| job["status"] == "running")
        .await;
    assert_eq!(job["source"], "poll");

    // A signature with the secret authenticates the body.
    let id = register_task(&app, "2").await;
    let body = json!({ "id": "2", "status": "done", "outputs": ["https://a.example/a.mp4"] });
    let body = body.to_string();
    let response = post_webhook(
        &app,
        "acme",
        &standard_headers(WEBHOOK_SECRET, &body),
        &body,
    )
    .await;
    assert_accepted(&response, true, true);
    assert_eq!(app.get_job(&id, "alice").await["source"], "webhook");

    let with_claim = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let mut without_exp = claims.clone();
    without_exp.as_object_mut().unwrap().remove("exp");
    for invalid in [
        with_claim("aud", json!(format!("{url}/another"))),
        with_claim("aud", json!("https://elsewhere.example.com")),
        with_claim("iss", json!("https://elsewhere.example.com")),
        with_claim("exp", json!(webhook_signatures::now() - 301)),
        without_exp,
    ] {
        assert_rejected(&post_webhook(&app, "acme", &token(&invalid), &body).await);
    }
    let unknown = Signer::rsa().sign(Some("k"), &claims);
    for headers in [
        Headers::new(),
        owned_headers(&[("webhook-signature", &unknown)]),
        standard_headers("whsec_c3RyYW5nZXJzdHJhbmdlcnN0cmFuZ2Vyc3RyYW5nZXI=", &body),
    ] {
        assert_rejected(&post_webhook(&app, "acme", &headers, &body).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_signature_is_rejected_while_jwks_is_unavailable() {
    let key_server = KeyServer::start().await;
    let acme = Acme::new(GEMINI, POLL).set("jwks_url", key_server.url());
    let app = acme.set("webhook_secrets", WEBHOOK_SECRET).spawn().await;
    register_task(&app, "1").await;
    let body = running("1");
    let mut forged = standard_headers(WEBHOOK_SECRET, &body);
    forged[2].1 = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned();
    assert_rejected(&post_webhook(&app, "acme", &forged, &body).await);
    assert_eq!(key_server.fetches(), 0);
    let signed = standard_headers(WEBHOOK_SECRET, &body);
    assert_accepted(
        &post_webhook(&app, "acme", &signed, &body).await,
        true,
        true,
    );
    let token = Signer::rsa().sign(None, &json!({ "exp": webhook_signatures::now() + 60 }));
    let response = post_webhook(
        &app,
        "acme",
        &owned_headers(&[("webhook-signature", &token)]),
        &body,
    )
    .await;
    assert_eq!(response.status, 503, "{}", response.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_audience_must_be_the_callback_url() {
    let (key_server, signer) = (KeyServer::start().await, Signer::p256());
    key_server.publish([signer.jwk("k")]);
    let submit =
        "[submit]\nurl = '{{ base_url }}/tasks/7'\nbody = \"{'callback': callback_url}\"\n";
    let acme = Acme::new(GEMINI, &format!("{POLL}{submit}")).set("jwks_url", key_server.url());
    let acme = acme.set("base_url", &key_server.server.url);
    let app = acme.spawn().await;
    let job = json!({ "provider": "acme", "model": "m", "prompt": "p" });
    let request = app.request(Method::POST, "/v1/videos", "alice").json(&job);
    assert_eq!(send(request).await.status, 202);
    let requests = key_server
        .server
        .wait_for_requests(|all| !all.is_empty())
        .await;
    let url = requests[0].body["callback"].as_str().unwrap();
    let path = url.split_once("/v1/webhooks/").unwrap().1;
    let post_with_audience = async |audience: &str| {
        let claims = json!({
            "iss": "https://issuer.example.com",
            "aud": audience,
            "exp": webhook_signatures::now() + 60,
        });
        let token = signer.sign(Some("k"), &claims);
        let headers = owned_headers(&[("webhook-signature", &token)]);
        post_webhook(&app, path, &headers, &running("7")).await
    };
    assert_accepted(&post_with_audience(url).await, true, false);
    assert_rejected(&post_with_audience(&format!("{}/v1/webhooks/acme", app.url)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn static_token_is_trusted_only_without_polling() {
    let key_server = KeyServer::start().await;
    let scheme = "scheme = 'static_token'\nheader = 'authorization'\nprefix = 'Bearer '";
    let body = running("1");
    for (more, applied) in [("", true), (POLL, false)] {
        let acme = Acme::new(scheme, more).set("webhook_secrets", "abc");
        let app = acme.set("base_url", &key_server.server.url).spawn().await;
        let id = register_task(&app, "1").await;
        let valid = owned_headers(&[("Authorization", "Bearer abc")]);
        assert_accepted(
            &post_webhook(&app, "acme", &valid, &body).await,
            true,
            applied,
        );
        let job = app
            .wait_for_job(&id, "alice", |job| job["status"] == "running")
            .await;
        assert_eq!(job["source"], if applied { "webhook" } else { "poll" });
        for invalid in ["Bearer abcd", "Bearer ", "xyz"] {
            let headers = owned_headers(&[("Authorization", invalid)]);
            assert_rejected(&post_webhook(&app, "acme", &headers, &body).await);
        }
    }
}

#[test]
fn spec_without_trusted_webhook_or_polling_is_rejected() {
    let hmac_of_id =
        "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'base64'\nsigned = '{json:/id}'";
    let jwt = "scheme = 'jwt'\nheader = 'x'\njwks_url = 'https://keys.example.com'";
    for scheme in ["scheme = 'none'", hmac_of_id, jwt] {
        let errors = Acme::new(scheme, "").config_errors(&[("webhook_secrets", "s")]);
        let is_reported = errors.iter().any(|text| {
            text.starts_with("providers.acme.spec: 'acme': signature: does not cover the body")
        });
        assert!(is_reported, "{scheme}: {errors:?}");
        let errors = Acme::new(scheme, POLL).config_errors(&[]);
        assert_eq!(errors, [""; 0], "{scheme}");
    }
    let missing_jwks_url =
        ["providers.acme.jwks_url: required: the spec has no URL of the provider's public keys"];
    assert_eq!(Acme::new(FAL, POLL).config_errors(&[]), missing_jwks_url);
    let token = "scheme = 'static_token'\nheader = 'x'";
    assert_eq!(Acme::new(token, "").config_errors(&[]), [""; 0]);
    let two = Acme::new(GEMINI, POLL).config_errors(&[
        ("jwks_url", "https://keys.example.com"),
        ("webhook_secrets", "%%"),
    ]);
    assert_eq!(two.len(), 1, "{two:?}");
    assert!(two[0].contains("not a Standard Webhooks secret"), "{two:?}");
    let none = Acme::new(
        "scheme = 'none'\n[[signature]]\nscheme = 'standard_webhooks'",
        POLL,
    );
    let none = none.config_errors(&[]);
    assert!(none[0].contains("'none' cannot be combined"), "{none:?}");
}

/// Returns the `[[signature]]` section for a scheme name of the vectors.
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
        other => panic!("unknown scheme in vectors.json: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_with_a_timestamp_are_rejected_as_too_old() {
    let key_server = KeyServer::start().await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vectors.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut apps: BTreeMap<String, TestApp> = BTreeMap::new();
    for vector in file["vectors"].as_array().unwrap() {
        let (name, scheme) = (&vector["name"], vector["scheme"].as_str().unwrap());
        let secret = vector["secret"].as_str().unwrap_or_default();
        if let Some(keys) = vector["jwks"]["keys"].as_array() {
            key_server.publish(keys.clone());
        }
        let app_key = format!("{scheme} {secret}");
        if !apps.contains_key(&app_key) {
            // Reads every body as an update of a task, so that only the signature decides.
            let more = "[webhook]\nitem = \"{'id': 'x', 'status': 'running'}\"";
            let acme = Acme::new(vector_scheme(scheme), more);
            let acme = if secret.is_empty() {
                acme.set("jwks_url", key_server.url())
            } else {
                acme.set("webhook_secrets", secret)
            };
            apps.insert(app_key.clone(), acme.spawn().await);
        }
        let headers = vector["headers"].as_object().unwrap();
        let pair =
            |(name, value): (&String, &Value)| (name.clone(), value.as_str().unwrap().to_owned());
        let headers: Headers = headers.into_iter().map(pair).collect();
        let body = vector["body"].as_str().unwrap();
        let response = post_webhook(&apps[&app_key], "acme", &headers, body).await;
        let has_timestamp = !matches!(scheme, "hmac_hex_body" | "static_header_secret");
        let has_valid_signature = vector["valid"] == true;
        let is_accepted = has_valid_signature && !has_timestamp;
        assert_eq!(
            response.status,
            if is_accepted { 200 } else { 401 },
            "{name}"
        );
        if has_valid_signature && has_timestamp {
            let detail = "timestamp is outside the tolerance";
            assert_eq!(response.body["detail"], detail, "{name}");
        }
    }
}
