//! What an update takes from the allocator on its way to many sockets: nothing for each of them.
//!
//! Invariant: one test alone in its program, so that all that is counted belongs to it; while it
//! counts, its own side allocates nothing.

#![expect(clippy::unwrap_used, reason = "a test that can't be set up fails")]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use progress_hub::config::Config;
use progress_hub::server::Server;
use progress_hub_auth::jwt::Minter;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SECRET: &str = "a test secret that is long enough for HS256";

/// The longest that anything may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(15);

/// How many sockets watch the one job and the other.
const FEW: usize = 10;
const MANY: usize = 210;

struct Callers {
    address: SocketAddr,
    publisher: String,
    watcher: String,
}

impl Callers {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn post(&self, path: &str, body: &str) -> Vec<u8> {
        let (token, length) = (&self.publisher, body.len());
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    fn register(&self) -> String {
        let mut stream = self.connect();
        stream
            .write_all(&self.post("/v1/jobs", r#"{"owner":"alice"}"#))
            .unwrap();
        let mut space = [0; 4096];
        let length = stream.read(&mut space).unwrap();
        let answer = std::str::from_utf8(&space[..length]).unwrap();
        let id = answer.split_once(r#""id":""#).unwrap().1;
        id.split_once('"').unwrap().0.to_owned()
    }

    /// A socket that watches the job and has been told so.
    fn watch(&self, job: &str) -> TcpStream {
        let mut stream = self.connect();
        let mut request = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Authorization: Bearer {}\r\n\r\n",
            self.watcher
        )
        .into_bytes();
        let text = format!(r#"{{"type":"subscribe","jobs":[{{"job":"{job}","version":1}}]}}"#);
        // A mask of zeros leaves the text as it is.
        request.extend([0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0]);
        request.extend(text.as_bytes());
        stream.write_all(&request).unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"));
        let mut space = [0; 4096];
        while !hears(&mut stream, &mut space).starts_with(br#"{"type":"subscribed""#) {}
        stream
    }
}

/// The next frame's payload.
fn hears<'s>(stream: &mut TcpStream, space: &'s mut [u8; 4096]) -> &'s [u8] {
    let mut header = [0; 2];
    stream.read_exact(&mut header).unwrap();
    let length = match header[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            usize::from(u16::from_be_bytes(length))
        }
        short => usize::from(short),
    };
    stream.read_exact(&mut space[..length]).unwrap();
    &space[..length]
}

/// Allocations in this process from the push of an update until all of them have it.
fn allocations(push: &mut TcpStream, request: &[u8], sockets: &mut [TcpStream]) -> usize {
    let mut space = [0; 4096];
    let region = Region::new(ALLOCATOR);
    push.write_all(request).unwrap();
    for socket in sockets {
        assert!(hears(socket, &mut space).starts_with(br#"{"type":"job""#));
    }
    let length = push.read(&mut space).unwrap();
    assert!(space[..length].starts_with(b"HTTP/1.1 200"));
    region.change().allocations
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_allocates_nothing_per_socket() {
    let settings = [
        ("server.bind", "127.0.0.1:0"),
        ("server.drain", "2s"),
        ("auth.hs256_secrets", SECRET),
        ("store.url", "sqlite::memory:"),
    ];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config = Config::load(None, std::iter::empty(), settings.to_vec()).unwrap();
    let minter = Minter::new(&config.auth).unwrap();
    let token = |sub, scope| {
        let minted = minter.mint(
            sub,
            None,
            Some(scope),
            TEST_TIMEOUT * 4,
            jiff::Timestamp::now(),
        );
        minted.unwrap().token
    };
    let (publisher, watcher) = (token("worker", "jobs:publish"), token("alice", "jobs:read"));
    let server = Server::bind(config, None).unwrap();
    let callers = Callers {
        address: server.address(),
        publisher,
        watcher,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    let counting = tokio::task::spawn_blocking(move || {
        let least = [FEW, MANY].map(|how_many| {
            let job = callers.register();
            let mut sockets: Vec<TcpStream> = (0..how_many).map(|_| callers.watch(&job)).collect();
            let mut push = callers.connect();
            let path = format!("/v1/jobs/{job}/updates");
            // The least of several: work of others' may fall into any of them.
            let counts = (1..=8).map(|percent| {
                let request = callers.post(&path, &format!(r#"{{"progress":{percent}}}"#));
                allocations(&mut push, &request, &mut sockets)
            });
            counts.min().unwrap()
        });
        println!(
            "{FEW} sockets: {} allocations, {MANY} sockets: {}",
            least[0], least[1]
        );
        least
    });
    let [few, many] = counting.await.unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(few > 0, "it does count");
    assert!(
        many < few + (MANY - FEW) / 10,
        "{few} for {FEW} sockets, {many} for {MANY}"
    );
}
