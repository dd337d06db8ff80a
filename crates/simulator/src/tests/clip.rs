//! The clip, whole and in ranges.

use reqwest::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE,
};
use reqwest::{Method, Response};

use super::{Stage, in_time};

static CLIP: &[u8] = include_bytes!("../clip.mp4");

impl Stage {
    async fn clip(&self, method: Method, range: Option<&str>) -> Response {
        let mut request = self
            .client
            .request(method, format!("{}/clips/7.mp4", self.url));
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        in_time(request.send()).await.unwrap()
    }
}

fn header(response: &Response, name: reqwest::header::HeaderName) -> &str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn whole_clip_has_type_length_and_cors_headers() {
    let stage = Stage::set().await;
    for method in [Method::GET, Method::HEAD] {
        let response = stage.clip(method.clone(), None).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, CONTENT_TYPE), "video/mp4");
        assert_eq!(header(&response, CONTENT_LENGTH), CLIP.len().to_string());
        assert_eq!(header(&response, ACCEPT_RANGES), "bytes");
        assert_eq!(header(&response, ACCESS_CONTROL_ALLOW_ORIGIN), "*");
        let expected = if method == Method::GET { CLIP } else { &[] };
        assert_eq!(response.bytes().await.unwrap(), expected);
    }
    assert_eq!(&CLIP[4..8], b"ftyp");
    assert!(CLIP.len() <= 60_000);
}

#[tokio::test]
async fn requested_ranges_are_served() {
    let stage = Stage::set().await;
    let all = CLIP.len();
    for (range, first, last) in [
        ("bytes=0-", 0, all - 1),
        ("bytes=0-99", 0, 99),
        ("bytes=100-100", 100, 100),
        ("bytes=-10", all - 10, all - 1),
        ("bytes=50-99999999", 50, all - 1),
    ] {
        let response = stage.clip(Method::GET, Some(range)).await;
        assert_eq!(response.status(), 206, "{range}");
        assert_eq!(
            header(&response, CONTENT_RANGE),
            format!("bytes {first}-{last}/{all}")
        );
        assert_eq!(
            response.bytes().await.unwrap(),
            CLIP[first..=last],
            "{range}"
        );
    }
}

#[tokio::test]
async fn range_beyond_the_end_is_not_satisfiable() {
    let stage = Stage::set().await;
    let response = stage.clip(Method::GET, Some("bytes=99999999-")).await;
    assert_eq!(response.status(), 416);
    assert_eq!(
        header(&response, CONTENT_RANGE),
        format!("bytes */{}", CLIP.len())
    );
}

#[tokio::test]
async fn invalid_ranges_return_the_whole_clip() {
    let stage = Stage::set().await;
    for range in ["bytes=a-b", "lines=1-2", "bytes=0-1,5-6"] {
        assert_eq!(
            stage.clip(Method::GET, Some(range)).await.status(),
            200,
            "{range}"
        );
    }
}
