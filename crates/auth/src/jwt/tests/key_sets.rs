//! JWKS: key selection, rotation, outages and floods of unknown keys.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::time::{advance, sleep};

use super::*;
use crate::jwt::jwks::{MAX_AGE, MAX_BYTES, MIN_REFRESH_INTERVAL, RETRY_EMPTY, TIMEOUT};

/// JWKS endpoint of an issuer. Each fetch returns the next response, and the last one repeatedly.
struct Endpoint(Mutex<(VecDeque<JwksResponse>, usize)>);

#[derive(Clone)]
enum JwksResponse {
    Set(Vec<u8>),
    Down,
    Silent,
}

impl Endpoint {
    fn with_responses(responses: impl IntoIterator<Item = JwksResponse>) -> Arc<Self> {
        Arc::new(Self(Mutex::new((responses.into_iter().collect(), 0))))
    }

    fn fetches(&self) -> usize {
        self.0.lock().expect("a lock").1
    }
}

#[async_trait::async_trait]
impl Fetch for Endpoint {
    async fn fetch(&self, url: &url::Url, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
        assert_eq!(
            (url.as_str(), max_bytes),
            ("https://issuer.example/jwks", MAX_BYTES)
        );
        let response = {
            let mut state = self.0.lock().expect("a lock");
            state.1 += 1;
            match state.0.len() {
                1 => state.0[0].clone(),
                _ => state.0.pop_front().expect("a response"),
            }
        };
        // A delay, so that concurrent callers share one fetch.
        sleep(Duration::from_millis(50)).await;
        match response {
            JwksResponse::Set(document) => Ok(document),
            JwksResponse::Down => Err(FetchError("connection rejection".to_owned())),
            JwksResponse::Silent => std::future::pending().await,
        }
    }
}

fn set(keys: &[Value]) -> JwksResponse {
    JwksResponse::Set(json!({ "keys": keys }).to_string().into_bytes())
}

fn verifier_with(endpoint: &Arc<Endpoint>) -> Arc<Verifier> {
    let config = AuthConfig {
        jwks_url: Some("https://issuer.example/jwks".parse().expect("a url")),
        ..AuthConfig::default()
    };
    let fetch = Arc::clone(endpoint);
    Arc::new(Verifier::new(&config, fetch).expect("a verifier"))
}

fn token(signer: &Signer, kid: Option<&str>) -> String {
    signer.sign_as(signer.algorithms[0], kid, &claims())
}

async fn verify_error(verifier: &Verifier, token: &str) -> Option<TokenError> {
    verifier.verify_at(token, now()).await.err()
}

#[tokio::test(start_paused = true)]
async fn kid_selects_the_key() {
    let (one, two, three) = (p256(), p256(), rsa());
    let no_more = json!({});
    let keys = [
        one.jwk("one", no_more.clone()),
        two.jwk("two", no_more.clone()),
        three.jwk("three", no_more),
    ];
    let endpoint = Endpoint::with_responses([set(&keys)]);
    let verifier = verifier_with(&endpoint);
    assert_eq!(
        verify_error(&verifier, &token(&one, Some("one"))).await,
        None
    );
    assert_eq!(
        verify_error(&verifier, &token(&two, Some("two"))).await,
        None
    );
    assert_eq!(
        verify_error(&verifier, &token(&three, Some("three"))).await,
        None
    );
    // Without a `kid`, each matching key is tried.
    assert_eq!(verify_error(&verifier, &token(&two, None)).await, None);
    assert_eq!(
        verify_error(&verifier, &token(&one, Some("two"))).await,
        Some(TokenError::Signature)
    );
    assert_eq!(endpoint.fetches(), 1);
    let foreign = token(&p256(), Some("foreign"));
    assert_eq!(
        verify_error(&verifier, &foreign).await,
        Some(TokenError::UnknownKey)
    );
}

