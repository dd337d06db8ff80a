//! Signatures that a provider describes by data: in which header they stand, how they are written, what they
//! cover, and with which kind of key they are made.
//!
//! Invariant: the timestamp is read only after the signature that covers it was proven.

use std::borrow::Cow;

use aws_lc_rs::hmac;
use base64::Engine;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;

use super::key::{BASE64, BASE64URL, Key, VerificationKey};
use super::spec::SchemeSpec;
use super::template::{Fields, Template, field, hex, unhex};
use super::{
    CannotSign, Headers, MAX_SIGNATURES, Request, SignatureError, Trust, check_fresh, required,
};

/// An HMAC in a header of the provider's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "SchemeSpec")]
pub struct Hmac {
    pub(super) envelope: Envelope,
    pub(super) digest: Digest,
    pub(super) key: KeyEncoding,
    pub(super) key_prefix: String,
}

/// Ed25519 in a header of the provider's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "SchemeSpec")]
pub struct Ed25519 {
    pub(super) envelope: Envelope,
    pub(super) key_id_header: Option<String>,
    pub(super) jwks_url: Option<Url>,
}

/// Where a signature stands and what it covers.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    /// The first of these that is present carries the signature.
    pub(super) headers: Vec<String>,
    pub(super) encoding: Encoding,
    pub(super) prefix: String,
    /// Set when the header is a list of fields (`t=…,v1=…`): the field, or fields, with the signature.
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
            Self::Hex => unhex(text),
            Self::Base64 => BASE64.decode(text).ok(),
            Self::Base64url => BASE64URL.decode(text).ok(),
        }
    }

    fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex => hex(bytes),
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

    /// Reads what the request claims, with nothing proven.
    fn claim<'s, 'r>(
        &'s self,
        request: &Request<'r>,
    ) -> Result<SignatureClaim<'s, 'r>, SignatureError> {
        let (carrier, value) = self.carrier(request.headers)?;
        let fields = self.fields(value);
        Ok(SignatureClaim {
            content: self.signed.render(request, (carrier, &fields))?,
            signatures: self.tags(carrier, value, &fields)?,
            envelope: self,
            header_name: carrier,
            fields,
        })
    }

    /// The header that carries the signature, and its value.
    fn carrier<'s, 'h>(
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

    /// The signatures in the header, decoded; those that cannot be decoded cannot match either.
    fn tags(
        &self,
        carrier: &str,
        value: &str,
        fields: &Fields<'_>,
    ) -> Result<Vec<Vec<u8>>, SignatureError> {
        let written: Vec<&str> = match &self.signature_field {
            Some(name) => fields
                .iter()
                .filter(|(key, _)| key == name)
                .map(|(_, value)| *value)
                .collect(),
            None => value.split_ascii_whitespace().collect(),
        };
        let tags: Vec<_> = written
            .into_iter()
            .filter_map(|text| {
                let bare = text.strip_prefix(&self.prefix).unwrap_or(text);
                self.encoding.decode(bare)
            })
            .take(MAX_SIGNATURES)
            .collect();
        if tags.is_empty() {
            return Err(SignatureError::Malformed(carrier.into()));
        }
        Ok(tags)
    }
}

/// A signature as it stands in a request.
struct SignatureClaim<'s, 'r> {
    envelope: &'s Envelope,
    header_name: &'s str,
    fields: Fields<'r>,
    /// What must have been signed.
    content: Cow<'r, [u8]>,
    /// The signatures, of which one must hold.
    signatures: Vec<Vec<u8>>,
}

