//! Checks that delivering an update allocates nothing per socket.
//!
//! The allocator counts for the whole process. The test is therefore alone in this binary, and its
//! clients allocate nothing while it counts.

#![expect(clippy::unwrap_used, reason = "a failed assumption fails the test")]

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

/// Maximum time of a read.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Sockets subscribed to the first and to the second job.
const SOCKETS: [usize; 2] = [10, 210];

/// Updates measured per job. The minimum counts, because other work of the hub can allocate meanwhile.
const MEASURED_UPDATES: u32 = 8;

/// Blocking client, because an asynchronous one would allocate.
struct Client {
    address: SocketAddr,
    publisher_token: String,
    subscriber_token: String,
}

impl Client {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn post_request(&self, path: &str, body: &str) -> Vec<u8> {
        let (token, length) = (&self.publisher_token, body.len());
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Registers a job and returns its id.
    fn register(&self) -> String {
        let mut stream = self.connect();
        stream
            .write_all(&self.post_request("/v1/jobs", r#"{"owner":"alice"}"#))
            .unwrap();
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        let response = std::str::from_utf8(&buffer[..length]).unwrap();
        let id = response.split_once(r#""id":""#).unwrap().1;
        id.split_once('"').unwrap().0.to_owned()
    }

    /// Connects a WebSocket, subscribes it to the job, and waits for the confirmation.
    fn subscribe(&self, job: &str) -> TcpStream {
        let mut stream = self.connect();
        let mut request = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Authorization: Bearer {}\r\n\r\n",
            self.subscriber_token
        )
        .into_bytes();
        let text = format!(r#"{{"type":"subscribe","jobs":[{{"job":"{job}","version":1}}]}}"#);
        // A masking key of zeros leaves the payload unchanged.
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
        let mut buffer = [0; 4096];
        while !read_frame(&mut stream, &mut buffer).starts_with(br#"{"type":"subscribed""#) {}
        stream
    }
}

/// Returns the payload of the next frame.
fn read_frame<'b>(stream: &mut TcpStream, buffer: &'b mut [u8; 4096]) -> &'b [u8] {
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
    stream.read_exact(&mut buffer[..length]).unwrap();
    &buffer[..length]
}

/// Counts the allocations of the process from sending an update until every socket has received it.
fn count_allocations(
    publisher: &mut TcpStream,
    request: &[u8],
    sockets: &mut [TcpStream],
) -> usize {
    let mut buffer = [0; 4096];
    let region = Region::new(ALLOCATOR);
    publisher.write_all(request).unwrap();
    for socket in sockets {
        assert!(read_frame(socket, &mut buffer).starts_with(br#"{"type":"job""#));
    }
    let length = publisher.read(&mut buffer).unwrap();
    assert!(buffer[..length].starts_with(b"HTTP/1.1 200"));
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
        let ttl = Duration::from_secs(600);
        let minted = minter.mint(sub, None, Some(scope), ttl, jiff::Timestamp::now());
        minted.unwrap().token
    };
    let (publisher_token, subscriber_token) =
        (token("worker", "jobs:publish"), token("alice", "jobs:read"));
    let server = Server::bind(config, None).unwrap();
    let client = Client {
        address: server.address(),
        publisher_token,
        subscriber_token,
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let measurement = tokio::task::spawn_blocking(move || {
        SOCKETS.map(|count| {
            let job = client.register();
            let mut sockets: Vec<TcpStream> = (0..count).map(|_| client.subscribe(&job)).collect();
            let mut publisher = client.connect();
            let path = format!("/v1/jobs/{job}/updates");
            let counts = (1..=MEASURED_UPDATES).map(|percent| {
                let request = client.post_request(&path, &format!(r#"{{"progress":{percent}}}"#));
                count_allocations(&mut publisher, &request, &mut sockets)
            });
            counts.min().unwrap()
        })
    });
    let [few, many] = measurement.await.unwrap();
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(few > 0, "the allocator counted nothing");
    let additional_sockets = SOCKETS[1] - SOCKETS[0];
    assert!(
        many < few + additional_sockets / 10,
        "{few} allocations for {} sockets, {many} for {}",
        SOCKETS[0],
        SOCKETS[1]
    );
}
