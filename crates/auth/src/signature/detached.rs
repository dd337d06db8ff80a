//! Signatures in custom headers, described by the provider definition: header, encoding, signed content and key type.
//!
//! The timestamp is read only after the signature that covers it is verified.

use std::borrow::Cow;

use aws_lc_rs::hmac;
use base64::Engine;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::key::{BASE64, BASE64URL, Key, VerificationKey};
use super::spec::SchemeSpec;
use super::template::{Fields, Template, field};
use super::{
    CannotSign, Headers, MAX_SIGNATURES, Request, SignatureError, Trust, check_fresh, required,
};

/// An HMAC in a custom header.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "SchemeSpec")]
pub struct Hmac {
    pub(super) envelope: Envelope,
    pub(super) digest: Digest,
    pub(super) key: KeyEncoding,
    pub(super) key_prefix: String,
}

/// An Ed25519 signature in a custom header.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "SchemeSpec")]
pub struct Ed25519 {
    pub(super) envelope: Envelope,
    pub(super) key_id_header: Option<String>,
    pub(super) jwks_url: Option<Url>,
}

/// The header of a signature and the content that it covers.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    /// Header names. The first one present carries the signature.
    pub(super) headers: Vec<String>,
    pub(super) encoding: Encoding,
    pub(super) prefix: String,
    /// Name of the field with the signature, if the header is a list of fields (`t=…,v1=…`). It may occur repeatedly.
    pub(super) signature_field: Option<String>,
    pub(super) signed: Template,
    pub(super) timestamp: Option<TimestampSource>,
    pub(super) id_header: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum TimestampSource {
    Header(String),
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

impl Digest {
    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }
}

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

impl Envelope {
    fn trust(&self) -> Trust {
        if self.signed.covers_body() {
            Trust::Signed
        } else {
            Trust::Unsigned
        }
    }

    /// Extracts the signatures and the signed content. Verifies nothing.
    fn claim<'s, 'r>(
        &'s self,
        request: &Request<'r>,
    ) -> Result<SignatureClaim<'s, 'r>, SignatureError> {
        let (header_name, value) = self.signature_header(request.headers)?;
        let fields = self.fields(value);
        Ok(SignatureClaim {
            signatures: self.signatures(header_name, value, &fields)?,
            content: self.signed.render(request, (header_name, &fields))?,
            envelope: self,
            header_name,
            fields,
        })
    }

    /// Returns the name and value of the header that carries the signature.
    fn signature_header<'s, 'h>(
        &'s self,
        headers: &'h dyn Headers,
    ) -> Result<(&'s str, &'h str), SignatureError> {
        let mut present = self
            .headers
            .iter()
            .filter_map(|name| headers.get(name).map(|value| (name.as_str(), value)));
        present.next().ok_or_else(|| {
            let first = self.headers.first().map_or("", String::as_str);
            SignatureError::MissingHeader(first.into())
        })
    }

    fn fields<'h>(&self, value: &'h str) -> Fields<'h> {
        let pair = |part: &'h str| part.trim().split_once('=');
        match self.signature_field {
            Some(_) => value.split(',').filter_map(pair).collect(),
            None => Vec::new(),
        }
    }

    /// Decodes the signatures in the header. Skips those that cannot be decoded.
    fn signatures(
        &self,
        header_name: &str,
        value: &str,
        fields: &Fields<'_>,
    ) -> Result<Vec<Vec<u8>>, SignatureError> {
        let encoded: Vec<&str> = match &self.signature_field {
            Some(name) => fields
                .iter()
                .filter(|(key, _)| key == name)
                .map(|(_, value)| *value)
                .collect(),
            None => value.split_ascii_whitespace().collect(),
        };
        let signatures: Vec<_> = encoded
            .into_iter()
            .filter_map(|text| {
                let bare = text.strip_prefix(&self.prefix).unwrap_or(text);
                self.encoding.decode(bare)
            })
            .take(MAX_SIGNATURES)
            .collect();
        if signatures.is_empty() {
            return Err(SignatureError::Malformed(header_name.into()));
        }
        Ok(signatures)
    }
}

/// The signatures of a request before verification.
struct SignatureClaim<'s, 'r> {
    envelope: &'s Envelope,
    header_name: &'s str,
    fields: Fields<'r>,
    /// The content that must have been signed.
    content: Cow<'r, [u8]>,
    /// The decoded signatures. One of them must be valid.
    signatures: Vec<Vec<u8>>,
}

impl SignatureClaim<'_, '_> {
    /// Verifies the claim with any of `keys` and returns the signed message id.
    fn verify(
        &self,
        headers: &dyn Headers,
        keys: &[VerificationKey],
        now: Timestamp,
    ) -> Result<Option<String>, SignatureError> {
        let is_valid =
            |signature: &Vec<u8>| keys.iter().any(|key| key.verify(&self.content, signature));
        if !self.signatures.iter().any(is_valid) {
            return Err(SignatureError::Mismatch);
        }
        match &self.envelope.timestamp {
            Some(TimestampSource::Header(name)) => {
                check_fresh(required(headers, name)?, name, now)?;
            }
            Some(TimestampSource::Field(name)) => {
                let timestamp = field(&self.fields, name).unwrap_or_default();
                check_fresh(timestamp, self.header_name, now)?;
            }
            None => {}
        }
        let id = self.envelope.id_header.as_deref();
        id.map(|name| required(headers, name).map(str::to_owned))
            .transpose()
    }
}

