//! SQLite store: one transaction per turn of the event loop, on the thread that serves requests.

use std::path::Path;

use bytestring::ByteString;
use rusqlite::{Connection, OptionalExtension};

use super::document::Document;
use super::{Change, Step};

/// Indexes like those of the hub on columns that an update changes or that queries for jobs use.
const INDEXES: &str = "
    CREATE INDEX jobs_by_owner ON jobs (owner);
    CREATE INDEX jobs_by_updated_at ON jobs (updated_at);
    CREATE INDEX jobs_to_poll ON jobs (poll_at);
";

/// The database.
pub struct Store {
    connection: Connection,
    step: Step,
}

impl Store {
    pub fn open(dir: &Path, step: Step) -> anyhow::Result<Self> {
        let connection = Connection::open(dir.join("stack.db"))?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
            PRAGMA synchronous = FULL;
            PRAGMA locking_mode = EXCLUSIVE;
            PRAGMA cache_size = -65536;
            CREATE TABLE jobs (
                channel TEXT NOT NULL PRIMARY KEY,
                owner TEXT NOT NULL,
                updated_at INTEGER NOT NULL,
                poll_at INTEGER NOT NULL,
                document TEXT NOT NULL
            ) STRICT, WITHOUT ROWID;",
        )?;
        if step >= Step::Indexes {
            connection.execute_batch(INDEXES)?;
        }
        Ok(Self { connection, step })
    }

    /// Commits the changes in one transaction and returns their messages in the same order.
    pub fn commit<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a str, &'a Change)>,
    ) -> anyhow::Result<Vec<ByteString>> {
        let transaction = self.connection.transaction()?;
        let mut messages = Vec::new();
        {
            let mut read =
                transaction.prepare_cached("SELECT document FROM jobs WHERE channel = ?1")?;
            let mut write = transaction.prepare_cached(
                "INSERT INTO jobs (channel, owner, updated_at, poll_at, document) VALUES (?1, ?2, ?3, ?4, ?5)
                ON CONFLICT (channel) DO UPDATE SET
                    updated_at = excluded.updated_at, poll_at = excluded.poll_at, document = excluded.document",
            )?;
            for (channel, change) in changes {
                let report = match change {
                    Change::Message(message) => {
                        write.execute((channel, "", 0, 0, &**message))?;
                        messages.push(message.clone());
                        continue;
                    }
                    Change::Report(report) => report,
                };
                let stored: Option<String> = if self.step >= Step::Versions {
                    read.query_row([channel], |row| row.get(0)).optional()?
                } else {
                    None
                };
                let mut document = match stored {
                    Some(text) => serde_json::from_str(&text)?,
                    None => Document::new(channel),
                };
                document.apply(report);
                let updated_at = document.updated_at.as_millisecond();
                let text = serde_json::to_string(&document)?;
                write.execute((
                    channel,
                    &*document.owner,
                    updated_at,
                    updated_at + 60_000,
                    &*text,
                ))?;
                messages.push(document.message()?);
            }
        }
        transaction.commit()?;
        Ok(messages)
    }
}
