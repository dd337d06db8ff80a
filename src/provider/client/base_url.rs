//! The base URL of a provider's API, and the URLs in its responses.
//!
//! The API key is sent only to the provider's own origin, or to a host that the spec names
//! literally. It is never sent to other hosts that a response names.

use percent_encoding::percent_decode_str;
use url::{Position, Url};

/// The base URL of a provider's API.
#[derive(Clone, Debug, Default)]
pub(crate) struct BaseUrl {
    /// Without a trailing slash. Empty if neither the configuration nor the spec has one.
    text: String,
    url: Option<Url>,
    /// The base URL of the spec if the configuration overrides it, for example with a gateway. URLs
    /// of the spec's origin in responses are rewritten to the configured base URL.
    spec_url: Option<Url>,
}

impl BaseUrl {
    /// Combines the configured base URL, which takes precedence, with that of the spec.
    pub(crate) fn new(configured: Option<&Url>, of_spec: Option<&str>) -> Self {
        let trim = |url: &str| url.trim_end_matches('/').to_owned();
        let of_spec = of_spec.map(trim);
        let (text, spec_url) = match configured {
            Some(url) => {
                let spec_url = of_spec.and_then(|url| Url::parse(&url).ok());
                (trim(url.as_str()), spec_url)
            }
            None => (of_spec.unwrap_or_default(), None),
        };
        Self {
            url: Url::parse(&text).ok(),
            text,
            spec_url,
        }
    }

    /// Returns the base URL without a trailing slash, as templates use it.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the parsed base URL, or `None` if there is no valid one.
    pub(crate) fn url(&self) -> Option<&Url> {
        self.url.as_ref()
    }

    /// Returns whether `url` has the provider's origin. Without a base URL, every URL does.
    pub(super) fn is_same_origin(&self, url: &Url) -> bool {
        let base = self.url.as_ref();
        base.is_none_or(|base| base.origin() == url.origin())
    }

    /// Resolves a URL of a template or a response: a relative one against the base URL, and one of
    /// the spec's origin to the configured base URL.
    ///
    /// Returns `None` if the text is not a URL, if it has an empty segment or a fragment, or if
    /// parsing changes its path, for example because of a `..` segment, a backslash or a space. The
    /// path of the result is therefore the path in the text.
    pub(super) fn resolve(&self, text: &str) -> Option<Url> {
        let (url, written) = match Url::parse(text) {
            Ok(url) => {
                let (_, rest) = text.split_once("://")?;
                let path = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
                (url, path.to_owned())
            }
            Err(_) => {
                let base = Url::parse(&format!("{}/", self.text)).ok()?;
                let folder = if text.starts_with('/') {
                    ""
                } else {
                    base.path()
                };
                (base.join(text).ok()?, format!("{folder}{text}"))
            }
        };
        let root = if written.starts_with('/') { "" } else { "/" };
        let is_unchanged = url[Position::BeforePath..] == format!("{root}{written}");
        let is_plain = !url.path().contains("//") && url.fragment().is_none();
        (is_unchanged && is_plain).then(|| self.rewrite(&url).unwrap_or(url))
    }

    /// Returns the decoded segments of the path below the base URL, and the query.
    pub(super) fn split(&self, url: &Url) -> (Vec<String>, Option<String>) {
        let base = self
            .url
            .as_ref()
            .map_or("", Url::path)
            .trim_end_matches('/');
        let path = url.path().strip_prefix(base).unwrap_or(url.path());
        let decode = |segment: &str| percent_decode_str(segment).decode_utf8_lossy().into_owned();
        let segments = path.split('/').skip(1).map(decode);
        (segments.collect(), url.query().map(str::to_owned))
    }

