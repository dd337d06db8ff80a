//! External token issuers: generated key pairs and a JWKS endpoint.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use actix_web::{App, HttpResponse, HttpServer, web};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Signs JWTs with a generated private key.
pub struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    pub public_pem: String,
}

impl Signer {
    pub fn rsa() -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        let key = EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes());
        Self::new(Algorithm::RS256, key.unwrap(), public.as_ref())
    }

    pub fn p256() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let private = pair.to_pkcs8v1().unwrap();
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        let key = EncodingKey::from_ec_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes());
        Self::new(Algorithm::ES256, key.unwrap(), public.as_ref())
    }

    pub fn ed25519() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
        let key = EncodingKey::from_ed_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes());
        Self::new(Algorithm::EdDSA, key.unwrap(), public.as_ref())
    }

    fn new(algorithm: Algorithm, key: EncodingKey, public: &[u8]) -> Self {
        let public_pem = pem("PUBLIC KEY", public);
        Self {
            algorithm,
            key,
            public_pem,
        }
    }

    /// Returns a token for `sub` that is valid for ten minutes and names the key `kid`.
    pub fn token(&self, kid: Option<&str>, sub: &str) -> String {
        let exp = jiff::Timestamp::now().as_second() + 600;
        self.sign(kid, &json!({ "sub": sub, "exp": exp }))
    }

    /// Returns a token with these claims.
    pub fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let header = Header {
            kid: kid.map(str::to_owned),
            ..Header::new(self.algorithm)
        };
        encode(&header, claims, &self.key).unwrap()
    }

    /// Returns the public key as a JWK with the id `kid`.
    pub fn jwk(&self, kid: &str) -> Value {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = json!(kid);
        jwk
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|at| &text[at..text.len().min(at + 64)])
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
}

/// A JWKS endpoint, stopped on drop.
pub struct Issuer {
    address: SocketAddr,
    keys: PublishedKeys,
    shutdown: CancellationToken,
}

/// Key set of the endpoint. With `None` it answers 500.
type PublishedKeys = Arc<Mutex<Option<Value>>>;

impl Issuer {
    pub fn start(keys: Option<Vec<Value>>) -> Self {
        let published = PublishedKeys::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = web::Data::from(Arc::clone(&published));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(served.clone())
                .default_service(web::to(get_keys))
        });
        let server = server.workers(1).disable_signals().listen(listener);
        let server = server.unwrap().run();
        let shutdown = CancellationToken::new();
        let (handle, cancelled) = (server.handle(), shutdown.clone());
        tokio::spawn(server);
        tokio::spawn(async move {
            cancelled.cancelled().await;
            handle.stop(false).await;
        });
        let issuer = Self {
            address,
            keys: published,
            shutdown,
        };
        issuer.publish(keys);
        issuer
    }

    pub fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }

    /// Replaces the key set. With `None` the endpoint answers 500.
    pub fn publish(&self, keys: Option<Vec<Value>>) {
        *self.keys.lock().unwrap() = keys.map(|keys| json!({ "keys": keys }));
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn get_keys(keys: web::Data<Mutex<Option<Value>>>) -> HttpResponse {
    match &*keys.lock().unwrap() {
        Some(keys) => HttpResponse::Ok().json(keys),
        None => HttpResponse::InternalServerError().finish(),
    }
}
