//! Cache of tokens with a verified signature.
//!
//! Callers send the same token with every request, and verifying a signature is expensive. The
//! cache maps the SHA-256 digest of a token to its claims. The claims are checked again for every
//! request, so a cached token expires like any other.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use hashlink::LruCache;

use super::claims::Claims;
use super::keys::VerifyingKey;

/// Maximum number of cached tokens. The least recently used token is evicted.
const MAX_TOKENS: usize = 4096;

/// The SHA-256 digest of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Returns the digest of a token.
    pub(super) fn of(token: &str) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(bytes)
    }
}

/// Claims of a token with a verified signature.
#[derive(Clone)]
pub(super) struct VerifiedClaims {
    pub(super) claims: Arc<Claims>,
    /// The fetched key set that verified the signature, or `None` for a configured key.
    pub(super) key_set: Option<Arc<[VerifyingKey]>>,
}

/// A bounded cache of verified tokens.
pub(super) struct VerifiedTokens(Mutex<LruCache<TokenDigest, VerifiedClaims>>);

impl Default for VerifiedTokens {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MAX_TOKENS)))
    }
}

impl VerifiedTokens {
    /// Returns the cached claims of a token. The caller checks that their key set is current.
    pub(super) fn get(&self, token: &TokenDigest) -> Option<VerifiedClaims> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(token).cloned()
    }

    /// Caches the claims of a token.
    pub(super) fn insert(&self, token: TokenDigest, claims: VerifiedClaims) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(token, claims);
    }
}
