//! The recipient of a mail.

use lettre::Address;
use url::Host;

use super::super::template::{Context, Kind, Template};
use crate::job::Job;
use crate::outbox::Event;

/// Maximum length of an address in bytes (RFC 5321, section 4.5.3.1.3).
const MAX_ADDRESS_BYTES: usize = 254;

/// Values that a caller can't choose. Others could make the hub send mail to any address.
const TRUSTED: [&str; 15] = [
    "event",
    "job.attempt",
    "job.created_at",
    "job.deadline_at",
    "job.error.kind",
    "job.final",
    "job.finished_at",
    "job.id",
    "job.owner_email",
    "job.provider",
    "job.source",
    "job.started_at",
    "job.status",
    "job.updated_at",
    "job.version",
];

/// Determines the recipients of mails.
#[derive(Debug)]
pub(super) struct Recipients {
    to: Template,
    /// In lower case. Empty allows every domain.
    allowed_domains: Vec<String>,
}

impl Recipients {
    /// Parses the template of the address.
    pub(super) fn parse(to: &str, allowed_domains: &[String]) -> Result<Self, String> {
        let samples = Context::samples();
        let samples = samples.into_iter();
        let samples: Vec<Context> = samples
            .map(|sample| sample.with_job_field("owner_email", "ada@example.com"))
            .collect();
        let to = Template::parse_with(to, Kind::Strict, &samples).map_err(|it| it.to_string())?;
        let paths = to.paths().map_err(|it| it.to_string())?;
        let untrusted = paths.iter().find(|path| !TRUSTED.contains(&path.as_str()));
        if let Some(path) = untrusted.filter(|_| allowed_domains.is_empty()) {
            return Err(format!(
                "uses {path}, which a caller can choose; set email.allowed_domains, or use job.owner_email"
            ));
        }
        Ok(Self {
            to,
            allowed_domains: allowed_domains.to_vec(),
        })
    }

    /// Returns the address to which a mail about this version of the job is sent, or `None` if the
    /// template has no value for it.
    ///
    /// # Errors
    /// Why the address is not used. The text does not contain it.
    pub(super) fn recipient(
        &self,
        job: &Job,
        event: Event,
    ) -> Result<Option<String>, &'static str> {
        let document = serde_json::to_value(job).map_err(|_| "the document is not JSON")?;
        let mut context = Context::of(document, event.as_str());
        if let Some(address) = &job.internal.owner_email {
            context = context.with_job_field("owner_email", address.as_str());
        }
        let Ok(rendered) = self.to.render_in(&context) else {
            return Ok(None);
        };
        let address = rendered.trim();
        if address.is_empty() {
            return Ok(None);
        }
        let domain = domain(address).ok_or("recipient is not an address")?;
        if self.allowed_domains.is_empty() || self.allowed_domains.contains(&domain) {
            Ok(Some(address.to_owned()))
        } else {
            Err("domain of the recipient is not in email.allowed_domains")
        }
    }
}

/// Returns whether a text is one mail address at a domain.
#[must_use]
pub fn is_address(text: &str) -> bool {
    domain(text).is_some()
}

/// Returns the domain of an address in lower case.
fn domain(address: &str) -> Option<String> {
    if address.len() > MAX_ADDRESS_BYTES || address.contains(char::is_control) {
        return None;
    }
    let address: Address = address.parse().ok()?;
    match Host::parse(address.domain()) {
        Ok(Host::Domain(domain)) => Some(domain),
        Ok(Host::Ipv4(_) | Host::Ipv6(_)) | Err(_) => None,
    }
}
