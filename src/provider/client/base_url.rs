//! Where a provider answers, and what that makes of the URLs that its answers hold.
//!
//! Invariant: a key is sent to the provider's own origin, or where its spec says so in so many words,
//! and never to where an answer points.

use url::Url;

/// The address of a provider's API.
#[derive(Clone, Debug, Default)]
pub(in crate::provider) struct BaseUrl {
    /// Without a slash at its end; empty where nobody says it.
    text: String,
    url: Option<Url>,
    /// What the spec says, where the operator says another: a gateway, or a stand-in. What the
    /// provider calls its own then stands for the same there.
    spec_url: Option<Url>,
}

impl BaseUrl {
    pub(in crate::provider) fn new(configured: Option<&Url>, stated: Option<&str>) -> Self {
        let slim = |url: &str| url.trim_end_matches('/').to_owned();
        let stated_url = || Url::parse(&slim(stated?)).ok();
        let (text, replaced) = match configured {
            Some(url) => (slim(url.as_str()), stated_url()),
            None => (stated.map(slim).unwrap_or_default(), None),
        };
        let url = Url::parse(&text).ok();
        Self {
            text,
            url,
            spec_url: replaced,
        }
    }

    /// As templates put it before a path.
    pub(in crate::provider) fn as_str(&self) -> &str {
        &self.text
    }

    /// The same, where it is one.
    pub(in crate::provider) fn url(&self) -> Option<&Url> {
        self.url.as_ref()
    }

    /// Whether a URL is of the provider's own origin; nothing is known of one that nobody has stated.
    pub(in crate::provider) fn is_same_origin(&self, url: &Url) -> bool {
        self.url
            .as_ref()
            .is_none_or(|home| home.origin() == url.origin())
    }

    /// A URL as an answer gives it, relative ones under the base URL, and those of the address that
    /// the operator has replaced in the place of it.
    pub(in crate::provider) fn resolve(&self, text: &str) -> Option<Url> {
        let base = Url::parse(&format!("{}/", self.text));
        let url = match base {
            Ok(base) => base.join(text).ok()?,
            Err(_) => Url::parse(text).ok()?,
        };
        Some(self.rewrite(&url).unwrap_or(url))
    }

    fn rewrite(&self, url: &Url) -> Option<Url> {
        let (home, replaced) = (self.url.as_ref()?, self.spec_url.as_ref()?);
        if url.origin() != replaced.origin() {
            return None;
        }
        let before = replaced.path().trim_end_matches('/');
        let rest = url
            .path()
            .strip_prefix(before)
            .filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let mut moved = home.clone();
        match rest {
            Some(rest) => {
                let path = format!("{}{rest}", home.path().trim_end_matches('/'));
                moved.set_path(&path);
            }
            None => moved.set_path(url.path()),
        }
        moved.set_query(url.query());
        Some(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(configured: Option<&str>, stated: Option<&str>) -> BaseUrl {
        let configured = configured.map(|url| Url::parse(url).unwrap());
        BaseUrl::new(configured.as_ref(), stated)
    }

    #[test]
    fn spec_urls_are_rewritten_to_the_configured_base_url() {
        let gateway = home(
            Some("http://gateway:8080/up/"),
            Some("https://api.example/v1"),
        );
        for (told, wished) in [
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
            assert_eq!(gateway.resolve(told).unwrap().as_str(), wished, "{told}");
        }
        let plain = home(None, Some("https://api.example/v1/"));
        assert_eq!(plain.as_str(), "https://api.example/v1");
        let told = plain.resolve("https://api.example/v2/x").unwrap();
        assert_eq!(told.as_str(), "https://api.example/v2/x");
    }

    #[test]
    fn same_origin_check() {
        let home = home(Some("https://api.example/v1"), None);
        let is_own = |url: &str| home.is_same_origin(&Url::parse(url).unwrap());
        assert!(is_own("https://api.example/elsewhere"));
        for other in [
            "http://api.example/v1",
            "https://api.example:8443/v1",
            "https://api.example.evil/v1",
            "https://evil/?https://api.example/v1",
        ] {
            assert!(!is_own(other), "{other}");
        }
        assert!(BaseUrl::default().is_same_origin(&Url::parse("https://any.example/").unwrap()));
    }
}
