//! Looks whether a database is what we need, before it is used: every kind of statement that the driver sends, on a table of
//! its own, which it removes again. Our tables are not touched, and no schema is changed.

use super::{SeaOrmMetadata, connect, unavailable};
use crate::sql::SqlError;
use sea_orm::sea_query::{Alias, ColumnDef, Expr, ExprTrait as _, Index, Query, Table};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend};

/// Needs four bytes for a character: what MySQL's old `utf8` and LATIN1 databases cannot keep.
const TEXT: &str = "arco 🚀";

/// What a database says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Looked {
    /// Product and version.
    pub version: String,
    /// Character set of the database, and what it means where it is not the usual one.
    pub charset: String,
}

impl SeaOrmMetadata {
    /// Tries a database on the network as [`SeaOrmMetadata::connect`] would use it. An error names the statement that
    /// was refused.
    pub async fn look(url: &str, password: Option<&str>) -> Result<Looked, SqlError> {
        let (_, pool) = connect::remote(url, password, connect::Limits::USUAL).await?;
        let outcome = tokio::time::timeout(connect::CALL, tried(&pool)).await;
        let late =
            || SqlError::Unavailable { step: "answer", cause: format!("not within {} s", connect::CALL.as_secs()) };
        outcome.unwrap_or_else(|_| Err(late()))
    }
}

async fn tried(db: &DatabaseConnection) -> Result<Looked, SqlError> {
    let (product, charset) = match db.get_database_backend() {
        DbBackend::MySql => ("MySQL", "@@character_set_database"),
        _ => ("", "current_setting('server_encoding')"),
    };
    let ask = async |what: &'static str, step| {
        let mut select = Query::select();
        select.expr_as(Expr::cust(what), Alias::new("answer"));
        let row = db.query_one(&select).await.map_err(unavailable(step))?;
        let answer: Option<String> = row.map(|it| it.try_get("", "answer")).transpose().map_err(unavailable(step))?;
        Ok::<_, SqlError>(answer.unwrap_or_default())
    };
    let version = format!("{product} {}", ask("version()", "say its version").await?).trim().to_owned();
    let charset = judged(db.get_database_backend(), ask(charset, "say its character set").await?)?;
    // Others may look at the same time, also from a machine where this process's number is given as well.
    let table = format!("arco_preflight_{:016x}", crate::clock::random());
    let outcome = statements(db, &table, &charset).await;
    let drop = Table::drop().table(Alias::new(table)).if_exists().to_owned();
    let dropped = db.execute(&drop).await.map_err(unavailable("drop a table"));
    outcome?;
    dropped?;
    Ok(Looked { version, charset })
}

/// What a character set means. Tables of ours on MySQL have one of their own; on PostgreSQL they have the database's.
fn judged(backend: DbBackend, charset: String) -> Result<String, SqlError> {
    let mysql = backend == DbBackend::MySql;
    if charset.eq_ignore_ascii_case(if mysql { "utf8mb4" } else { "UTF8" }) {
        return Ok(charset);
    }
    if mysql {
        return Ok(format!("{charset} (the platform's tables are made with utf8mb4)"));
    }
    let cause =
        format!("its character set is {charset}: make the database anew with ENCODING 'UTF8' TEMPLATE template0");
    Err(SqlError::Unavailable { step: "keep every text", cause })
}

/// Each statement once.
async fn statements(db: &DatabaseConnection, table: &str, charset: &str) -> Result<(), SqlError> {
    let (table, index_name) = (Alias::new(table), format!("{table}_name"));
    let (id, name) = (Alias::new("id"), Alias::new("name"));
    let mut create = Table::create();
    create.table(table.clone());
    create.col(ColumnDef::new(id.clone()).big_integer().not_null().primary_key());
    create.col(ColumnDef::new(name.clone()).string_len(300).not_null());
    if db.get_database_backend() == DbBackend::MySql {
        create.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_bin");
    }
    db.execute(&create).await.map_err(unavailable("create a table"))?;
    let mut index = Index::create();
    index.name(index_name).table(table.clone()).col(name.clone());
    db.execute(&index).await.map_err(unavailable("create an index"))?;
    let mut alter = Table::alter();
    alter.table(table.clone()).add_column(ColumnDef::new(Alias::new("more")).big_integer());
    db.execute(&alter).await.map_err(unavailable("alter a table"))?;
    let mut insert = Query::insert();
    insert.into_table(table.clone()).columns([id.clone(), name.clone()]).values_panic([1i64.into(), TEXT.into()]);
    db.execute(&insert).await.map_err(unavailable("insert a row"))?;
    let mut update = Query::update();
    update.table(table.clone()).value(Alias::new("more"), 2i64).and_where(Expr::col(id.clone()).eq(1i64));
    db.execute(&update).await.map_err(unavailable("update a row"))?;
    let mut select = Query::select();
    select.column(name).from(table.clone()).and_where(Expr::col(id.clone()).eq(1i64));
    let row = db.query_one(&select).await.map_err(unavailable("select a row"))?;
    let kept: Option<String> = row.map(|it| it.try_get("", "name")).transpose().map_err(unavailable("select a row"))?;
    if kept.as_deref() != Some(TEXT) {
        let cause = format!("its character set is {charset}: make it anew with UTF8 (PostgreSQL) or utf8mb4 (MySQL)");
        return Err(SqlError::Unavailable { step: "keep a text", cause });
    }
    let mut delete = Query::delete();
    delete.from_table(table.clone()).and_where(Expr::col(id).eq(1i64));
    db.execute(&delete).await.map_err(unavailable("delete a row"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn character_sets() {
        for (backend, charset, wanted) in [
            (DbBackend::MySql, "utf8mb4", Some("utf8mb4")),
            (DbBackend::MySql, "latin1", Some("latin1 (the platform's tables are made with utf8mb4)")),
            (DbBackend::Postgres, "UTF8", Some("UTF8")),
            (DbBackend::Postgres, "utf8", Some("utf8")),
            (DbBackend::Postgres, "SQL_ASCII", None),
            (DbBackend::Postgres, "", None),
        ] {
            let found = judged(backend, charset.to_owned());
            assert_eq!(found.as_deref().ok(), wanted, "{charset}: {found:?}");
        }
    }
}
