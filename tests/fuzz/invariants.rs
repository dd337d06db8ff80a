//! Invariants of the parsers of untrusted input. Compiled for tests and for `cargo fuzz`.
//!
//! Each function takes arbitrary bytes and panics if an invariant does not hold. `tests/fuzz` runs
//! them under libFuzzer. The tests of this module run them on seeds and on mutations of seeds, so that
//! the stable toolchain and CI check them as well.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is the finding"
)]

use std::io::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use actix_web::web::{Bytes, BytesMut};
use jiff::Timestamp;
use progress_hub_auth::jwt::{Fetch, FetchError, Verifier};
use progress_hub_auth::signature::{Key, Request, Scheme, Trust};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::job::{Job, NewJob, Source, StatusReport, VideoRequest};
use crate::protocol::{ClientMessage, CloseReason};
use crate::provider::spec::expression::Expression;
use crate::provider::spec::{BUILT_IN, Spec};
use crate::provider::webhook::{self, WebhookContent};
use crate::server::socket::inbound::{InboundDecoder, InboundEvent};
use crate::time::Time;

/// The time of all evaluations, so that findings are reproducible.
const NOW: i64 = 1_795_428_000_000;

const MAX_MESSAGE_BYTES: usize = 1000;

static SPECS: LazyLock<Vec<Spec>> =
    LazyLock::new(|| BUILT_IN.map(|(_, text)| Spec::parse(text).unwrap()).into());

/// Decodes the frames of a client in one piece and byte by byte. Both must give the same events, and
/// no message may exceed the limit.
pub fn frames(data: &[u8]) {
    let whole = decode(data, data.len().max(1));
    let bytewise = decode(data, 1);
    assert_eq!(whole, bytewise, "the events depend on how the bytes arrive");
    for text in whole.0 {
        assert!(text.len() <= MAX_MESSAGE_BYTES);
        std::str::from_utf8(&text).unwrap();
    }
}

fn decode(data: &[u8], step: usize) -> (Vec<Bytes>, Option<CloseReason>) {
    let mut inbound = InboundDecoder::new(MAX_MESSAGE_BYTES, BytesMut::new());
    let mut texts = Vec::new();
    for chunk in data.chunks(step) {
        inbound.buffer().extend_from_slice(chunk);
        loop {
            match inbound.next() {
                Ok(Some(InboundEvent::Text(text))) => texts.push(text),
                Ok(Some(InboundEvent::Close)) => return (texts, Some(CloseReason::Normal)),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(reason) => return (texts, Some(reason)),
            }
        }
    }
    (texts, None)
}

/// Parses a message of a client. An accepted message is a JSON object with a known `type`.
pub fn client_message(data: &[u8]) {
    let Ok(message) = ClientMessage::parse(data) else {
        return;
    };
    let json: serde_json::Value = serde_json::from_slice(data).unwrap();
    let expected = match message {
        ClientMessage::Auth { .. } => "auth",
        ClientMessage::Subscribe { .. } => "subscribe",
        ClientMessage::Unsubscribe { .. } => "unsubscribe",
        ClientMessage::Cancel { .. } => "cancel",
        ClientMessage::Ping { .. } => "ping",
    };
    assert_eq!(json["type"], expected);
}

/// Parses a webhook body with every built-in definition and applies its reports to a job. Progress
/// stays within 0–100, versions increase by one, and nothing changes a finished job.
pub fn webhook_body(data: &[u8]) {
    let headers: Vec<(&str, &str)> = Vec::new();
    let request = Request {
        headers: &headers,
        body: data,
        url: "https://hub.example.com/",
    };
    let verified = Scheme::None {}.verify(&request, &[], timestamp()).unwrap();
    for spec in SPECS.iter() {
        let Ok(WebhookContent::Tasks(tasks)) = webhook::parse(spec, &verified, &headers) else {
            continue;
        };
        for task in tasks {
            assert!(task.task_id.is_some() || task.reference.is_some());
            assert!(!task.is_trusted, "nothing has signed the body");
            check_transition(&job(), &task.report);
        }
    }
}

