//! A TCP proxy that injects network faults between a client and a server.
//!
//! Bytes are never changed or reordered. What a fault holds back is delivered when the fault ends,
//! unless the connection has ended.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::{TEST_TIMEOUT, reserve_port};

const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Chunks in transit in one direction of a connection. More wait in the kernel.
const MAX_CHUNKS_IN_TRANSIT: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkFault {
    /// Connections are closed, and new ones are refused.
    Cut,
    /// Connections stay open and new ones are accepted, but nothing is delivered.
    Stalled,
    /// Requests are delivered, responses are not.
    Muted,
    /// Everything is delayed, in both directions.
    Slow(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Request,
    Response,
}

/// A running proxy. Dropping it closes all its connections.
pub struct Proxy {
    address: SocketAddr,
    network: Arc<Network>,
    _stop: DropGuard,
    _port: socket2::Socket,
}

struct Network {
    fault: watch::Sender<Option<NetworkFault>>,
    /// A request that contains this text causes [`NetworkFault::Muted`].
    mute_trigger: Mutex<Option<Vec<u8>>>,
    /// Number of chunks that a fault has delayed or held back.
    held_back: watch::Sender<usize>,
}

impl Proxy {
    /// Starts a proxy for a server on loopback.
    pub async fn start(port: u16) -> Self {
        let (socket, address) = reserve_port();
        let network = Arc::new(Network {
            fault: watch::Sender::new(None),
            mute_trigger: Mutex::new(None),
            held_back: watch::Sender::new(0),
        });
        let stop = CancellationToken::new();
        let upstream = SocketAddr::from(([127, 0, 0, 1], port));
        tokio::spawn(accept(
            address,
            upstream,
            listen(address),
            Arc::clone(&network),
            stop.clone(),
        ));
        Self {
            address,
            network,
            _stop: stop.drop_guard(),
            _port: socket,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the store URL of the Redis behind the proxy.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn inject(&self, fault: NetworkFault) {
        self.network.fault.send_replace(Some(fault));
    }

    /// Ends the fault.
    pub fn heal(&self) {
        self.network.fault.send_replace(None);
    }

    /// Delivers requests up to one that contains `text`, and then no more responses.
    pub fn mute_after(&self, text: &str) {
        *self.network.mute_trigger.lock().unwrap() = Some(text.as_bytes().to_vec());
    }

    /// Waits until faults have delayed or held back this number of chunks.
    async fn wait_until_held_back(&self, count: usize) {
        let mut held_back = self.network.held_back.subscribe();
        let reached = held_back.wait_for(|held| *held >= count);
        let waited = timeout(TEST_TIMEOUT, reached).await;
        assert!(waited.is_ok(), "nothing is held back");
    }

    /// Waits until a request has triggered [`Proxy::mute_after`].
    pub async fn wait_until_muted(&self) {
        let mut fault = self.network.fault.subscribe();
        let muted = fault.wait_for(|fault| *fault == Some(NetworkFault::Muted));
        let waited = timeout(TEST_TIMEOUT, muted).await;
        assert!(waited.is_ok(), "no request contains the trigger");
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
    address: SocketAddr,
    upstream: SocketAddr,
    listener: TcpListener,
    network: Arc<Network>,
    stop: CancellationToken,
) {
    let mut fault = network.fault.subscribe();
    let mut listening = Some(listener);
    loop {
        let Some(listener) = listening.take() else {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = fault.wait_for(|fault| *fault != Some(NetworkFault::Cut)) => {}
            }
            listening = Some(listen(address));
            continue;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // Drops the listener, so that connections are refused.
            _ = fault.wait_for(|fault| *fault == Some(NetworkFault::Cut)) => {}
            accepted = listener.accept() => {
                let (client, _) = accepted.unwrap();
                tokio::spawn(forward(client, upstream, Arc::clone(&network), stop.clone()));
                listening = Some(listener);
            }
        }
    }
}

/// Forwards a connection until a side or a fault ends it.
async fn forward(
    client: TcpStream,
    upstream: SocketAddr,
    network: Arc<Network>,
    stop: CancellationToken,
) {
    let Ok(server) = TcpStream::connect(upstream).await else {
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut fault = network.fault.subscribe();
    tokio::select! {
        () = stop.cancelled() => {}
        _ = fault.wait_for(|fault| *fault == Some(NetworkFault::Cut)) => {}
        () = copy(from_client, to_server, &network, Direction::Request) => {}
        () = copy(from_server, to_client, &network, Direction::Response) => {}
    }
}

/// Copies one direction, as the fault of the moment permits.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    network: &Network,
    direction: Direction,
) {
    let (chunks, mut in_transit) = mpsc::channel::<(Instant, Vec<u8>)>(MAX_CHUNKS_IN_TRANSIT);
    let mut fault = network.fault.subscribe();
    let read = async move {
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let chunk = buffer[..length].to_vec();
            if direction == Direction::Request {
                network.mute_if_triggered(&chunk);
            }
            let delay = match *network.fault.borrow() {
                Some(NetworkFault::Slow(delay)) => delay,
                Some(NetworkFault::Cut | NetworkFault::Stalled | NetworkFault::Muted) | None => {
                    Duration::ZERO
                }
            };
            if chunks.send((Instant::now() + delay, chunk)).await.is_err() {
                break;
            }
        }
        // Chunks in transit are still delivered. The writing half ends the copy.
        drop(chunks);
        std::future::pending::<()>().await;
    };
    let write = async {
        while let Some((due_at, chunk)) = in_transit.recv().await {
            if due_at > Instant::now() {
                tokio::time::sleep_until(due_at).await;
                network.held_back.send_modify(|count| *count += 1);
            }
            let is_delivered = |fault: &Option<NetworkFault>| match fault {
                None | Some(NetworkFault::Slow(_)) => true,
                Some(NetworkFault::Muted) => direction == Direction::Request,
                Some(NetworkFault::Cut | NetworkFault::Stalled) => false,
            };
            if !is_delivered(&fault.borrow()) {
                network.held_back.send_modify(|count| *count += 1);
            }
            if fault.wait_for(is_delivered).await.is_err() || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

impl Network {
    /// Checks a request for the trigger. A trigger that is split between two reads is not found, but
    /// the requests of the tests are small.
    fn mute_if_triggered(&self, request: &[u8]) {
        let mut trigger = self.mute_trigger.lock().unwrap();
        let is_triggered = trigger
            .as_ref()
            .is_some_and(|text| request.windows(text.len()).any(|part| part == text));
        if is_triggered {
            *trigger = None;
            self.fault.send_replace(Some(NetworkFault::Muted));
        }
    }
}

mod tests {
    use std::time::Duration;

    use fred::clients::Client;
    use fred::error::Error;

    use super::{NetworkFault, Proxy};
    use crate::redis::{RedisServer, connect, send_command};
    use crate::wait::wait_until;

    async fn ping(client: &Client) -> Result<String, Error> {
        send_command(client, &["PING"]).await
    }

    /// Starts a server and a proxy, and connects through the proxy.
    async fn start() -> (RedisServer, Proxy, Client) {
        let server = RedisServer::start().await;
        let proxy = Proxy::start(server.port).await;
        let client = connect(&proxy.address.to_string()).await.unwrap();
        assert_eq!(ping(&client).await.unwrap(), "PONG");
        (server, proxy, client)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn proxy_cut_drops_and_refuses_connections() {
        let (_server, proxy, client) = start().await;
        let address = proxy.address.to_string();
        proxy.inject(NetworkFault::Cut);
        assert!(ping(&client).await.is_err());
        wait_until("connections are refused", async || {
            connect(&address).await.is_err()
        })
        .await;
        proxy.heal();
        wait_until("connections are accepted", async || {
            match connect(&address).await {
                Ok(client) => ping(&client).await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn proxy_delivers_stalled_data_when_healed() {
        let (server, proxy, client) = start().await;
        proxy.inject(NetworkFault::Stalled);
        let increment = send_command::<u64>(&client, &["INCR", "count"]);
        tokio::pin!(increment);
        tokio::select! {
            _ = &mut increment => panic!("the request was delivered"),
            () = proxy.wait_until_held_back(1) => {}
        }
        assert_eq!(server.query::<Option<u64>>("GET count").await, None);
        proxy.heal();
        assert_eq!(increment.await.unwrap(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn proxy_mute_drops_responses_only() {
        let (server, proxy, client) = start().await;
        proxy.mute_after("trigger");
        assert_eq!(ping(&client).await.unwrap(), "PONG");
        let set = send_command::<()>(&client, &["SET", "key", "trigger"]);
        tokio::select! {
            _ = set => panic!("the response was delivered"),
            () = proxy.wait_until_held_back(1) => {}
        }
        proxy.wait_until_muted().await;
        assert_eq!(server.query::<String>("GET key").await, "trigger");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn slow_proxy_delays_and_keeps_the_order() {
        let (_server, proxy, client) = start().await;
        let delay = Duration::from_millis(50);
        proxy.inject(NetworkFault::Slow(delay));
        for count in 1..=3 {
            let increment = send_command::<u64>(&client, &["INCR", "count"]);
            assert_eq!(increment.await.unwrap(), count);
            let delayed = *proxy.network.held_back.borrow();
            assert!(
                delayed >= 2 * count as usize,
                "requests and responses: {delayed}"
            );
        }
    }
}
