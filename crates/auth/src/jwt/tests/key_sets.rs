//! Published keys: which may prove what, how they rotate, and what an outage or a flood does.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::time::{advance, sleep};

use super::*;
use crate::jwt::jwks::{MAX_AGE, MAX_BYTES, MIN_REFRESH_INTERVAL, RETRY_EMPTY, TIMEOUT};

/// An issuer's endpoint: each fetch gets the next answer, the last one again and again.
struct Endpoint(Mutex<(VecDeque<Answer>, usize)>);

#[derive(Clone)]
enum Answer {
    Set(Vec<u8>),
    Down,
    Silent,
}

impl Endpoint {
    fn answering(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        Arc::new(Self(Mutex::new((answers.into_iter().collect(), 0))))
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
        let answer = {
            let mut state = self.0.lock().expect("a lock");
            state.1 += 1;
            match state.0.len() {
                1 => state.0[0].clone(),
                _ => state.0.pop_front().expect("an answer"),
            }
        };
        // A moment, so that callers can meet at the same fetch.
        sleep(Duration::from_millis(50)).await;
        match answer {
            Answer::Set(document) => Ok(document),
            Answer::Down => Err(FetchError("connection refused".to_owned())),
            Answer::Silent => std::future::pending().await,
        }
    }
}

fn set(keys: &[Value]) -> Answer {
    Answer::Set(json!({ "keys": keys }).to_string().into_bytes())
}

