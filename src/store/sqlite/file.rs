//! The database file: location, lock and schema.
//!
//! A lock file beside the database admits one process at a time, because changes are published
//! only within the process. A file of another program is rejected unmodified.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::queues;
use crate::store::Error;
use crate::time::Time;

/// `PRAGMA application_id` of the database: `PHub` in ASCII.
const APPLICATION_ID: i64 = 0x5048_7562;

/// Statements that lead from one schema version to the next, starting with an empty database.
/// `PRAGMA user_version` counts those that were applied. Never change a released migration.
pub(super) const MIGRATIONS: [&str; SCHEMA_VERSION as usize] =
    [include_str!("sql/0001_initial.sql")];

const SCHEMA_VERSION: i64 = 1;

/// How long to wait for locks of other processes, such as the `sqlite3` shell.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum size of the page cache of the connection that writes, in KiB. It should hold the pages of
/// the jobs that change.
const PAGE_CACHE_KIB: i64 = 32 << 10;

/// Permissions of the files: read and write for the owner only. SQLite creates the write-ahead log with
/// the permissions of the database.
const FILE_MODE: u32 = 0o600;

/// Number of prepared statements that a connection caches. All statements fit.
const STATEMENT_CACHE_CAPACITY: usize = 64;

/// Where the database is stored.
#[derive(Clone, Debug)]
pub(super) enum Location {
    Memory,
    File(PathBuf),
}

/// The access mode of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

impl Location {
    /// Parses `sqlite::memory:` or `sqlite://path`. Resolves symbolic links, so that different
    /// paths to a file share its lock.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        if url == "sqlite::memory:" {
            return Ok(Self::Memory);
        }
        let path = url
            .strip_prefix("sqlite://")
            .filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| {
            let usage = "use sqlite://path or sqlite::memory:";
            Error::Unavailable(format!("invalid SQLite URL '{url}': {usage}"))
        })?;
        std::fs::canonicalize(path)
            .or_else(|_| std::path::absolute(path))
            .map(Self::File)
            .map_err(|error| Error::Unavailable(format!("invalid path '{path}': {error}")))
    }

    /// Opens the database for writing and migrates it.
    ///
    /// Returns the lock too. The caller must hold it while any connection is open.
    pub(super) fn open(&self) -> Result<(Connection, Option<File>), Error> {
        let connect = || match self {
            Self::Memory => {
                let db = Connection::open_in_memory()?;
                prepare(&db)?;
                Ok((db, None))
            }
            Self::File(path) => {
                let lock = lock(path)?;
                check_mode(path, &open_for_writing(path)?);
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
                let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let db = Connection::open_with_flags(path, flags)?;
                check_schema(&db)?;
                prepare(&db)?;
                Ok((db, Some(lock)))
            }
        };
        connect().map_err(|error| self.locate(error))
    }

    /// Returns the path of the file, or `None` for a database in memory, which has one connection.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Memory => None,
            Self::File(path) => Some(path),
        }
    }

    /// Opens a further connection to the file at `path`.
    pub(super) fn connect(&self, path: &Path, access: Access) -> Result<Connection, Error> {
        let access = match access {
            Access::ReadOnly => OpenFlags::SQLITE_OPEN_READ_ONLY,
            Access::ReadWrite => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
        let db = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX);
        let db = db.and_then(|db| configure(&db).map(|()| db));
        db.map_err(|error| self.locate(error.into()))
    }

    /// Adds the location to an error.
    fn locate(&self, error: Error) -> Error {
        match error {
            Error::Unavailable(reason) => Error::Unavailable(format!("{self}: {reason}")),
            Error::Corrupt(reason) => Error::Corrupt(format!("{self}: {reason}")),
            Error::Overloaded => Error::Overloaded,
        }
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock = open_for_writing(Path::new(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::Error(error)) => Err(Error::Unavailable(error.to_string())),
        Err(TryLockError::WouldBlock) => {
            let reason = "database is in use by another process";
            Err(Error::Unavailable(reason.to_owned()))
        }
    }
}

/// Opens a file, or creates it with [`FILE_MODE`].
fn open_for_writing(path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    let file = options.mode(FILE_MODE).open(path);
    file.map_err(|error| open_error(path, &error))
}

