//! Where the database is, and how it is opened.
//!
//! Invariant: one process at a time has the file, held by a lock beside it, because changes are
//! announced within the process; and nothing is written to a file that is not the hub's own.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::queues;
use crate::store::Error;
use crate::time::Time;

/// Marks the file as the hub's, as `PRAGMA application_id`: `PHub` in ASCII.
const APPLICATION_ID: i64 = 0x5048_7562;

/// What leads to the schema this program writes and reads: a fresh file takes all steps, an older
/// one those it lacks. The number of those taken is kept as `PRAGMA user_version`. A step that was
/// once released is never edited.
const MIGRATIONS: [&str; SCHEMA as usize] = [
    include_str!("0001_initial.sql"),
    include_str!("schema-2.sql"),
];

const SCHEMA: i64 = 2;

/// What an open database keeps waiting for when a `sqlite3` shell holds a lock.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Statements kept compiled per connection; more than there are texts.
const STATEMENTS: usize = 64;

/// Where the database is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Memory,
    File(PathBuf),
}

impl Place {
    /// `sqlite::memory:` or `sqlite://path`; links are resolved, so that a file has one name.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        if url == "sqlite::memory:" {
            return Ok(Self::Memory);
        }
        let path = url
            .strip_prefix("sqlite://")
            .filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| {
            Error::Unavailable(format!(
                "'{url}' is neither sqlite://path nor sqlite::memory:"
            ))
        })?;
        let path = std::fs::canonicalize(path)
            .or_else(|_| std::path::absolute(path))
            .map_err(|error| Error::Unavailable(format!("'{path}' is no path: {error}")))?;
        Ok(Self::File(path))
    }

    /// Opens it for the writer, with the lock to be held as long as any connection is open.
    pub(super) fn open(&self) -> Result<(Connection, Option<File>), Error> {
        match self {
            Self::Memory => {
                let db =
                    Connection::open_in_memory().map_err(|error| self.to_store_error(&error))?;
                prepare(&db).map_err(|error| self.to_store_error(&error))?;
                Ok((db, None))
            }
            Self::File(path) => {
                let lock = self.lock(path)?;
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
                    | OpenFlags::SQLITE_OPEN_CREATE
                    | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let db = Connection::open_with_flags(path, flags)
                    .map_err(|error| self.to_store_error(&error))?;
                self.check(&db)?;
                prepare(&db).map_err(|error| self.to_store_error(&error))?;
                Ok((db, Some(lock)))
            }
        }
    }

    /// Opens it for a reader beside the writer; none where only the writer can reach it.
    pub(super) fn open_beside(&self) -> Result<Option<Connection>, Error> {
        let Self::File(path) = self else {
            return Ok(None);
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)
            .map_err(|error| self.to_store_error(&error))?;
        db.busy_timeout(LOCK_WAIT)
            .map_err(|error| self.to_store_error(&error))?;
        db.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(Some(db))
    }

    fn lock(&self, path: &std::path::Path) -> Result<File, Error> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&beside)
            .map_err(|error| self.to_store_error(&error))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => {
                Err(self.to_store_error(&"another process has it open"))
            }
            Err(TryLockError::Error(error)) => Err(self.to_store_error(&error)),
        }
    }

    /// Whether the file is empty or the hub's own, of a schema that this program knows.
    fn check(&self, db: &Connection) -> Result<(), Error> {
        let number = |sql| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let found = number("SELECT count(*) FROM sqlite_schema").and_then(|entries| {
            let application = number("PRAGMA application_id")?;
            Ok((entries, application, number("PRAGMA user_version")?))
        });
        match found {
            Ok((0, 0, 0) | (_, APPLICATION_ID, 1..=SCHEMA)) => Ok(()),
            Ok((_, APPLICATION_ID, schema)) => Err(self.corrupt(&format!(
                "it has schema {schema}, and this program knows {SCHEMA}"
            ))),
            Ok(_) => Err(self.corrupt("it is another program's database")),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                Err(self.corrupt("it is not an SQLite database"))
            }
            Err(error) => Err(self.to_store_error(&error)),
        }
    }

    fn to_store_error(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Unavailable(format!("{self}: {why}"))
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::Corrupt(format!("{self}: {why}"))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Brings the tables to this program's schema, and takes over from the process before.
fn prepare(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(LOCK_WAIT)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    let transaction = db.unchecked_transaction()?;
    migrate(&transaction)?;
    queues::recover_after_restart(&transaction, Time::now())?;
    transaction.commit()
}

/// Takes the steps that the database lacks.
pub(super) fn migrate(db: &Connection) -> rusqlite::Result<()> {
    let taken: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (step, schema) in MIGRATIONS.iter().zip(1..) {
        if taken < schema {
            db.execute_batch(step)?;
            db.pragma_update(None, "user_version", schema)?;
        }
    }
    if taken == 0 {
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    Ok(())
}

/// A small write that changes nothing, to see whether the disk takes one.
pub(super) fn probe_write(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "user_version", SCHEMA)
}