impl SignatureClaim<'_, '_> {
    /// Checks it with any of `provers`, and gives the signed message id.
    fn prove(
        &self,
        headers: &dyn Headers,
        provers: &[VerificationKey],
        now: Timestamp,
    ) -> Result<Option<String>, SignatureError> {
        let is_proven = |tag: &Vec<u8>| {
            let mut provers = provers.iter();
            provers.any(|prover| prover.verify(&self.content, tag))
        };
        if !self.signatures.iter().any(is_proven) {
            return Err(SignatureError::Mismatch);
        }
        match &self.envelope.timestamp {
            Some(TimestampSource::Header(name)) => {
                check_fresh(required(headers, name)?, name, now)?
            }
            Some(TimestampSource::Field(name)) => {
                let written = field(&self.fields, name).unwrap_or_default();
                check_fresh(written, self.header_name, now)?;
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
        let provers: Vec<VerificationKey> =
            keys.iter().filter_map(|key| self.prover(key)).collect();
        if provers.is_empty() {
            return Err(SignatureError::NoKeyConfigured);
        }
        let claim = self.envelope.claim(request)?;
        claim.prove(request.headers, &provers, now)
    }

    pub(super) fn sign(
        &self,
        key: &Key,
        message_id: &str,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<(String, String)>, CannotSign> {
        let Some(VerificationKey::Hmac(key)) = self.prover(key) else {
            return Err(CannotSign);
        };
        let envelope = &self.envelope;
        let carrier = envelope.headers.first().ok_or(CannotSign)?;
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
            let content = envelope.signed.render(&request, (carrier, &fields));
            hmac::sign(&key, &content.map_err(|_| CannotSign)?)
        };
        let written = format!(
            "{}{}",
            envelope.prefix,
            envelope.encoding.encode(tag.as_ref())
        );
        let value = match &envelope.signature_field {
            Some(name) => {
                fields.push((name, &written));
                let pairs: Vec<_> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                pairs.join(",")
            }
            None => written,
        };
        sent.push((carrier.clone(), value));
        Ok(sent)
    }

    pub(super) fn key_problem(&self, key: &Key) -> Option<&'static str> {
        if self.prover(key).is_some() {
            return None;
        }
        Some(match (key, self.key) {
            (Key::Ed25519 { .. } | Key::Token(_), _) => {
                "this scheme takes a secret, not a public key"
            }
            (Key::Secret(_), KeyEncoding::Raw) => "the secret is empty",
            (Key::Secret(_), KeyEncoding::Base64) => "the secret is empty or not base64",
            (Key::Secret(_), KeyEncoding::Hex) => "the secret is empty or not hex",
        })
    }

    fn prover(&self, key: &Key) -> Option<VerificationKey> {
        let text = key.secret()?;
        let bare = text.strip_prefix(&self.key_prefix).unwrap_or(text);
        let secret = match self.key {
            KeyEncoding::Raw => Cow::Borrowed(bare.as_bytes()),
            KeyEncoding::Base64 => Cow::Owned(BASE64.decode(bare).ok()?),
            KeyEncoding::Hex => Cow::Owned(unhex(bare)?),
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
        // What no key can prove is refused before there is any.
        let claim = self.envelope.claim(request)?;
        let named = self.key_id_header.as_deref();
        let named = named.and_then(|name| request.headers.get(name));
        let (mut has_any, mut has_named) = (false, false);
        let mut provers = Vec::new();
        for key in keys {
            match key {
                Key::Ed25519 { id, public } => {
                    has_any = true;
                    has_named |= named.is_some() && id.as_deref() == named;
                    // A key without a name may be the one that is meant.
                    if named.is_none() || id.is_none() || id.as_deref() == named {
                        provers.push(VerificationKey::Ed25519(*public));
                    }
                }
                Key::Secret(_) | Key::Token(_) => {}
            }
        }
        match (has_any, provers.is_empty()) {
            (false, _) => Err(SignatureError::NoKeyConfigured),
            (true, true) => Err(SignatureError::UnknownKey),
            (true, false) => match claim.prove(request.headers, &provers, now) {
                Err(SignatureError::Mismatch) if has_named => Err(SignatureError::Forged),
                answer => answer,
            },
        }
    }
}
