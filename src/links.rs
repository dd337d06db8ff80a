//! Signed URLs of the hub: webhook callbacks and job outputs.
//!
//! Invariant: a signed URL grants access to one callback or one output and to nothing else. It
//! contains neither a provider's API key nor a private URL of a provider.

use std::time::Duration;

use url::Url;

use crate::job::{JobEvent, JobId, OutputSource, StatusReport, Update};
use crate::time::Time;
use progress_hub_auth::signature::CallbackKey;

/// Purpose of output grants. It separates them from other signatures made with the same key.
const OUTPUT_PURPOSE: &str = "job-output";

/// Creates and verifies URLs of the hub.
#[derive(Clone)]
pub struct Links {
    public_url: Option<Url>,
    key: Option<CallbackKey>,
    output_link_ttl: Duration,
    /// Whether every output has a link of the hub, because the archive keeps a copy of it.
    has_archive: bool,
}

impl Links {
    /// Creates links below `public_url`, signed with `key`. Output links are valid for
    /// `output_link_ttl`, which should equal the retention of finished jobs.
    #[must_use]
    pub fn new(
        public_url: Option<Url>,
        key: Option<CallbackKey>,
        output_link_ttl: Duration,
    ) -> Self {
        Self {
            public_url,
            key,
            output_link_ttl,
            has_archive: false,
        }
    }

    /// Gives every output a link of the hub, because the archive keeps a copy of it.
    #[must_use]
    pub fn with_archive(self) -> Self {
        Self {
            has_archive: true,
            ..self
        }
    }

    /// Returns the URL for a provider's webhooks about `job`, including the job's callback token,
    /// or `None` without a public URL or a key.
    #[must_use]
    pub fn callback_url(&self, provider: &str, job: &JobId) -> Option<Url> {
        let (url, key) = (self.public_url.clone()?, self.key.as_ref()?);
        let token = key.callback_token(provider, job.as_str());
        join_public_url(url, &["v1", "webhooks", provider, &token])
    }

    /// Returns whether jobs have callback URLs: a public URL and a key are configured.
    #[must_use]
    pub fn has_callback_urls(&self) -> bool {
        self.public_url.is_some() && self.key.is_some()
    }

    /// Returns the job that a callback token of `provider` was issued for, or `None` if the token
    /// is invalid.
    #[must_use]
    pub fn verify_callback_token(&self, provider: &str, token: &str) -> Option<JobId> {
        JobId::parse(self.key.as_ref()?.verify_callback_token(provider, token)?).ok()
    }

    /// Returns the URL path of `job`, including the path prefix of the public URL.
    #[must_use]
    pub fn job_path(&self, job: &JobId) -> String {
        let prefix = self.public_url.as_ref().map_or("", |url| url.path());
        format!("{}/v1/jobs/{job}", prefix.trim_end_matches('/'))
    }

    /// Returns the URL of the `n`th output of `job`, counted from 0. Its grant is valid until
    /// `until`.
    ///
    /// Without a key the URL has no grant, so the request needs a token. Without a public URL the
    /// result is a path.
    #[must_use]
    pub fn output_url(&self, job: &JobId, n: usize, until: Time) -> String {
        let path = ["v1", "jobs", job.as_str(), "outputs", &n.to_string()];
        let absolute = self
            .public_url
            .clone()
            .and_then(|url| join_public_url(url, &path));
        let url = absolute.map_or_else(|| format!("/{}", path.join("/")), String::from);
        match &self.key {
            Some(key) => {
                let grant = key.sign_grant(OUTPUT_PURPOSE, &subject(job, n), until.timestamp());
                format!("{url}?grant={grant}")
            }
            None => url,
        }
    }

    /// Returns whether `grant` is valid at `now` for the `n`th output of `job`.
    #[must_use]
    pub fn verify_output_link(&self, job: &JobId, n: usize, grant: &str, now: Time) -> bool {
        self.key.as_ref().is_some_and(|key| {
            key.verify_grant(OUTPUT_PURPOSE, &subject(job, n), grant, now.timestamp())
        })
    }