fn check_transition(job: &Job, report: &StatusReport) {
    let now = Time::from_millis(NOW + 1);
    let Some(next) = job.apply(report.clone().into_update(Source::Webhook), now) else {
        return;
    };
    assert_eq!(next.version, job.version + 1);
    if let Some(progress) = next.progress {
        assert!((0.0..=100.0).contains(&progress), "progress is {progress}");
    }
    let document = serde_json::to_vec(&next).unwrap();
    assert_eq!(
        serde_json::from_slice::<Job>(&document).unwrap().id,
        next.id
    );
    if next.is_final() {
        assert!(
            next.apply(report.clone().into_update(Source::Webhook), now)
                .is_none()
        );
    }
}

fn job() -> Job {
    let new = NewJob {
        owner: "alice".into(),
        provider: Some("kling".into()),
        provider_task_id: None,
        model: None,
        metadata: serde_json::Map::new(),
        request: Some(VideoRequest::default()),
        deadline: Duration::from_secs(60),
    };
    Job::new(new, Time::from_millis(NOW))
}

/// Verifies a webhook whose headers and body are arbitrary, with every scheme of the built-in
/// definitions and random keys. No signature may verify.
///
/// The input is a list of header lines, an empty line, and the body. The header `authorization` with
/// a bearer token is also verified as a token of a caller.
pub fn signature_headers(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let headers: Vec<(&str, &str)> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let request = Request {
        headers: &headers,
        body: body.as_bytes(),
        url: "https://hub.example.com/w",
    };
    for scheme in SPECS.iter().flat_map(|spec| spec.signature.iter()) {
        for key in KEYS.iter() {
            let result = scheme.verify(&request, std::slice::from_ref(key), timestamp());
            if !matches!(scheme, Scheme::None {}) {
                assert!(result.is_err(), "{scheme:?} accepts a forged signature");
            }
        }
        round_trip(scheme, body.as_bytes());
    }
    for (_, value) in headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
    {
        let token = value.strip_prefix("Bearer ").unwrap_or(value);
        assert!(
            RUNTIME.block_on(VERIFIER.verify(token)).is_err(),
            "a forged token passes"
        );
    }
}

/// Signs a body and verifies the signature with the same scheme. It must not verify for another body.
fn round_trip(scheme: &Scheme, body: &[u8]) {
    for key in KEYS.iter() {
        let Ok(headers) = scheme.sign(key, "msg_1", body, timestamp()) else {
            continue;
        };
        let request = |body| Request {
            headers: &headers,
            body,
            url: "https://hub.example.com/w",
        };
        let keys = std::slice::from_ref(key);
        scheme.verify(&request(body), keys, timestamp()).unwrap();
        let other = [body, b"."].concat();
        if scheme.trust() == Trust::Signed {
            assert!(scheme.verify(&request(&other), keys, timestamp()).is_err());
        }
    }
}

fn timestamp() -> Timestamp {
    Time::from_millis(NOW).timestamp()
}

/// Keys for which an input cannot contain a valid signature.
static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let random = || uuid::Uuid::now_v7().simple().to_string();
    let standard = format!("whsec_{}", random());
    let mut keys = vec![Key::from(secrecy::SecretString::from(random()))];
    keys.push(Key::from(secrecy::SecretString::from(standard)));
    // The base point of the curve: a valid public key with which no test signs.
    let jwks = br#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "WGZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY"}]}"#;
    let published = Key::from_jwks(jwks).unwrap();
    assert_eq!(published.len(), 1);
    keys.extend(published);
    keys
});

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let secret = uuid::Uuid::now_v7().simple().to_string();
    let config = load("", vec![("auth.hs256_secrets".to_owned(), secret)]).0;
    Verifier::new(&config.auth, Arc::new(NoKeys)).unwrap()
});

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
});

/// A fetcher that panics. The configuration has no key set to fetch.
struct NoKeys;

#[async_trait::async_trait]
impl Fetch for NoKeys {
    async fn fetch(&self, _: &url::Url, _: usize) -> Result<Vec<u8>, FetchError> {
        unreachable!()
    }
}

/// Compiles an expression of a provider definition and evaluates it on a document, and parses the
/// input as a whole definition.
pub fn spec_expression(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(expression) = Expression::new(text) {
        let payload = json!({"id": "t1", "status": "ok", "list": [1, "2", null], "a": {"b": {"url": "https://a/b"}}});
        let names = minijinja::Value::from_serialize(json!({ "payload": payload, "headers": {} }));
        expression.evaluate_in(&names);
        // The result of a request is JSON or an error.
        let _ = expression.json(&names);
    }
    let _ = Spec::parse(text);
}