fn fetching(endpoint: &Arc<Endpoint>) -> Arc<Verifier> {
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

async fn answer(verifier: &Verifier, token: &str) -> Option<TokenError> {
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
    let endpoint = Endpoint::answering([set(&keys)]);
    let verifier = fetching(&endpoint);
    assert_eq!(answer(&verifier, &token(&one, Some("one"))).await, None);
    assert_eq!(answer(&verifier, &token(&two, Some("two"))).await, None);
    assert_eq!(answer(&verifier, &token(&three, Some("three"))).await, None);
    // Without a name every key that fits is tried.
    assert_eq!(answer(&verifier, &token(&two, None)).await, None);
    assert_eq!(
        answer(&verifier, &token(&one, Some("two"))).await,
        Some(TokenError::Signature)
    );
    assert_eq!(endpoint.fetches(), 1);
    let foreign = token(&p256(), Some("foreign"));
    assert_eq!(
        answer(&verifier, &foreign).await,
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
        let verifier = fetching(&Endpoint::answering([set(&keys)]));
        let refused = answer(&verifier, &token(&signer, Some("k"))).await;
        assert_eq!(refused.is_none(), accepted, "{more} {refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn oct_keys_in_jwks_are_ignored_and_hs256_never_fetches_jwks() {
    let endpoint = Endpoint::answering([set(&[shared().jwk("k", json!({}))])]);
    let verifier = fetching(&endpoint);
    assert_eq!(
        answer(&verifier, &token(&shared(), Some("k"))).await,
        Some(TokenError::Algorithm)
    );
    assert_eq!(endpoint.fetches(), 0);
    assert_eq!(
        answer(&verifier, &token(&p256(), Some("k"))).await,
        Some(TokenError::Algorithm)
    );
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn configured_keys_work_while_jwks_is_unreachable() {
    let (own, remote) = (p256(), p256());
    let endpoint = Endpoint::answering([Answer::Down]);
    let mut config = trusting(&own);
    config.jwks_url = Some("https://issuer.example/jwks".parse().expect("a url"));
    let verifier = Verifier::new(&config, endpoint.clone()).expect("a verifier");
    assert_eq!(answer(&verifier, &token(&own, Some("any"))).await, None);
    assert_eq!(endpoint.fetches(), 0);
    let unavailable = TokenError::KeysUnavailable {
        retry_after: RETRY_EMPTY,
    };
    assert_eq!(
        answer(&verifier, &token(&remote, None)).await,
        Some(unavailable)
    );
}

#[tokio::test(start_paused = true)]
async fn a_rotated_key_is_accepted_at_once() {
    let (old, new) = (ed25519(), ed25519());
    let answers = [
        set(&[old.jwk("old", json!({}))]),
        set(&[old.jwk("old", json!({})), new.jwk("new", json!({}))]),
    ];
    let endpoint = Endpoint::answering(answers);
    let verifier = fetching(&endpoint);
    assert_eq!(answer(&verifier, &token(&old, Some("old"))).await, None);
    assert_eq!(answer(&verifier, &token(&new, Some("new"))).await, None);
    assert_eq!(answer(&verifier, &token(&old, Some("old"))).await, None);
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn rotation_without_kid_is_picked_up() {
    let (old, new) = (ed25519(), ed25519());
    let answers = [
        set(&[old.jwk("old", json!({}))]),
        set(&[new.jwk("new", json!({}))]),
    ];
    let verifier = fetching(&Endpoint::answering(answers));
    assert_eq!(answer(&verifier, &token(&old, None)).await, None);
    assert_eq!(answer(&verifier, &token(&new, None)).await, None);
    assert_eq!(
        answer(&verifier, &token(&old, None)).await,
        Some(TokenError::Signature)
    );
}

#[tokio::test(start_paused = true)]
async fn unknown_kids_trigger_at_most_one_fetch_per_interval() {
    let known = p256();
    let endpoint = Endpoint::answering([set(&[known.jwk("known", json!({}))])]);
    let verifier = fetching(&endpoint);
    assert_eq!(answer(&verifier, &token(&known, Some("known"))).await, None);
    let stranger = p256();
    let flood = |round: usize| {
        let verifier = Arc::clone(&verifier);
        let tokens: Vec<_> = (0..50)
            .map(|n| token(&stranger, Some(&format!("unknown {round} {n}"))))
            .collect();
        async move {
            let answers = tokens.iter().map(|token| answer(&verifier, token));
            for refused in futures_util::future::join_all(answers).await {
                assert_eq!(refused, Some(TokenError::UnknownKey));
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
    assert_eq!(answer(&verifier, &token(&known, Some("known"))).await, None);
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_the_first_fetch() {
    let known = p256();
    let endpoint = Endpoint::answering([set(&[known.jwk("known", json!({}))])]);
    let verifier = fetching(&endpoint);
    let token = token(&known, Some("known"));
    let callers = (0..50).map(|_| answer(&verifier, &token));
    let answers = futures_util::future::join_all(callers).await;
    assert!(answers.iter().all(Option::is_none));
    assert_eq!(endpoint.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn unavailable_jwks_returns_retry_after() {
    let known = p256();
    let answers = [
        Answer::Silent,
        Answer::Down,
        set(&[known.jwk("k", json!({}))]),
    ];
    let endpoint = Endpoint::answering(answers);
    let verifier = fetching(&endpoint);
    let token = token(&known, Some("k"));
    let started = tokio::time::Instant::now();
    let callers = (0..50).map(|_| answer(&verifier, &token));
    for refused in futures_util::future::join_all(callers).await {
        let unavailable = TokenError::KeysUnavailable {
            retry_after: RETRY_EMPTY,
        };
        assert_eq!(refused, Some(unavailable));
    }
    assert_eq!((endpoint.fetches(), started.elapsed()), (1, TIMEOUT));
    advance(RETRY_EMPTY - Duration::from_secs(1)).await;
    let soon = TokenError::KeysUnavailable {
        retry_after: Duration::from_secs(1),
    };
    assert_eq!(answer(&verifier, &token).await, Some(soon));
    assert_eq!(endpoint.fetches(), 1);
    advance(Duration::from_secs(1)).await;
    assert!(answer(&verifier, &token).await.is_some());
    advance(RETRY_EMPTY).await;
    assert_eq!(answer(&verifier, &token).await, None);
    assert_eq!(endpoint.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn cancelled_caller_does_not_reset_the_fetch_backoff() {
    let known = p256();
    let endpoint = Endpoint::answering([Answer::Silent]);
    let verifier = fetching(&endpoint);
    let token = token(&known, Some("k"));
    for _ in 0..5 {
        let left = tokio::time::timeout(Duration::from_millis(10), answer(&verifier, &token));
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
    let endpoint = Endpoint::answering(answers);
    let verifier = fetching(&endpoint);
    let old = token(&old, Some("old"));
    assert_eq!(answer(&verifier, &old).await, None);
    advance(MAX_AGE - Duration::from_secs(1)).await;
    assert_eq!(answer(&verifier, &old).await, None);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(endpoint.fetches(), 1);
    advance(Duration::from_secs(1)).await;
    // Still answered from the old set, at once.
    assert_eq!(answer(&verifier, &old).await, None);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(endpoint.fetches(), 2);
    assert_eq!(answer(&verifier, &token(&new, Some("new"))).await, None);
    assert_eq!(answer(&verifier, &old).await, Some(TokenError::UnknownKey));
}

#[tokio::test(start_paused = true)]
async fn stale_jwks_is_used_while_the_endpoint_is_down() {
    let (known, later) = (p256(), p256());
    let huge = Answer::Set(vec![b' '; MAX_BYTES + 1]);
    let wrong = Answer::Set(b"<html>".to_vec());
    let answers = [
        set(&[known.jwk("k", json!({}))]),
        Answer::Down,
        Answer::Silent,
        huge,
        wrong,
        set(&[known.jwk("k", json!({})), later.jwk("later", json!({}))]),
    ];
    let endpoint = Endpoint::answering(answers);
    let verifier = fetching(&endpoint);
    let known = token(&known, Some("k"));
    assert_eq!(answer(&verifier, &known).await, None);
    for fetches in 2..=5 {
        advance(MAX_AGE).await;
        assert_eq!(answer(&verifier, &known).await, None);
        sleep(TIMEOUT + Duration::from_secs(1)).await;
        assert_eq!(endpoint.fetches(), fetches);
        // Attempts to renew are spaced as well.
        assert_eq!(answer(&verifier, &known).await, None);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(endpoint.fetches(), fetches);
    }
    advance(MIN_REFRESH_INTERVAL).await;
    assert_eq!(answer(&verifier, &known).await, None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(answer(&verifier, &token(&later, Some("later"))).await, None);
}
