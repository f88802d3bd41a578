//! The schema, step by step: forward only, expand before contract.
//!
//! A step is never changed once it was released; a new version appends steps. The table `schema_version` holds how many
//! were done. A database with more steps than this program knows is refused, not guessed at.
//!
//! Servers that start at the same time take turns: one connection holds a lock on the row of `schema_lock` in an open
//! transaction, which ends with that server whatever happens to it, while another connection does the steps. MySQL commits
//! at each change of the schema, so a step must be one that can be begun again after it was cut off in the middle.

use super::{Kind, SqlError};
use sea_orm::sea_query::{Alias, ColumnDef, Expr, Index, LockType, Query, Table};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExprTrait as _, SqlErr,
    TransactionTrait as _,
};
use std::time::Duration;

/// How often the lock's table is made and asked for, when others do the same.
const TRIES: u32 = 20;
/// How often something is said on the connection that holds the lock: a part of what the database takes for silence.
const WORD: Duration = Duration::from_secs(5);

/// Every step; its position plus one is the schema version that it makes.
const STEPS: [Step; 5] = [
    Step::Tables(&FIRST),
    Step::Tables(&[Kind::Credential, Kind::Context, Kind::Certificate]),
    Step::Tables(&[Kind::Stream]),
    Step::Tables(&[Kind::Leader]),
    Step::Tables(&[Kind::Condemned]),
];

/// How many steps there are.
#[cfg(test)]
pub(super) fn newest() -> usize {
    STEPS.len()
}

/// The kinds of the first schema.
const FIRST: [Kind; 10] = [
    Kind::Tenant,
    Kind::Application,
    Kind::Component,
    Kind::Revision,
    Kind::Operation,
    Kind::Secret,
    Kind::Route,
    Kind::Volume,
    Kind::Manifest,
    Kind::Tag,
];

