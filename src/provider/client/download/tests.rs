//! Downloads from test servers on loopback.

use std::sync::Mutex;

use reqwest::header::HeaderName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP server that serves one request per connection and records the request heads.
struct TestServer {
    url: Url,
    heads: Arc<Mutex<Vec<String>>>,
}

impl TestServer {
    async fn start<F, R>(respond: F) -> Self
    where
        F: Fn(String, TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else {
                        break;
                    };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                recorded.lock().unwrap().push(head.clone());
                tokio::spawn(respond(head, stream));
            }
        });
        Self {
            url: url.parse().unwrap(),
            heads,
        }
    }

    /// Starts a server that sends the same response to every request.
    async fn with_response(response: String) -> Self {
        let response = Arc::new(response);
        Self::start(move |_, mut stream| {
            let response = Arc::clone(&response);
            async move { stream.write_all(response.as_bytes()).await.unwrap() }
        })
        .await
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

fn auth_headers() -> HeaderMap {
    let header = (
        HeaderName::from_static("x-key"),
        HeaderValue::from_static("the key"),
    );
    HeaderMap::from_iter([header])
}

fn downloader(allow: &[&str]) -> Downloader {
    let allow = allow.iter().map(|it| it.parse().unwrap());
    let policy = AddressPolicy::new(allow.collect());
    Downloader::new(&HttpClient::new().unwrap(), policy).unwrap()
}

/// Returns a downloader that also connects to loopback.
fn unrestricted_downloader(stall_timeout: Duration, max_concurrent: usize) -> Downloader {
    Downloader {
        stall_timeout,
        reader_timeout: stall_timeout,
        permits: Arc::new(Semaphore::new(max_concurrent)),
        ..downloader(&["127.0.0.0/8"])
    }
}

async fn fetch(
    downloader: &Downloader,
    provider: &TestServer,
    path: &str,
) -> Result<Download, DownloadError> {
    let source = provider.url.join(path).unwrap();
    let range = RangeRequest::default();
    downloader
        .fetch(Some(&provider.url), source, &auth_headers(), &range)
        .await
}

async fn read(mut body: Body) -> Result<Vec<u8>, IncompleteBody> {
    let mut all = Vec::new();
    while let Some(chunk) = body.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

async fn wait_until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TEST_TIMEOUT, waiting)
        .await
        .expect("condition not met in time");
}

const COMPLETE: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ncontent-length: 4\r\n\r\nclip";

