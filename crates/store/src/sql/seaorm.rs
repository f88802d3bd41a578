//! The driver: sea-orm on SQLite, MySQL (MariaDB, TiDB) and PostgreSQL (CockroachDB, YugabyteDB).
//!
//! Statements are built with sea-query and keep to what all of them know. On SQLite one connection writes and a few read
//! (its WAL lets them); the others have one pool. Every commit is one transaction; rows that it only checks are locked, so
//! that it is right at every isolation level. What a database rolled back by itself is done again (see [`faults`]).

mod connect;
mod faults;
mod look;

use super::{Batch, Cursor, Kind, Metadata, Page, Query, Row, SqlError, Write, migrations};
use arco_model::time::Timestamp;
use async_trait::async_trait;
use faults::{Attempts, Fault};
use sea_orm::sea_query::{
    Alias, Cond, Expr, ExprTrait as _, LockType, Order, Query as Sql, SelectStatement, SimpleExpr,
};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, QueryResult, SqlErr, TransactionTrait as _,
};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

pub(super) use connect::Limits;
pub use look::Looked;

/// Rows in a database, through sea-orm.
pub struct SeaOrmMetadata {
    name: &'static str,
    writer: Arc<Writer>,
    readers: DatabaseConnection,
    /// How long one call may take; a database in a file needs no bound.
    deadline: Option<Duration>,
}

/// What writes.
enum Writer {
    /// The one connection to a SQLite file; none after a write that failed: the next one opens it again.
    File(PathBuf, Mutex<Option<DatabaseConnection>>),
    /// Connections to a database on the network.
    Pool(DatabaseConnection),
}

/// How long a connection that failed may take to close.
const CLOSING: Duration = Duration::from_secs(5);

fn unavailable(step: &'static str) -> impl Fn(DbErr) -> SqlError {
    move |error| SqlError::Unavailable { step, cause: error.to_string() }
}

impl SeaOrmMetadata {
    /// Opens or makes a SQLite database and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, SqlError> {
        let writer = connect::sqlite(path, 1).await.map_err(unavailable("open"))?;
        migrations::run(&writer).await?;
        let readers = connect::sqlite(path, connect::SQLITE_READERS).await.map_err(unavailable("open"))?;
        let writer = Arc::new(Writer::File(path.to_owned(), Mutex::new(Some(writer))));
        Ok(Self { name: "sqlite", writer, readers, deadline: None })
    }

    /// Connects to the database that a URL names (`mysql://USER@HOST:PORT/DATABASE`, `postgres://…`) and brings its
    /// schema up to date; servers that start at the same time do that one after the other. `password` goes before one
    /// in the URL. On another machine TLS with a checked certificate is used unless the URL says otherwise.
    pub async fn connect(url: &str, password: Option<&str>) -> Result<Self, SqlError> {
        Self::connect_within(url, password, Limits::USUAL).await
    }

    pub(super) async fn connect_within(url: &str, password: Option<&str>, limits: Limits) -> Result<Self, SqlError> {
        let (name, pool) = connect::remote(url, password, limits).await?;
        migrations::run(&pool).await?;
        Ok(Self { name, writer: Arc::new(Writer::Pool(pool.clone())), readers: pool, deadline: Some(connect::CALL) })
    }

    /// The connections themselves, for tests that do what no server of ours does.
    #[cfg(test)]
    pub(super) fn connections(&self) -> &DatabaseConnection {
        &self.readers
    }

    /// No call waits longer than the deadline.
    async fn bounded<T>(
        &self,
        step: &'static str,
        call: impl Future<Output = Result<T, SqlError>>,
    ) -> Result<T, SqlError> {
        let Some(deadline) = self.deadline else { return call.await };
        match tokio::time::timeout(deadline, call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let cause = format!("no answer within {} s; a write may have been done", deadline.as_secs());
                Err(SqlError::Unavailable { step, cause })
            }
        }
    }

    /// Rows of a statement that changes nothing, read again when the connection or the database's order of things broke.
    async fn read_rows(&self, step: &'static str, select: &SelectStatement) -> Result<Vec<Row>, SqlError> {
        let call = async {
            let mut attempts = Attempts::default();
            loop {
                match self.readers.query_all(select).await {
                    Ok(found) => return found.iter().map(read).collect::<Result<_, _>>().map_err(unavailable(step)),
                    Err(error) if attempts.another(faults::of(&error)).await => {}
                    Err(error) => return Err(unavailable(step)(error)),
                }
            }
        };
        self.bounded(step, call).await
    }
}

