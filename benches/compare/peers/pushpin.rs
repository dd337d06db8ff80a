//! Pushpin as packaged by Debian: condure, proxy, handler and zurl.
//!
//! All its processes are measured. The backend that every new socket needs runs in the load generator and is not.

use std::fs;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{RunningServer, StartContext, by_path};
use crate::clients::Endpoint;
use crate::message::Stamp;
use crate::process::{Process, free_address, is_installed};

/// Maximum concurrent handshakes. With more than about 100, Pushpin rejects some with 502.
const MAX_CONCURRENT_HANDSHAKES: usize = 50;

pub(super) fn missing() -> Option<String> {
    let is_complete = ["pushpin", "condure", "zurl"].into_iter().all(is_installed);
    (!is_complete).then(|| "apt-get install pushpin".to_owned())
}

pub(super) fn start(context: &StartContext<'_>) -> anyhow::Result<RunningServer> {
    let backend = TcpSocket::new_v4()?;
    backend.bind(free_address()?)?;
    let backend = backend.listen(4096)?;
    let origin = backend.local_addr()?;
    tokio::task::spawn_local(serve_backend(backend));

    let (address, publish_address) = (free_address()?, free_address()?);
    let ports = [free_address()?, free_address()?, free_address()?];
    let [pull, sub, command] = ports.map(|address| address.port());
    let dir = context.dir.join("pushpin");
    fs::create_dir_all(dir.join("run"))?;
    let routes = dir.join("routes");
    fs::write(&routes, format!("* {origin},over_http\n"))?;
    let config = format!(
        "[global]
include={{libdir}}/internal.conf
rundir={run}
ipc_prefix=pushpin-
port_offset=0
stats_connection_ttl=120
[runner]
services=condure,zurl,pushpin-proxy,pushpin-handler
http_port={http}
logdir={dir}
log_level=0
client_buffer_size=8192
client_maxconn=20000
condure_bin=condure
zurl_bin=zurl
[proxy]
routesfile={routes}
debug=false
zurl_out_specs=ipc://{{rundir}}/{{ipc_prefix}}zurl-in
zurl_out_stream_specs=ipc://{{rundir}}/{{ipc_prefix}}zurl-in-stream
zurl_in_specs=ipc://{{rundir}}/{{ipc_prefix}}zurl-out
updates_check=off
[handler]
push_in_spec=tcp://127.0.0.1:{pull}
push_in_sub_specs=tcp://127.0.0.1:{sub}
push_in_sub_connect=false
push_in_http_addr=127.0.0.1
push_in_http_port={push}
push_in_http_max_headers_size=10000
push_in_http_max_body_size=1000000
stats_spec=ipc://{{rundir}}/{{ipc_prefix}}stats
command_spec=tcp://127.0.0.1:{command}
message_rate=1000000
message_hwm=1000000
message_wait=5000
id_cache_ttl=60
connection_subscription_max=20
subscription_linger=60
",
        run = dir.join("run").display(),
        dir = dir.display(),
        routes = routes.display(),
        http = address,
        push = publish_address.port(),
    );
    let path = dir.join("pushpin.conf");
    fs::write(&path, config)?;
    let config = path.to_str().context("the path is not UTF-8")?;
    let command = ["pushpin", "--config", config];
    let mut process = Process::start(&command, context.cores, context.dir, "pushpin.log")?;
    process.wait_until_listening(address)?;
    process.wait_until_listening(publish_address)?;
    let template = std::rc::Rc::clone(&context.template);
    let publish = move |channel: usize, stamp: Stamp| {
        let content = template.message(&stamp.text());
        let item = serde_json::json!({
            "channel": channel.to_string(),
            "formats": {"ws-message": {"content": content}},
        });
        let body = serde_json::json!({ "items": [item] }).to_string();
        let headers = [("Content-Type", "application/json")];
        Ok(crate::http_connection::post("/publish/", &headers, &body))
    };
    Ok(RunningServer {
        processes: vec![process],
        endpoint: Endpoint {
            max_handshakes: MAX_CONCURRENT_HANDSHAKES,
            ..by_path(address, context.channels)
        },
        publish_address,
        publish: Box::new(publish),
    })
}

/// Serves the backend, which tells Pushpin the channel of each new socket.
async fn serve_backend(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(async move {
            if let Err(error) = respond(stream).await {
                eprintln!("Pushpin backend: {error}");
            }
        });
    }
}

async fn respond(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut received = Vec::new();
    loop {
        while let Some((channel, is_open, end)) = parse(&received)? {
            received.drain(..end);
            let body = if is_open {
                let control = format!("c:{{\"type\":\"subscribe\",\"channel\":\"{channel}\"}}");
                format!("OPEN\r\nTEXT {:x}\r\n{control}\r\n", control.len())
            } else {
                String::new()
            };
            let response = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/websocket-events\r\n\
                 Sec-WebSocket-Extensions: grip\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(response.as_bytes()).await?;
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}

/// Returns the channel, whether the request opens a socket, and the length of the first request, or `None` if it is
/// incomplete.
fn parse(received: &[u8]) -> anyhow::Result<Option<(String, bool, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(received)? else {
        return Ok(None);
    };
    let length = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    let end = head + length.unwrap_or(0usize);
    let Some(body) = received.get(head..end) else {
        return Ok(None);
    };
    let path = request.path.unwrap_or("/");
    let channel = path.rsplit('/').next().unwrap_or("0").to_owned();
    Ok(Some((channel, body.starts_with(b"OPEN"), end)))
}
