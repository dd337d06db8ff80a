//! Pushpin, as Debian has it: condure, its proxy and its handler, and zurl for what it asks behind it.
//!
//! Invariant: all its processes are counted; the answer that each new socket needs from behind it
//! comes from the generator and is not.

use std::fs;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{Ground, Stand, by_path};
use crate::clients::Door;
use crate::message::Stamp;
use crate::process::{Process, free_address, is_there};

/// Handshakes under way at once: of more than a hundred or so, some are answered 502.
const MAX_CONCURRENT_HANDSHAKES: usize = 50;

pub(super) fn missing() -> Option<String> {
    let is_whole = ["pushpin", "condure", "zurl"].into_iter().all(is_there);
    (!is_whole).then(|| "apt-get install pushpin".to_owned())
}

pub(super) fn start(ground: &Ground<'_>) -> anyhow::Result<Stand> {
    let behind = TcpSocket::new_v4()?;
    behind.bind(free_address()?)?;
    let behind = behind.listen(4096)?;
    let origin = behind.local_addr()?;
    tokio::task::spawn_local(serve_behind(behind));

    let (address, publish_at) = (free_address()?, free_address()?);
    let ports = [free_address()?, free_address()?, free_address()?];
    let [pull, sub, command] = ports.map(|address| address.port());
    let dir = ground.dir.join("pushpin");
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
        push = publish_at.port(),
    );
    let path = dir.join("pushpin.conf");
    fs::write(&path, config)?;
    let config = path.to_str().context("a path of text")?;
    let command = ["pushpin", "--config", config];
    let mut process = Process::start(&command, ground.cores, ground.dir, "pushpin.log")?;
    process.listens(address)?;
    process.listens(publish_at)?;
    let template = std::rc::Rc::clone(&ground.template);
    let publish = move |channel: usize, stamp: Stamp| {
        let content = template.message(&stamp.text());
        let item = serde_json::json!({
            "channel": channel.to_string(),
            "formats": {"ws-message": {"content": content}},
        });
        let body = serde_json::json!({ "items": [item] }).to_string();
        crate::http_connection::post("/publish/", &[("Content-Type", "application/json")], &body)
    };
    Ok(Stand {
        processes: vec![process],
        door: Door {
            at_once: MAX_CONCURRENT_HANDSHAKES,
            ..by_path(address, ground.channels)
        },
        publish_at,
        publish: Box::new(publish),
    })
}

/// What Pushpin asks of each socket as it opens: which channel it is to hear.
async fn serve_behind(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(async move {
            if let Err(error) = answer(stream).await {
                eprintln!("behind Pushpin: {error}");
            }
        });
    }
}

async fn answer(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut heard = Vec::new();
    loop {
        while let Some((channel, opens, end)) = asked(&heard)? {
            heard.drain(..end);
            let body = if opens {
                let control = format!("c:{{\"type\":\"subscribe\",\"channel\":\"{channel}\"}}");
                format!("OPEN\r\nTEXT {:x}\r\n{control}\r\n", control.len())
            } else {
                String::new()
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/websocket-events\r\n\
                 Sec-WebSocket-Extensions: grip\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await?;
        }
        if stream.read_buf(&mut heard).await? == 0 {
            return Ok(());
        }
    }
}

/// A whole request: the channel of its path, whether a socket opens, and where it ends.
fn asked(heard: &[u8]) -> anyhow::Result<Option<(String, bool, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(heard)? else {
        return Ok(None);
    };
    let length = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    let end = head + length.unwrap_or(0usize);
    let Some(body) = heard.get(head..end) else {
        return Ok(None);
    };
    let path = request.path.unwrap_or("/");
    let channel = path.rsplit('/').next().unwrap_or("0").to_owned();
    Ok(Some((channel, body.starts_with(b"OPEN"), end)))
}
