//! Permissions of a caller.
//!
//! A `jobs` claim restricts every other permission of the token to exactly those jobs.

use std::collections::BTreeSet;

use jiff::Timestamp;

/// One value of the `scope` claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `jobs:read`: read and subscribe to own jobs.
    Read,
    /// `jobs:write`: submit jobs and cancel own jobs.
    Write,
    /// `jobs:publish`: register jobs and push updates, for any owner.
    Publish,
    /// `admin`: everything, for any owner.
    Admin,
}

impl Scope {
    /// Returns the scope with this name, or `None` for a scope of another service.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "jobs:read" => Some(Self::Read),
            "jobs:write" => Some(Self::Write),
            "jobs:publish" => Some(Self::Publish),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    /// Parses a space-separated list. Unknown values are ignored, because issuers put the scopes of other services
    /// into the same claim.
    pub fn parse_list(list: &str) -> BTreeSet<Self> {
        list.split_ascii_whitespace()
            .filter_map(Self::from_name)
            .collect()
    }
}

/// An authenticated caller. Only [`Verifier`](super::Verifier) creates one.
#[derive(Debug, Clone)]
pub struct Principal {
    pub(super) subject: String,
    pub(super) token_id: Option<String>,
    pub(super) scopes: BTreeSet<Scope>,
    pub(super) jobs: Option<BTreeSet<String>>,
    pub(super) email: Option<String>,
    pub(super) expires_at: Timestamp,
}

impl Principal {
    /// Returns the `sub` claim, which becomes the owner of submitted jobs. Never empty.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Returns the `jti` claim, which identifies the token in logs.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }

    /// Returns the `exp` claim, without leeway. Connections that the token opened end at this time.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Returns the `email` claim, or `None` if the token has none or its `email_verified` claim is not true.
    pub fn email(&self) -> Option<&str> {
        self.email.as_deref()
    }

    /// Returns the ids of the `jobs` claim in sorted order, or `None` if the token has no such claim.
    pub fn granted_jobs(&self) -> Option<impl Iterator<Item = &str>> {
        let jobs = self.jobs.as_ref()?;
        Some(jobs.iter().map(String::as_str))
    }

    /// Returns whether the caller may read and subscribe to this job. `jobs:write` includes `jobs:read`.
    pub fn may_see(&self, job_id: &str, owner: &str) -> bool {
        (self.has(Scope::Read) || self.has(Scope::Write)) && self.can_access(job_id, owner)
    }

    /// Returns whether the caller may cancel this job.
    pub fn may_cancel(&self, job_id: &str, owner: &str) -> bool {
        self.has(Scope::Write) && self.can_access(job_id, owner)
    }

    /// Returns whether the caller may push updates to this job.
    pub fn may_update(&self, job_id: &str) -> bool {
        self.has(Scope::Publish) && self.jobs.as_ref().is_none_or(|jobs| jobs.contains(job_id))
    }

    /// Returns whether the caller may submit jobs. A token with a `jobs` claim may not, because the list cannot
    /// contain a new job.
    pub fn may_submit(&self) -> bool {
        self.has(Scope::Write) && self.jobs.is_none()
    }

    /// Returns whether the caller may register jobs for any owner.
    pub fn may_publish(&self) -> bool {
        self.has(Scope::Publish) && self.jobs.is_none()
    }

    /// Returns whether the caller may do everything for any owner.
    pub fn is_admin(&self) -> bool {
        self.scopes.contains(&Scope::Admin) && self.jobs.is_none()
    }

    fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    fn can_access(&self, job_id: &str, owner: &str) -> bool {
        match &self.jobs {
            Some(jobs) => jobs.contains(job_id),
            None => owner == self.subject || self.is_admin(),
        }
    }
}