/// Reads a configuration file. The printed form contains no secret. If no secret is set, it reads back
/// to the same configuration.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (config, errors) = load(text, Vec::new());
    let printed = config.to_redacted_toml();
    let debug = format!("{config:?}");
    for secret in secrets(&config) {
        // A value that occurs twice can also be the value of a public setting.
        let is_unique = secret.len() >= 12 && text.matches(secret).count() == 1;
        let is_shown = printed.contains(secret) || debug.contains(secret);
        assert!(!(is_unique && is_shown), "a secret is printed");
    }
    if errors.is_empty() && !printed.contains("(set)") {
        let (again, _) = load(&printed, Vec::new());
        assert_eq!(
            again.to_redacted_toml(),
            printed,
            "the printed configuration differs"
        );
    }
}

fn secrets(config: &Config) -> impl Iterator<Item = &str> {
    let of_providers = config.providers.values().flat_map(|it| {
        let keys = it.api_key.iter().chain(&it.secret_key);
        keys.chain(&it.webhook_secrets)
    });
    let all = config
        .auth
        .hs256_secrets
        .iter()
        .chain(&config.callback.secret)
        .chain(&config.callback.previous_secrets)
        .chain(&config.store.password);
    let defaults = &config.webhook_defaults;
    let of_webhooks = config
        .webhooks
        .values()
        .flat_map(|it| it.secrets.iter().chain(it.headers.values()))
        .chain(&defaults.secret)
        .chain(&defaults.previous_secrets);
    all.chain(of_providers)
        .chain(of_webhooks)
        .map(|secret| secret.expose_secret())
}

/// Reads a configuration from text.
fn load(text: &str, flags: Vec<(String, String)>) -> (Config, Vec<ConfigError>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Config::read(Some(file.path()), std::iter::empty(), flags)
}

#[cfg(test)]
mod tests {
    //! Runs every function on its seeds and on mutations of them.

    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// Returns the contents of all files in these folders, which are relative to `tests/`.
    fn seeds(folders: &[&str]) -> Vec<Vec<u8>> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let files = folders
            .iter()
            .flat_map(|it| fs::read_dir(tests.join(it)).unwrap());
        let seeds: Vec<_> = files
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect();
        assert!(!seeds.is_empty());
        seeds
    }

    /// An edit of a seed: its position, the number of bytes to remove, and the bytes to insert.
    type Edit = (Index, usize, Vec<u8>);

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let bytes = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..6),
            "[ -~]{0,12}".prop_map(String::into_bytes),
            proptest::sample::select(vec![
                "null", "-1", "1e999", "[]", "{}", "\"\"", "\\u0000", "\n"
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
        ];
        proptest::collection::vec((any::<Index>(), 0_usize..12, bytes), 0..5)
    }

    fn mutate(seed: &[u8], edits: Vec<Edit>) -> Vec<u8> {
        let mut data = seed.to_vec();
        for (at, removed, inserted) in edits {
            let start = at.index(data.len() + 1);
            let end = (start + removed).min(data.len());
            data.splice(start..end, inserted);
        }
        data
    }

    fn check(folders: &[&str], target: fn(&[u8])) {
        let seeds = seeds(folders);
        seeds.iter().for_each(|seed| target(seed));
        proptest!(|(seed in any::<Index>(), edits in edits())| {
            target(&mutate(&seeds[seed.index(seeds.len())], edits));
        });
    }

    #[test]
    fn frames_decode_equally_in_any_chunks() {
        check(&["fuzz/seeds/frames"], frames);
    }

    #[test]
    fn client_messages_are_objects_with_a_known_type() {
        check(&["fuzz/seeds/client_message"], client_message);
    }

    #[test]
    fn webhook_bodies_cause_only_valid_transitions() {
        check(&["fixtures"], webhook_body);
    }

    #[test]
    fn forged_signatures_and_tokens_never_pass() {
        check(&["fuzz/seeds/signature_headers"], signature_headers);
    }

    #[test]
    fn expressions_and_definitions_never_panic() {
        check(
            &["fuzz/seeds/spec_expression", "../src/provider/specs"],
            spec_expression,
        );
    }

    #[test]
    fn configurations_are_printed_without_secrets_and_read_back() {
        check(&["fuzz/seeds/configuration"], configuration);
    }
}
