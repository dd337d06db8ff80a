//! Signatures in headers, described by a table: header, encoding, signed content, algorithm and keys.
//!
//! A provider definition contains the table. [`STANDARD_WEBHOOKS`] is the table for the providers
//! that follow the Standard Webhooks specification. The timestamp is read only after the signature
//! that covers it is verified.

use std::borrow::Cow;
use std::sync::LazyLock;

use aws_lc_rs::hmac;
use base64::Engine;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::header_name::HeaderName;
use super::key::{BASE64, BASE64URL, Key, VerificationKey};
use super::template::{Fields, Template, field};
use super::{CannotSign, MAX_SIGNATURES, Request, SignatureError, check_fresh, required};

/// The header of a signature, the content that it covers, and the keys that verify it.
#[derive(Debug, Clone)]
pub struct Detached {
    /// Header names. The first one present carries the signature.
    pub(super) headers: Vec<HeaderName>,
    pub(super) encoding: Encoding,
    /// Name of the field with the signature, if the header is a list of fields (`t=…,v1=…`). It may occur repeatedly.
    pub(super) signature_field: Option<String>,
    pub(super) signed: Template,
    pub(super) timestamp: Option<TimestampSource>,
    pub(super) id_header: Option<HeaderName>,
    /// The header that names the account at the provider. `signed` includes it.
    pub(super) account_header: Option<HeaderName>,
    /// The accepted kinds of signatures. Each is verified only with keys of the same kind.
    pub(super) kinds: Vec<Kind>,
    /// Whether a signature must have the prefix of its kind. Signatures of other kinds are ignored.
    pub(super) is_versioned: bool,
    pub(super) key_id_header: Option<HeaderName>,
    pub(super) jwks_url: Option<Url>,
}

/// A kind of signatures.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) prefix: String,
    pub(super) algorithm: Algorithm,
}

#[derive(Debug, Clone)]
pub(super) enum Algorithm {
    /// An HMAC with a secret. The configured secret may have the prefix.
    Hmac {
        digest: Digest,
        key: KeyEncoding,
        key_prefix: String,
    },
    /// Ed25519. Public keys are published, or configured as this prefix followed by base64.
    Ed25519 { key_prefix: Option<&'static str> },
}

#[derive(Debug, Clone)]
pub(super) enum TimestampSource {
    Header(HeaderName),
    Field(String),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    Hex,
    Base64,
    Base64url,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Digest {
    #[default]
    Sha256,
    Sha512,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KeyEncoding {
    #[default]
    Raw,
    Base64,
    Hex,
}

/// Standard Webhooks: `id.timestamp.body`, signed with HMAC-SHA256 (`v1`) or Ed25519 (`v1a`).
/// Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
pub(super) static STANDARD_WEBHOOKS: LazyLock<Detached> = LazyLock::new(|| {
    let id = HeaderName::from_static("webhook-id");
    let timestamp = HeaderName::from_static("webhook-timestamp");
    Detached {
        headers: vec![HeaderName::from_static("webhook-signature")],
        encoding: Encoding::Base64,
        signature_field: None,
        signed: Template::headers_and_body([&id, &timestamp]),
        timestamp: Some(TimestampSource::Header(timestamp)),
        id_header: Some(id),
        account_header: None,
        kinds: vec![
            Kind {
                prefix: "v1,".to_owned(),
                algorithm: Algorithm::Hmac {
                    digest: Digest::Sha256,
                    key: KeyEncoding::Base64,
                    key_prefix: "whsec_".to_owned(),
                },
            },
            Kind {
                prefix: "v1a,".to_owned(),
                algorithm: Algorithm::Ed25519 {
                    key_prefix: Some("whpk_"),
                },
            },
        ],
        is_versioned: true,
        key_id_header: None,
        jwks_url: None,
    }
});

impl Encoding {
    fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Hex => hex::decode(text).ok(),
            Self::Base64 => BASE64.decode(text).ok(),
            Self::Base64url => BASE64URL.decode(text).ok(),
        }
    }

    fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex => hex::encode(bytes),
            Self::Base64 => BASE64.encode(bytes),
            Self::Base64url => BASE64URL.encode(bytes),
        }
    }
}

