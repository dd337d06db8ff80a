//! Who may do what: the table of the protocol, a line for each rule.
//!
//! Invariant: a `jobs` list narrows whatever else the token grants to exactly those jobs.

use std::collections::BTreeSet;

use jiff::Timestamp;

/// One word of the `scope` claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `jobs:read`: see and watch one's own jobs.
    Read,
    /// `jobs:write`: submit, and cancel one's own jobs.
    Write,
    /// `jobs:publish`: register jobs and push updates, for any owner.
    Publish,
    /// `admin`: everything, for any owner.
    Admin,
}

impl Scope {
    /// Reads one word; None for a word that means nothing here.
    pub fn read(word: &str) -> Option<Self> {
        match word {
            "jobs:read" => Some(Self::Read),
            "jobs:write" => Some(Self::Write),
            "jobs:publish" => Some(Self::Publish),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    /// Issuers put scopes of other services into the same claim, so unknown words are passed over.
    pub(super) fn read_list(words: &str) -> BTreeSet<Self> {
        words
            .split_ascii_whitespace()
            .filter_map(Self::read)
            .collect()
    }
}

/// A proven caller; made by [`Verifier`](super::Verifier) alone.
#[derive(Debug, Clone)]
pub struct Principal {
    subject: String,
    scopes: BTreeSet<Scope>,
    jobs: Option<BTreeSet<String>>,
    expires_at: Timestamp,
}

impl Principal {
    pub(super) fn new(
        subject: String,
        scopes: BTreeSet<Scope>,
        jobs: Option<BTreeSet<String>>,
        expires_at: Timestamp,
    ) -> Self {
        Self {
            subject,
            scopes,
            jobs,
            expires_at,
        }
    }

    /// The `sub` claim: the owner of the jobs that this caller submits. Never empty.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The `exp` claim, without the leeway: whatever the token opened ends then.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The jobs of the `jobs` claim, in order; None when the token is not narrowed to a list.
    pub fn granted_jobs(&self) -> Option<impl Iterator<Item = &str>> {
        let jobs = self.jobs.as_ref()?;
        Some(jobs.iter().map(String::as_str))
    }

    /// See and watch this job. Who may submit and cancel jobs of its own sees them too.
    pub fn may_see(&self, job_id: &str, owner: &str) -> bool {
        (self.has(Scope::Read) || self.has(Scope::Write)) && self.can_access(job_id, owner)
    }

    /// Cancel this job.
    pub fn may_cancel(&self, job_id: &str, owner: &str) -> bool {
        self.has(Scope::Write) && self.can_access(job_id, owner)
    }

    /// Push updates to this job.
    pub fn may_update(&self, job_id: &str) -> bool {
        self.has(Scope::Publish) && self.jobs.as_ref().is_none_or(|jobs| jobs.contains(job_id))
    }

    /// Submit a job; a list of jobs cannot hold one that is yet to be made.
    pub fn may_submit(&self) -> bool {
        self.has(Scope::Write) && self.jobs.is_none()
    }

    /// Register jobs, for any owner.
    pub fn may_publish(&self) -> bool {
        self.has(Scope::Publish) && self.jobs.is_none()
    }

    /// Everything, for any owner.
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