fn open_error(path: &Path, error: &io::Error) -> Error {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return Error::Unavailable(error.to_string());
    }
    let parent = path.parent().unwrap_or(path);
    let denied = if path.exists() { path } else { parent }.display();
    let uid = rustix::process::geteuid();
    Error::Unavailable(format!("{denied} is not writable by uid {uid}"))
}

/// Logs a warning if other users can access the database, which contains prompts and outputs.
fn check_mode(path: &Path, file: &File) {
    let mode = file.metadata().map_or(0, |it| it.permissions().mode());
    if mode & 0o077 != 0 {
        let mode = format!("{:o}", mode & 0o777);
        tracing::warn!(store.path = %path.display(), store.mode = mode, "database file is accessible to other users");
    }
}

/// Accepts an empty database and one of this program with a supported schema.
fn check_schema(db: &Connection) -> Result<(), Error> {
    let number = |sql| db.query_row(sql, [], |row| row.get::<_, i64>(0));
    let entries = match number("SELECT count(*) FROM sqlite_schema") {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            return Err(Error::Corrupt("not an SQLite database".to_owned()));
        }
        entries => entries?,
    };
    let application_id = number("PRAGMA application_id")?;
    match (entries, application_id, number("PRAGMA user_version")?) {
        (0, 0, 0) | (_, APPLICATION_ID, 1..=SCHEMA_VERSION) => Ok(()),
        (_, APPLICATION_ID, version) => Err(Error::Corrupt(format!(
            "schema version {version} is not supported, the latest is {SCHEMA_VERSION}"
        ))),
        _ => Err(Error::Corrupt("not a progress-hub database".to_owned())),
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.set_prepared_statement_cache_capacity(STATEMENT_CACHE_CAPACITY);
    Ok(())
}

fn prepare(db: &Connection) -> rusqlite::Result<()> {
    configure(db)?;
    // FULL makes each transaction durable before it is acknowledged.
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    db.pragma_update(None, "cache_size", -PAGE_CACHE_KIB)?;
    let transaction = db.unchecked_transaction()?;
    migrate(&transaction, &MIGRATIONS)?;
    queues::recover_after_restart(&transaction, Time::now())?;
    transaction.commit()
}

/// Applies the migrations that the database lacks.
pub(super) fn migrate(db: &Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let current: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (version, migration) in (1..).zip(migrations) {
        if current < version {
            db.execute_batch(migration)?;
            db.pragma_update(None, "user_version", version)?;
        }
    }
    if current == 0 {
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    Ok(())
}

/// Performs a small write that changes nothing, to check that writes succeed.
pub(super) fn probe_write(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "user_version", SCHEMA_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_errors_name_the_place_and_the_user() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("hub.db");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = || open_error(&database, &denied).to_string();
        let uid = rustix::process::geteuid();

        let expected = format!(
            "{} is not writable by uid {uid}",
            directory.path().display()
        );
        assert!(error().ends_with(&expected), "{}", error());
        File::create(&database).unwrap();
        let expected = format!("{} is not writable by uid {uid}", database.display());
        assert!(error().ends_with(&expected), "{}", error());
    }

    #[test]
    fn migrate_applies_only_missing_migrations_and_keeps_rows() {
        let db = Connection::open_in_memory().unwrap();
        let first = "CREATE TABLE notes (text)";
        let second = "ALTER TABLE notes ADD COLUMN author DEFAULT 'ada'";
        let pragma = |name| -> i64 { db.pragma_query_value(None, name, |row| row.get(0)).unwrap() };
        migrate(&db, &[first]).unwrap();
        assert_eq!(pragma("user_version"), 1);
        assert_eq!(pragma("application_id"), APPLICATION_ID);
        db.execute("INSERT INTO notes VALUES ('kept')", []).unwrap();

        for _ in 0..2 {
            migrate(&db, &[first, second]).unwrap();
            assert_eq!(pragma("user_version"), 2);
            let row: (String, String) = db
                .query_row("SELECT text, author FROM notes", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .unwrap();
            assert_eq!(row, ("kept".to_owned(), "ada".to_owned()));
        }
    }
}