/// One step.
enum Step {
    /// Makes the tables of these kinds.
    Tables(&'static [Kind]),
}

fn unavailable(error: DbErr) -> SqlError {
    SqlError::Unavailable { step: "migrate its schema", cause: error.to_string() }
}

/// Brings the schema up to date.
pub(super) async fn run(db: &DatabaseConnection) -> Result<(), SqlError> {
    // A SQLite file has one writer at a time anyway, and only one connection here.
    let lock = match db.get_database_backend() {
        DbBackend::Sqlite => None,
        _ => Some(take_turn(db).await.map_err(unavailable)?),
    };
    let Some(lock) = lock else { return steps(db).await };
    let outcome = tokio::select! {
        outcome = steps(db) => outcome,
        lost = hold(&lock) => Err(unavailable(lost)),
    };
    let freed = lock.rollback().await.map_err(unavailable);
    outcome.and(freed)
}

/// Keeps the lock's connection from being ended for its silence; returns when it was lost all the same.
async fn hold(lock: &DatabaseTransaction) -> DbErr {
    loop {
        tokio::time::sleep(WORD).await;
        if let Err(error) = lock.execute_unprepared("SELECT 1").await {
            return error;
        }
    }
}

/// Waits until no other server changes the schema. The lock lasts as long as the transaction.
async fn take_turn(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let mut tries = 0;
    loop {
        match try_turn(db).await {
            Ok(lock) => return Ok(lock),
            // Two that make one table at once disturb each other on PostgreSQL; a lock not had in time is asked for again.
            Err(_) if tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(20 * u64::from(tries))).await;
    }
}

async fn try_turn(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let (table, id) = (Alias::new("schema_lock"), Alias::new("id"));
    let mut select = Query::select();
    select.column(id.clone()).from(table.clone()).and_where(Expr::col(id.clone()).eq(1i64)).lock(LockType::Update);
    let lock = db.begin().await?;
    if let Ok(Some(_)) = lock.query_one(&select).await {
        return Ok(lock);
    }
    lock.rollback().await?;
    let mut create = Table::create();
    create.table(table.clone()).if_not_exists();
    create.col(ColumnDef::new(id.clone()).big_integer().not_null().primary_key());
    db.execute(&create).await?;
    let mut insert = Query::insert();
    insert.into_table(table).columns([id]).values_panic([1i64.into()]);
    match db.execute(&insert).await {
        Err(error) if !matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => return Err(error),
        _ => {}
    }
    let lock = db.begin().await?;
    let found = lock.query_one(&select).await?;
    found.ok_or_else(|| DbErr::RecordNotFound("the row of schema_lock was removed".to_owned()))?;
    Ok(lock)
}

async fn steps(db: &DatabaseConnection) -> Result<(), SqlError> {
    let version = Alias::new("schema_version");
    let mut table = Table::create();
    table.table(version.clone()).if_not_exists().col(ColumnDef::new(Alias::new("version")).big_integer().not_null());
    db.execute(&table).await.map_err(unavailable)?;
    let mut select = Query::select();
    select.expr_as(Expr::col(Alias::new("version")).max(), Alias::new("version")).from(version.clone());
    let row = db.query_one(&select).await.map_err(unavailable)?;
    let done: Option<i64> = row.map(|it| it.try_get("", "version")).transpose().map_err(unavailable)?.flatten();
    let done = done.unwrap_or(0) as usize;
    if done > STEPS.len() {
        return Err(SqlError::Newer { found: done as u32, known: STEPS.len() as u32 });
    }
    for (at, step) in STEPS.iter().enumerate().skip(done) {
        let transaction = db.begin().await.map_err(unavailable)?;
        match step {
            Step::Tables(kinds) => {
                for kind in *kinds {
                    make_table(&transaction, *kind).await.map_err(unavailable)?;
                }
            }
        }
        let mut insert = Query::insert();
        insert.into_table(version.clone()).columns([Alias::new("version")]).values_panic([(at as i64 + 1).into()]);
        transaction.execute(&insert).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
    }
    Ok(())
}

/// A table with its indexes. Lengths are in characters; the longest key, 300 of at most 4 bytes, fits into the 3072 bytes
/// of an index on MySQL. Names are compared byte by byte, which MySQL does only when told.
async fn make_table(db: &impl ConnectionTrait, kind: Kind) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    let body = match backend {
        DbBackend::Postgres => "text",
        _ => "longtext",
    };
    let name = |it: &str| Alias::new(it);
    let text = |it: &str, length: u32| ColumnDef::new(Alias::new(it)).string_len(length).not_null().to_owned();
    let mut table = Table::create();
    table
        .table(name(kind.table()))
        .if_not_exists()
        .col(text("id", 100).primary_key())
        .col(text("parent", 100))
        .col(text("name", 200))
        .col(text("tag", 100))
        .col(ColumnDef::new(name("created_at")).big_integer().not_null())
        .col(ColumnDef::new(name("version")).big_integer().not_null())
        .col(ColumnDef::new(name("body")).custom(name(body)).not_null());
    let index = |suffix: &str, unique: bool, columns: &[&str]| {
        let mut index = Index::create();
        index.name(format!("{}_{suffix}", kind.table()));
        for column in columns {
            index.col(name(column));
        }
        if unique {
            index.unique();
        }
        index.to_owned()
    };
    let mut indexes = [
        index("by_name", true, &["parent", "name"]),
        index("by_tag", false, &["tag", "created_at"]),
        index("by_time", false, &["created_at", "id"]),
    ];
    if backend == DbBackend::MySql {
        // One statement, because it cannot be part of a transaction here and `CREATE INDEX` could not be begun again.
        table.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_bin");
        for index in &mut indexes {
            table.index(index);
        }
        return db.execute(&table).await.map(drop);
    }
    db.execute(&table).await?;
    for index in &mut indexes {
        db.execute(index.table(name(kind.table())).if_not_exists()).await?;
    }
    Ok(())
}
