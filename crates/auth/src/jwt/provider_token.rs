//! Short-lived JWTs that authenticate the hub to a provider.

use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;

/// Signs `claims` as an HS256 JWT with the header `{"typ":"JWT","alg":"HS256"}`. Returns `None` if the claims are not
/// a JSON object. Kling's first API requires such a token (klingai.com/document-api: authentication).
pub fn hs256<C: Serialize>(claims: &C, secret: &str) -> Option<String> {
    encode(
        &Header::default(),
        claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .ok()
}
