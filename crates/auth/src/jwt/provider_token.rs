//! Tokens that the hub shows to others: short-lived JWTs in the place of a key.
//!
//! Invariant: such a token is made anew for each request, so that it never grows old.

use jsonwebtoken::{EncodingKey, Header, encode};
use serde::Serialize;

/// The claims as an HS256 JWT with the header `{"typ":"JWT","alg":"HS256"}`; none where the claims are no
/// JSON object. Kling's older interface wants one (klingai.com/document-api: authentication).
pub fn hs256<C: Serialize>(claims: &C, secret: &str) -> Option<String> {
    encode(
        &Header::default(),
        claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .ok()
}
