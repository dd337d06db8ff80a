//! One kept-alive HTTP connection of the generator's.
//!
//! Invariant: one request at a time, its whole answer read before the next.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection, opened with its first call, and again where the server has closed it.
pub struct Lane {
    address: SocketAddr,
    stream: Option<TcpStream>,
    heard: Vec<u8>,
}

impl Lane {
    /// A lane to this server.
    pub fn to(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
            heard: Vec::with_capacity(4096),
        }
    }

    /// Sends a request; its answer's body, where it is a good one.
    pub async fn call(&mut self, request: &[u8]) -> anyhow::Result<&[u8]> {
        let is_kept = self.stream.is_some();
        let mut answer = tokio::time::timeout(RESPONSE_TIMEOUT, self.exchange(request)).await;
        // It was kept for so long that the server has closed it.
        if is_kept && self.heard.is_empty() && matches!(answer, Ok(Err(_))) {
            self.stream = None;
            answer = tokio::time::timeout(RESPONSE_TIMEOUT, self.exchange(request)).await;
        }
        let (status, body, closes) = answer.context("no answer in time")??;
        if closes {
            self.stream = None;
        }
        let body = &self.heard[body];
        if !(200..300).contains(&status) {
            bail!("answered {status}: {}", String::from_utf8_lossy(body));
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
        self.heard.clear();
        stream.write_all(request).await?;
        loop {
            if stream.read_buf(&mut self.heard).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(answer) = answer(&self.heard)? {
                return Ok(answer);
            }
        }
    }
}

/// Status, body, and whether the connection ends, once all of it is there.
fn answer(heard: &[u8]) -> io::Result<Option<(u16, std::ops::Range<usize>, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(heard).map_err(io::Error::other)?;
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
        let is_whole = heard[head..].ends_with(b"0\r\n\r\n");
        return Ok(is_whole.then_some((status, head..heard.len(), closes)));
    }
    let length = header("content-length")
        .and_then(|value| value.parse().ok())
        .unwrap_or(0);
    let end = head + length;
    Ok((heard.len() >= end).then_some((status, head..end, closes)))
}

/// A request with a body.
pub fn post(path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    request.into_bytes()
}