impl Writer {
    async fn write(&self, batch: &Batch) -> Result<(), SqlError> {
        let pool = match self {
            Writer::File(path, connection) => return write_file(path, &mut *connection.lock().await, batch).await,
            Writer::Pool(pool) => pool,
        };
        let mut attempts = Attempts::default();
        loop {
            match try_commit(pool, batch).await {
                Ok(()) => return Ok(()),
                Err(Failed { fault, .. }) if attempts.another(fault).await => {}
                Err(Failed { error, .. }) => return Err(error),
            }
        }
    }
}

async fn write_file(path: &Path, writer: &mut Option<DatabaseConnection>, batch: &Batch) -> Result<(), SqlError> {
    let connection = match writer {
        Some(connection) => connection,
        None => writer.insert(connect::sqlite(path, 1).await.map_err(unavailable("open"))?),
    };
    let done = try_commit(connection, batch).await.map_err(|it| it.error);
    // SQLite ends a transaction by itself when it cannot write (a full disk). The pool does not learn of that: it counts
    // one level too many from then on, and later commits would only release savepoints of a transaction that never ends.
    if matches!(done, Err(SqlError::Unavailable { .. }))
        && let Some(failed) = writer.take()
        && tokio::time::timeout(CLOSING, failed.close()).await.is_err()
    {
        tracing::warn!("a connection to the metadata database that failed does not close");
    }
    done
}

/// Does a batch once.
async fn try_commit(connection: &DatabaseConnection, batch: &Batch) -> Result<(), Failed> {
    let transaction = connection.begin().await.map_err(|it| Failed::at("begin a transaction", it))?;
    for write in &batch.writes {
        if let Err(failed) = apply(&transaction, write).await {
            // A lost connection cannot roll back, and need not: the database did.
            let _ = transaction.rollback().await;
            return Err(failed);
        }
    }
    commit(transaction).await
}

/// Why a batch was not done, and what that means for another try.
struct Failed {
    error: SqlError,
    fault: Fault,
}

impl Failed {
    fn at(step: &'static str, error: DbErr) -> Self {
        Self { fault: faults::of(&error), error: unavailable(step)(error) }
    }
}

impl From<SqlError> for Failed {
    fn from(error: SqlError) -> Self {
        Self { error, fault: Fault::Final }
    }
}

/// The last step is the only one that may have been done though it failed, so it is not repeated after a lost connection.
async fn commit(transaction: DatabaseTransaction) -> Result<(), Failed> {
    transaction.commit().await.map_err(|error| match faults::of(&error) {
        Fault::Lost => {
            let cause = format!("the connection broke, so it is not known whether the write was done: {error}");
            SqlError::Unavailable { step: "commit", cause }.into()
        }
        _ => Failed::at("commit", error),
    })
}

const COLUMNS: [&str; 7] = ["id", "parent", "name", "tag", "created_at", "version", "body"];

fn column(name: &'static str) -> Alias {
    Alias::new(name)
}

fn equals(name: &'static str, value: impl Into<SimpleExpr>) -> SimpleExpr {
    Expr::col(column(name)).eq(value)
}

fn read(row: &QueryResult) -> Result<Row, DbErr> {
    Ok(Row {
        key: row.try_get("", "id")?,
        parent: row.try_get("", "parent")?,
        name: row.try_get("", "name")?,
        tag: row.try_get("", "tag")?,
        created_at: Timestamp(row.try_get::<i64>("", "created_at")? as u64),
        version: row.try_get::<i64>("", "version")? as u64,
        body: row.try_get("", "body")?,
    })
}

