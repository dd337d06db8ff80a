//! Parsing and validation of the `[auth]` section.

use super::*;

fn errors(config: &AuthConfig) -> Vec<(String, String)> {
    match Verifier::new(config, Arc::new(NoFetch)) {
        Ok(_) => Vec::new(),
        Err(errors) => errors,
    }
}

#[test]
fn all_invalid_keys_are_reported_with_their_config_key() {
    let private = ed25519().private_pem();
    let mut config = AuthConfig {
        hs256_secrets: vec![
            signers::SECRET.into(),
            "x".repeat(31).into(),
            "ab".repeat(32).into(),
            "password".repeat(8).into(),
        ],
        jwks_url: Some("http://keys.example/jwks".parse().expect("a url")),
        ..AuthConfig::default()
    };
    config.public_keys = vec![
        private,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".to_owned(),
        signers::RSA_1024.to_owned(),
        signers::SECP256K1.to_owned(),
        signers::P521.to_owned(),
        signers::X25519.to_owned(),
        format!("{0}{0}", p256().public_pem.expect("a public key")),
        "no/such/file.pem".to_owned(),
    ];
    let errors = errors(&config);
    let lines: Vec<String> = errors
        .iter()
        .map(|(key, message)| format!("{key} {message}"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    auth.hs256_secrets[1] must have at least 32 bytes, found 31
    auth.hs256_secrets[2] must be random, such as the output of openssl rand -hex 32
    auth.hs256_secrets[3] must be random, such as the output of openssl rand -hex 32
    auth.public_keys[0] is a private key; use the public key (openssl pkey -pubout)
    auth.public_keys[1] is a certificate; use its public key (openssl x509 -pubkey -noout)
    auth.public_keys[2] is not an Ed25519, EC (P-256, P-384) or RSA (2048 to 8192 bits) public key in PEM
    auth.public_keys[3] is not an Ed25519, EC (P-256, P-384) or RSA (2048 to 8192 bits) public key in PEM
    auth.public_keys[4] is not an Ed25519, EC (P-256, P-384) or RSA (2048 to 8192 bits) public key in PEM
    auth.public_keys[5] is not an Ed25519, EC (P-256, P-384) or RSA (2048 to 8192 bits) public key in PEM
    auth.public_keys[6] must contain exactly one PEM public key
    auth.public_keys[7] neither PEM text nor a readable file: entity not found
    auth.jwks_url must be https, or http on loopback
    ");
}

#[test]
fn keys_are_required_and_may_be_file_paths() {
    let found = errors(&AuthConfig::default());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "auth");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("key.pem");
    std::fs::write(&path, p384().public_pem.expect("a public key")).expect("written");
    let config = AuthConfig {
        public_keys: vec![path.to_str().expect("a path").to_owned()],
        ..AuthConfig::default()
    };
    assert!(errors(&config).is_empty());
    for (url, safe) in [
        ("https://a.example/k", true),
        ("http://127.0.0.1:9/k", true),
        ("http://[::1]:9/k", true),
        ("http://localhost/k", true),
        ("http://localhost.example/k", false),
        ("file:///etc/keys", false),
    ] {
        let config = AuthConfig {
            jwks_url: Some(url.parse().expect("a url")),
            ..AuthConfig::default()
        };
        assert_eq!(errors(&config).is_empty(), safe, "{url}");
    }
}

#[test]
fn debug_output_redacts_secrets() {
    let config = trusting(&shared());
    assert!(!format!("{config:?}").contains(signers::SECRET));
}
