//! A way to the hub on which what it says to sockets is changed: for those who must notice.

use std::collections::HashMap;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::app::TestApp;

/// What is done to the documents on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tamper {
    /// The end of a job never comes.
    LosesTheEnd,
    /// Each comes twice.
    Repeats,
    /// Each first comes when the next does, behind it.
    Swaps,
    /// They are of another job.
    Renames,
    /// The last has a version that the hub never had.
    Invents,
    /// They are no JSON.
    Garbles,
}

/// A running forger. Dropping it stops it.
pub struct TamperingProxy {
    pub url: String,
    running: JoinHandle<()>,
}

impl Drop for TamperingProxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl TamperingProxy {
    /// Stands before this hub.
    pub async fn start(app: &TestApp, forgery: Tamper) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hub = app.address().to_owned();
        let running = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let hub = TcpStream::connect(&hub).await.unwrap();
                tokio::spawn(pass(client, hub, forgery));
            }
        });
        Self { url, running }
    }
}

/// Ends with either side.
async fn pass(client: TcpStream, hub: TcpStream, forgery: Tamper) {
    let (mut from_client, mut to_client) = client.into_split();
    let (from_hub, mut to_hub) = hub.into_split();
    let mut from_hub = BufReader::new(from_hub);
    tokio::select! {
        _ = pass_back(&mut from_hub, &mut to_client, forgery) => {}
        _ = tokio::io::copy(&mut from_client, &mut to_hub) => {}
    }
}

async fn pass_back(
    from_hub: &mut BufReader<OwnedReadHalf>,
    to_client: &mut OwnedWriteHalf,
    forgery: Tamper,
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
    let mut hands = FrameEditor::new(forgery);
    loop {
        let frame = read(from_hub).await?;
        for frame in hands.forge(frame) {
            to_client.write_all(&frame).await?;
        }
    }
}

/// One whole frame: RFC 6455, 5.2, without a mask.
async fn read(from_hub: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 2];
    from_hub.read_exact(&mut frame).await?;
    let mut length = usize::from(frame[1]);
    if length == 126 {
        let medium = from_hub.read_u16().await?;
        frame.extend(medium.to_be_bytes());
        length = usize::from(medium);
    }
    let head = frame.len();
    frame.resize(head + length, 0);
    from_hub.read_exact(&mut frame[head..]).await?;
    Ok(frame)
}

struct FrameEditor {
    forgery: Tamper,
    held: HashMap<String, Vec<u8>>,
}

impl FrameEditor {
    fn new(forgery: Tamper) -> Self {
        Self {
            forgery,
            held: HashMap::new(),
        }
    }

    fn forge(&mut self, frame: Vec<u8>) -> Vec<Vec<u8>> {
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
        let changed = |key: &str, value: Value| {
            let mut message = message.clone();
            message["job"][key] = value;
            text(&message.to_string())
        };
        match self.forgery {
            Tamper::LosesTheEnd if is_final => vec![],
            Tamper::Invents if is_final => {
                vec![changed(
                    "version",
                    (job["version"].as_u64().unwrap() + 1).into(),
                )]
            }
            Tamper::LosesTheEnd | Tamper::Invents => vec![frame],
            Tamper::Repeats => vec![frame.clone(), frame],
            Tamper::Swaps if job["version"].as_u64() > Some(1) => match self.held.remove(id) {
                Some(earlier) => vec![frame, earlier],
                None if is_final => vec![frame],
                None => {
                    self.held.insert(id.to_owned(), frame);
                    vec![]
                }
            },
            Tamper::Swaps => vec![frame],
            Tamper::Renames if job["version"].as_u64() > Some(1) && !is_final => {
                vec![frame, changed("id", "job_of_nobody".into())]
            }
            Tamper::Renames => vec![frame],
            Tamper::Garbles if !is_final => vec![frame, text("{\"type\":\"job\",")],
            Tamper::Garbles => vec![frame],
        }
    }
}

fn text(payload: &str) -> Vec<u8> {
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
