//! The providers' test vectors, each reason for rejection, and properties.

mod callback;
mod properties;
mod published;

use std::collections::BTreeMap;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

use super::key::BASE64;
use super::*;
use base64::Engine;
use serde::Deserialize;
use url::Url;

type Pairs = Vec<(String, String)>;

/// The webhook URL of these tests.
const URL: &str = "https://hub.example.com/v1/webhooks/acme?a=b";

const NOW: i64 = 1_756_720_800;
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn scheme(table: &str) -> Scheme {
    toml::from_str(table).expect("a scheme")
}

fn standard() -> Scheme {
    scheme("scheme = 'standard_webhooks'")
}

fn timed_hmac() -> Scheme {
    scheme(
        "scheme = 'hmac'\nheader = 'X-Sig'\nencoding = 'base64'\ntimestamp_header = 'X-Time'\n\
         id_header = 'X-Id'\nsigned = '{header:x-id}.{header:X-TIME}.{body}'",
    )
}

fn fielded_hmac() -> Scheme {
    scheme(
        "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'hex'\nsignature_field = 'v1'\n\
         timestamp_field = 't'\nsigned = '{t},{body}'",
    )
}

fn secret(text: &str) -> Key {
    Key::Secret(text.into())
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn verify<'a>(
    scheme: &Scheme,
    headers: &'a Pairs,
    body: &'a [u8],
    keys: &[Key],
    now: i64,
) -> Result<Verified<'a>, SignatureError> {
    let request = Request {
        headers,
        body,
        url: URL,
    };
    scheme.verify(&request, keys, at(now))
}

fn rejection(
    scheme: &Scheme,
    headers: &Pairs,
    body: &[u8],
    keys: &[Key],
    now: i64,
) -> SignatureError {
    verify(scheme, headers, body, keys, now).expect_err("rejected")
}

/// The schemes of the vectors.
const VECTOR_SCHEMES: &str = r#"
standard_webhooks_v1 = { scheme = "standard_webhooks" }
hmac_hex_body = { scheme = "hmac", header = "x-ai-signature", encoding = "hex", prefix = "sha256=" }
hmac_tv1_comma = { scheme = "hmac", header = "x-openrouter-signature", encoding = "hex", signature_field = "v1", timestamp_field = "t", signed = "{t},{body}" }
fal_ed25519 = { scheme = "ed25519", header = "x-fal-webhook-signature", encoding = "hex", timestamp_header = "x-fal-webhook-timestamp", id_header = "x-fal-webhook-request-id", signed = "{header:x-fal-webhook-request-id}\n{header:x-fal-webhook-user-id}\n{header:x-fal-webhook-timestamp}\n{sha256:body}" }
atlas_ed25519 = { scheme = "ed25519", header = ["x-atlascloud-webhook-signature-ed25519", "x-atlascloud-webhook-signature"], encoding = "base64url", timestamp_header = "x-atlascloud-webhook-timestamp", key_id_header = "x-atlascloud-webhook-key-id", signed = "{header:x-atlascloud-webhook-timestamp}.{body}" }
static_header_secret = { scheme = "static_token", header = "x-webhook-secret" }
"#;

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    scheme: String,
    secret: Option<String>,
    jwks: Option<serde_json::Value>,
    headers: BTreeMap<String, String>,
    body: String,
    now: i64,
    valid: bool,
}

