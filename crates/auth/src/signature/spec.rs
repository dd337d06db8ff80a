//! The table of a provider's spec that describes a detached signature, and what makes one senseless.
//!
//! Invariant: a signature that is read from a table covers its own timestamp and message id.

use std::ops::Deref;

use serde::Deserialize;
use url::Url;

use super::detached::{Digest, Ed25519, Encoding, Envelope, Hmac, KeyEncoding, TimestampSource};
use super::template::{Template, is_word};

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

/// The keys of a spec's table, for both kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SchemeSpec {
    header: Names,
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

    fn try_from(mut table: SchemeSpec) -> Result<Self, String> {
        if table.key_id_header.is_some() || table.jwks_url.is_some() {
            return Err("key_id_header and jwks_url belong to ed25519".to_owned());
        }
        Ok(Self {
            digest: table.digest.take().unwrap_or_default(),
            key: table.key.take().unwrap_or_default(),
            key_prefix: table.key_prefix.take().unwrap_or_default(),
            envelope: Envelope::try_from(table)?,
        })
    }
}

impl TryFrom<SchemeSpec> for Ed25519 {
    type Error = String;

    fn try_from(mut table: SchemeSpec) -> Result<Self, String> {
        if table.digest.is_some() || table.key.is_some() || table.key_prefix.is_some() {
            return Err("digest, key and key_prefix belong to hmac".to_owned());
        }
        Ok(Self {
            key_id_header: table
                .key_id_header
                .take()
                .map(|name| header_name(&name))
                .transpose()?,
            jwks_url: table.jwks_url.take(),
            envelope: Envelope::try_from(table)?,
        })
    }
}

impl TryFrom<SchemeSpec> for Envelope {
    type Error = String;

    fn try_from(table: SchemeSpec) -> Result<Self, String> {
        let signed = Template::parse(&table.signed)?;
        let headers = match table.header {
            Names::One(name) => vec![name],
            Names::Several(names) => names,
        };
        if headers.is_empty() {
            return Err("header: at least one name".to_owned());
        }
        if table.signature_field.is_none()
            && (signed.has_fields() || table.timestamp_field.is_some())
        {
            return Err("fields of the header need signature_field".to_owned());
        }
        let timestamp = match (table.timestamp_header, table.timestamp_field) {
            (Some(_), Some(_)) => {
                return Err("timestamp_header and timestamp_field exclude each other".to_owned());
            }
            (Some(name), None) => Some(TimestampSource::Header(header_name(&name)?)),
            (None, field) => field.map(TimestampSource::Field),
        };
        let covered = match &timestamp {
            Some(TimestampSource::Header(name)) => signed.covers_header(name),
            Some(TimestampSource::Field(name)) => signed.covers_field(name),
            None => true,
        };
        if !covered {
            return Err("the timestamp must be part of signed".to_owned());
        }
        let id_header = table.id_header.map(|name| header_name(&name)).transpose()?;
        if id_header
            .as_ref()
            .is_some_and(|name| !signed.covers_header(name))
        {
            return Err("id_header must be part of signed".to_owned());
        }
        Ok(Self {
            headers: headers
                .iter()
                .map(|name| header_name(name))
                .collect::<Result<_, _>>()?,
            encoding: table.encoding,
            prefix: table.prefix,
            signature_field: table.signature_field,
            signed,
            timestamp,
            id_header,
        })
    }
}

/// A header's name, in lower case.
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
    is_word(name)
        .then(|| name.to_ascii_lowercase())
        .ok_or_else(|| format!("{name:?} is not a header name"))
}
