//! A provider whose files are slow, cut, without end, or gone.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Begins as an MP4 file does.
pub const CLIP: &[u8] = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41 clip";

/// Size of `/large.mp4`: three parts of an upload.
pub const LARGE_BYTES: usize = 20 << 20;

/// A running provider with one task. It closes the connection after each response.
pub struct Source {
    pub url: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    files: Mutex<Value>,
    paths: Mutex<Vec<String>>,
    has_forgotten: AtomicBool,
    is_slow: AtomicBool,
    /// Number of further responses with status 503 to `/busy.mp4`.
    busy: AtomicUsize,
    /// Number of bytes of `/endless` that were sent.
    sent: AtomicU64,
}

impl Source {
    /// Starts a provider whose task has these outputs. A path is relative to the provider.
    pub async fn start(outputs: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let accepted = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&accepted)));
            }
        });
        let source = Self { url, state, task };
        source.set_outputs(outputs);
        source
    }

    /// Replaces the outputs of the task. A path becomes a URL.
    pub fn set_outputs(&self, mut outputs: Value) {
        for output in outputs.as_array_mut().unwrap() {
            let url = if output.is_string() {
                &mut *output
            } else {
                &mut output["url"]
            };
            if let Some(path) = url.as_str().filter(|url| url.starts_with('/')) {
                *url = format!("{}{path}", self.url).into();
            }
        }
        *self.state.files.lock().unwrap() = outputs;
    }

    /// Answers with 404 to all files from now on.
    pub fn forget(&self) {
        self.state.has_forgotten.store(true, Ordering::Relaxed);
    }

    /// Sets whether `/slow.mp4` stops after its first half.
    pub fn set_slow(&self, is_slow: bool) {
        self.state.is_slow.store(is_slow, Ordering::Relaxed);
    }

    /// Answers with 503 to this number of requests for `/busy.mp4`.
    pub fn set_busy(&self, times: usize) {
        self.state.busy.store(times, Ordering::Relaxed);
    }

    /// Returns the number of requests for a path.
    pub fn requests(&self, path: &str) -> usize {
        let paths = self.state.paths.lock().unwrap();
        paths.iter().filter(|requested| *requested == path).count()
    }

    /// Returns the number of bytes that were sent of a file without end.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns the content of `/large.mp4`.
pub fn large() -> Vec<u8> {
    let mut content = CLIP.to_vec();
    let noise = (0_u32..).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
    content.extend(noise.take(LARGE_BYTES - CLIP.len()));
    content
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    state.paths.lock().unwrap().push(path.clone());
    // The client may end the connection at any time.
    let _ended = respond(&mut stream, &state, &path, &head).await;
}

async fn respond(
    stream: &mut TcpStream,
    state: &State,
    path: &str,
    head: &str,
) -> std::io::Result<()> {
    if path.starts_with("/api/tasks/") {
        let files = state.files.lock().unwrap().clone();
        let task = json!({ "id": "t1", "state": "done", "files": files }).to_string();
        return whole(stream, 200, "application/json", task.as_bytes()).await;
    }
    if state.has_forgotten.load(Ordering::Relaxed) {
        return whole(stream, 404, "text/html", b"<html>not found</html>").await;
    }
    let has_key = head.to_lowercase().contains("x-key: the key");
    match path {
        "/clip.mp4" | "/fresh.mp4" => whole(stream, 200, "video/mp4", CLIP).await,
        "/private.mp4" if !has_key => whole(stream, 401, "text/plain", b"no key").await,
        "/private.mp4" => whole(stream, 200, "video/mp4", CLIP).await,
        "/expired.mp4" => whole(stream, 403, "application/xml", b"<Error/>").await,
        "/large.mp4" => whole(stream, 200, "video/mp4", &large()).await,
        "/page.mp4" => whole(stream, 200, "text/html", b"<html>sign in</html>").await,
        "/busy.mp4" => {
            let count = |busy: usize| busy.checked_sub(1);
            let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
            match state.busy.fetch_update(set, fetch, count) {
                Ok(_) => whole(stream, 503, "text/plain", b"busy").await,
                Err(_) => whole(stream, 200, "video/mp4", CLIP).await,
            }
        }
        "/slow.mp4" => {
            let content = large();
            let (first, second) = content.split_at(content.len() / 2);
            start(stream, "video/mp4", Some(content.len())).await?;
            stream.write_all(first).await?;
            if state.is_slow.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            stream.write_all(second).await
        }
        "/cut.mp4" => {
            start(stream, "video/mp4", Some(LARGE_BYTES)).await?;
            stream.write_all(&large()[..LARGE_BYTES - 100]).await
        }
        "/cut-chunk.mp4" => {
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(b"8\r\n\0\0\0\x08ftyp\r\n").await
        }
        "/endless.mp4" => {
            start(stream, "video/mp4", None).await?;
            stream.write_all(CLIP).await?;
            let chunk = vec![7; 1 << 16];
            loop {
                stream.write_all(&chunk).await?;
                state.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        }
        _ => whole(stream, 404, "text/plain", b"").await,
    }
}

async fn start(
    stream: &mut TcpStream,
    content_type: &str,
    length: Option<usize>,
) -> std::io::Result<()> {
    let length = length.map_or(String::new(), |length| {
        format!("content-length: {length}\r\n")
    });
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{length}connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await
}

async fn whole(
    stream: &mut TcpStream,
    status: u16,
    content_type: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await
}