#[test]
fn vectors_verify_as_documented() {
    let file = include_str!("../../../../tests/fixtures/vectors.json");
    let file: Vectors = serde_json::from_str(file).expect("vectors");
    let schemes: BTreeMap<String, Scheme> = toml::from_str(VECTOR_SCHEMES).expect("schemes");
    assert_eq!(file.vectors.len(), 23);
    let mut rejections = Vec::new();
    for vector in file.vectors {
        let scheme = &schemes[&vector.scheme];
        let mut keys: Vec<Key> = vector.secret.iter().map(|text| secret(text)).collect();
        if let Some(jwks) = &vector.jwks {
            keys.extend(Key::from_jwks(jwks.to_string().as_bytes()).expect("a key set"));
        }
        assert!(keys.iter().all(|key| scheme.key_problem(key).is_none()));
        let (headers, body) = (vector.headers.into_iter().collect(), vector.body.as_bytes());
        let result = verify(scheme, &headers, body, &keys, vector.now);
        assert_eq!(result.is_ok(), vector.valid, "{}", vector.name);
        match result {
            Ok(verified) => assert_eq!(verified.body(), body),
            Err(rejection) => rejections.push((vector.name, rejection.code())),
        }
    }
    let mut rejections: Vec<_> = rejections
        .iter()
        .map(|(name, code)| (name.as_str(), *code))
        .collect();
    rejections.sort_unstable();
    assert_eq!(
        rejections,
        [
            ("fal-ed25519-stale", "signature_stale"),
            ("fal-ed25519-wrong-user", "signature_mismatch"),
            ("sw-body-reserialised", "signature_mismatch"),
            ("sw-empty-signature", "signature_mismatch"),
            ("sw-missing-signature", "signature_missing"),
            ("sw-only-wrong-version", "signature_mismatch"),
            ("sw-too-new", "signature_stale"),
            ("sw-too-old", "signature_stale"),
            ("sw-wrong-id", "signature_mismatch"),
            ("x-ai-signature-tampered", "signature_mismatch"),
            ("x-ai-signature-truncated", "signature_mismatch"),
        ]
    );
}

#[test]
fn message_id_is_the_signed_one() {
    for scheme in [standard(), timed_hmac()] {
        let key = secret(WHSEC);
        let sent = scheme.sign(&key, "msg_1", b"{}", at(NOW)).expect("signed");
        let verified = verify(&scheme, &sent, b"{}", &[key], NOW).expect("verified");
        assert_eq!(verified.message_id(), Some("msg_1"));
    }
}

#[test]
fn header_names_match_in_any_case() {
    let key = secret(WHSEC);
    let sent = standard().sign(&key, "m", b"x", at(NOW)).expect("signed");
    let upper = sent.into_iter().map(|(k, v)| (k.to_uppercase(), v));
    assert!(verify(&standard(), &upper.collect(), b"x", &[key], NOW).is_ok());
}

#[test]
fn verification_fails_without_a_usable_key() {
    let sent = standard()
        .sign(&secret(WHSEC), "m", b"x", at(NOW))
        .expect("signed");
    for keys in [
        vec![],
        vec![secret("")],
        vec![secret("whsec_")],
        vec![secret("whsec_%%")],
    ] {
        assert_eq!(
            rejection(&standard(), &sent, b"x", &keys, NOW),
            SignatureError::NoKeyConfigured
        );
        assert!(keys.iter().all(|key| standard().key_problem(key).is_some()));
    }
    let token = scheme("scheme = 'static_token'\nheader = 'x-token'");
    let empty: Pairs = vec![("x-token".into(), String::new())];
    assert_eq!(
        rejection(&token, &empty, b"", &[secret("")], NOW),
        SignatureError::NoKeyConfigured
    );
    assert_eq!(
        rejection(&timed_hmac(), &empty, b"", &[secret("")], NOW),
        SignatureError::NoKeyConfigured
    );
}

#[test]
fn static_token_must_match_and_does_not_cover_the_body() {
    let scheme = scheme("scheme = 'static_token'\nheader = 'x-token'");
    let sent: Pairs = vec![("X-Token".into(), "abc".into())];
    let keys = [secret("other"), secret("abc")];
    let verified = verify(&scheme, &sent, b"any", &keys, NOW).expect("verified");
    assert_eq!(verified.trust(), Trust::SenderOnly);
    let wrong = [secret("ab"), secret("abcd"), secret("ABC")];
    assert_eq!(
        rejection(&scheme, &sent, b"any", &wrong, NOW),
        SignatureError::Mismatch
    );
    assert_eq!(
        rejection(&scheme, &vec![], b"", &keys, NOW).code(),
        "signature_missing"
    );
}

#[test]
fn signature_not_covering_the_body_is_untrusted() {
    let scheme = scheme(
        "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'base64'\n\
         timestamp_header = 'x-time'\nsigned = 'task.{header:x-time}'",
    );
    let sent = scheme
        .sign(&secret("k"), "", b"one", at(NOW))
        .expect("signed");
    let verified = verify(&scheme, &sent, b"another", &[secret("k")], NOW).expect("verified");
    assert_eq!(verified.trust(), Trust::Unsigned);
}