impl Kind {
    /// Returns the key in the form that verifies signatures of this kind, or `None` if it is not usable for them.
    fn verification_key(&self, key: &Key) -> Option<VerificationKey> {
        match (&self.algorithm, key) {
            (
                Algorithm::Hmac {
                    digest,
                    key: encoding,
                    key_prefix,
                },
                Key::Secret(_),
            ) => {
                let text = key.secret()?;
                let bare = text.strip_prefix(key_prefix).unwrap_or(text);
                let secret = match encoding {
                    KeyEncoding::Raw => Cow::Borrowed(bare.as_bytes()),
                    KeyEncoding::Base64 => Cow::Owned(BASE64.decode(bare).ok()?),
                    KeyEncoding::Hex => Cow::Owned(hex::decode(bare).ok()?),
                };
                let algorithm = match digest {
                    Digest::Sha256 => hmac::HMAC_SHA256,
                    Digest::Sha512 => hmac::HMAC_SHA512,
                };
                VerificationKey::hmac(algorithm, &secret)
            }
            (Algorithm::Ed25519 { key_prefix }, Key::Secret(_)) => {
                let public = key.secret()?.strip_prefix((*key_prefix)?)?;
                let public = BASE64.decode(public).ok()?.try_into().ok()?;
                Some(VerificationKey::Ed25519(public))
            }
            (Algorithm::Ed25519 { .. }, Key::Published(key)) => {
                key.ed25519().map(VerificationKey::Ed25519)
            }
            (Algorithm::Hmac { .. }, Key::Published(_)) => None,
        }
    }
}

/// A key that is usable with a scheme.
struct Candidate<'s> {
    kind: &'s Kind,
    /// `kid` of a published key.
    id: Option<&'s str>,
    key: VerificationKey,
}