    /// Sets the `url` of each output that clients read through the hub to a link of the hub: with an
    /// archive every output, otherwise those that require the provider's API key.
    ///
    /// The link expires with the job's retention, or with the output if that expires earlier and is
    /// not archived. `update` must be [bounded](Update::bounded), because a link contains the
    /// position of its output.
    #[must_use]
    pub fn with_output_links(&self, job: &JobId, mut update: Update, now: Time) -> Update {
        if let JobEvent::Reported(report) = &mut update.event {
            self.set_output_urls(job, report, now);
        }
        update
    }

    fn set_output_urls(&self, job: &JobId, report: &mut StatusReport, now: Time) {
        let latest = now + self.output_link_ttl;
        if self.has_archive {
            report.output_sources.resize(report.outputs.len(), None);
        }
        let outputs = report.outputs.iter_mut();
        for (n, (output, source)) in outputs.zip(&mut report.output_sources).enumerate() {
            if self.has_archive {
                let url = std::mem::take(&mut output.url);
                let is_private = false;
                source.get_or_insert(OutputSource { url, is_private });
                output.expires_at = Some(latest);
            }
            if source.is_some() {
                let until = output.expires_at.map_or(latest, |at| at.min(latest));
                output.url = self.output_url(job, n, until);
            }
        }
    }
}

fn join_public_url(mut url: Url, path: &[&str]) -> Option<Url> {
    url.path_segments_mut().ok()?.pop_if_empty().extend(path);
    Some(url)
}