#[test]
fn scheme_none_is_untrusted() {
    let none = scheme("scheme = 'none'");
    let sent = Pairs::new();
    let verified = verify(&none, &sent, b"x", &[], NOW).expect("verified");
    assert_eq!(
        (verified.trust(), verified.message_id()),
        (Trust::Unsigned, None)
    );
}

#[test]
fn v1a_is_checked_with_public_keys_only() {
    let pair = Ed25519KeyPair::generate().expect("a key pair");
    let public = BASE64.encode(pair.public_key());
    let tag = BASE64.encode(pair.sign(format!("m.{NOW}.x").as_bytes()));
    let headers = |version: &str| -> Pairs {
        vec![
            ("webhook-id".into(), "m".into()),
            ("webhook-timestamp".into(), NOW.to_string()),
            ("webhook-signature".into(), format!("v9,zz {version},{tag}")),
        ]
    };
    let keys = [secret(WHSEC), secret(&format!("whpk_{public}"))];
    assert!(verify(&standard(), &headers("v1a"), b"x", &keys, NOW).is_ok());
    for (version, keys) in [("v1", &keys[..]), ("v1a", &keys[..1])] {
        let rejection = rejection(&standard(), &headers(version), b"x", keys, NOW);
        assert_eq!(rejection, SignatureError::Mismatch);
    }
    // The public key as an HMAC secret, as in an algorithm downgrade.
    let forged = standard()
        .sign(&secret(&public), "m", b"x", at(NOW))
        .expect("signed");
    assert_eq!(
        rejection(&standard(), &forged, b"x", &keys, NOW),
        SignatureError::Mismatch
    );
}

#[test]
fn unknown_kid_and_signature_mismatch_are_distinct() {
    let scheme = scheme(
        "scheme = 'ed25519'\nheader = 'x-sig'\nencoding = 'base64url'\nkey_id_header = 'x-key'\n\
         jwks_url = 'https://keys.example.com/jwks.json'",
    );
    let url = Url::parse("https://keys.example.com/jwks.json").expect("a URL");
    assert_eq!(scheme.key_source(), KeySource::Jwks(Some(&url)));
    let pair = Ed25519KeyPair::generate().expect("a key pair");
    let public = pair.public_key().as_ref();
    let key = |id: Option<&str>, public: &[u8]| {
        let x = super::key::BASE64URL.encode(public);
        let key = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": x.trim_end_matches('=') });
        let set = serde_json::json!({ "keys": [key] }).to_string();
        Key::from_jwks(set.as_bytes()).expect("a key set").remove(0)
    };
    let sent: Pairs = vec![
        (
            "x-sig".into(),
            super::key::BASE64URL.encode(pair.sign(b"x")),
        ),
        ("x-key".into(), "new".into()),
    ];
    let other = Ed25519KeyPair::generate().expect("a key pair");
    let other = other.public_key().as_ref();
    let check = |keys: &[Key]| verify(&scheme, &sent, b"x", keys, NOW).map(|_| ());
    assert_eq!(check(&[key(Some("new"), public)]), Ok(()));
    assert_eq!(check(&[key(None, other), key(None, public)]), Ok(()));
    assert_eq!(
        check(&[key(Some("old"), public)]),
        Err(SignatureError::UnknownKey)
    );
    assert_eq!(
        check(&[key(Some("new"), other)]),
        Err(SignatureError::Forged)
    );
    assert_eq!(check(&[key(None, other)]), Err(SignatureError::Mismatch));
    assert_eq!(
        check(&[secret("abc")]),
        Err(SignatureError::NoKeyConfigured)
    );
}