impl Detached {
    /// Verifies a request and returns the signed message id.
    pub(super) fn verify(
        &self,
        request: &Request<'_>,
        keys: &[Key],
        now: Timestamp,
    ) -> Result<Option<String>, SignatureError> {
        let keys: Vec<_> = keys.iter().flat_map(|key| self.candidates(key)).collect();
        let uses_secret = |kind: &Kind| matches!(kind.algorithm, Algorithm::Hmac { .. });
        // A malformed request is rejected even if no published key is available.
        if keys.is_empty() && self.kinds.iter().any(uses_secret) {
            return Err(SignatureError::NoKeyConfigured);
        }
        let (header_name, value) = self.signature_header(request)?;
        let fields = self.fields(value);
        let signatures = self.signatures(&fields);
        if signatures.is_empty() && !self.is_versioned {
            return Err(SignatureError::Malformed(header_name.into()));
        }
        let content = self.signed.render(request, (header_name, &fields))?;
        let message_id = match self.id_header.as_deref() {
            Some(name) => match required(request.headers, name)? {
                "" => return Err(SignatureError::Malformed(name.into())),
                id => Some(id.to_owned()),
            },
            None => None,
        };
        if keys.is_empty() {
            return Err(SignatureError::NoKeyConfigured);
        }
        let key_id = self.key_id_header.as_deref();
        let key_id = key_id.and_then(|name| request.headers.get(name));
        let is_requested = |key: &Candidate<'_>| key_id.is_some() && key.id == key_id;
        // A key without an id matches every request.
        let matches = |key: &&Candidate<'_>| {
            let ids = key.id.zip(key_id);
            ids.is_none_or(|(own, requested)| own == requested)
        };
        let mut matching = keys.iter().filter(matches).peekable();
        if matching.peek().is_none() {
            return Err(SignatureError::UnknownKey);
        }
        let is_signed_with = |Candidate { kind, key, .. }: &Candidate<'_>| {
            let mut own = signatures.iter().filter(|(of, _)| std::ptr::eq(*of, *kind));
            own.any(|(_, tag)| key.verify(&content, tag))
        };
        if !matching.any(is_signed_with) {
            return Err(if keys.iter().any(is_requested) {
                SignatureError::Forged
            } else {
                SignatureError::Mismatch
            });
        }
        match &self.timestamp {
            Some(TimestampSource::Header(name)) => {
                check_fresh(required(request.headers, name)?, name, now)?;
            }
            Some(TimestampSource::Field(name)) => {
                let timestamp = field(&fields, name).unwrap_or_default();
                check_fresh(timestamp, header_name, now)?;
            }
            None => {}
        }
        Ok(message_id)
    }

    fn candidates<'s>(&'s self, key: &'s Key) -> impl Iterator<Item = Candidate<'s>> {
        self.kinds.iter().filter_map(|kind| {
            Some(Candidate {
                kind,
                id: key.id(),
                key: kind.verification_key(key)?,
            })
        })
    }

    fn signature_header<'s, 'r>(
        &'s self,
        request: &Request<'r>,
    ) -> Result<(&'s str, &'r str), SignatureError> {
        let mut present = self.headers.iter().filter_map(|name| {
            let value = request.headers.get(name)?;
            Some((&**name, value))
        });
        present.next().ok_or_else(|| {
            let first = self.headers.first().map_or("", |name| name);
            SignatureError::MissingHeader(first.into())
        })
    }

    /// Splits the value of the signature header into fields. Without `signature_field`, it is a list of signatures,
    /// which are fields without a name.
    fn fields<'r>(&self, value: &'r str) -> Fields<'r> {
        let pair = |part: &'r str| part.trim().split_once('=');
        match self.signature_field {
            Some(_) => value.split(',').filter_map(pair).collect(),
            None => value
                .split_ascii_whitespace()
                .map(|text| ("", text))
                .collect(),
        }
    }

    /// Decodes the signatures. Skips those that cannot be decoded.
    fn signatures(&self, fields: &Fields<'_>) -> Vec<(&Kind, Vec<u8>)> {
        let name = self.signature_field.as_deref().unwrap_or_default();
        let encoded = fields.iter().filter(|(key, _)| *key == name);
        let of_each_kind = |(_, text)| self.kinds.iter().map(move |kind| (kind, text));
        let decode = |(kind, text): (_, &str)| {
            let kind: &Kind = kind;
            match text.strip_prefix(&kind.prefix) {
                Some(bare) => Some((kind, self.encoding.decode(bare)?)),
                None if self.is_versioned => None,
                None => Some((kind, self.encoding.decode(text)?)),
            }
        };
        let decoded = encoded.copied().flat_map(of_each_kind).filter_map(decode);
        decoded.take(MAX_SIGNATURES).collect()
    }

    pub(super) fn sign(
        &self,
        key: &Key,
        message_id: &str,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<(String, String)>, CannotSign> {
        let (Some(kind), Some(header_name)) = (self.kinds.first(), self.headers.first()) else {
            return Err(CannotSign);
        };
        let Some(VerificationKey::Hmac(key)) = kind.verification_key(key) else {
            return Err(CannotSign);
        };
        let seconds = now.as_second().to_string();
        let mut sent = Vec::new();
        let mut fields: Fields<'_> = Vec::new();
        match &self.timestamp {
            Some(TimestampSource::Header(name)) => sent.push((name.to_string(), seconds.clone())),
            Some(TimestampSource::Field(name)) => fields.push((name, &seconds)),
            None => {}
        }
        if let Some(name) = &self.id_header {
            sent.push((name.to_string(), message_id.to_owned()));
        }
        let tag = {
            let request = Request {
                headers: &sent,
                body,
                url: "",
            };
            let content = self.signed.render(&request, (header_name, &fields));
            hmac::sign(&key, &content.map_err(|_| CannotSign)?)
        };
        let encoded = format!("{}{}", kind.prefix, self.encoding.encode(tag.as_ref()));
        let value = match &self.signature_field {
            Some(name) => {
                fields.push((name, &encoded));
                let pairs: Vec<_> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                pairs.join(",")
            }
            None => encoded,
        };
        sent.push((header_name.to_string(), value));
        Ok(sent)
    }

    /// Returns why a secret is not usable, or `None` if it is.
    pub(super) fn secret_problem(&self, secret: &Key) -> Option<&'static str> {
        if self.candidates(secret).next().is_some() {
            return None;
        }
        Some(match &self.kinds[..] {
            [
                Kind {
                    algorithm: Algorithm::Hmac { key, .. },
                    ..
                },
            ] => match key {
                KeyEncoding::Raw => "the secret is empty",
                KeyEncoding::Base64 => "the secret is empty or not base64",
                KeyEncoding::Hex => "the secret is empty or not hex",
            },
            _ => {
                "not a Standard Webhooks secret; expected whsec_ and base64, or whpk_ and the base64 of 32 bytes"
            }
        })
    }
}
