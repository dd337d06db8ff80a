//! Job ids.
//!
//! Invariant: a `JobId` is `job_` followed by 1 to 64 characters of `A–Z a–z 0–9 _ -`, so it needs
//! no escaping in URLs, store keys and log lines.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// The id of a job. Cheap to clone. Generated ids sort by creation time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Arc<str>);

/// The text is not a valid job id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("job id must be 'job_' followed by 1 to 64 letters, digits, '_' or '-'")]
pub struct InvalidJobId;

impl JobId {
    /// Generates an id from a version 7 UUID: a timestamp followed by 74 random bits.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "every call returns a different id"
    )]
    pub fn new() -> Self {
        Self(format!("job_{}", Uuid::now_v7().simple()).into())
    }

    /// Parses a job id.
    ///
    /// # Errors
    /// [`InvalidJobId`] if `text` has another prefix, length or character.
    pub fn parse(text: &str) -> Result<Self, InvalidJobId> {
        let rest = text.strip_prefix("job_").ok_or(InvalidJobId)?;
        let is_valid = (1..=64).contains(&rest.len())
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if is_valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidJobId)
        }
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for JobId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_are_valid_and_sort_by_creation_time() {
        let (a, b) = (JobId::new(), JobId::new());
        assert_eq!(JobId::parse(a.as_str()), Ok(a.clone()));
        assert!(a < b);
    }

    #[test]
    fn ids_with_unsafe_characters_are_rejected() {
        for bad in [
            "", "job_", "task_1", "job_a/b", "job_a b", "job_é", "job_{x}",
        ] {
            assert_eq!(JobId::parse(bad), Err(InvalidJobId), "{bad:?}");
        }
        assert!(JobId::parse(&format!("job_{}", "a".repeat(65))).is_err());
    }
}
