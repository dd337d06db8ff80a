//! A verification key and the algorithms that it may be used with.
//!
//! The algorithms depend on the type of the key, never on the token, and belong to one family. A public key can
//! therefore not be used as an HMAC secret.

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
type IsValid = fn(&[u8]) -> bool;

/// For each key type: the PEM parser, a check that the key has this type, and its algorithms.
const PEM_KINDS: [(ReadPem, IsValid, &[Algorithm]); 4] = [
    (DecodingKey::from_ed_pem, is_ed25519, ED25519),
    (DecodingKey::from_ec_pem, is_p256, P256),
    (DecodingKey::from_ec_pem, is_p384, P384),
    (DecodingKey::from_rsa_pem, is_rsa, RSA),
];

fn is_ed25519(key: &[u8]) -> bool {
    ParsedPublicKey::new(&signature::ED25519, key).is_ok()
}

/// `jsonwebtoken` does not expose the curve, so the key is parsed as a point of each curve.
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

/// A key that verifies tokens.
pub struct VerifyingKey {
    /// `kid`, for keys of a JWKS.
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
        // Only the signature is verified here. `claims` validates the claims, because the library treats a
        // malformed `aud` or `iss` as absent and reads the system clock.
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

    /// Parses a public key. The error does not contain the text.
    pub(super) fn from_pem(text: &str) -> Result<Self, &'static str> {
        if text.contains("PRIVATE KEY-----") {
            return Err("is a private key; use the public key (openssl pkey -pubout)");
        }
        if text.contains("-----BEGIN CERTIFICATE-----") {
            return Err("is a certificate; use its public key (openssl x509 -pubkey -noout)");
        }
        if text.matches("-----BEGIN ").count() != 1 {
            return Err("must contain exactly one PEM public key");
        }
        let pem = text.as_bytes();
        for (read, is_valid, algorithms) in PEM_KINDS {
            let Ok(key) = read(pem) else { continue };
            let valid = key.try_get_as_bytes().is_ok_and(is_valid);
            if valid {
                return Ok(Self::new(None, key, algorithms.to_vec()));
            }
        }
        Err("is not an Ed25519, EC (P-256, P-384) or RSA (2048 to 8192 bits) public key in PEM")
    }

    /// Parses a JWKS and returns its keys that may verify tokens, or `None` if the document is not a key set.
    pub fn from_jwks(document: &[u8]) -> Option<Vec<Self>> {
        let set: KeySet = serde_json::from_slice(document).ok()?;
        Some(set.keys.into_iter().filter_map(Self::from_jwk).collect())
    }

    /// Parses a public key of a JWKS. Returns `None` for a key that must not verify tokens.
    fn from_jwk(mut jwk: Value) -> Option<Self> {
        // RFC 9864 names EdDSA with this curve `Ed25519`.
        if jwk["alg"] == "Ed25519" {
            jwk["alg"] = "EdDSA".into();
        }
        // Some issuers pad the value, which RFC 7515, section 2, does not allow.
        if let Some(Value::String(x)) = jwk.get_mut("x") {
            x.truncate(x.trim_end_matches('=').len());
        }
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
            reason = "the library's enums are non-exhaustive; an unknown key type is skipped"
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
        let is_allowed = |algorithm: &Algorithm| {
            let declared = common.key_algorithm;
            declared.is_none_or(|declared| declared == KeyAlgorithm::from(*algorithm))
        };
        let algorithms: Vec<Algorithm> = algorithms.iter().copied().filter(is_allowed).collect();
        if algorithms.is_empty() {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let is_curve_point = |key: &DecodingKey| key.try_get_as_bytes().is_ok_and(is_ed25519);
        if algorithms == ED25519 && !is_curve_point(&key) {
            return None;
        }
        Some(Self::new(jwk.common.key_id, key, algorithms))
    }

    /// Returns the `kid` of a key of a JWKS.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Returns the bytes of an Ed25519 public key, or `None` for a key of another type.
    pub(crate) fn ed25519(&self) -> Option<[u8; 32]> {
        let key = self.may_use(Algorithm::EdDSA).then_some(&self.key)?;
        key.try_get_as_bytes().ok()?.try_into().ok()
    }

    /// Returns whether this key may verify tokens with this algorithm.
    pub(super) fn may_use(&self, algorithm: Algorithm) -> bool {
        self.validation.algorithms.contains(&algorithm)
    }

    /// Returns whether a token with this `kid` may be signed by this key. A missing `kid` on either side matches.
    pub(super) fn matches_kid(&self, key_id: Option<&str>) -> bool {
        let ids = self.id().zip(key_id);
        ids.is_none_or(|(own, requested)| own == requested)
    }

    /// Verifies the signature and returns the claims, which are not yet validated.
    pub(super) fn decode(&self, token: &str) -> Result<Claims, TokenError> {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the library's enum is non-exhaustive; any other error is about the format of the token"
        )]
        decode::<Claims>(token, &self.key, &self.validation)
            .map(|data| data.claims)
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
