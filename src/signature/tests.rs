//! Vectors of the providers, the refusals one by one, and properties over all bytes.

mod callback;
mod properties;

use std::collections::BTreeMap;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

use super::key::BASE64;
use super::*;
use base64::Engine;

type Pairs = Vec<(String, String)>;

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
    headers: &Pairs,
    body: &'a [u8],
    keys: &[Key],
    now: i64,
) -> Result<Verified<'a>, Refusal> {
    scheme.verify(&headers_of(headers), body, keys, at(now))
}

fn refusal(scheme: &Scheme, headers: &Pairs, body: &[u8], keys: &[Key], now: i64) -> Refusal {
    verify(scheme, headers, body, keys, now).expect_err("a refusal")
}

#[derive(Deserialize)]
struct Vectors {
    schemes: BTreeMap<String, Scheme>,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    scheme: String,
    #[serde(default)]
    secrets: Vec<String>,
    jwks: Option<String>,
    now: i64,
    answer: String,
    body: String,
    headers: Pairs,
}

#[test]
fn every_vector_gets_its_answer() {
    let table: Vectors = toml::from_str(include_str!("testdata/vectors.toml")).expect("vectors");
    assert_eq!(table.vectors.len(), 23);
    for vector in &table.vectors {
        let scheme = &table.schemes[&vector.scheme];
        let mut keys: Vec<Key> = vector.secrets.iter().map(|text| secret(text)).collect();
        if let Some(jwks) = &vector.jwks {
            keys.extend(Key::from_jwks(jwks.as_bytes()).expect("a key set"));
        }
        assert!(keys.iter().all(|key| scheme.problem_with(key).is_none()));
        let body = vector.body.as_bytes();
        let answer = match verify(scheme, &vector.headers, body, &keys, vector.now) {
            Ok(verified) => {
                assert_eq!(verified.body(), body);
                match verified.trust() {
                    Trust::Signed => "signed",
                    Trust::Unsigned => "unsigned",
                }
            }
            Err(refusal) => refusal.code(),
        };
        assert_eq!(answer, vector.answer, "{}", vector.name);
    }
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
fn without_a_usable_secret_nothing_passes() {
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
            refusal(&standard(), &sent, b"x", &keys, NOW),
            Refusal::NoSecret
        );
        assert!(
            keys.iter()
                .all(|key| standard().problem_with(key).is_some())
        );
    }
    let token = scheme("scheme = 'static_token'\nheader = 'x-token'");
    let empty: Pairs = vec![("x-token".into(), String::new())];
    assert_eq!(
        refusal(&token, &empty, b"", &[secret("")], NOW),
        Refusal::NoSecret
    );
    assert_eq!(
        refusal(&timed_hmac(), &empty, b"", &[secret("")], NOW),
        Refusal::NoSecret
    );
}

#[test]
fn a_shared_token_must_be_equal_and_covers_no_byte() {
    let scheme = scheme("scheme = 'static_token'\nheader = 'x-token'");
    let sent: Pairs = vec![("X-Token".into(), "abc".into())];
    let keys = [secret("other"), secret("abc")];
    let verified = verify(&scheme, &sent, b"any", &keys, NOW).expect("verified");
    assert_eq!(verified.trust(), Trust::Unsigned);
    let wrong = [secret("ab"), secret("abcd"), secret("ABC")];
    assert_eq!(
        refusal(&scheme, &sent, b"any", &wrong, NOW),
        Refusal::Mismatch
    );
    assert_eq!(
        refusal(&scheme, &vec![], b"", &keys, NOW).code(),
        "signature_missing"
    );
}

#[test]
fn a_signature_that_does_not_cover_the_body_earns_no_trust() {
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
fn none_proves_nothing() {
    let none = scheme("scheme = 'none'");
    let verified = verify(&none, &vec![], b"x", &[], NOW).expect("verified");
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
        let refused = refusal(&standard(), &headers(version), b"x", keys, NOW);
        assert_eq!(refused, Refusal::Mismatch);
    }
    // The public key as an HMAC secret: what a downgrade would look like.
    let forged = standard()
        .sign(&secret(&public), "m", b"x", at(NOW))
        .expect("signed");
    assert_eq!(
        refusal(&standard(), &forged, b"x", &keys, NOW),
        Refusal::Mismatch
    );
}