#[async_trait]
impl Metadata for SeaOrmMetadata {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError> {
        let mut select = Sql::select();
        select.columns(COLUMNS.map(column)).from(column(kind.table())).and_where(equals("id", key));
        Ok(self.read_rows("read a row", &select).await?.pop())
    }

    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError> {
        let order = if query.newest_first { Order::Desc } else { Order::Asc };
        let mut select = Sql::select();
        select.columns(COLUMNS.map(column)).from(column(kind.table()));
        select.order_by(column("created_at"), order.clone()).order_by(column("id"), order);
        for (name, values) in [("parent", &query.parents), ("name", &query.names), ("tag", &query.tags)] {
            if !values.is_empty() {
                select.and_where(Expr::col(column(name)).is_in(values.iter().map(String::as_str)));
            }
        }
        if let Some(Cursor { created_at, key }) = &query.after {
            let (time, key) = (created_at.0 as i64, key.as_str());
            let (later, beyond) = if query.newest_first {
                (Expr::col(column("created_at")).lt(time), Expr::col(column("id")).lt(key))
            } else {
                (Expr::col(column("created_at")).gt(time), Expr::col(column("id")).gt(key))
            };
            select.cond_where(Cond::any().add(later).add(Cond::all().add(equals("created_at", time)).add(beyond)));
        }
        if query.limit > 0 {
            select.limit(query.limit as u64 + 1);
        }
        let items = self.read_rows("list rows", &select).await?;
        Ok(Page::of(items, query.limit))
    }

    async fn commit(&self, batch: Batch) -> Result<(), SqlError> {
        // A task of its own: a caller that goes away in the middle of a COMMIT would leave the driver's count of open
        // transactions wrong, and later commits inside one that never ends.
        let writer = self.writer.clone();
        let task = tokio::spawn(async move { writer.write(&batch).await });
        let gone = |it: tokio::task::JoinError| SqlError::Unavailable { step: "commit", cause: it.to_string() };
        self.bounded("commit", async { task.await.map_err(gone)? }).await
    }

    async fn ping(&self) -> Result<(), SqlError> {
        let call = async {
            let mut attempts = Attempts::default();
            loop {
                match self.readers.execute_unprepared("SELECT 1").await {
                    Ok(_) => return Ok(()),
                    Err(error) if faults::of(&error) == Fault::Lost && attempts.another(Fault::Lost).await => {}
                    Err(error) => return Err(unavailable("answer")(error)),
                }
            }
        };
        self.bounded("answer", call).await
    }
}

async fn apply(db: &DatabaseTransaction, write: &Write) -> Result<(), Failed> {
    let written = |kind: Kind, name: &str, error: DbErr| match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => SqlError::Exists { kind, name: name.to_owned() }.into(),
        _ => Failed::at("write", error),
    };
    let conflict = |kind: Kind, key: &str| Failed::from(SqlError::Conflict { kind, key: key.to_owned() });
    match write {
        Write::Insert(kind, row) => {
            let mut insert = Sql::insert();
            insert.into_table(column(kind.table())).columns(COLUMNS.map(column)).values_panic([
                row.key.as_str().into(),
                row.parent.as_str().into(),
                row.name.as_str().into(),
                row.tag.as_str().into(),
                (row.created_at.0 as i64).into(),
                1i64.into(),
                row.body.as_str().into(),
            ]);
            db.execute(&insert).await.map(drop).map_err(|it| written(*kind, &row.name, it))
        }
        Write::Update(kind, row) => {
            let mut update = Sql::update();
            update.table(column(kind.table())).values([
                (column("parent"), row.parent.as_str().into()),
                (column("name"), row.name.as_str().into()),
                (column("tag"), row.tag.as_str().into()),
                (column("version"), (row.version as i64 + 1).into()),
                (column("body"), row.body.as_str().into()),
            ]);
            update.and_where(equals("id", row.key.as_str())).and_where(equals("version", row.version as i64));
            let done = db.execute(&update).await.map_err(|it| written(*kind, &row.name, it))?;
            if done.rows_affected() == 1 { Ok(()) } else { Err(conflict(*kind, &row.key)) }
        }
        Write::Delete(kind, key, version) => {
            let mut delete = Sql::delete();
            delete.from_table(column(kind.table()));
            delete.and_where(equals("id", key.as_str())).and_where(equals("version", *version as i64));
            let done = db.execute(&delete).await.map_err(|it| Failed::at("delete", it))?;
            if done.rows_affected() == 1 { Ok(()) } else { Err(conflict(*kind, key)) }
        }
        Write::Check(kind, key, version) => {
            let mut select = Sql::select();
            select.column(column("id")).from(column(kind.table())).lock(LockType::Update);
            select.and_where(equals("id", key.as_str())).and_where(equals("version", *version as i64));
            match db.query_one(&select).await.map_err(|it| Failed::at("check", it))? {
                Some(_) => Ok(()),
                None => Err(conflict(*kind, key)),
            }
        }
    }
}
