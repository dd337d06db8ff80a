//! Schemes with published keys, and their properties.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::signature::key::BASE64URL;

/// The schemes of fal and Atlas, and a JWT.
#[derive(Debug, Clone, Copy)]
enum Form {
    Fal,
    Atlas,
    Token,
}

/// A provider that signs with generated keys.
struct Sender {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
}

const ISSUER: &str = "https://issuer.example.com";

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL.encode(bytes).trim_end_matches('=').to_owned()
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": URL, "exp": NOW + 60 })
}

impl Form {
    fn scheme(self) -> Scheme {
        scheme(match self {
            Self::Fal => {
                "scheme = 'ed25519'\nheader = 'x-sig'\nencoding = 'hex'\ntimestamp_header = 'x-time'\n\
                 id_header = 'x-id'\nsigned = \"{header:x-id}\\n{header:x-user}\\n{header:x-time}\\n{sha256:body}\""
            }
            Self::Atlas => {
                "scheme = 'ed25519'\nheader = ['x-sig', 'x-old-sig']\nencoding = 'base64url'\nkey_id_header = 'x-key'\n\
                 timestamp_header = 'x-time'\nsigned = '{header:x-time}.{body}'"
            }
            Self::Token => {
                "scheme = 'jwt'\nheader = 'webhook-signature'\nissuer = 'https://issuer.example.com'"
            }
        })
    }
}

impl Sender {
    fn new() -> Self {
        Self {
            ed25519: Ed25519KeyPair::generate().expect("a key pair"),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key pair"),
        }
    }

    /// Returns its keys as a JWKS with this `kid`.
    fn keys(&self, id: &str) -> Vec<Key> {
        let (x, y) = self.p256.public_key().as_ref()[1..].split_at(32);
        let set = json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "kid": id, "x": base64url(self.ed25519.public_key()) },
            { "kty": "EC", "crv": "P-256", "kid": id, "x": base64url(x), "y": base64url(y) },
        ] });
        let set = set.to_string().into_bytes();
        Key::from_jwks(&set).expect("a key set")
    }

    fn sign(&self, form: Form, body: &[u8], now: i64) -> Pairs {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
        let digest = hex::encode(digest);
        let own = |pairs: &[(&str, String)]| -> Pairs {
            let pair = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
            pairs.iter().map(pair).collect()
        };
        match form {
            Form::Fal => {
                let content = format!("m\nu\n{now}\n{digest}");
                let tag = hex::encode(self.ed25519.sign(content.as_bytes()).as_ref());
                own(&[
                    ("x-id", "m".into()),
                    ("x-user", "u".into()),
                    ("x-time", now.to_string()),
                    ("x-sig", tag),
                ])
            }
            Form::Atlas => {
                let content = [format!("{now}.").as_bytes(), body].concat();
                let tag = base64url(self.ed25519.sign(&content));
                own(&[
                    ("x-time", now.to_string()),
                    ("x-sig", tag),
                    ("x-key", "k".into()),
                ])
            }
            Form::Token => {
                let mut claims = claims();
                claims["exp"] = json!(now + 60);
                let header = json!({ "alg": "ES256", "kid": "k" });
                own(&[("webhook-signature", self.token(&header, &claims))])
            }
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let content = [header, claims].map(|part| base64url(part.to_string()));
        let content = content.join(".");
        let tag = self
            .p256
            .sign(&SystemRandom::new(), content.as_bytes())
            .expect("a signature");
        format!("{content}.{}", base64url(tag))
    }
}

fn token_says(header: &Value, claims: &Value) -> Result<(), SignatureError> {
    let sender = Sender::new();
    let token = sender.token(header, claims);
    let sent: Pairs = vec![("Webhook-Signature".into(), token)];
    verify(&Form::Token.scheme(), &sent, b"{}", &sender.keys("k"), NOW).map(|_| ())
}

#[test]
fn jwks_schemes_verify_and_jwt_does_not_cover_the_body() {
    let sender = Sender::new();
    for (form, trust) in [
        (Form::Fal, Trust::Signed),
        (Form::Atlas, Trust::Signed),
        (Form::Token, Trust::Unsigned),
    ] {
        let sent = sender.sign(form, b"body", NOW);
        let others = Sender::new();
        let keys = [others.keys("other"), sender.keys("k")].concat();
        let verified = verify(&form.scheme(), &sent, b"body", &keys, NOW).expect("verified");
        assert_eq!(verified.trust(), trust, "{form:?}");
        // A `kid` selects one key. Without it, any key matches.
        let rejection_of =
            |id: &str| rejection(&form.scheme(), &sent, b"body", &others.keys(id), NOW);
        let [named, unknown] = match form {
            Form::Fal => [SignatureError::Mismatch, SignatureError::Mismatch],
            Form::Atlas | Form::Token => [SignatureError::Forged, SignatureError::UnknownKey],
        };
        assert_eq!(
            [rejection_of("k"), rejection_of("other")],
            [named, unknown],
            "{form:?}"
        );
        assert_eq!(
            rejection(&form.scheme(), &sent, b"body", &[], NOW),
            SignatureError::NoKeyConfigured
        );
        assert_eq!(
            rejection(&form.scheme(), &sent, b"body", &[secret("s")], NOW),
            SignatureError::NoKeyConfigured
        );
    }
}

