//! Keep-alive HTTP connection of the load generator.
//!
//! It sends requests that are prepared as bytes, one at a time. A full client would cost the generator's core more than
//! the floor costs the server's.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Maximum time of a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection. It is opened by the first request, and again if the server closed it.
pub struct HttpConnection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    received: Vec<u8>,
}

impl HttpConnection {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
            received: Vec::with_capacity(4096),
        }
    }

    /// Sends a request and returns the body of a successful response.
    pub async fn send(&mut self, request: &[u8]) -> anyhow::Result<&[u8]> {
        let is_open = self.stream.is_some();
        let mut response = tokio::time::timeout(RESPONSE_TIMEOUT, self.exchange(request)).await;
        // The server may have closed an idle connection.
        if is_open && self.received.is_empty() && matches!(response, Ok(Err(_))) {
            self.stream = None;
            response = tokio::time::timeout(RESPONSE_TIMEOUT, self.exchange(request)).await;
        }
        let (status, body, closes) = response.context("response timed out")??;
        if closes {
            self.stream = None;
        }
        let body = &self.received[body];
        if !(200..300).contains(&status) {
            bail!("HTTP {status}: {}", String::from_utf8_lossy(body));
        }
        Ok(body)
    }

    async fn exchange(
        &mut self,
        request: &[u8],
    ) -> io::Result<(u16, std::ops::Range<usize>, bool)> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        self.received.clear();
        stream.write_all(request).await?;
        loop {
            if stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(response) = parse(&self.received)? {
                return Ok(response);
            }
        }
    }
}

/// Returns the status, the range of the body and whether the server closes the connection, or `None` if the response is
/// incomplete.
fn parse(received: &[u8]) -> io::Result<Option<(u16, std::ops::Range<usize>, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(received).map_err(io::Error::other)?;
    let httparse::Status::Complete(head) = parsed else {
        return Ok(None);
    };
    let status = response.code.unwrap_or(0);
    let header = |name: &str| {
        let found = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let closes = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        let is_complete = received[head..].ends_with(b"0\r\n\r\n");
        return Ok(is_complete.then_some((status, head..received.len(), closes)));
    }
    let length = header("content-length")
        .and_then(|value| value.parse().ok())
        .unwrap_or(0);
    let end = head + length;
    Ok((received.len() >= end).then_some((status, head..end, closes)))
}

/// Sends the requests over `connections` connections, and returns the bodies of the responses in the same order.
pub async fn send_all(
    address: SocketAddr,
    connections: usize,
    requests: Vec<Vec<u8>>,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let requests = RefCell::new(requests.into_iter().enumerate());
    let responses = RefCell::new(Vec::new());
    let sender = || async {
        let mut connection = HttpConnection::new(address);
        loop {
            let next = requests.borrow_mut().next();
            let Some((nth, request)) = next else {
                return anyhow::Ok(());
            };
            let response = connection.send(&request).await?.to_vec();
            responses.borrow_mut().push((nth, response));
        }
    };
    try_join_all((0..connections).map(|_| sender())).await?;
    let mut responses = responses.into_inner();
    responses.sort_unstable_by_key(|(nth, _)| *nth);
    Ok(responses
        .into_iter()
        .map(|(_, response)| response)
        .collect())
}

/// Returns the bytes of a POST request.
pub fn post(path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    request("POST", path, headers, body)
}

/// Returns the bytes of a request with a body.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    request.into_bytes()
}