#[tokio::test(start_paused = true)]
async fn jwk_use_and_alg_are_enforced() {
    for (signer, more, accepted) in [
        (rsa(), json!({"use": "sig", "alg": "RS256"}), true),
        (rsa(), json!({"alg": "RS512"}), false),
        (rsa(), json!({"alg": "RSA-OAEP"}), false),
        (rsa(), json!({"alg": "HS256"}), false),
        (rsa(), json!({"use": "enc"}), false),
        (rsa(), json!({"key_ops": ["encrypt"]}), false),
        (rsa(), json!({"key_ops": ["verify"]}), true),
        (p256(), json!({"crv": "P-384", "alg": "ES384"}), false),
        (p256(), json!({"crv": "secp256k1"}), false),
        (ed25519(), json!({"use": "sig"}), true),
        (shared(), json!({}), false),
    ] {
        let keys = [
            json!({"kty": "new", "kid": "k"}),
            json!(7),
            signer.jwk("k", more.clone()),
        ];
        let verifier = verifier_with(&Endpoint::with_responses([set(&keys)]));
        let rejection = verify_error(&verifier, &token(&signer, Some("k"))).await;
        assert_eq!(rejection.is_none(), accepted, "{more} {rejection:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn oct_keys_in_jwks_are_ignored_and_hs256_never_fetches_jwks() {
    let endpoint = Endpoint::with_responses([set(&[shared().jwk("k", json!({}))])]);
    let verifier = verifier_with(&endpoint);
    assert_eq!(
        verify_error(&verifier, &token(&shared(), Some("k"))).await,
        Some(TokenError::Algorithm)
    );
    assert_eq!(endpoint.fetches(), 0);
    assert_eq!(
        verify_error(&verifier, &token(&p256(), Some("k"))).await,
        Some(TokenError::Algorithm)
    );
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn configured_keys_work_while_jwks_is_unreachable() {
    let (own, remote) = (p256(), p256());
    let endpoint = Endpoint::with_responses([JwksResponse::Down]);
    let mut config = trusting(&own);
    config.jwks_url = Some("https://issuer.example/jwks".parse().expect("a url"));
    let verifier = Verifier::new(&config, endpoint.clone()).expect("a verifier");
    assert_eq!(
        verify_error(&verifier, &token(&own, Some("any"))).await,
        None
    );
    assert_eq!(endpoint.fetches(), 0);
    let unavailable = TokenError::KeysUnavailable {
        retry_after: RETRY_EMPTY,
    };
    assert_eq!(
        verify_error(&verifier, &token(&remote, None)).await,
        Some(unavailable)
    );
}

#[tokio::test(start_paused = true)]
async fn rotated_key_is_accepted_immediately() {
    let (old, new) = (ed25519(), ed25519());
    let answers = [
        set(&[old.jwk("old", json!({}))]),
        set(&[old.jwk("old", json!({})), new.jwk("new", json!({}))]),
    ];
    let endpoint = Endpoint::with_responses(answers);
    let verifier = verifier_with(&endpoint);
    assert_eq!(
        verify_error(&verifier, &token(&old, Some("old"))).await,
        None
    );
    assert_eq!(
        verify_error(&verifier, &token(&new, Some("new"))).await,
        None
    );
    assert_eq!(
        verify_error(&verifier, &token(&old, Some("old"))).await,
        None
    );
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn rotation_without_kid_is_picked_up() {
    let (old, new) = (ed25519(), ed25519());
    let answers = [
        set(&[old.jwk("old", json!({}))]),
        set(&[new.jwk("new", json!({}))]),
    ];
    let verifier = verifier_with(&Endpoint::with_responses(answers));
    assert_eq!(verify_error(&verifier, &token(&old, None)).await, None);
    assert_eq!(verify_error(&verifier, &token(&new, None)).await, None);
    assert_eq!(
        verify_error(&verifier, &token(&old, None)).await,
        Some(TokenError::Signature)
    );
}

#[tokio::test(start_paused = true)]
async fn unknown_kids_trigger_at_most_one_fetch_per_interval() {
    let known = p256();
    let endpoint = Endpoint::with_responses([set(&[known.jwk("known", json!({}))])]);
    let verifier = verifier_with(&endpoint);
    assert_eq!(
        verify_error(&verifier, &token(&known, Some("known"))).await,
        None
    );
    let unknown_signer = p256();
    let flood = |round: usize| {
        let verifier = Arc::clone(&verifier);
        let tokens: Vec<_> = (0..50)
            .map(|n| token(&unknown_signer, Some(&format!("unknown {round} {n}"))))
            .collect();
        async move {
            let answers = tokens.iter().map(|token| verify_error(&verifier, token));
            for rejection in futures_util::future::join_all(answers).await {
                assert_eq!(rejection, Some(TokenError::UnknownKey));
            }
        }
    };
    flood(0).await;
    assert_eq!(endpoint.fetches(), 2);
    flood(1).await;
    advance(MIN_REFRESH_INTERVAL - Duration::from_secs(1)).await;
    flood(2).await;
    assert_eq!(endpoint.fetches(), 2);
    advance(Duration::from_secs(1)).await;
    flood(3).await;
    assert_eq!(endpoint.fetches(), 3);
    assert_eq!(
        verify_error(&verifier, &token(&known, Some("known"))).await,
        None
    );
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_the_first_fetch() {
    let known = p256();
    let endpoint = Endpoint::with_responses([set(&[known.jwk("known", json!({}))])]);
    let verifier = verifier_with(&endpoint);
    let token = token(&known, Some("known"));
    let callers = (0..50).map(|_| verify_error(&verifier, &token));
    let answers = futures_util::future::join_all(callers).await;
    assert!(answers.iter().all(Option::is_none));
    assert_eq!(endpoint.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn unavailable_jwks_returns_retry_after() {
    let known = p256();
    let answers = [
        JwksResponse::Silent,
        JwksResponse::Down,
        set(&[known.jwk("k", json!({}))]),
    ];
    let endpoint = Endpoint::with_responses(answers);
    let verifier = verifier_with(&endpoint);
    let token = token(&known, Some("k"));
    let started = tokio::time::Instant::now();
    let callers = (0..50).map(|_| verify_error(&verifier, &token));
    for rejection in futures_util::future::join_all(callers).await {
        let unavailable = TokenError::KeysUnavailable {
            retry_after: RETRY_EMPTY,
        };
        assert_eq!(rejection, Some(unavailable));
    }
    assert_eq!((endpoint.fetches(), started.elapsed()), (1, TIMEOUT));
    advance(RETRY_EMPTY - Duration::from_secs(1)).await;
    let soon = TokenError::KeysUnavailable {
        retry_after: Duration::from_secs(1),
    };
    assert_eq!(verify_error(&verifier, &token).await, Some(soon));
    assert_eq!(endpoint.fetches(), 1);
    advance(Duration::from_secs(1)).await;
    assert!(verify_error(&verifier, &token).await.is_some());
    advance(RETRY_EMPTY).await;
    assert_eq!(verify_error(&verifier, &token).await, None);
    assert_eq!(endpoint.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn cancelled_caller_does_not_reset_the_fetch_backoff() {
    let known = p256();
    let endpoint = Endpoint::with_responses([JwksResponse::Silent]);
    let verifier = verifier_with(&endpoint);
    let token = token(&known, Some("k"));
    for _ in 0..5 {
        let left = tokio::time::timeout(Duration::from_millis(10), verify_error(&verifier, &token));
        assert!(left.await.is_err() || endpoint.fetches() == 1);
    }
    assert_eq!(endpoint.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn stale_jwks_is_refreshed_in_the_background() {
    let (old, new) = (p256(), p256());
    let answers = [
        set(&[old.jwk("old", json!({}))]),
        set(&[new.jwk("new", json!({}))]),
    ];
    let endpoint = Endpoint::with_responses(answers);
    let verifier = verifier_with(&endpoint);
    let old = token(&old, Some("old"));
    assert_eq!(verify_error(&verifier, &old).await, None);
    advance(MAX_AGE - Duration::from_secs(1)).await;
    assert_eq!(verify_error(&verifier, &old).await, None);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(endpoint.fetches(), 1);
    advance(Duration::from_secs(1)).await;
    // The old set is still used, without waiting.
    assert_eq!(verify_error(&verifier, &old).await, None);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(endpoint.fetches(), 2);
    assert_eq!(
        verify_error(&verifier, &token(&new, Some("new"))).await,
        None
    );
    assert_eq!(
        verify_error(&verifier, &old).await,
        Some(TokenError::UnknownKey)
    );
}

#[tokio::test(start_paused = true)]
async fn stale_jwks_is_used_while_the_endpoint_is_down() {
    let (known, later) = (p256(), p256());
    let huge = JwksResponse::Set(vec![b' '; MAX_BYTES + 1]);
    let wrong = JwksResponse::Set(b"<html>".to_vec());
    let answers = [
        set(&[known.jwk("k", json!({}))]),
        JwksResponse::Down,
        JwksResponse::Silent,
        huge,
        wrong,
        set(&[known.jwk("k", json!({})), later.jwk("later", json!({}))]),
    ];
    let endpoint = Endpoint::with_responses(answers);
    let verifier = verifier_with(&endpoint);
    let known = token(&known, Some("k"));
    assert_eq!(verify_error(&verifier, &known).await, None);
    for fetches in 2..=5 {
        advance(MAX_AGE).await;
        assert_eq!(verify_error(&verifier, &known).await, None);
        sleep(TIMEOUT + Duration::from_secs(1)).await;
        assert_eq!(endpoint.fetches(), fetches);
        // Refresh attempts are rate-limited too.
        assert_eq!(verify_error(&verifier, &known).await, None);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(endpoint.fetches(), fetches);
    }
    advance(MIN_REFRESH_INTERVAL).await;
    assert_eq!(verify_error(&verifier, &known).await, None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        verify_error(&verifier, &token(&later, Some("later"))).await,
        None
    );
}