impl Hmac {
    pub(super) fn trust(&self) -> Trust {
        self.envelope.trust()
    }

    pub(super) fn verify(
        &self,
        request: &Request<'_>,
        keys: &[Key],
        now: Timestamp,
    ) -> Result<Option<String>, SignatureError> {
        let keys: Vec<VerificationKey> = keys
            .iter()
            .filter_map(|key| self.verification_key(key))
            .collect();
        if keys.is_empty() {
            return Err(SignatureError::NoKeyConfigured);
        }
        let claim = self.envelope.claim(request)?;
        claim.verify(request.headers, &keys, now)
    }

    pub(super) fn sign(
        &self,
        key: &Key,
        message_id: &str,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<(String, String)>, CannotSign> {
        let Some(VerificationKey::Hmac(key)) = self.verification_key(key) else {
            return Err(CannotSign);
        };
        let envelope = &self.envelope;
        let header_name = envelope.headers.first().ok_or(CannotSign)?;
        let seconds = now.as_second().to_string();
        let mut sent = Vec::new();
        let mut fields: Fields<'_> = Vec::new();
        match &envelope.timestamp {
            Some(TimestampSource::Header(name)) => sent.push((name.clone(), seconds.clone())),
            Some(TimestampSource::Field(name)) => fields.push((name, &seconds)),
            None => {}
        }
        if let Some(name) = &envelope.id_header {
            sent.push((name.clone(), message_id.to_owned()));
        }
        let tag = {
            let request = Request {
                headers: &sent,
                body,
                url: "",
            };
            let content = envelope.signed.render(&request, (header_name, &fields));
            hmac::sign(&key, &content.map_err(|_| CannotSign)?)
        };
        let encoded = format!(
            "{}{}",
            envelope.prefix,
            envelope.encoding.encode(tag.as_ref())
        );
        let value = match &envelope.signature_field {
            Some(name) => {
                fields.push((name, &encoded));
                let pairs: Vec<_> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                pairs.join(",")
            }
            None => encoded,
        };
        sent.push((header_name.clone(), value));
        Ok(sent)
    }

    pub(super) fn key_problem(&self, key: &Key) -> Option<&'static str> {
        if self.verification_key(key).is_some() {
            return None;
        }
        Some(match (key, self.key) {
            (Key::Ed25519 { .. } | Key::Token(_), _) => {
                "this scheme uses a secret, not a public key"
            }
            (Key::Secret(_), KeyEncoding::Raw) => "the secret is empty",
            (Key::Secret(_), KeyEncoding::Base64) => "the secret is empty or not base64",
            (Key::Secret(_), KeyEncoding::Hex) => "the secret is empty or not hex",
        })
    }

    fn verification_key(&self, key: &Key) -> Option<VerificationKey> {
        let text = key.secret()?;
        let bare = text.strip_prefix(&self.key_prefix).unwrap_or(text);
        let secret = match self.key {
            KeyEncoding::Raw => Cow::Borrowed(bare.as_bytes()),
            KeyEncoding::Base64 => Cow::Owned(BASE64.decode(bare).ok()?),
            KeyEncoding::Hex => Cow::Owned(hex::decode(bare).ok()?),
        };
        VerificationKey::hmac(self.digest.algorithm(), &secret)
    }
}

impl Ed25519 {
    pub(super) fn trust(&self) -> Trust {
        self.envelope.trust()
    }

    pub(super) fn verify(
        &self,
        request: &Request<'_>,
        keys: &[Key],
        now: Timestamp,
    ) -> Result<Option<String>, SignatureError> {
        // A malformed request is rejected even if no key is available.
        let claim = self.envelope.claim(request)?;
        let key_id_header = self.key_id_header.as_deref();
        let key_id = key_id_header.and_then(|name| request.headers.get(name));
        let (mut has_key, mut has_requested_key) = (false, false);
        let mut candidates = Vec::new();
        for key in keys {
            match key {
                Key::Ed25519 { id, public } => {
                    has_key = true;
                    has_requested_key |= key_id.is_some() && id.as_deref() == key_id;
                    // A key without an id matches every request.
                    if key_id.is_none() || id.is_none() || id.as_deref() == key_id {
                        candidates.push(VerificationKey::Ed25519(*public));
                    }
                }
                Key::Secret(_) | Key::Token(_) => {}
            }
        }
        if !has_key {
            return Err(SignatureError::NoKeyConfigured);
        }
        if candidates.is_empty() {
            return Err(SignatureError::UnknownKey);
        }
        match claim.verify(request.headers, &candidates, now) {
            Err(SignatureError::Mismatch) if has_requested_key => Err(SignatureError::Forged),
            result => result,
        }
    }
}
