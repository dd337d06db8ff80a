//! Downloads against hosts on loopback: where the key goes, and what ends a fetch.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A host that answers each request as told, one a connection, and keeps their heads.
struct Stand {
    url: Url,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Stand {
    async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(String, TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heads);
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
                kept.lock().unwrap().push(head.clone());
                tokio::spawn(answer(head, stream));
            }
        });
        Self {
            url: url.parse().unwrap(),
            heads,
        }
    }

    /// One that answers every request with this.
    async fn saying(answer: String) -> Self {
        let answer = Arc::new(answer);
        Self::start(move |_, mut stream| {
            let answer = Arc::clone(&answer);
            async move { stream.write_all(answer.as_bytes()).await.unwrap() }
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

fn key() -> HeaderMap {
    let key = (
        HeaderName::from_static("x-key"),
        HeaderValue::from_static("the key"),
    );
    HeaderMap::from_iter([key])
}

/// Downloads that take the stands of a test for the public internet.
fn lenient(idle: Duration, places: usize) -> Downloader {
    let downloads = Downloader::new().unwrap();
    Downloader {
        public_client: downloads.provider_client.clone(),
        is_allowed: |_| true,
        idle,
        permits: Arc::new(Semaphore::new(places)),
        ..downloads
    }
}

async fn fetch(
    downloads: &Downloader,
    home: &Stand,
    path: &str,
) -> Result<Download, DownloadError> {
    let source = home.url.join(path).unwrap();
    downloads
        .fetch(Some(&home.url), source, &key(), &RangeRequest::default())
        .await
}

async fn read(mut body: Body) -> Result<Vec<u8>, IncompleteBody> {
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

async fn until(mut wish: impl FnMut() -> bool) {
    let waiting = async {
        while !wish() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TEST_TIMEOUT, waiting)
        .await
        .expect("it comes to be so");
}

const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ncontent-length: 4\r\n\r\nclip";

#[tokio::test]
async fn api_key_is_not_sent_after_a_cross_origin_redirect() {
    let back = Arc::new(Mutex::new(String::new()));
    let home = Stand::start({
        let away = Arc::clone(&back);
        move |head, mut stream| {
            let to = away.lock().unwrap().clone();
            async move {
                let answer = match head.split(' ').nth(1) {
                    Some("/a") => redirect("/b"),
                    Some("/b") => redirect(&to),
                    _ => WHOLE.to_owned(),
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let other = Stand::saying(redirect(home.url.join("/c").unwrap().as_str())).await;
    *back.lock().unwrap() = other.url.to_string();

    let download = fetch(&lenient(TEST_TIMEOUT, 1), &home, "a").await.unwrap();
    assert_eq!((download.status, download.length), (200, Some(4)));
    assert_eq!(download.content_type.as_deref(), Some("video/mp4"));
    assert_eq!(read(download.body).await.unwrap(), b"clip");
    let has_key: Vec<bool> = [home.heads(), other.heads()]
        .concat()
        .iter()
        .map(|head| head.contains("x-key"))
        .collect();
    assert_eq!(has_key, [true, true, false, false]);
}

#[tokio::test]
async fn redirects_to_private_addresses_are_refused() {
    let secret = Stand::saying(WHOLE.to_owned()).await;
    let port = secret.url.port().unwrap();
    let downloads = Downloader::new().unwrap();
    for to in [
        secret.url.to_string(),
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::1]:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("//localhost:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://2130706433/".to_owned(),
        "ftp://8.8.8.8/".to_owned(),
    ] {
        let home = Stand::saying(redirect(&to)).await;
        let refused = fetch(&downloads, &home, "a").await.err();
        let expected = DownloadError::Refused("its address is not a public one");
        assert_eq!(refused, Some(expected), "{to}");
    }
    let home = Stand::saying(redirect(&format!("https://localhost:{port}/"))).await;
    let refused = fetch(&downloads, &home, "a").await.err();
    let expected = DownloadError::Unanswered("the host has no public address".to_owned());
    assert_eq!(refused, Some(expected));
    assert_eq!(secret.heads(), [""; 0]);

    let home = Stand::saying(redirect("/again")).await;
    let refused = fetch(&downloads, &home, "a").await.err();
    assert_eq!(
        refused,
        Some(DownloadError::Refused("it was redirected too often"))
    );
    assert_eq!(home.heads().len(), MAX_REDIRECTS + 1);
}

#[tokio::test]
async fn stalled_provider_aborts_the_download() {
    let home = Stand::start(|_, mut stream| async move {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf";
        stream.write_all(half.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let downloads = lenient(Duration::from_millis(100), 1);
    let mut download = fetch(&downloads, &home, "a").await.unwrap();
    assert_eq!(download.body.next().await.unwrap().unwrap(), "half");
    let busy = fetch(&downloads, &home, "a").await.err();
    assert_eq!(busy, Some(DownloadError::Busy));
    let end = timeout(TEST_TIMEOUT, download.body.next()).await.unwrap();
    assert!(end.unwrap().is_err());
    assert_eq!(downloads.permits.available_permits(), 1);

    let mute = Stand::start(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let unanswered = fetch(&downloads, &mute, "a").await.err();
    let expected = DownloadError::Unanswered("no answer in time".to_owned());
    assert_eq!(unanswered, Some(expected));
}

/// A host that sends as long as anybody takes it, and then says so.
async fn endless(ended: mpsc::UnboundedSender<usize>) -> Stand {
    Stand::start(move |_, mut stream| {
        let ended = ended.clone();
        async move {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let (piece, mut sent) = (vec![0; 1 << 16], 0);
            while stream.write_all(&piece).await.is_ok() {
                sent += piece.len();
            }
            ended.send(sent).unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn client_disconnect_or_stall_stops_the_download() {
    let (ended, mut end) = mpsc::unbounded_channel();
    let home = endless(ended).await;
    let downloads = lenient(TEST_TIMEOUT * 6, 1);
    let mut download = fetch(&downloads, &home, "a").await.unwrap();
    for _ in 0..100 {
        download.body.next().await.unwrap().unwrap();
    }
    drop(download);
    timeout(TEST_TIMEOUT, end.recv()).await.unwrap().unwrap();
    until(|| downloads.permits.available_permits() == 1).await;

    let downloads = lenient(Duration::from_millis(200), 1);
    let mut download = fetch(&downloads, &home, "a").await.unwrap();
    let sent = timeout(TEST_TIMEOUT, end.recv()).await.unwrap().unwrap();
    assert!(sent < 64 << 20, "{sent} bytes went to nobody");
    assert_eq!(downloads.permits.available_permits(), 1);
    // What was on its way is still there, and its end is no good one.
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
    let downloads = lenient(TEST_TIMEOUT, 1);
    let answered =
        |status: &str| DownloadError::Unanswered(format!("the provider answered {status}"));
    for (status, expected) in [
        ("200", Ok(200)),
        ("206", Ok(206)),
        ("416", Ok(416)),
        ("404", Err(DownloadError::Gone)),
        ("410", Err(DownloadError::Gone)),
        ("401", Err(answered("401"))),
        ("403", Err(answered("403"))),
        ("304", Err(answered("304"))),
        ("302", Err(answered("302"))),
        ("429", Err(answered("429"))),
        ("500", Err(answered("500"))),
        ("503", Err(answered("503"))),
    ] {
        let home = Stand::saying(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
        let fetched = fetch(&downloads, &home, "a").await;
        let fetched = fetched.map(|download| download.status);
        assert_eq!(fetched, expected, "{status}");
        until(|| downloads.permits.available_permits() == 1).await;
    }
}

#[test]
fn single_ranges_are_forwarded_multiple_are_not() {
    let asked = |range: &str| {
        let wanted = RangeRequest {
            range: Some(range.to_owned()),
            if_range: Some("\"tag\"".to_owned()),
        };
        let headers = range_headers(&wanted);
        let is_asked = |name| headers.contains_key(name);
        (is_asked(header::RANGE), is_asked(header::IF_RANGE))
    };
    assert_eq!(asked("bytes=0-1"), (true, true));
    for none in ["bytes=0-1,4-5", "lines=1-2", "bytes=\n"] {
        assert_eq!(asked(none), (false, false), "{none}");
    }
}

#[test]
fn external_urls_must_be_https_and_public() {
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
        assert_eq!(may_be_public(&url.parse().unwrap()), expected, "{url}");
    }
}