fn subject(job: &JobId, n: usize) -> String {
    format!("{job} {n}")
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::job::{Output, Source, Status};

    const HOUR: Duration = Duration::from_secs(3600);

    fn key(secret: &str) -> Option<CallbackKey> {
        CallbackKey::new(&SecretString::from(secret)).ok()
    }

    fn links(public_url: Option<&str>) -> Links {
        let public_url = public_url.map(|url| url.parse().unwrap());
        Links::new(public_url, key("a secret"), HOUR)
    }

    fn job(name: &str) -> JobId {
        JobId::parse(name).unwrap()
    }

    fn output(url: &str, expires_at: Option<Time>) -> Output {
        Output {
            kind: "video".to_owned(),
            url: url.to_owned(),
            duration: None,
            expires_at,
            watermark_url: None,
            nsfw: None,
        }
    }

    fn private(url: &str) -> Option<OutputSource> {
        Some(OutputSource {
            url: url.to_owned(),
            is_private: true,
        })
    }

    fn grant(link: &str) -> &str {
        link.split_once("?grant=").unwrap().1
    }

    #[test]
    fn output_grant_is_valid_for_one_output_until_expiry() {
        let (links, now) = (links(None), Time::from_millis(1_800_000_000_000));
        let link = links.output_url(&job("job_a"), 1, now + HOUR);
        let valid = grant(&link);
        let last = now + HOUR - Duration::from_secs(1);
        for (links, id, n, at, expected) in [
            (&links, "job_a", 1, now, true),
            (&links, "job_a", 1, last, true),
            (&links, "job_a", 1, now + HOUR, false),
            (&links, "job_a", 0, now, false),
            (&links, "job_a", 11, now, false),
            (&links, "job_b", 1, now, false),
            (
                &Links::new(None, key("another"), HOUR),
                "job_a",
                1,
                now,
                false,
            ),
            (&Links::new(None, None, HOUR), "job_a", 1, now, false),
        ] {
            assert_eq!(
                links.verify_output_link(&job(id), n, valid, at),
                expected,
                "{id} {n} {at}"
            );
        }
        let (_, mac) = valid.split_once('.').unwrap();
        let later = format!("{}.{mac}", (now + HOUR * 2).millis() / 1000);
        for forged in ["", ".", mac, later.as_str(), "9999999999."] {
            assert!(
                !links.verify_output_link(&job("job_a"), 1, forged, now),
                "{forged}"
            );
        }
    }

    #[test]
    fn links_use_public_url_or_a_relative_path() {
        let (id, now) = (job("job_a"), Time::from_millis(1_800_000_000_000));
        for public_url in [
            "https://hub.example.com/progress",
            "https://hub.example.com/progress/",
        ] {
            let links = links(Some(public_url));
            let callback = links.callback_url("kling", &id).unwrap();
            let (url, token) = callback.as_str().rsplit_once('/').unwrap();
            assert_eq!(url, "https://hub.example.com/progress/v1/webhooks/kling");
            assert_eq!(
                links.verify_callback_token("kling", token),
                Some(id.clone())
            );
            assert_eq!(links.verify_callback_token("other", token), None);
            let output = links.output_url(&id, 0, now);
            let (url, _) = output.split_once("?grant=1800000000.").unwrap();
            assert_eq!(
                url,
                "https://hub.example.com/progress/v1/jobs/job_a/outputs/0"
            );
        }
        assert_eq!(links(None).callback_url("kling", &id), None);
        assert!(
            links(None)
                .output_url(&id, 0, now)
                .starts_with("/v1/jobs/job_a/outputs/0?grant=")
        );
        let keyless = Links::new(None, None, HOUR);
        assert_eq!(keyless.output_url(&id, 3, now), "/v1/jobs/job_a/outputs/3");
    }

    #[test]
    fn only_private_outputs_get_a_hub_link_with_matching_expiry() {
        let now = Time::from_millis(1_800_000_000_000);
        let report = StatusReport {
            outputs: vec![
                output("", None),
                output("https://cdn.example.com/b", None),
                output("", Some(now + HOUR / 2)),
                output("", Some(now + HOUR * 2)),
            ],
            output_sources: vec![private("files/a"), None, private("c"), private("d")],
            ..StatusReport::with_status(Status::Succeeded)
        };
        let update =
            links(None).with_output_links(&job("job_a"), report.into_update(Source::Poll), now);
        let JobEvent::Reported(report) = update.event else {
            panic!("expected a report")
        };
        let seconds: Vec<_> = report
            .outputs
            .iter()
            .map(|output| {
                output
                    .url
                    .split_once("?grant=18000")
                    .map(|(_, grant)| grant[..5].parse().unwrap())
            })
            .collect();
        assert_eq!(seconds, [Some(3600), None, Some(1800), Some(3600)]);
        assert_eq!(report.outputs[1].url, "https://cdn.example.com/b");
        assert!(
            report
                .outputs
                .iter()
                .all(|output| !output.url.contains("files"))
        );
    }
    #[test]
    fn with_an_archive_every_output_gets_a_link_that_outlives_the_source() {
        let now = Time::from_millis(1_800_000_000_000);
        let report = StatusReport {
            outputs: vec![
                output("https://cdn.example.com/a", Some(now + HOUR / 2)),
                output("data:image/png;base64,AA", None),
                output("", None),
            ],
            output_sources: vec![None, None, private("files/c")],
            ..StatusReport::with_status(Status::Succeeded)
        };
        let links = links(None).with_archive();
        let update = report.into_update(Source::Poll);
        let update = links.with_output_links(&job("job_a"), update, now);
        let JobEvent::Reported(report) = update.event else {
            panic!("expected a report")
        };
        for (n, output) in report.outputs.iter().enumerate() {
            let path = format!("/v1/jobs/job_a/outputs/{n}?grant=1800003600.");
            assert!(output.url.starts_with(&path), "{}", output.url);
            assert_eq!(output.expires_at, Some(now + HOUR));
        }
        let sources = report.output_sources.into_iter().flatten();
        let sources: Vec<_> = sources.map(|it| (it.url, it.is_private)).collect();
        let expected = [
            ("https://cdn.example.com/a", false),
            ("data:image/png;base64,AA", false),
            ("files/c", true),
        ];
        assert_eq!(
            sources,
            expected.map(|(url, is_private)| (url.to_owned(), is_private))
        );
    }
}