#[test]
fn an_unknown_key_id_is_told_apart_from_a_mismatch() {
    let scheme = scheme(
        "scheme = 'ed25519'\nheader = 'x-sig'\nencoding = 'base64url'\nkey_id_header = 'x-key'\n\
         jwks_url = 'https://keys.example.com/jwks.json'",
    );
    assert_eq!(scheme.jwks_url().map(Url::path), Some("/jwks.json"));
    let pair = Ed25519KeyPair::generate().expect("a key pair");
    let public = pair.public_key().as_ref().try_into().expect("32 bytes");
    let key = |id: Option<&str>, public| Key::Ed25519 {
        id: id.map(str::to_owned),
        public,
    };
    let sent: Pairs = vec![
        (
            "x-sig".into(),
            super::key::BASE64URL.encode(pair.sign(b"x")),
        ),
        ("x-key".into(), "new".into()),
    ];
    let other = [7; 32];
    let check = |keys: &[Key]| verify(&scheme, &sent, b"x", keys, NOW).map(|_| ());
    assert_eq!(check(&[key(Some("new"), public)]), Ok(()));
    assert_eq!(check(&[key(None, other), key(None, public)]), Ok(()));
    assert_eq!(check(&[key(Some("old"), public)]), Err(Refusal::UnknownKey));
    assert_eq!(check(&[key(Some("new"), other)]), Err(Refusal::Mismatch));
    assert_eq!(check(&[secret("abc")]), Err(Refusal::NoSecret));
}

#[test]
fn a_key_set_gives_its_ed25519_signing_keys_only() {
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
    assert!(matches!(&keys[..], [Key::Ed25519 { id: Some(id), .. }] if id == "a"));
    assert_eq!(Key::from_jwks(b"[]").unwrap_err(), BadKeySet);
}

#[test]
fn hex_is_read_in_either_case_with_the_prefix_or_without() {
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
        let code = refusal(&scheme, &headers, b"x", &[secret("k")], NOW).code();
        assert!(
            code == "signature_malformed" || code == "signature_mismatch",
            "{form}"
        );
    }
}

#[test]
fn secrets_are_read_in_the_form_the_scheme_says() {
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
    assert!(with("key = 'base64'").problem_with(&secret("%")).is_some());
    assert!(with("key = 'hex'").problem_with(&secret("abc")).is_some());
}

#[test]
fn timestamps_hold_to_the_second_and_must_be_digits() {
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
            let answer = verify(&scheme, &sent, b"x", &keys, NOW + offset).map(|_| ());
            let expected = if fresh {
                Ok(())
            } else {
                Err(Refusal::StaleTimestamp)
            };
            assert_eq!(answer, expected, "{offset}");
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
        let refused = refusal(&standard(), &sent, b"x", &[secret(WHSEC)], NOW);
        assert_eq!(refused.code(), "signature_malformed", "{odd:?}");
    }
}

#[test]
fn tables_that_promise_what_the_signature_does_not_cover_are_refused() {
    let base = "scheme = 'hmac'\nheader = 'x-sig'\nencoding = 'hex'\n";
    for (more, said) in [
        (
            "timestamp_header = 'x-time'",
            "the timestamp must be part of signed",
        ),
        ("id_header = 'x-id'", "id_header must be part of signed"),
        (
            "signed = '{t},{body}'",
            "fields of the header need signature_field",
        ),
        ("signed = 'body'", "nothing of the request is in it"),
        ("signed = '{body'", "a brace without its partner"),
        ("signed = '{header:}'", "unknown placeholder {header:}"),
        ("signed = '{md5:body}'", "unknown placeholder {md5:body}"),
        ("jwks_url = 'https://a.example'", "belong to ed25519"),
        ("id_header = 'x id'", "not a header name"),
        ("header_name = 'x'", "unknown field `header_name`"),
        ("encoding = 'rot13'", "duplicate key"),
    ] {
        let error = toml::from_str::<Scheme>(&format!("{base}{more}")).expect_err(more);
        assert!(error.to_string().contains(said), "{more}: {error}");
    }
    for table in [
        "scheme = 'none'\nheader = 'x'",
        "scheme = 'standard_webhooks'\ntolerance = 5",
        "scheme = 'static_token'\nheader = 'x'\nkey = 'raw'",
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
fn refusals_and_keys_show_no_secret() {
    let key = secret("whsec_topsecret");
    assert!(!format!("{key:?}").contains("topsecret"));
    let sent = vec![("x-sig".to_owned(), "t=1,v1=deadbeef".to_owned())];
    let refused = refusal(&fielded_hmac(), &sent, b"x", &[secret("k")], NOW);
    assert!(!format!("{refused} {refused:?}").contains("deadbeef"));
}
