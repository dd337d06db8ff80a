//! Token verification: each reason for rejection, for each key type.

mod key_sets;
mod rights;
mod section;
mod signers;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde_json::{Value, json};

use super::*;
use signers::{Signer, ed25519, forge, p256, p384, rsa, shared};

const NOW: i64 = 1_790_000_000;

struct NoFetch;

#[async_trait::async_trait]
impl Fetch for NoFetch {
    async fn fetch(&self, _: &url::Url, _: usize) -> Result<Vec<u8>, FetchError> {
        panic!("nothing is fetched without a key set");
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW).expect("a time")
}

fn verifier(config: &AuthConfig) -> Verifier {
    Verifier::new(config, Arc::new(NoFetch)).expect("a verifier")
}

/// Returns a verifier that accepts only tokens of `signer`.
fn trusting(signer: &Signer) -> AuthConfig {
    let mut config = AuthConfig::default();
    match &signer.public_pem {
        Some(pem) => config.public_keys.push(pem.clone()),
        None => config.hs256_secrets.push(signers::SECRET.into()),
    }
    config
}

fn claims() -> Value {
    json!({"sub": "alice", "exp": NOW + 60})
}

fn with(more: Value) -> Value {
    let mut claims = claims();
    let (Some(all), Value::Object(more)) = (claims.as_object_mut(), more) else {
        panic!("claims are objects")
    };
    for (name, value) in more {
        if value == "absent" {
            all.remove(&name);
        } else {
            all.insert(name, value);
        }
    }
    claims
}

async fn check(config: &AuthConfig, token: &str) -> Result<Principal, TokenError> {
    verifier(config).verify_at(token, now()).await
}

async fn rejection(config: &AuthConfig, token: &str) -> TokenError {
    check(config, token).await.expect_err("rejected")
}

#[tokio::test]
async fn each_key_type_verifies_only_its_own_tokens() {
    let signers = [shared(), rsa(), p256(), p384(), ed25519()];
    for signer in &signers {
        let config = trusting(signer);
        for algorithm in &signer.algorithms {
            let token = signer.sign_as(*algorithm, None, &claims());
            let principal = check(&config, &token).await.expect("verified");
            assert_eq!(principal.subject(), "alice");
            assert_eq!(principal.expires_at().as_second(), NOW + 60);
        }
        for other in signers.iter().filter(|other| !std::ptr::eq(*other, signer)) {
            let token = other.sign(&claims());
            assert_eq!(rejection(&config, &token).await, TokenError::Algorithm);
        }
    }
}

#[tokio::test]
async fn tokens_signed_by_any_configured_key_are_accepted() {
    let signers = [shared(), rsa(), p256(), p384(), ed25519()];
    let mut config = AuthConfig::default();
    config
        .hs256_secrets
        .push("another secret of thirty-two bytes or more".into());
    for signer in &signers {
        let one = trusting(signer);
        config.hs256_secrets.extend(one.hs256_secrets);
        config.public_keys.extend(one.public_keys);
    }
    for signer in &signers {
        assert!(check(&config, &signer.sign(&claims())).await.is_ok());
        // Configured keys have no id, so they match any `kid`.
        let named = signer.sign_as(signer.algorithms[0], Some("any"), &claims());
        assert!(check(&config, &named).await.is_ok());
    }
}

#[tokio::test]
async fn algorithm_not_matching_the_key_is_rejected() {
    let unsigned = |algorithm: &str| forge(&json!({"alg": algorithm}), &claims(), b"");
    for signer in [shared(), rsa(), p256()] {
        let config = trusting(&signer);
        for algorithm in [
            "none", "None", "NONE", "", "ES512", "ES256K", "HS384", "dir",
        ] {
            let rejection = rejection(&config, &unsigned(algorithm)).await;
            assert_eq!(rejection, TokenError::Algorithm, "{algorithm}");
        }
    }
    for header in [
        json!({}),
        json!({"alg": 7}),
        json!({"alg": ["HS256"]}),
        json!([]),
    ] {
        let token = forge(&header, &claims(), b"");
        assert_eq!(
            rejection(&trusting(&shared()), &token).await,
            TokenError::Malformed
        );
    }
}

#[tokio::test]
async fn public_key_is_not_accepted_as_hmac_secret() {
    for signer in [rsa(), p256(), ed25519()] {
        let pem = signer.public_pem.clone().expect("a public key");
        let attacker = Signer::sharing(pem.as_bytes());
        let token = attacker.sign(&claims());
        let mut config = trusting(&signer);
        assert_eq!(rejection(&config, &token).await, TokenError::Algorithm);
        // Nor if a configured secret allows the algorithm.
        config.hs256_secrets.push(signers::SECRET.into());
        assert_eq!(rejection(&config, &token).await, TokenError::Signature);
    }
}

