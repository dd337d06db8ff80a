//! Bearer tokens with HS256.

use actix_web::HttpRequest;
use actix_web::http::header::AUTHORIZATION;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

/// Secret that signs tokens.
const SECRET: &[u8] = b"a token secret for a single benchmark run";

/// Scope that allows updates.
const SCOPE: &str = "jobs:publish";

const TOKEN_LIFETIME_SECONDS: i64 = 3600;

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    scope: String,
    exp: i64,
}

/// Verifies the tokens of requests.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    pub fn new() -> Self {
        Self {
            key: DecodingKey::from_secret(SECRET),
            validation: Validation::new(Algorithm::HS256),
        }
    }

    /// Returns whether the request has a valid token that allows updates.
    pub fn accepts(&self, request: &HttpRequest) -> bool {
        let header = request.headers().get(AUTHORIZATION);
        let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let claims =
            token.and_then(|token| decode::<Claims>(token, &self.key, &self.validation).ok());
        claims.is_some_and(|token| token.claims.scope.split(' ').any(|scope| scope == SCOPE))
    }
}

/// Returns the `Authorization` header of a worker.
pub fn worker() -> anyhow::Result<String> {
    let claims = Claims {
        sub: "worker".to_owned(),
        scope: SCOPE.to_owned(),
        exp: Timestamp::now().as_second() + TOKEN_LIFETIME_SECONDS,
    };
    let token = encode(
        &Header::default(),
        &claims,
        &EncodingKey::from_secret(SECRET),
    )?;
    Ok(format!("Bearer {token}"))
}
