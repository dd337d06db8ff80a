//! A proxy in front of the hub that tampers with WebSocket frames, to test that clients notice it.

use std::collections::HashMap;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::app::TestApp;

/// A change to the job documents that pass the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// Drops the final version of each job.
    DropFinal,
    /// Sends each document twice.
    Duplicate,
    /// Swaps pairs of consecutive versions.
    Reorder,
    /// Sends a copy of each document with the id of another job.
    ForeignJob,
    /// Increments the version of the final document beyond that of the hub.
    FutureVersion,
    /// Sends invalid JSON after each document.
    InvalidJson,
}

/// A running proxy. Dropping it stops it.
pub struct TamperingProxy {
    pub url: String,
    task: JoinHandle<()>,
}

impl Drop for TamperingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TamperingProxy {
    /// Starts a proxy in front of a hub.
    pub async fn start(app: &TestApp, tamper: Tamper) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hub = app.address().to_owned();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let hub = TcpStream::connect(&hub).await.unwrap();
                tokio::spawn(forward(client, hub, tamper));
            }
        });
        Self { url, task }
    }
}

/// Forwards both directions until either side closes.
async fn forward(client: TcpStream, hub: TcpStream, tamper: Tamper) {
    let (mut from_client, mut to_client) = client.into_split();
    let (from_hub, mut to_hub) = hub.into_split();
    let mut from_hub = BufReader::new(from_hub);
    tokio::select! {
        _ = forward_responses(&mut from_hub, &mut to_client, tamper) => {}
        _ = tokio::io::copy(&mut from_client, &mut to_hub) => {}
    }
}

async fn forward_responses(
    from_hub: &mut BufReader<OwnedReadHalf>,
    to_client: &mut OwnedWriteHalf,
    tamper: Tamper,
) -> std::io::Result<()> {
    let mut line = String::new();
    from_hub.read_line(&mut line).await?;
    to_client.write_all(line.as_bytes()).await?;
    if !line.starts_with("HTTP/1.1 101") {
        tokio::io::copy(from_hub, to_client).await?;
        return Ok(());
    }
    while line != "\r\n" {
        line.clear();
        from_hub.read_line(&mut line).await?;
        to_client.write_all(line.as_bytes()).await?;
    }
    let mut editor = FrameEditor::new(tamper);
    loop {
        let frame = read_frame(from_hub).await?;
        for frame in editor.edit(frame) {
            to_client.write_all(&frame).await?;
        }
    }
}

/// Reads an unmasked frame (RFC 6455, section 5.2). Frames of 64 KiB and more are not supported.
async fn read_frame(from_hub: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 2];
    from_hub.read_exact(&mut frame).await?;
    let mut length = usize::from(frame[1]);
    if length == 126 {
        let extended = from_hub.read_u16().await?;
        frame.extend(extended.to_be_bytes());
        length = usize::from(extended);
    }
    let header_length = frame.len();
    frame.resize(header_length + length, 0);
    from_hub.read_exact(&mut frame[header_length..]).await?;
    Ok(frame)
}

/// Applies the change to the frames of one connection.
struct FrameEditor {
    tamper: Tamper,
    /// Frames that wait for the next version of their job.
    held: HashMap<String, Vec<u8>>,
}

impl FrameEditor {
    fn new(tamper: Tamper) -> Self {
        Self {
            tamper,
            held: HashMap::new(),
        }
    }

    /// Returns the frames to send in place of `frame`.
    fn edit(&mut self, frame: Vec<u8>) -> Vec<Vec<u8>> {
        let payload = if frame[1] == 126 {
            &frame[4..]
        } else {
            &frame[2..]
        };
        let message: Value = serde_json::from_slice(payload).unwrap_or_default();
        if message["type"] != "job" {
            return vec![frame];
        }
        let job = message["job"].clone();
        let (id, is_final) = (job["id"].as_str().unwrap(), job["final"] == true);
        let with_field = |key: &str, value: Value| {
            let mut message = message.clone();
            message["job"][key] = value;
            text_frame(&message.to_string())
        };
        match self.tamper {
            Tamper::DropFinal if is_final => vec![],
            Tamper::FutureVersion if is_final => {
                vec![with_field(
                    "version",
                    (job["version"].as_u64().unwrap() + 1).into(),
                )]
            }
            Tamper::DropFinal | Tamper::FutureVersion => vec![frame],
            Tamper::Duplicate => vec![frame.clone(), frame],
            Tamper::Reorder if job["version"].as_u64() > Some(1) => match self.held.remove(id) {
                Some(earlier) => vec![frame, earlier],
                None if is_final => vec![frame],
                None => {
                    self.held.insert(id.to_owned(), frame);
                    vec![]
                }
            },
            Tamper::Reorder => vec![frame],
            Tamper::ForeignJob if job["version"].as_u64() > Some(1) && !is_final => {
                vec![frame, with_field("id", "job_unknown".into())]
            }
            Tamper::ForeignJob => vec![frame],
            Tamper::InvalidJson if !is_final => vec![frame, text_frame("{\"type\":\"job\",")],
            Tamper::InvalidJson => vec![frame],
        }
    }
}

fn text_frame(payload: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => frame.push(short),
        _ => {
            frame.push(126);
            frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        }
    }
    frame.extend(payload.as_bytes());
    frame
}
