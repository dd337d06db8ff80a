//! A connection that speaks RESP2: just enough to ask a Redis what the hub would not.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::app::TEST_TIMEOUT;

pub struct RespClient {
    stream: BufReader<TcpStream>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nil,
    Number(i64),
    Text(String),
    List(Vec<Reply>),
}

impl Reply {
    pub fn text(&self) -> &str {
        let Self::Text(text) = self else {
            panic!("no text: {self:?}")
        };
        text
    }

    pub fn list(&self) -> &[Self] {
        let Self::List(list) = self else {
            panic!("no list: {self:?}")
        };
        list
    }

    pub fn number(&self) -> i64 {
        let Self::Number(number) = self else {
            panic!("no number: {self:?}")
        };
        *number
    }
}

impl RespClient {
    /// # Errors
    /// What the kernel says.
    pub async fn connect(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Asks a command of words without spaces.
    pub async fn ask(&mut self, command: &str) -> Reply {
        let asked = self.try_ask(command).await;
        asked.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// # Errors
    /// The server's words, or how the connection ended.
    pub async fn try_ask(&mut self, command: &str) -> Result<Reply, String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.try_ask_words(&words).await
    }

    /// # Errors
    /// The server's words, or how the connection ended.
    pub async fn try_ask_words(&mut self, words: &[&str]) -> Result<Reply, String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        let written = self.stream.write_all(request.as_bytes()).await;
        written.map_err(|error| error.to_string())?;
        self.hear().await
    }

    /// The next reply, or what comes by itself on a connection that listens.
    ///
    /// # Errors
    /// The server's words, or how the connection ended.
    pub async fn hear(&mut self) -> Result<Reply, String> {
        tokio::time::timeout(TEST_TIMEOUT, self.read())
            .await
            .map_err(|_| "it says nothing".to_owned())?
    }

    async fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await {
            Ok(0) => Err("it has closed".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn read(&mut self) -> Result<Reply, String> {
        let line = self.line().await?;
        let (kind, rest) = line.split_at(1);
        let number = || rest.parse::<i64>().map_err(|_| format!("no RESP: {line}"));
        match kind {
            "+" => Ok(Reply::Text(rest.to_owned())),
            "-" => Err(rest.to_owned()),
            ":" => Ok(Reply::Number(number()?)),
            "$" => {
                let Ok(length) = usize::try_from(number()?) else {
                    return Ok(Reply::Nil);
                };
                let mut bytes = vec![0; length + 2];
                let read = self.stream.read_exact(&mut bytes).await;
                read.map_err(|error| error.to_string())?;
                bytes.truncate(length);
                Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
            }
            "*" => {
                let mut list = Vec::new();
                for _ in 0..number()? {
                    list.push(Box::pin(self.read()).await?);
                }
                Ok(Reply::List(list))
            }
            _ => Err(format!("no RESP: {line}")),
        }
    }
}