#[test]
fn jwks_yields_only_ed25519_signing_keys() {
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let okp = |more: &str| format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"{more}}}"#);
    let set = format!(
        r#"{{"keys":[{},{},{},{},{{"kty":"oct","k":"AAAA"}},{{"kty":"OKP","crv":"X25519","x":"{x}"}},7]}}"#,
        okp(r#","kid":"a","use":"sig","alg":"EdDSA""#),
        okp(r#","kid":"b","use":"enc""#),
        okp(r#","kid":"c","alg":"HS256""#),
        r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA","kid":"short"}"#,
    );
    let keys = Key::from_jwks(set.as_bytes()).expect("a key set");
    assert_eq!(keys.iter().map(Key::id).collect::<Vec<_>>(), [Some("a")]);
    assert!(Key::from_jwks(b"[]").is_none());
}

#[test]
fn hex_signatures_accept_either_case_and_an_optional_prefix() {
    let plain = "scheme = 'hmac'\nheader = 'x-ai-signature'\nencoding = 'hex'\nprefix = 'sha256='";
    let scheme = scheme(plain);
    let sent = scheme
        .sign(&secret("k"), "", b"x", at(NOW))
        .expect("signed");
    let value = &sent[0].1;
    let bare = value.strip_prefix("sha256=").expect("the prefix");
    for form in [value.clone(), bare.to_owned(), bare.to_uppercase()] {
        let headers = vec![("X-AI-Signature".to_owned(), form)];
        assert!(verify(&scheme, &headers, b"x", &[secret("k")], NOW).is_ok());
    }
    for form in ["", "sha256=", "zz", "sha1=00", "é"] {
        let headers = vec![("x-ai-signature".to_owned(), form.to_owned())];
        let code = rejection(&scheme, &headers, b"x", &[secret("k")], NOW).code();
        assert!(
            code == "signature_malformed" || code == "signature_mismatch",
            "{form}"
        );
    }
}

#[test]
fn secrets_are_decoded_by_key_encoding() {
    let with = |more: &str| {
        scheme(&format!(
            "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'hex'\n{more}"
        ))
    };
    let raw = with("")
        .sign(&secret("key"), "", b"x", at(NOW))
        .expect("signed");
    for (form, written) in [
        ("key = 'base64'", "a2V5"),
        ("key = 'hex'", "6B6579"),
        ("key = 'raw'\nkey_prefix = 'whsec_'", "whsec_key"),
        ("key = 'raw'\nkey_prefix = 'whsec_'", "key"),
    ] {
        assert!(
            verify(&with(form), &raw, b"x", &[secret(written)], NOW).is_ok(),
            "{form}"
        );
    }
    assert!(with("key = 'base64'").key_problem(&secret("%")).is_some());
    assert!(with("key = 'hex'").key_problem(&secret("abc")).is_some());
}

#[test]
fn timestamp_tolerance_is_exact_and_digits_only() {
    for scheme in [standard(), timed_hmac(), fielded_hmac()] {
        let key = secret(WHSEC);
        let sent = scheme.sign(&key, "m", b"x", at(NOW)).expect("signed");
        let keys = [key];
        for (offset, fresh) in [
            (0, true),
            (300, true),
            (-300, true),
            (301, false),
            (-301, false),
        ] {
            let result = verify(&scheme, &sent, b"x", &keys, NOW + offset).map(|_| ());
            let expected = if fresh {
                Ok(())
            } else {
                Err(SignatureError::StaleTimestamp)
            };
            assert_eq!(result, expected, "{offset}");
        }
    }
    let key = aws_lc_rs::hmac::Key::new(
        aws_lc_rs::hmac::HMAC_SHA256,
        &BASE64.decode(&WHSEC[6..]).expect("base64"),
    );
    for odd in [
        "",
        " 1756720800",
        "+1756720800",
        "1756720800.0",
        "99999999999999999999",
    ] {
        let tag = aws_lc_rs::hmac::sign(&key, format!("m.{odd}.x").as_bytes());
        let sent: Pairs = vec![
            ("webhook-id".into(), "m".into()),
            ("webhook-timestamp".into(), odd.into()),
            (
                "webhook-signature".into(),
                format!("v1,{}", BASE64.encode(tag)),
            ),
        ];
        let rejection = rejection(&standard(), &sent, b"x", &[secret(WHSEC)], NOW);
        assert_eq!(rejection.code(), "signature_malformed", "{odd:?}");
    }
}

#[test]
fn schemes_with_unsigned_claims_are_rejected() {
    let base = "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'hex'\n";
    for (more, expected) in [
        (
            "timestamp_header = 'x-time'",
            "signed must include the timestamp",
        ),
        ("id_header = 'x-id'", "signed must include id_header"),
        (
            "account_header = 'x-account'",
            "signed must include account_header",
        ),
        (
            "signed = '{t},{body}'",
            "signature_field is required if the header has fields",
        ),
        ("signed = 'body'", "signed: no placeholder"),
        ("signed = '{body'", "signed: unbalanced brace"),
        ("signed = '{header:}'", "unknown placeholder {header:}"),
        ("signed = '{md5:body}'", "unknown placeholder {md5:body}"),
        (
            "jwks_url = 'https://a.example'",
            "require scheme = \"ed25519\"",
        ),
        (
            "signed = '{json:id}.{body}'",
            "unknown placeholder {json:id}",
        ),
        ("signed = '{json:}.{body}'", "unknown placeholder {json:}"),
        ("digest = 'md5'", "unknown variant `md5`"),
        ("id_header = 'x id'", "not a header name"),
        ("header_name = 'x'", "unknown field `header_name`"),
        ("encoding = 'rot13'", "duplicate key"),
    ] {
        let error = toml::from_str::<Scheme>(&format!("{base}{more}")).expect_err(more);
        assert!(error.to_string().contains(expected), "{more}: {error}");
    }
    for table in [
        "scheme = 'none'\nheader = 'x'",
        "scheme = 'standard_webhooks'\ntolerance = 5",
        "scheme = 'static_token'\nheader = 'x'\nkey = 'raw'",
        "scheme = 'static_token'\nheader = 'x y'",
        "scheme = 'jwt'",
        "scheme = 'jwt'\nheader = 'x'\naudience = 'y'",
        "scheme = 'ed25519'\nheader = 'x'\nencoding = 'hex'\ndigest = 'sha512'",
        "scheme = 'hmac'\nheader = []\nencoding = 'hex'",
        "scheme = 'ed25519'\nheader = 'x'\nencoding = 'hex'\nkey = 'raw'",
        "scheme = 'hmac'\nheader = 'x'\nencoding = 'rot13'",
        "scheme = 'md5'",
        "header = 'x'",
    ] {
        assert!(toml::from_str::<Scheme>(table).is_err(), "{table}");
    }
}

#[test]
fn errors_and_debug_output_contain_no_secret() {
    let key = secret("whsec_topsecret");
    assert!(!format!("{key:?}").contains("topsecret"));
    let sent = vec![("x-sig".to_owned(), "t=1,v1=deadbeef".to_owned())];
    let rejection = rejection(&fielded_hmac(), &sent, b"x", &[secret("k")], NOW);
    assert!(!format!("{rejection} {rejection:?}").contains("deadbeef"));
}

#[test]
fn signed_json_field_is_found_but_body_stays_untrusted() {
    // Kie.ai: base64 HMAC of `taskId.timestamp`. The path of the id differs by product.
    let scheme = scheme(
        "scheme = 'hmac'\nheader = 'x-webhook-signature'\nencoding = 'base64'\n\
         timestamp_header = 'x-webhook-timestamp'\n\
         signed = '{json:/data/task_id|/taskId}.{header:x-webhook-timestamp}'",
    );
    assert_eq!(scheme.trust(), Trust::Unsigned);
    let tag = |id: &str| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"k");
        BASE64.encode(aws_lc_rs::hmac::sign(
            &key,
            format!("{id}.{NOW}").as_bytes(),
        ))
    };
    let check = |body: &str, signed: &str| {
        let sent: Pairs = vec![
            ("X-Webhook-Timestamp".into(), NOW.to_string()),
            ("X-Webhook-Signature".into(), tag(signed)),
        ];
        let verified = verify(&scheme, &sent, body.as_bytes(), &[secret("k")], NOW);
        verified.map(|verified| verified.trust())
    };
    for (body, signed) in [
        (r#"{"data":{"task_id":"t-1"}}"#, "t-1"),
        (r#"{"taskId":"t-2","data":{}}"#, "t-2"),
        (r#"{"taskId":"t-2","data":{"task_id":"t-1"}}"#, "t-1"),
        (
            r#"{"taskId":893605946402811985,"data":{"task_id":null}}"#,
            "893605946402811985",
        ),
    ] {
        assert_eq!(check(body, signed), Ok(Trust::Unsigned), "{body}");
        assert_eq!(check(body, "t-3"), Err(SignatureError::Mismatch), "{body}");
    }
    for body in [r#"{"data":{"task_id":{}}}"#, "{}", "no json", ""] {
        let rejection = check(body, "").expect_err(body);
        assert_eq!(rejection.code(), "signature_malformed", "{body}");
    }
}

#[test]
fn a_digest_is_sha256_or_sha512() {
    let with = |digest: &str| {
        scheme(&format!(
            "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'hex'\ndigest = '{digest}'"
        ))
    };
    let mut lengths = Vec::new();
    for (digest, other) in [("sha256", "sha512"), ("sha512", "sha256")] {
        let sent = with(digest)
            .sign(&secret("k"), "", b"x", at(NOW))
            .expect("signed");
        lengths.push(sent[0].1.len());
        assert!(verify(&with(digest), &sent, b"x", &[secret("k")], NOW).is_ok());
        let rejection = rejection(&with(other), &sent, b"x", &[secret("k")], NOW);
        assert_eq!(rejection, SignatureError::Mismatch);
    }
    assert_eq!(lengths, [64, 128]);
}

#[test]
fn thirteen_digit_timestamps_are_milliseconds() {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"k");
    let check = |millis: i64| {
        let tag = aws_lc_rs::hmac::sign(&key, format!("m.{millis}.x").as_bytes());
        let sent: Pairs = vec![
            ("x-id".into(), "m".into()),
            ("x-time".into(), millis.to_string()),
            ("x-sig".into(), BASE64.encode(tag)),
        ];
        verify(&timed_hmac(), &sent, b"x", &[secret("k")], NOW).map(|_| ())
    };
    let now = NOW * 1000;
    for (offset, result) in [
        (0, Ok(())),
        (300_000, Ok(())),
        (-300_000, Ok(())),
        (300_001, Err(SignatureError::StaleTimestamp)),
        (-300_001, Err(SignatureError::StaleTimestamp)),
    ] {
        assert_eq!(check(now + offset), result, "{offset}");
    }
}

#[test]
fn static_token_accepts_a_prefix() {
    let scheme = scheme("scheme = 'static_token'\nheader = 'Authorization'\nprefix = 'Bearer '");
    let keys = [secret("abc")];
    let check = |value: &str| {
        let sent: Pairs = vec![("authorization".into(), value.into())];
        verify(&scheme, &sent, b"", &keys, NOW).map(|_| ())
    };
    assert_eq!(check("Bearer abc"), Ok(()));
    assert_eq!(check("abc"), Ok(()));
    for wrong in [
        "Bearer abcd",
        "Bearer Bearer abc",
        "Bearer ",
        "bearer abc",
        "",
    ] {
        assert_eq!(check(wrong), Err(SignatureError::Mismatch), "{wrong}");
    }
    let sent = scheme.sign(&keys[0], "", b"", at(NOW)).expect("signed");
    assert_eq!(
        sent,
        [("authorization".to_owned(), "Bearer abc".to_owned())]
    );
}

#[test]
fn signature_accepts_one_scheme_or_a_list_but_none_must_stand_alone() {
    #[derive(Deserialize)]
    struct Spec {
        signature: Schemes,
    }
    let read = |text: &str| toml::from_str::<Spec>(text).map(|spec| spec.signature.to_vec());
    let token = "{ scheme = 'static_token', header = 'x' }";
    for (text, count) in [
        (format!("signature = {token}"), 1),
        (format!("signature = [{token}]"), 1),
        ("signature = [{ scheme = 'none' }]".to_owned(), 1),
        (format!("signature = [{{ scheme = 'standard_webhooks' }}, {token}]"), 2),
        ("[[signature]]\nscheme = 'standard_webhooks'\n[[signature]]\nscheme = 'jwt'\nheader = 'x'".to_owned(), 2),
    ] {
        assert_eq!(read(&text).expect("schemes").len(), count, "{text}");
    }
    for (text, expected) in [
        ("signature = []".to_owned(), "at least one scheme"),
        (
            format!("signature = [{token}, {{ scheme = 'none' }}]"),
            "'none' cannot be combined",
        ),
        (
            "signature = 'none'".to_owned(),
            "a table or a list of tables",
        ),
        (
            format!("a = 1\nsignature = [{token}, {{ scheme = 'md5' }}]"),
            "line 2",
        ),
        (
            "[[signature]]\nscheme = 'static_token'\nheader = 'x'\ntypo = 1".to_owned(),
            "typo",
        ),
    ] {
        let error = read(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
