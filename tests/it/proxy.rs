//! A TCP proxy in front of a server, for what networks do to connections.
//!
//! Invariant: what goes through is never changed or reordered; what a weather holds back goes on
//! when it is over, unless its connection ended.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::{TEST_TIMEOUT, reserve_port};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Chunks on their way in one direction of one connection; more wait in the kernel.
const UNDER_WAY: usize = 256;

/// What it is like between the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fine,
    /// Every connection is closed and new ones are refused.
    Cut,
    /// Connections stay, also new ones, and nothing comes through.
    Stalled,
    /// Questions pass, answers do not.
    Mute,
    /// Everything comes later by this much.
    Slow(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Questions,
    Answers,
}

/// A running proxy. Dropping it closes all its connections.
pub struct Proxy {
    address: SocketAddr,
    sky: Arc<Sky>,
    _end: DropGuard,
    _port: socket2::Socket,
}

struct Sky {
    weather: watch::Sender<Weather>,
    /// Makes it [`Weather::Mute`] as soon as a question contains this.
    trap: Mutex<Option<Vec<u8>>>,
}

impl Proxy {
    /// One in front of a server on loopback.
    pub async fn start(port: u16) -> Self {
        let (socket, address) = reserve_port();
        let sky = Arc::new(Sky {
            weather: watch::Sender::new(Weather::Fine),
            trap: Mutex::new(None),
        });
        let end = CancellationToken::new();
        let upstream = SocketAddr::from(([127, 0, 0, 1], port));
        let listener = listen(address);
        tokio::spawn(accept(
            listener,
            address,
            upstream,
            Arc::clone(&sky),
            end.clone(),
        ));
        Self {
            address,
            sky,
            _end: end.drop_guard(),
            _port: socket,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a store in the Redis behind it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&self) {
        self.turn(Weather::Cut);
    }

    /// Leaves all connections half-open: they stay, and nothing comes through.
    pub fn stall(&self) {
        self.turn(Weather::Stalled);
    }

    /// Delays everything, in both directions.
    pub fn slow(&self, delay: Duration) {
        self.turn(Weather::Slow(delay));
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.turn(Weather::Fine);
    }

    /// As soon as a question contains this text, it passes and nothing is answered any more.
    pub fn mute_after(&self, text: &str) {
        *self.sky.trap.lock().unwrap() = Some(text.as_bytes().to_vec());
    }

    /// Waits until the question of [`Proxy::mute_after`] has come by.
    pub async fn until_mute(&self) {
        let mut weather = self.sky.weather.subscribe();
        let muted = weather.wait_for(|weather| *weather == Weather::Mute);
        let waited = tokio::time::timeout(TEST_TIMEOUT, muted).await;
        assert!(waited.is_ok(), "nobody asked that");
    }

    fn turn(&self, weather: Weather) {
        self.sky.weather.send_replace(weather);
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1024).unwrap();
    TcpListener::from_std(socket.into()).unwrap()
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    upstream: SocketAddr,
    sky: Arc<Sky>,
    end: CancellationToken,
) {
    let mut weather = sky.weather.subscribe();
    let mut listening = Some(listener);
    loop {
        let Some(listener) = listening.take() else {
            tokio::select! {
                () = end.cancelled() => return,
                _ = weather.wait_for(|weather| *weather != Weather::Cut) => {}
            }
            listening = Some(listen(address));
            continue;
        };
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
            accepted = listener.accept() => {
                let (client, _) = accepted.unwrap();
                tokio::spawn(pass(client, upstream, Arc::clone(&sky), end.clone()));
                listening = Some(listener);
            }
        }
    }
}

/// One connection, until either side or the weather ends it.
async fn pass(client: TcpStream, upstream: SocketAddr, sky: Arc<Sky>, end: CancellationToken) {
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut weather = sky.weather.subscribe();
    tokio::select! {
        () = end.cancelled() => {}
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
        () = carry(from_client, to_server, &sky, Direction::Questions) => {}
        () = carry(from_server, to_client, &sky, Direction::Answers) => {}
    }
}