    fn rewrite(&self, url: &Url) -> Option<Url> {
        let (base, spec_url) = (self.url.as_ref()?, self.spec_url.as_ref()?);
        if url.origin() != spec_url.origin() {
            return None;
        }
        let rest = url
            .path()
            .strip_prefix(spec_url.path().trim_end_matches('/'))
            .filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let path = match rest {
            Some(rest) => format!("{}{rest}", base.path().trim_end_matches('/')),
            None => url.path().to_owned(),
        };
        let mut rewritten = base.clone();
        rewritten.set_path(&path);
        rewritten.set_query(url.query());
        Some(rewritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base_url(configured: Option<&str>, of_spec: Option<&str>) -> BaseUrl {
        let configured = configured.map(|url| Url::parse(url).unwrap());
        BaseUrl::new(configured.as_ref(), of_spec)
    }

    #[test]
    fn spec_urls_are_rewritten_to_the_configured_base_url() {
        let gateway = base_url(
            Some("http://gateway:8080/up/"),
            Some("https://api.example/v1"),
        );
        for (url, expected) in [
            (
                "https://api.example/v1/tasks/1?a=b",
                "http://gateway:8080/up/tasks/1?a=b",
            ),
            ("https://api.example/v10/x", "http://gateway:8080/v10/x"),
            (
                "videos/1/content",
                "http://gateway:8080/up/videos/1/content",
            ),
            ("/files/1", "http://gateway:8080/files/1"),
            ("https://cdn.example/a.mp4", "https://cdn.example/a.mp4"),
            (
                "http://api.example/v1/tasks/1",
                "http://api.example/v1/tasks/1",
            ),
        ] {
            assert_eq!(gateway.resolve(url).unwrap().as_str(), expected, "{url}");
        }
        let plain = base_url(None, Some("https://api.example/v1/"));
        assert_eq!(plain.as_str(), "https://api.example/v1");
        let url = plain.resolve("https://api.example/v2/x").unwrap();
        assert_eq!(url.as_str(), "https://api.example/v2/x");
    }

    #[test]
    fn url_whose_path_changes_by_parsing_is_invalid() {
        let base_url = base_url(None, Some("https://api.example/v1"));
        for text in [
            "https://api.example/v1/tasks/../organization",
            "https://api.example/v1/tasks/./1",
            "https://api.example/v1/tasks/%2e%2e/organization",
            "https://api.example/v1/tasks\\1",
            "https://api.example/v1//tasks",
            "https://api.example/v1/a b",
            "https://api.example/v1/a\tb",
            "https:api.example/v1/a",
            "https://api.example/v1/a#b",
            "../organization",
            "tasks/../../organization",
            "/v1/../organization",
            "//evil.example/v1/tasks",
        ] {
            assert_eq!(base_url.resolve(text), None, "{text}");
        }
        for text in [
            "https://api.example/v1/tasks/..%2Forganization",
            "https://api.example/v1/tasks/1?a=../b&c=https://x//y",
            "https://api.example?a=b",
            "tasks/1?callback=https://x",
            "/v1/tasks/",
        ] {
            assert!(base_url.resolve(text).is_some(), "{text}");
        }
    }

    #[test]
    fn path_is_split_into_decoded_segments_below_the_base() {
        let base_url = base_url(Some("https://gateway.example/up"), None);
        let split = |url: &str| base_url.split(&Url::parse(url).unwrap());
        assert_eq!(
            split("https://gateway.example/up/a/b%2Fc?d=e"),
            (
                vec!["a".to_owned(), "b/c".to_owned()],
                Some("d=e".to_owned())
            )
        );
        assert_eq!(split("https://gateway.example/up"), (Vec::new(), None));
    }

    #[test]
    fn same_origin_check() {
        let base_url = base_url(Some("https://api.example/v1"), None);
        let is_same_origin = |url: &str| base_url.is_same_origin(&Url::parse(url).unwrap());
        assert!(is_same_origin("https://api.example/elsewhere"));
        for other in [
            "http://api.example/v1",
            "https://api.example:8443/v1",
            "https://api.example.evil/v1",
            "https://evil/?https://api.example/v1",
        ] {
            assert!(!is_same_origin(other), "{other}");
        }
        assert!(BaseUrl::default().is_same_origin(&Url::parse("https://any.example/").unwrap()));
    }
}
