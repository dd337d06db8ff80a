//! A key and the algorithms that belong to it.
//!
//! Invariant: the algorithms come from the kind of key, never from a token, and are of one family; so a public
//! key cannot be used as a shared secret.

use std::fmt;

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaParameters};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use serde_json::Value;

use super::TokenError;
use super::claims::Claims;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const P256: &[Algorithm] = &[Algorithm::ES256];
const P384: &[Algorithm] = &[Algorithm::ES384];
const ED25519: &[Algorithm] = &[Algorithm::EdDSA];

type ReadPem = fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>;
type IsSound = fn(&[u8]) -> bool;

/// How each kind is read from PEM, what shows that it is of that kind, and its algorithms.
const PEM_KINDS: [(ReadPem, IsSound, &[Algorithm]); 4] = [
    (DecodingKey::from_ed_pem, is_ed25519, ED25519),
    (DecodingKey::from_ec_pem, is_p256, P256),
    (DecodingKey::from_ec_pem, is_p384, P384),
    (DecodingKey::from_rsa_pem, is_rsa, RSA),
];

fn is_ed25519(key: &[u8]) -> bool {
    ParsedPublicKey::new(&signature::ED25519, key).is_ok()
}

/// The library drops the name of the curve, so the curve is the one that the key is a point of.
fn is_p256(key: &[u8]) -> bool {
    ParsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key).is_ok()
}

fn is_p384(key: &[u8]) -> bool {
    ParsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, key).is_ok()
}

fn is_rsa(key: &[u8]) -> bool {
    let accepted = &signature::RSA_PKCS1_2048_8192_SHA256;
    RsaParameters::public_modulus_len(key)
        .is_ok_and(|bits| (accepted.min_modulus_len()..=accepted.max_modulus_len()).contains(&bits))
}

/// A key that proves tokens.
pub struct VerifyingKey {
    /// Set for keys of a JWKS only.
    id: Option<String>,
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl VerifyingKey {
    fn new(id: Option<String>, key: DecodingKey, algorithms: Vec<Algorithm>) -> Self {
        // The signature alone is proven here: the library takes a malformed `aud` or `iss` for an absent one
        // and reads the system's clock, so `claims` judges the rest.
        let mut validation = Validation {
            algorithms,
            validate_exp: false,
            validate_nbf: false,
            validate_aud: false,
            ..Validation::default()
        };
        validation.required_spec_claims.clear();
        Self {
            id,
            key,
            validation,
        }
    }

    pub(super) fn from_secret(secret: &[u8]) -> Self {
        let key = DecodingKey::from_secret(secret);
        Self::new(None, key, vec![Algorithm::HS256])
    }

    /// Reads one public key; the problem never repeats the text.
    pub(super) fn from_pem(text: &str) -> Result<Self, &'static str> {
        if text.contains("PRIVATE KEY-----") {
            return Err("is a private key: give the public one (openssl pkey -pubout)");
        }
        if text.contains("-----BEGIN CERTIFICATE-----") {
            return Err("is a certificate: give its public key (openssl x509 -pubkey -noout)");
        }
        if text.matches("-----BEGIN ").count() != 1 {
            return Err("must hold exactly one PEM public key");
        }
        let pem = text.as_bytes();
        for (read, is_sound, algorithms) in PEM_KINDS {
            let Ok(key) = read(pem) else { continue };
            let sound = key.try_get_as_bytes().is_ok_and(is_sound);
            if sound {
                return Ok(Self::new(None, key, algorithms.to_vec()));
            }
        }
        Err("is not an Ed25519, EC (P-256, P-384) or RSA (2048 to 8192 bits) public key in PEM")
    }

    /// The keys of a JWKS document that may prove tokens; None when it is no key set.
    pub fn from_jwks(document: &[u8]) -> Option<Vec<Self>> {
        let set: KeySet = serde_json::from_slice(document).ok()?;
        Some(set.keys.into_iter().filter_map(Self::from_jwk).collect())
    }

    /// Reads a public key of a JWKS; None for a key that must not prove tokens.
    fn from_jwk(jwk: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let common = &jwk.common;
        let signs = match &common.public_key_use {
            Some(PublicKeyUse::Signature) | None => true,
            Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_)) => false,
        };
        let operations = common.key_operations.as_ref();
        if !signs || operations.is_some_and(|list| !list.contains(&KeyOperations::Verify)) {
            return None;
        }
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the library's enums may grow; a kind it adds proves nothing here"
        )]
        let algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => RSA,
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => P256,
                EllipticCurve::P384 => P384,
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                ED25519
            }
            _ => return None,
        };
        let meant = |algorithm: &Algorithm| {
            let only = common.key_algorithm;
            only.is_none_or(|only| only == KeyAlgorithm::from(*algorithm))
        };
        let algorithms: Vec<Algorithm> = algorithms.iter().copied().filter(meant).collect();
        if algorithms.is_empty() {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self::new(jwk.common.key_id, key, algorithms))
    }

    /// Whether tokens of this algorithm may be proven with this key.
    pub(super) fn may_use(&self, algorithm: Algorithm) -> bool {
        self.validation.algorithms.contains(&algorithm)
    }

    /// Whether a token that names its key so may mean this one; a key without a name may be any.
    pub(super) fn matches_kid(&self, key_id: Option<&str>) -> bool {
        match (&self.id, key_id) {
            (Some(own), Some(named)) => own == named,
            (None, _) | (_, None) => true,
        }
    }

    /// Proves the signature and reads the claims, which are still to be judged.
    pub(super) fn decode(&self, token: &str) -> Result<Claims, TokenError> {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the library's enum may grow; any other error is about the token's form"
        )]
        decode::<Claims>(token, &self.key, &self.validation)
            .map(|proven| proven.claims)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => TokenError::Signature,
                _ => TokenError::Malformed,
            })
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}