/// Carries one direction: what was read is written when its time has come.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, sky: &Sky, direction: Direction) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let mut weather = sky.weather.subscribe();
    let read = async move {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            let bytes = chunk[..length].to_vec();
            if direction == Direction::Questions {
                sky.spring(&bytes);
            }
            let delay = match *sky.weather.borrow() {
                Weather::Slow(delay) => delay,
                Weather::Fine | Weather::Cut | Weather::Stalled | Weather::Mute => Duration::ZERO,
            };
            if send.send((Instant::now() + delay, bytes)).await.is_err() {
                break;
            }
        }
        // What a side said before it went still arrives: the other half ends this.
        drop(send);
        std::future::pending::<()>().await;
    };
    let write = async {
        while let Some((due, bytes)) = receive.recv().await {
            tokio::time::sleep_until(due).await;
            let passes = |weather: &Weather| match weather {
                Weather::Fine | Weather::Slow(_) => true,
                Weather::Mute => direction == Direction::Questions,
                Weather::Cut | Weather::Stalled => false,
            };
            if weather.wait_for(passes).await.is_err() || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

impl Sky {
    /// Turns mute where a question has what the trap waits for. A question that comes in two reads
    /// passes by: ours are small.
    fn spring(&self, question: &[u8]) {
        let mut trap = self.trap.lock().unwrap();
        let springs = trap
            .as_ref()
            .is_some_and(|text| question.windows(text.len()).any(|part| part == text));
        if springs {
            *trap = None;
            self.weather.send_replace(Weather::Mute);
        }
    }
}

/// The proxy before a real server, by a client's eyes.
mod stories {
    use std::time::Duration;

    use super::Proxy;
    use crate::redis::RedisServer;
    use crate::redis::resp_client::{Reply, RespClient};

    fn pong() -> Result<Reply, String> {
        Ok(Reply::Text("PONG".to_owned()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn proxy_cut_drops_and_refuses_connections() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port).await;
        let address = proxy.address.to_string();
        let mut speaker = RespClient::connect(&address).await.unwrap();
        assert_eq!(speaker.try_ask("PING").await, pong());
        proxy.cut();
        assert!(speaker.hear().await.is_err());
        while RespClient::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        proxy.heal();
        loop {
            if let Ok(mut speaker) = RespClient::connect(&address).await {
                assert_eq!(speaker.try_ask("PING").await, pong());
                return;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_stalls_comes_through_when_it_heals() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port).await;
        let mut speaker = RespClient::connect(&proxy.address.to_string())
            .await
            .unwrap();
        assert_eq!(speaker.try_ask("PING").await, pong());
        proxy.stall();
        let asked = speaker.try_ask("INCR count");
        tokio::time::timeout(Duration::from_millis(200), asked)
            .await
            .expect_err("nothing comes through");
        assert_eq!(server.ask("GET count").await, Reply::Nil);
        proxy.heal();
        assert_eq!(speaker.hear().await, Ok(Reply::Number(1)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn proxy_mute_drops_replies_only() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port).await;
        let mut speaker = RespClient::connect(&proxy.address.to_string())
            .await
            .unwrap();
        proxy.mute_after("the-word");
        assert_eq!(speaker.try_ask("PING").await, pong());
        let asked = speaker.try_ask("SET key the-word");
        tokio::time::timeout(Duration::from_millis(200), asked)
            .await
            .expect_err("nothing is answered");
        proxy.until_mute().await;
        assert_eq!(server.ask("GET key").await.text(), "the-word");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn slow_is_late_but_in_order() {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port).await;
        let mut speaker = RespClient::connect(&proxy.address.to_string())
            .await
            .unwrap();
        let delay = Duration::from_millis(50);
        proxy.slow(delay);
        let begun = std::time::Instant::now();
        for n in 1..=3 {
            assert_eq!(speaker.try_ask("INCR count").await, Ok(Reply::Number(n)));
        }
        assert!(begun.elapsed() >= delay * 6, "there and back, three times");
    }
}
