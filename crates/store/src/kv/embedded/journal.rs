//! The SQLite file: table `log` (one row per change), `leases`, and how far history was forgotten.
//!
//! WAL with `synchronous=FULL`: a commit has reached the disk when it returns. Locking is exclusive, so no second
//! process can write beside us.

use crate::kv::engine::Journal;
use crate::kv::state::{Change, Record, State};
use crate::kv::{KeyValue, LeaseId};
use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Version of the file's layout, in `PRAGMA user_version`.
const LAYOUT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE log (
        revision INTEGER NOT NULL, place INTEGER NOT NULL, key BLOB NOT NULL, value BLOB,
        create_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL,
        PRIMARY KEY (revision, place)) WITHOUT ROWID;
    CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl_s INTEGER NOT NULL);
    CREATE TABLE history (one INTEGER PRIMARY KEY CHECK (one = 1), oldest INTEGER NOT NULL);
    INSERT INTO history VALUES (1, 1);
    PRAGMA user_version = 1;";

pub(super) struct SqliteJournal {
    connection: Connection,
}

/// Opens the file and reads what it holds.
pub(super) fn open(path: &Path) -> Result<(State, SqliteJournal), String> {
    // SQLite would make it with the process's umask; what is kept here may be secret.
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|it| format!("{it}; check that its folder exists and can be written"))?;
    // One that came back from a backup may be open to all.
    keep_private(&file).map_err(|it| format!("it cannot be closed to other users: {it}"))?;
    // SQLite holds its locks by process: closing another descriptor of the file lets go of them.
    drop(file);
    let mut connection = connect(path).map_err(|it| words(&it))?;
    let layout: i64 = connection.pragma_query_value(None, "user_version", |it| it.get(0)).map_err(|it| words(&it))?;
    match layout {
        0 => {
            let begun = connection.transaction().map_err(|it| words(&it))?;
            begun.execute_batch(TABLES).and_then(|()| begun.commit()).map_err(|it| words(&it))?;
        }
        LAYOUT => {}
        newer => {
            return Err(format!("it has layout {newer}, this version knows {LAYOUT}: install the newer version again"));
        }
    }
    let state = load(&connection).map_err(|it| words(&it))?;
    for lease in state.lost_leases() {
        tracing::warn!(lease, "a key of the coordination store hangs on a lease that does not exist");
    }
    Ok((state, SqliteJournal { connection }))
}

fn keep_private(file: &File) -> std::io::Result<()> {
    if file.metadata()?.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(0o600))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_millis(200))?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Takes the lock now and not with the first change.
    connection.execute_batch("BEGIN IMMEDIATE; COMMIT")?;
    connection.set_prepared_statement_cache_capacity(16);
    Ok(connection)
}

fn load(connection: &Connection) -> rusqlite::Result<State> {
    let oldest: i64 = connection.query_row("SELECT oldest FROM history", [], |it| it.get(0))?;
    let mut state = State::begin_loading(oldest as u64);
    let mut rows = connection.prepare(
        "SELECT revision, place, key, value, create_revision, version, lease FROM log ORDER BY revision, place",
    )?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let revision = row.get::<_, i64>(0)? as u64;
        let key: Vec<u8> = row.get(2)?;
        let change = match row.get::<_, Option<Vec<u8>>>(3)? {
            None => Change::Delete(key.into()),
            Some(value) => Change::Put(Arc::new(KeyValue {
                key,
                value,
                create_revision: row.get::<_, i64>(4)? as u64,
                mod_revision: revision,
                version: row.get::<_, i64>(5)? as u64,
                lease: Some(row.get::<_, LeaseId>(6)?).filter(|it| *it != 0),
            })),
        };
        state.load(revision, row.get(1)?, change);
    }
    let mut leases = connection.prepare("SELECT id, ttl_s FROM leases")?;
    let leases = leases.query_map([], |it| Ok((it.get::<_, i64>(0)?, it.get::<_, i64>(1)? as u64)))?;
    state.loaded(leases.collect::<rusqlite::Result<_>>()?, Instant::now());
    Ok(state)
}

impl Journal for SqliteJournal {
    fn keep(&mut self, records: &[Record]) -> Result<(), String> {
        self.write(records).map_err(|it| words(&it))
    }
}

impl SqliteJournal {
    fn write(&mut self, records: &[Record]) -> rusqlite::Result<()> {
        let begun = self.connection.transaction()?;
        for record in records {
            match record {
                Record::Changes { revision, changes } => {
                    let mut insert = begun.prepare_cached("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)")?;
                    for (place, change) in changes.iter().enumerate() {
                        let (revision, place) = (*revision as i64, place as i64);
                        match change {
                            Change::Put(it) => insert.execute(params![
                                revision,
                                place,
                                it.key,
                                it.value,
                                it.create_revision as i64,
                                it.version as i64,
                                it.lease.unwrap_or(0)
                            ])?,
                            Change::Delete(key) => {
                                insert.execute(params![revision, place, &key[..], None::<&[u8]>, 0, 0, 0])?
                            }
                        };
                    }
                }
                Record::Granted { lease, ttl_s } => {
                    begun.prepare_cached("INSERT INTO leases VALUES (?, ?)")?.execute((lease, *ttl_s as i64))?;
                }
                Record::Revoked { lease } => {
                    begun.prepare_cached("DELETE FROM leases WHERE id = ?")?.execute([lease])?;
                }
                Record::Compacted { oldest, gone } => {
                    let mut delete = begun.prepare_cached("DELETE FROM log WHERE revision = ? AND place = ?")?;
                    for (revision, place) in gone {
                        delete.execute((*revision as i64, place))?;
                    }
                    begun.execute("UPDATE history SET oldest = ?", [*oldest as i64])?;
                }
            }
        }
        begun.commit()
    }
}

/// SQLite's words, and what to do where that is known.
fn words(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process has it open; stop the other server of this data dir first".to_owned()
        }
        Some(ErrorCode::DiskFull) => "the disk is full; make room".to_owned(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            format!("it is damaged ({error}); restore it from a backup")
        }
        _ => error.to_string(),
    }
}
