//! Parsing and validation of the table that describes a signature in a custom header.
//!
//! A valid signature covers its own timestamp and message id.

use std::ops::Deref;

use serde::Deserialize;
use url::Url;

use super::detached::{Digest, Ed25519, Encoding, Envelope, Hmac, KeyEncoding, TimestampSource};
use super::template::{Template, is_token};

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderNames {
    One(String),
    Many(Vec<String>),
}

/// The keys of the table, for HMAC and Ed25519.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SchemeSpec {
    header: HeaderNames,
    encoding: Encoding,
    #[serde(default)]
    prefix: String,
    #[serde(default = "whole_body")]
    signed: String,
    signature_field: Option<String>,
    timestamp_header: Option<String>,
    timestamp_field: Option<String>,
    id_header: Option<String>,
    digest: Option<Digest>,
    key: Option<KeyEncoding>,
    key_prefix: Option<String>,
    key_id_header: Option<String>,
    jwks_url: Option<Url>,
}

fn whole_body() -> String {
    "{body}".to_owned()
}

impl TryFrom<SchemeSpec> for Hmac {
    type Error = String;

    fn try_from(mut spec: SchemeSpec) -> Result<Self, String> {
        if spec.key_id_header.is_some() || spec.jwks_url.is_some() {
            return Err("key_id_header and jwks_url require scheme = \"ed25519\"".to_owned());
        }
        Ok(Self {
            digest: spec.digest.take().unwrap_or_default(),
            key: spec.key.take().unwrap_or_default(),
            key_prefix: spec.key_prefix.take().unwrap_or_default(),
            envelope: Envelope::try_from(spec)?,
        })
    }
}

impl TryFrom<SchemeSpec> for Ed25519 {
    type Error = String;

    fn try_from(mut spec: SchemeSpec) -> Result<Self, String> {
        if spec.digest.is_some() || spec.key.is_some() || spec.key_prefix.is_some() {
            return Err("digest, key and key_prefix require scheme = \"hmac\"".to_owned());
        }
        Ok(Self {
            key_id_header: spec
                .key_id_header
                .take()
                .map(|name| header_name(&name))
                .transpose()?,
            jwks_url: spec.jwks_url.take(),
            envelope: Envelope::try_from(spec)?,
        })
    }
}

impl TryFrom<SchemeSpec> for Envelope {
    type Error = String;

    fn try_from(spec: SchemeSpec) -> Result<Self, String> {
        let signed = Template::parse(&spec.signed)?;
        let headers = match spec.header {
            HeaderNames::One(name) => vec![name],
            HeaderNames::Many(names) => names,
        };
        if headers.is_empty() {
            return Err("header: at least one name is required".to_owned());
        }
        if spec.signature_field.is_none() && (signed.has_fields() || spec.timestamp_field.is_some())
        {
            return Err("signature_field is required if the header has fields".to_owned());
        }
        let timestamp = match (spec.timestamp_header, spec.timestamp_field) {
            (Some(_), Some(_)) => {
                return Err(
                    "timestamp_header and timestamp_field are mutually exclusive".to_owned(),
                );
            }
            (Some(name), None) => Some(TimestampSource::Header(header_name(&name)?)),
            (None, field) => field.map(TimestampSource::Field),
        };
        let is_covered = match &timestamp {
            Some(TimestampSource::Header(name)) => signed.covers_header(name),
            Some(TimestampSource::Field(name)) => signed.covers_field(name),
            None => true,
        };
        if !is_covered {
            return Err("signed must include the timestamp".to_owned());
        }
        let id_header = spec.id_header.map(|name| header_name(&name)).transpose()?;
        if id_header
            .as_ref()
            .is_some_and(|name| !signed.covers_header(name))
        {
            return Err("signed must include id_header".to_owned());
        }
        Ok(Self {
            headers: headers
                .iter()
                .map(|name| header_name(name))
                .collect::<Result<_, _>>()?,
            encoding: spec.encoding,
            prefix: spec.prefix,
            signature_field: spec.signature_field,
            signed,
            timestamp,
            id_header,
        })
    }
}

/// A header name in lower case.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct HeaderName(String);

impl TryFrom<String> for HeaderName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        header_name(&name).map(Self)
    }
}

impl Deref for HeaderName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

fn header_name(name: &str) -> Result<String, String> {
    is_token(name)
        .then(|| name.to_ascii_lowercase())
        .ok_or_else(|| format!("{name:?} is not a header name"))
}
