//! Token issuers for tests, with keys generated for each run.

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair,
};
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::crypto::sign;
use jsonwebtoken::jwk::Jwk;

use super::*;

pub(super) const SECRET: &str = "a test secret of thirty-two bytes";

pub(super) const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCyAWzGABf4xmvf14JLQP4X6BG1
uZxP9KSo0RCeVFwMK06c7WHVG6GD1Fm4n4UAcGwXRO4KH/sAkBI+xlzH2f2xVDiU
9kLS+lF2NRZgoHWnBnhEj/WgWtm2JIplCV5/WFgKz8+zsEW+V0L/x1W8FLJGiMCG
LNvDfT2JrpcW9T1iJwIDAQAB
-----END PUBLIC KEY-----
";

pub(super) const SECP256K1: &str = "-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAErL52TiiqpTQme/JaLbC9BE7/IAR2875G
f1FIZGQdJ+9k/t2NJw7ozvDL6/Gy+56AEI7qN0H4a270l8bqwGA9sg==
-----END PUBLIC KEY-----
";

pub(super) const P521: &str = "-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAEMdohljhufWU0/lMd89TiCSLV/EF
2feTdhff3v9a3q7f5DW4hJprX2hASmJhHOHpS7d6go5WEUJ5b3gG+8tMtM4A7/H8
/j1dCBZZYNnb2XeqZ/3q9dE7q8v55zWxDx/t1bJHefCZ4bLBU3vhXdBsCN8dm5l0
QX9gLLXZbKUasHxomvk=
-----END PUBLIC KEY-----
";

pub(super) const X25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VuAyEA5gkKPOJRt11+koB7a61DC0yCiHBGLTqU7PD2yjvwGDA=
-----END PUBLIC KEY-----
";

#[derive(Clone)]
pub(super) struct Signer {
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) public_pem: Option<String>,
    key: EncodingKey,
    pkcs8: Vec<u8>,
}

impl Signer {
    pub(super) fn sharing(secret: &[u8]) -> Self {
        Self {
            algorithms: vec![Algorithm::HS256],
            public_pem: None,
            key: EncodingKey::from_secret(secret),
            pkcs8: Vec::new(),
        }
    }

    fn new(pkcs8: &[u8], public: &[u8], algorithms: &[Algorithm]) -> Self {
        let private = pem("PRIVATE KEY", pkcs8);
        let key = match algorithms[0].family() {
            AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(private.as_bytes()),
            AlgorithmFamily::Ec => EncodingKey::from_ec_pem(private.as_bytes()),
            AlgorithmFamily::Ed => EncodingKey::from_ed_pem(private.as_bytes()),
            AlgorithmFamily::Hmac => panic!("a secret is no key pair"),
        };
        Self {
            algorithms: algorithms.to_vec(),
            public_pem: Some(pem("PUBLIC KEY", public)),
            key: key.expect("a private key"),
            pkcs8: pkcs8.to_vec(),
        }
    }

    pub(super) fn private_pem(&self) -> String {
        pem("PRIVATE KEY", &self.pkcs8)
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.algorithms[0], None, claims)
    }

    pub(super) fn sign_as(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        claims: &Value,
    ) -> String {
        let mut header = json!({"typ": "JWT", "alg": algorithm});
        if let Some(kid) = kid {
            header["kid"] = json!(kid);
        }
        self.sign_with(&header, claims)
    }

    pub(super) fn sign_with(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs arbitrary header and claims with the algorithm of the header.
    pub(super) fn sign_text(&self, header: &str, claims: &str) -> String {
        let read: Value = serde_json::from_str(header).expect("a header");
        let algorithm = serde_json::from_value(read["alg"].clone()).expect("an algorithm");
        let message = [header, claims]
            .map(|part| URL_SAFE_NO_PAD.encode(part))
            .join(".");
        let signature = sign(message.as_bytes(), &self.key, algorithm).expect("signed");
        format!("{message}.{signature}")
    }

    /// Returns the public key as a JWK.
    pub(super) fn jwk(&self, kid: &str, more: Value) -> Value {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithms[0]).expect("a public key");
        let mut jwk = serde_json::to_value(jwk).expect("json");
        jwk["kid"] = json!(kid);
        if let Value::Object(more) = more {
            for (name, value) in more {
                jwk[name] = value;
            }
        }
        jwk
    }
}

/// Builds a token with the given signature.
pub(super) fn forge(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let parts = [header.to_string(), claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{}.{}", parts.join("."), URL_SAFE_NO_PAD.encode(signature))
}

pub(super) fn shared() -> Signer {
    Signer::sharing(SECRET.as_bytes())
}

pub(super) fn rsa() -> Signer {
    static ONE: LazyLock<Signer> = LazyLock::new(|| {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key pair");
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).expect("pkcs8");
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).expect("spki");
        Signer::new(
            private.as_ref(),
            public.as_ref(),
            AlgorithmFamily::Rsa.algorithms(),
        )
    });
    ONE.clone()
}

fn ec(kind: &'static EcdsaSigningAlgorithm, algorithm: Algorithm) -> Signer {
    let pair = EcdsaKeyPair::generate(kind).expect("a key pair");
    let private = pair.to_pkcs8v1().expect("pkcs8");
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).expect("spki");
    Signer::new(private.as_ref(), public.as_ref(), &[algorithm])
}

pub(super) fn p256() -> Signer {
    ec(&ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::ES256)
}

pub(super) fn p384() -> Signer {
    ec(&ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::ES384)
}

pub(super) fn ed25519() -> Signer {
    let pair = Ed25519KeyPair::generate().expect("a key pair");
    let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).expect("pkcs8");
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).expect("spki");
    Signer::new(private.as_ref(), public.as_ref(), &[Algorithm::EdDSA])
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|at| &text[at..text.len().min(at + 64)])
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