#[tokio::test]
async fn api_key_is_not_sent_after_a_cross_origin_redirect() {
    let other_url = Arc::new(Mutex::new(String::new()));
    let provider = TestServer::start({
        let other_url = Arc::clone(&other_url);
        move |head, mut stream| {
            let other_url = other_url.lock().unwrap().clone();
            async move {
                let response = match head.split(' ').nth(1) {
                    Some("/a") => redirect("/b"),
                    Some("/b") => redirect(&other_url),
                    _ => COMPLETE.to_owned(),
                };
                stream.write_all(response.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let other =
        TestServer::with_response(redirect(provider.url.join("/c").unwrap().as_str())).await;
    *other_url.lock().unwrap() = other.url.to_string();

    let download = fetch(&unrestricted_downloader(TEST_TIMEOUT, 1), &provider, "a")
        .await
        .unwrap();
    let head = &download.head;
    assert_eq!((head.status, head.length), (200, Some(4)));
    assert_eq!(head.path, "/c");
    assert_eq!(head.content_type.as_deref(), Some("video/mp4"));
    assert_eq!(read(download.body).await.unwrap(), b"clip");
    let has_key: Vec<bool> = [provider.heads(), other.heads()]
        .concat()
        .iter()
        .map(|head| head.contains("x-key"))
        .collect();
    assert_eq!(has_key, [true, true, false, false]);
}

#[tokio::test]
async fn redirects_to_private_addresses_are_rejected() {
    let private = TestServer::with_response(COMPLETE.to_owned()).await;
    let port = private.url.port().unwrap();
    let downloader = downloader(&[]);
    for to in [
        private.url.to_string(),
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::1]:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("//localhost:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://2130706433/".to_owned(),
        "ftp://8.8.8.8/".to_owned(),
    ] {
        let provider = TestServer::with_response(redirect(&to)).await;
        let error = fetch(&downloader, &provider, "a").await.err();
        let expected = DownloadError::UrlNotAllowed("must be https and public");
        assert_eq!(error, Some(expected), "{to}");
    }
    let provider = TestServer::with_response(redirect(&format!("https://localhost:{port}/"))).await;
    let error = fetch(&downloader, &provider, "a").await.err();
    let expected = DownloadError::Failed("host has an address that is not allowed".to_owned());
    assert_eq!(error, Some(expected));
    assert_eq!(private.heads(), [""; 0]);

    let provider = TestServer::with_response(redirect("/again")).await;
    let error = fetch(&downloader, &provider, "a").await.err();
    assert_eq!(
        error,
        Some(DownloadError::UrlNotAllowed("too many redirects"))
    );
    assert_eq!(provider.heads().len(), MAX_REDIRECTS + 1);
}

#[tokio::test]
async fn stalled_provider_aborts_the_download() {
    let provider = TestServer::start(|_, mut stream| async move {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf";
        stream.write_all(half.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let downloader = unrestricted_downloader(Duration::from_millis(100), 1);
    let mut download = fetch(&downloader, &provider, "a").await.unwrap();
    assert_eq!(download.body.next().await.unwrap().unwrap(), "half");
    let error = fetch(&downloader, &provider, "a").await.err();
    assert_eq!(error, Some(DownloadError::Busy));
    let end = timeout(TEST_TIMEOUT, download.body.next()).await.unwrap();
    assert!(end.unwrap().is_err());
    assert_eq!(downloader.permits.available_permits(), 1);

    let silent = TestServer::start(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let error = fetch(&downloader, &silent, "a").await.err();
    let expected = DownloadError::Failed("request timed out".to_owned());
    assert_eq!(error, Some(expected));
}

/// Starts a server that sends until the connection closes, and then reports the number of bytes
/// sent.
async fn start_endless(ended: mpsc::UnboundedSender<usize>) -> TestServer {
    TestServer::start(move |_, mut stream| {
        let ended = ended.clone();
        async move {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let (chunk, mut sent) = (vec![0; 1 << 16], 0);
            while stream.write_all(&chunk).await.is_ok() {
                sent += chunk.len();
            }
            ended.send(sent).unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn client_disconnect_or_stall_stops_the_download() {
    let (ended, mut end) = mpsc::unbounded_channel();
    let provider = start_endless(ended).await;
    let downloader = unrestricted_downloader(TEST_TIMEOUT * 6, 1);
    let mut download = fetch(&downloader, &provider, "a").await.unwrap();
    for _ in 0..100 {
        download.body.next().await.unwrap().unwrap();
    }
    drop(download);
    timeout(TEST_TIMEOUT, end.recv()).await.unwrap().unwrap();
    wait_until(|| downloader.permits.available_permits() == 1).await;

    let downloader = unrestricted_downloader(Duration::from_millis(200), 1);
    let mut download = fetch(&downloader, &provider, "a").await.unwrap();
    let sent = timeout(TEST_TIMEOUT, end.recv()).await.unwrap().unwrap();
    assert!(
        sent < 64 << 20,
        "{sent} bytes were sent although the client stalled"
    );
    assert_eq!(downloader.permits.available_permits(), 1);
    // The chunks that were read ahead are delivered, then the error.
    let last = loop {
        match download.body.next().await {
            Some(Ok(_)) => {}
            last => break last,
        }
    };
    assert!(matches!(last, Some(Err(IncompleteBody))));
}

#[tokio::test]
async fn response_status_maps_to_download_result() {
    let downloader = unrestricted_downloader(TEST_TIMEOUT, 1);
    let failed =
        |status: &str| DownloadError::Failed(format!("provider responded with status {status}"));
    for (status, expected) in [
        ("200", Ok(200)),
        ("206", Ok(206)),
        ("416", Ok(416)),
        ("404", Err(DownloadError::Gone)),
        ("410", Err(DownloadError::Gone)),
        ("401", Err(DownloadError::Refused(401))),
        ("403", Err(DownloadError::Refused(403))),
        ("304", Err(failed("304"))),
        ("302", Err(failed("302"))),
        ("429", Err(failed("429"))),
        ("500", Err(failed("500"))),
        ("503", Err(failed("503"))),
    ] {
        let provider =
            TestServer::with_response(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n"))
                .await;
        let fetched = fetch(&downloader, &provider, "a").await;
        let fetched = fetched.map(|download| download.head.status);
        assert_eq!(fetched, expected, "{status}");
        wait_until(|| downloader.permits.available_permits() == 1).await;
    }
}

#[test]
fn single_ranges_are_forwarded_multiple_are_not() {
    let forwarded = |range: &str| {
        let request = RangeRequest {
            range: Some(range.to_owned()),
            if_range: Some("\"tag\"".to_owned()),
        };
        let headers = range_headers(&request);
        let has = |name| headers.contains_key(name);
        (has(header::RANGE), has(header::IF_RANGE))
    };
    assert_eq!(forwarded("bytes=0-1"), (true, true));
    for range in ["bytes=0-1,4-5", "lines=1-2", "bytes=\n"] {
        assert_eq!(forwarded(range), (false, false), "{range}");
    }
}

#[tokio::test]
async fn archive_waits_longer_for_its_reader_and_has_a_limit_of_its_own() {
    let provider = TestServer::with_response(COMPLETE.to_owned()).await;
    let readers = unrestricted_downloader(Duration::from_millis(50), 1);
    let archive = readers.for_archive();
    assert_eq!(archive.reader_timeout, UPLOAD_TIMEOUT);
    let _first = fetch(&archive, &provider, "a").await.unwrap();
    let _second = fetch(&archive, &provider, "a").await.unwrap();
    assert_eq!(readers.permits.available_permits(), 1);
}

#[tokio::test]
async fn allowed_networks_are_reached_by_name_and_by_address() {
    let server = TestServer::with_response(COMPLETE.to_owned()).await;
    let port = server.url.port().unwrap();
    let fetch = async |allow: &[&str], host: &str| {
        let url = format!("http://{host}:{port}/a");
        let range = RangeRequest::default();
        let download = downloader(allow).fetch_public(&url, &range).await;
        download.map(|download| download.head.status)
    };
    let loopback = ["127.0.0.0/8", "::1/128"];
    assert_eq!(fetch(&loopback, "127.0.0.1").await, Ok(200));
    assert_eq!(fetch(&loopback, "localhost").await, Ok(200));
    let not_allowed = DownloadError::UrlNotAllowed("must be https and public");
    assert_eq!(
        fetch(&["10.0.0.0/8"], "127.0.0.1").await,
        Err(not_allowed.clone())
    );
    assert_eq!(fetch(&[], "localhost").await, Err(not_allowed));
    let error = "host has an address that is not allowed".to_owned();
    let error = DownloadError::Failed(error);
    assert_eq!(fetch(&["10.0.0.0/8"], "localhost").await, Err(error));
}

#[test]
fn external_urls_must_be_https_and_public() {
    let downloader = downloader(&[]);
    for (url, expected) in [
        ("https://cdn.example.com/a", true),
        ("https://8.8.8.8:8443/a", true),
        ("https://[2606:4700::1111]/a", true),
        ("http://cdn.example.com/a", false),
        ("https://10.0.0.1/a", false),
        ("https://0x7f.1/a", false),
        ("https://017700000001/a", false),
        ("https://[fd00::1]/a", false),
        ("https://[64:ff9b::a00:1]/a", false),
        ("file:///etc/passwd", false),
        ("data:text/plain,a", false),
    ] {
        let client = downloader.client_for(&url.parse().unwrap());
        assert_eq!(client.is_ok(), expected, "{url}");
    }
}