#[test]
fn jwt_claims_are_checked() {
    let header = json!({ "alg": "ES256", "kid": "k" });
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        token_says(&header, &claims).map_err(|rejection| rejection.code())
    };
    assert_eq!(with("more", json!(1)), Ok(()));
    assert_eq!(with("aud", json!(["https://other.example", URL])), Ok(()));
    assert_eq!(with("exp", json!(NOW - 29)), Ok(()));
    for (name, value, code) in [
        ("exp", json!(NOW - 30), "signature_stale"),
        ("nbf", json!(NOW + 31), "signature_stale"),
        ("exp", json!("soon"), "signature_malformed"),
        ("exp", json!(null), "signature_malformed"),
        ("iss", json!("https://other.example"), "signature_claim"),
        ("iss", json!(null), "signature_claim"),
        (
            "aud",
            json!("https://hub.example.com/v1/webhooks/acme"),
            "signature_claim",
        ),
        ("aud", json!([]), "signature_claim"),
    ] {
        assert_eq!(with(name, value.clone()), Err(code), "{name} {value}");
    }
    for name in ["exp", "iss", "aud"] {
        let mut claims = claims();
        claims.as_object_mut().expect("claims").remove(name);
        let rejection = token_says(&header, &claims).expect_err(name);
        assert_eq!(rejection.code(), "signature_claim", "{name}");
    }
}

#[test]
fn jwt_is_verified_with_published_keys_only() {
    let rejection_for = |header: Value| token_says(&header, &claims()).expect_err("rejected");
    for header in [
        json!({ "alg": "none", "kid": "k" }),
        json!({ "alg": "HS256", "kid": "k" }),
        json!({ "alg": "ES256", "kid": 7 }),
        json!({ "alg": "ES256", "kid": "k", "crit": ["x"] }),
        json!({ "kid": "k" }),
    ] {
        assert_eq!(rejection_for(header).code(), "signature_malformed");
    }
    for header in [
        json!({ "alg": "RS256", "kid": "k" }),
        json!({ "alg": "ES256", "kid": "unknown" }),
    ] {
        assert_eq!(rejection_for(header), SignatureError::UnknownKey);
    }
    // A malformed token is rejected even without keys.
    for text in [
        "",
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "a.b",
        "a.b.c",
    ] {
        let sent: Pairs = vec![("webhook-signature".into(), text.into())];
        let rejection = rejection(&Form::Token.scheme(), &sent, b"", &[], NOW);
        assert_eq!(rejection.code(), "signature_malformed", "{text}");
    }
    for form in [Form::Fal, Form::Atlas, Form::Token] {
        let none = Pairs::new();
        let rejection = rejection(&form.scheme(), &none, b"", &[], NOW);
        assert!(
            !rejection.is_key_error() && rejection.is_format_error(),
            "{form:?}"
        );
    }
}

fn forms() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Fal), Just(Form::Atlas), Just(Form::Token)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn flipped_body_bit_is_rejected(
        atlas in any::<bool>(),
        body in prop::collection::vec(any::<u8>(), 1..200),
        place in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let form = if atlas { Form::Atlas } else { Form::Fal };
        let sender = Sender::new();
        let sent = sender.sign(form, &body, NOW);
        let mut changed = body.clone();
        changed[place.index(body.len())] ^= 1 << bit;
        prop_assert!(verify(&form.scheme(), &sent, &body, &sender.keys("k"), NOW).is_ok());
        prop_assert!(verify(&form.scheme(), &sent, &changed, &sender.keys("k"), NOW).is_err());
    }

    #[test]
    fn changed_header_character_is_rejected(
        form in forms(),
        header in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        character in "[!-~]",
    ) {
        let sender = Sender::new();
        let mut sent = sender.sign(form, b"body", NOW);
        let at_header = header.index(sent.len());
        let value = &mut sent[at_header].1;
        let place = place.index(value.len());
        let before = value[place..=place].to_owned();
        // Hex digits are case-insensitive.
        let is_same = before == character || matches!(form, Form::Fal) && before.eq_ignore_ascii_case(&character);
        prop_assume!(!is_same);
        value.replace_range(place..=place, &character);
        prop_assert!(verify(&form.scheme(), &sent, b"body", &sender.keys("k"), NOW).is_err());
    }

    #[test]
    fn missing_header_is_rejected(form in forms(), header in any::<prop::sample::Index>()) {
        let sender = Sender::new();
        let mut sent = sender.sign(form, b"body", NOW);
        let (name, _) = sent.remove(header.index(sent.len()));
        // Without an id, any key matches.
        prop_assume!(name != "x-key");
        let rejection = rejection(&form.scheme(), &sent, b"body", &sender.keys("k"), NOW);
        prop_assert_eq!(rejection, SignatureError::MissingHeader(name.into()));
    }

    #[test]
    fn timestamp_beyond_tolerance_is_stale(
        form in forms(),
        beyond in 301_i64..1_000_000_000,
        early in any::<bool>(),
    ) {
        let sender = Sender::new();
        let sent = sender.sign(form, b"body", NOW);
        // A JWT has only an expiry.
        let early = early && !matches!(form, Form::Token);
        let now = if early { NOW - beyond } else { NOW + beyond };
        let rejection = rejection(&form.scheme(), &sent, b"body", &sender.keys("k"), now);
        prop_assert_eq!(rejection, SignatureError::StaleTimestamp);
    }

    #[test]
    fn verification_never_panics(
        form in forms(),
        values in prop::collection::vec("([a-zA-Z0-9_.=-]|[ -~]){0,60}", 4),
        body in any::<Vec<u8>>(),
    ) {
        let sender = Sender::new();
        let mut sent = sender.sign(form, b"body", NOW);
        for ((_, value), other) in sent.iter_mut().zip(values) {
            *value = other;
        }
        prop_assert!(verify(&form.scheme(), &sent, &body, &sender.keys("k"), NOW).is_err());
    }
}