#[tokio::test]
async fn modified_token_is_rejected() {
    for signer in [shared(), rsa(), p256(), ed25519()] {
        let config = trusting(&signer);
        let token = signer.sign(&claims());
        let parts: Vec<&str> = token.split('.').collect();
        let other = signer.sign(&with(json!({"sub": "mallory"})));
        let other: Vec<&str> = other.split('.').collect();
        let swapped = [parts[0], other[1], parts[2]].join(".");
        assert_eq!(rejection(&config, &swapped).await, TokenError::Signature);
        let unsigned = [parts[0], parts[1], ""].join(".");
        assert_eq!(rejection(&config, &unsigned).await, TokenError::Signature);
        let mut signature = URL_SAFE_NO_PAD.decode(parts[2]).expect("base64");
        for at in [0, signature.len() / 2, signature.len() - 1] {
            signature[at] ^= 1;
            let token = [parts[0], parts[1], &URL_SAFE_NO_PAD.encode(&signature)].join(".");
            assert_eq!(rejection(&config, &token).await, TokenError::Signature);
            signature[at] ^= 1;
        }
    }
}

#[tokio::test]
async fn malformed_tokens_return_specific_errors() {
    let config = trusting(&shared());
    assert_eq!(rejection(&config, "").await, TokenError::Missing);
    let token = shared().sign(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let padded = [&format!("{}==", parts[0]), parts[1], parts[2]].join(".");
    for malformed in [
        ".",
        "..",
        "a.b.c",
        parts[0],
        &parts[..2].join("."),
        &format!("{token}."),
        &format!("{token}.x"),
        &format!(" {token}"),
        &format!("Bearer {token}"),
        &padded,
        "é.é.é",
    ] {
        assert_eq!(
            rejection(&config, malformed).await,
            TokenError::Malformed,
            "{malformed}"
        );
    }
    for (length, expected) in [
        (MAX_TOKEN_BYTES, TokenError::Malformed),
        (MAX_TOKEN_BYTES + 1, TokenError::TooLong),
    ] {
        assert_eq!(rejection(&config, &"a".repeat(length)).await, expected);
    }
}

#[tokio::test]
async fn unknown_crit_is_rejected_and_embedded_keys_are_ignored() {
    let signer = shared();
    let config = trusting(&signer);
    for crit in [json!(["exp"]), json!([]), json!(null), json!("b64")] {
        let token = signer.sign_with(&json!({"alg": "HS256", "crit": crit}), &claims());
        assert_eq!(
            rejection(&config, &token).await,
            TokenError::UnsupportedCriticalHeader
        );
    }
    let attacker = ed25519();
    let header = json!({"alg": "EdDSA", "jwk": attacker.jwk("k", json!({})),
        "jku": "https://evil.example/jwks", "x5u": "https://evil.example/x5u"});
    let token = attacker.sign_with(&header, &claims());
    assert_eq!(rejection(&config, &token).await, TokenError::Algorithm);
    let kid = signer.sign_with(&json!({"alg": "HS256", "kid": 7}), &claims());
    assert_eq!(rejection(&config, &kid).await, TokenError::Malformed);
}

#[tokio::test]
async fn exp_and_nbf_are_checked_with_leeway() {
    let signer = shared();
    let mut config = trusting(&signer);
    config.leeway = Duration::from_secs(5);
    for (claim, offset, expected) in [
        ("exp", -4.0, None),
        ("exp", -4.5, None),
        ("exp", -5.0, Some(TokenError::Expired)),
        ("exp", -60.0, Some(TokenError::Expired)),
        ("nbf", 5.0, None),
        ("nbf", 5.5, Some(TokenError::NotYetValid)),
        ("nbf", 6.0, Some(TokenError::NotYetValid)),
        ("nbf", -9e8, None),
    ] {
        let at = NOW as f64 + offset;
        let token = signer.sign(&with(json!({claim: at})));
        let result = check(&config, &token).await.err();
        assert_eq!(result, expected, "{claim} {offset}");
    }
    config.leeway = Duration::ZERO;
    let token = signer.sign(&with(json!({"exp": NOW})));
    assert_eq!(rejection(&config, &token).await, TokenError::Expired);
    config.leeway = Duration::MAX;
    let token = signer.sign(&with(json!({"exp": 0, "nbf": 253_000_000_000_i64})));
    assert!(check(&config, &token).await.is_ok());
}

#[tokio::test]
async fn verify_uses_the_system_clock() {
    let signer = shared();
    let verifier = verifier(&trusting(&signer));
    let fresh = signer.sign(&json!({"sub": "a", "exp": Timestamp::now().as_second() + 60}));
    let expired = signer.sign(&json!({"sub": "a", "exp": Timestamp::now().as_second() - 60}));
    assert!(verifier.verify(&fresh).await.is_ok());
    assert_eq!(
        verifier.verify(&expired).await.err(),
        Some(TokenError::Expired)
    );
}

#[tokio::test]
async fn claims_of_a_token_are_checked_every_time() {
    let signer = shared();
    let verifier = verifier(&trusting(&signer));
    let token = signer.sign(&json!({"sub": "a", "exp": now().as_second() + 60}));
    for (after_seconds, expected) in [
        (0, None),
        (59, None),
        (600, Some(TokenError::Expired)),
        (59, None),
    ] {
        let at = now() + Duration::from_secs(after_seconds);
        assert_eq!(verifier.verify_at(&token, at).await.err(), expected);
    }
    let tampered = format!("{token}x");
    assert!(verifier.verify_at(&tampered, now()).await.is_err());
}

#[tokio::test]
async fn missing_or_mistyped_required_claims_are_rejected() {
    let signer = shared();
    let config = trusting(&signer);
    for (claim, value, expected) in [
        ("sub", json!("absent"), TokenError::MissingClaim("sub")),
        ("sub", json!(""), TokenError::MissingClaim("sub")),
        ("sub", json!(7), TokenError::Malformed),
        ("sub", json!(null), TokenError::Malformed),
        ("exp", json!("absent"), TokenError::MissingClaim("exp")),
        ("exp", json!(null), TokenError::Malformed),
        ("exp", json!(format!("{}", NOW + 60)), TokenError::Malformed),
        ("exp", json!(NOW * 1_000_000), TokenError::Malformed),
        ("exp", json!(1e300), TokenError::Malformed),
        ("exp", json!(-1), TokenError::Expired),
        ("nbf", json!("soon"), TokenError::Malformed),
        ("nbf", json!(null), TokenError::Malformed),
        ("scope", json!(["jobs:read"]), TokenError::Malformed),
        ("scope", json!(null), TokenError::Malformed),
        ("jobs", json!("job_a"), TokenError::Malformed),
        ("jobs", json!(["job_a", 7]), TokenError::Malformed),
        ("jobs", json!(null), TokenError::Malformed),
    ] {
        let token = signer.sign(&with(json!({claim: value})));
        assert_eq!(
            rejection(&config, &token).await,
            expected,
            "{claim} {value}"
        );
    }
    let twice = format!(r#"{{"sub":"a","sub":"b","exp":{}}}"#, NOW + 60);
    let token = signer.sign_text(r#"{"alg":"HS256"}"#, &twice);
    assert_eq!(rejection(&config, &token).await, TokenError::Malformed);
}

#[tokio::test]
async fn issuer_and_audience_are_required_when_configured() {
    let signer = shared();
    let mut config = trusting(&signer);
    config.issuer = Some("https://issuer.example".to_owned());
    config.audience = Some("hub".to_owned());
    let good = json!({"iss": "https://issuer.example", "aud": ["other", "hub"]});
    assert!(
        check(&config, &signer.sign(&with(good.clone())))
            .await
            .is_ok()
    );
    for (claim, value, expected) in [
        ("aud", json!("hub"), None),
        ("aud", json!("other"), Some(TokenError::Audience)),
        ("aud", json!("hub "), Some(TokenError::Audience)),
        ("aud", json!(["hub", 5]), Some(TokenError::Audience)),
        ("aud", json!([]), Some(TokenError::Audience)),
        ("aud", json!({"hub": 1}), Some(TokenError::Audience)),
        (
            "aud",
            json!("absent"),
            Some(TokenError::MissingClaim("aud")),
        ),
        ("aud", json!(null), Some(TokenError::MissingClaim("aud"))),
        (
            "iss",
            json!("https://issuer.example/"),
            Some(TokenError::Issuer),
        ),
        (
            "iss",
            json!(["https://issuer.example"]),
            Some(TokenError::Issuer),
        ),
        ("iss", json!(5), Some(TokenError::Issuer)),
        (
            "iss",
            json!("absent"),
            Some(TokenError::MissingClaim("iss")),
        ),
    ] {
        let mut all = with(good.clone());
        if value == "absent" {
            all.as_object_mut().expect("an object").remove(claim);
        } else {
            all[claim] = value.clone();
        }
        let result = check(&config, &signer.sign(&all)).await.err();
        assert_eq!(result, expected, "{claim} {value}");
    }
    let anywhere = trusting(&signer);
    for aud in [json!("other"), json!(["x", 5])] {
        let token = signer.sign(&with(json!({"aud": aud, "iss": 7})));
        assert!(check(&anywhere, &token).await.is_ok());
    }
}
