//! What only databases on the network must do, on MySQL or MariaDB and on PostgreSQL: servers that start at once, broken
//! connections, writers in each other's way.

use super::application;
use crate::sql::seaorm::Limits;
use crate::sql::{Batch, Entity, Metadata, Query, SeaOrmMetadata, SharedMetadata, SqlError};
use arco_model::application::Application;
use arco_model::name::ApplicationName;
use arco_testkit::servers;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, TransactionTrait as _};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a server may take for what it does at once when it has time.
const PATIENCE: Duration = Duration::from_secs(180);

/// A database of its own in a server.
pub(super) struct Fresh {
    pub url: String,
    admin: DatabaseConnection,
    name: String,
}

impl Fresh {
    async fn new(server: Option<String>) -> Option<Self> {
        let server = server?;
        let name = format!("arco_test_{:016x}", crate::clock::random());
        // The server listens a moment before it lets anybody in.
        let deadline = Instant::now() + PATIENCE;
        let admin = loop {
            match Database::connect(&server).await {
                Ok(admin) => break admin,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        let mut url = url::Url::parse(&server).unwrap();
        url.set_path(&name);
        Some(Self { url: url.into(), admin, name })
    }

    /// Another database in the same server, made with `how`.
    async fn beside(&self, how: &str) -> Result<Self, DbErr> {
        let name = format!("arco_test_{:016x}", crate::clock::random());
        self.admin.execute_unprepared(&format!("CREATE DATABASE {name} {how}")).await?;
        let mut url = url::Url::parse(&self.url).unwrap();
        url.set_path(&name);
        Ok(Self { url: url.into(), admin: self.admin.clone(), name })
    }

    async fn open(&self) -> Arc<SeaOrmMetadata> {
        Arc::new(SeaOrmMetadata::connect(&self.url, None).await.unwrap())
    }

    /// The connections to the database that match.
    async fn connections(&self, condition: &str) -> BTreeSet<i64> {
        let list = match self.admin.get_database_backend() {
            DbBackend::MySql => "SELECT id, info AS query FROM information_schema.processlist WHERE db",
            _ => "SELECT pid::bigint AS id FROM pg_stat_activity WHERE datname",
        };
        let sql = format!("{list} = '{}' {condition}", self.name);
        let rows = self.admin.query_all_raw(sea_orm::Statement::from_string(self.admin.get_database_backend(), sql));
        rows.await.unwrap().iter().map(|it| it.try_get("", "id").unwrap()).collect()
    }

    /// Breaks every connection to the database that matches; says how many. The server does it a while after it was told:
    /// one that breaks later, in the middle of a commit, would be another case.
    async fn kill(&self, condition: &str) -> usize {
        let (kill, end) = match self.admin.get_database_backend() {
            DbBackend::MySql => ("KILL ", ""),
            _ => ("SELECT pg_terminate_backend(", ")"),
        };
        let mut killed = BTreeSet::new();
        for id in self.connections(condition).await {
            if self.admin.execute_unprepared(&format!("{kill}{id}{end}")).await.is_ok() {
                killed.insert(id);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.connections("").await.is_disjoint(&killed) {
            assert!(Instant::now() < deadline, "connections do not end: {killed:?}");
            tokio::time::sleep(Duration::from_millis(20)).await; // the pace of looking
        }
        killed.len()
    }

    /// Closes everything and drops the database.
    async fn remove(self) {
        self.kill("").await;
        let _ = self.admin.execute_unprepared(&format!("DROP DATABASE {}", self.name)).await;
    }
}

/// A store in a database of its own, for the contract. The server itself is removed with the test program.
pub(super) async fn fresh(server: Option<String>) -> Option<(SharedMetadata, Fresh)> {
    let fresh = Fresh::new(server).await?;
    let db: SharedMetadata = fresh.open().await;
    Some((db, fresh))
}

async fn servers_that_start_at_once_migrate_once(fresh: &Fresh) {
    let opened = futures_util::future::join_all((0..4).map(|_| {
        let url = fresh.url.clone();
        tokio::spawn(async move { SeaOrmMetadata::connect(&url, None).await })
    }));
    for opened in opened.await {
        let db = opened.unwrap().unwrap();
        assert!((&db as &dyn Metadata).list::<Application>(&Query::default()).await.unwrap().items.is_empty());
    }
    let raw = Database::connect(&fresh.url).await.unwrap();
    let rows = raw.query_all_raw(sea_orm::Statement::from_string(
        raw.get_database_backend(),
        "SELECT version FROM schema_version",
    ));
    assert_eq!(rows.await.unwrap().len(), crate::sql::migrations::newest(), "each step is done once");
    raw.execute_unprepared("INSERT INTO schema_version VALUES (1000)").await.unwrap();
    let newer = SeaOrmMetadata::connect(&fresh.url, None).await;
    assert!(matches!(newer, Err(SqlError::Newer { found: 1000, .. })));
}

async fn idle_connections_that_broke_are_not_noticed(fresh: &Fresh) {
    let db: SharedMetadata = fresh.open().await;
    db.insert(&application(1, "one")).await.unwrap();
    assert!(fresh.kill("").await >= 1);
    assert!(db.find::<Application>("default", "one").await.unwrap().is_some());
    assert!(fresh.kill("").await >= 1);
    db.insert(&application(2, "two")).await.unwrap();
    assert!(fresh.kill("").await >= 1);
    db.ping().await.unwrap();
}

async fn a_connection_that_breaks_in_the_middle_of_a_batch_leaves_all_or_nothing(fresh: &Fresh) {
    let db: SharedMetadata = fresh.open().await;
    db.insert(&application(1, "one")).await.unwrap();
    let mut one = db.find::<Application>("default", "one").await.unwrap().unwrap();
    one.value.name = ApplicationName::new("changed").unwrap();
    // Somebody holds the row, so that the batch waits in its middle.
    let raw = Database::connect(&fresh.url).await.unwrap();
    let holder = raw.begin().await.unwrap();
    let hold = format!("UPDATE applications SET tag = 'held' WHERE id = '{}'", one.value.key());
    holder.execute_unprepared(&hold).await.unwrap();
    let mut batch = Batch::default();
    batch.insert(&application(2, "two")).unwrap().update(&one).unwrap().insert(&application(3, "three")).unwrap();
    let writer = tokio::spawn({
        let db = db.clone();
        async move { db.commit(batch).await }
    });
    // A server may show the holder's own statement for a moment after it has answered.
    let waiting = match raw.get_database_backend() {
        DbBackend::MySql => "AND info LIKE 'UPDATE %' AND info NOT LIKE '%held%'",
        _ => "AND state = 'active' AND query LIKE 'UPDATE %' AND query NOT LIKE '%held%'",
    };
    let deadline = Instant::now() + PATIENCE;
    while fresh.kill(waiting).await == 0 {
        assert!(Instant::now() < deadline && !writer.is_finished(), "the batch waits for the row");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holder.rollback().await.unwrap();
    writer.await.unwrap().expect("the batch is done again on another connection");
    let rows = db.list::<Application>(&Query::default()).await.unwrap().items;
    let names: Vec<_> = rows.iter().map(|it| it.value.name.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(["changed", "two", "three"].iter().all(|it| names.contains(it)), "{names:?}");
}

async fn a_server_that_only_reads_is_not_used(fresh: &Fresh) {
    if fresh.admin.get_database_backend() == DbBackend::MySql {
        return; // connections to it are kept for half a minute at most
    }
    let set = async |how: &str| {
        fresh.admin.execute_unprepared(&format!("ALTER DATABASE {} {how}", fresh.name)).await.unwrap();
    };
    // As a standby does.
    set("SET default_transaction_read_only = on").await;
    let refused = SeaOrmMetadata::connect(&fresh.url, None).await.map(drop);
    assert!(matches!(refused, Err(SqlError::Unavailable { step: "open", .. })), "{refused:?}");
    set("RESET default_transaction_read_only").await;
    let db: SharedMetadata = fresh.open().await;
    db.insert(&application(1, "one")).await.unwrap();
}

async fn who_falls_silent_in_a_transaction_loses_its_locks(fresh: &Fresh) {
    let second = Duration::from_secs(1);
    let limits = Limits { silent: 3 * second, lock: second, idle: 4 * second };
    let open = async || Arc::new(SeaOrmMetadata::connect_within(&fresh.url, None, limits).await.unwrap());
    let (db, other) = (open().await, open().await);
    let db: SharedMetadata = db;
    db.insert(&application(1, "one")).await.unwrap();
    let mut one = db.find::<Application>("default", "one").await.unwrap().unwrap();
    one.value.name = ApplicationName::new("changed").unwrap();
    // As a server whose machine loses its power in the middle of a batch.
    let silent = other.connections().begin().await.unwrap();
    let hold = format!("UPDATE applications SET tag = 'held' WHERE id = '{}'", one.value.key());
    silent.execute_unprepared(&hold).await.unwrap();
    // It does not have the lock in time, comes again, and has it when the other one's transaction was ended for it.
    db.update(&one).await.unwrap();
    assert!(silent.commit().await.is_err(), "its transaction was rolled back");
    let found = db.get::<Application>(&one.value.key()).await.unwrap().unwrap();
    assert_eq!((found.version, found.value.name.as_str()), (2, "changed"));
    // What was pooled meanwhile is not needed to live.
    (&*other as &dyn Metadata).list::<Application>(&Query::default()).await.unwrap();
}

async fn writers_in_each_others_way_all_come_through(fresh: &Fresh) {
    let db: SharedMetadata = fresh.open().await;
    for (number, name) in [(1, "one"), (2, "two")] {
        db.insert(&application(number, name)).await.unwrap();
    }
    let keys = [application(1, "one").key(), application(2, "two").key()];
    let writers = (0..6u64).map(|writer| {
        let (db, mut keys) = (db.clone(), keys.clone());
        if writer % 2 == 0 {
            keys.reverse(); // one order forward, one backward: the recipe for a deadlock
        }
        tokio::spawn(async move {
            let mut done = 0;
            while done < 10 {
                let mut batch = Batch::default();
                for key in &keys {
                    batch.update(&db.get::<Application>(key).await.unwrap().unwrap()).unwrap();
                }
                match db.commit(batch).await {
                    Ok(()) => done += 1,
                    Err(SqlError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for writer in futures_util::future::join_all(writers).await {
        writer.unwrap();
    }
    for key in &keys {
        assert_eq!(db.get::<Application>(key).await.unwrap().unwrap().version, 61);
    }
}

async fn a_look_tries_everything_and_leaves_nothing(fresh: &Fresh) {
    let looked = SeaOrmMetadata::look(&fresh.url, None).await.unwrap();
    assert!(looked.version.contains(|it: char| it.is_ascii_digit()), "{looked:?}");
    // Ours are made with a character set of their own, whatever the database has.
    assert!(!looked.charset.is_empty(), "{looked:?}");
    let raw = Database::connect(&fresh.url).await.unwrap();
    let tables = match raw.get_database_backend() {
        DbBackend::MySql => "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()",
        _ => "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'",
    };
    let rows = raw.query_all_raw(sea_orm::Statement::from_string(raw.get_database_backend(), tables));
    assert!(rows.await.unwrap().is_empty(), "its own table is removed, ours were not made");
    if raw.get_database_backend() == DbBackend::MySql {
        return a_look_names_what_a_user_of_mysql_may_not(fresh, &raw).await;
    }
    // A user who may not make tables is told so.
    let reader = format!("reader_{}", &fresh.name[10..20]);
    for sql in [format!("CREATE USER {reader} PASSWORD 'r'"), "REVOKE CREATE ON SCHEMA public FROM PUBLIC".to_owned()] {
        raw.execute_unprepared(&sql).await.unwrap();
    }
    let mut url = url::Url::parse(&fresh.url).unwrap();
    url.set_username(&reader).unwrap();
    let refused = SeaOrmMetadata::look(url.as_str(), Some("r")).await;
    raw.execute_unprepared(&format!("DROP USER {reader}")).await.unwrap();
    assert!(matches!(&refused, Err(SqlError::Unavailable { step: "create a table", .. })), "{refused:?}");
}

/// Each right that the documents name is missed by the statement that needs it.
async fn a_look_names_what_a_user_of_mysql_may_not(fresh: &Fresh, raw: &DatabaseConnection) {
    let user = format!("looks_{}", &fresh.name[10..20]);
    if let Err(error) = raw.execute_unprepared(&format!("CREATE USER '{user}' IDENTIFIED BY 'r'")).await {
        assert!(std::env::var_os("ARCO_TEST_MYSQL_URL").is_some(), "{error}");
        eprintln!("SKIPPED: the user of ARCO_TEST_MYSQL_URL may not make users: {error}");
        return;
    }
    let mut url = url::Url::parse(&fresh.url).unwrap();
    url.set_username(&user).unwrap();
    let mut found = Vec::new();
    for (rights, step) in [
        ("SELECT", Some("create a table")),
        ("INSERT, UPDATE, DELETE, CREATE, DROP", Some("create an index")),
        ("INDEX", Some("alter a table")),
        ("ALTER", None),
    ] {
        let granted = raw.execute_unprepared(&format!("GRANT {rights} ON {}.* TO '{user}'", fresh.name)).await;
        let looked = SeaOrmMetadata::look(url.as_str(), Some("r")).await;
        found.push((rights, step, granted, looked));
    }
    raw.execute_unprepared(&format!("DROP USER '{user}'")).await.unwrap();
    for (rights, step, granted, looked) in found {
        granted.unwrap();
        match step {
            Some(step) => assert!(
                matches!(&looked, Err(SqlError::Unavailable { step: at, .. }) if *at == step),
                "{rights}: {looked:?}"
            ),
            None => assert!(looked.is_ok(), "{rights}: {looked:?}"),
        }
    }
}

async fn a_look_names_the_character_set(fresh: &Fresh) {
    let usual = SeaOrmMetadata::look(&fresh.url, None).await.unwrap();
    let databases: &[(&str, Result<&str, &str>)] = if fresh.admin.get_database_backend() == DbBackend::MySql {
        &[
            ("CHARACTER SET utf8mb4", Ok("utf8mb4")),
            ("CHARACTER SET latin1", Ok("latin1 (the platform's tables are made with utf8mb4)")),
        ]
    } else {
        &[
            ("ENCODING 'UTF8' TEMPLATE template0", Ok("UTF8")),
            ("ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'", Err("SQL_ASCII")),
            ("ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'", Err("LATIN1")),
        ]
    };
    for (how, wanted) in databases {
        let made = match fresh.beside(how).await {
            Ok(made) => made,
            Err(error) => {
                // CockroachDB and YugabyteDB have one character set only.
                let other = ["CockroachDB", "-YB-"].iter().any(|it| usual.version.contains(it));
                assert!(other, "{how}: {error}");
                eprintln!("SKIPPED: {} makes no database with {how}", usual.version);
                continue;
            }
        };
        let looked = SeaOrmMetadata::look(&made.url, None).await;
        made.remove().await;
        match (wanted, &looked) {
            (Ok(wanted), Ok(looked)) => assert_eq!(looked.charset, *wanted, "{how}"),
            (Err(named), Err(SqlError::Unavailable { step: "keep every text", cause })) => {
                assert!(cause.contains(named) && cause.contains("ENCODING 'UTF8'"), "{how}: {cause}");
            }
            _ => panic!("{how}: {looked:?}"),
        }
    }
}

macro_rules! remote {
    ($database:ident: $($name:ident)*) => {
        mod $database {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let Some(fresh) = super::Fresh::new(super::servers::$database()).await else { return };
                    super::$name(&fresh).await;
                    fresh.remove().await;
                }
            )*
        }
    };
    ($($database:ident)*) => {$(
        remote! { $database:
            servers_that_start_at_once_migrate_once
            idle_connections_that_broke_are_not_noticed
            a_connection_that_breaks_in_the_middle_of_a_batch_leaves_all_or_nothing
            a_server_that_only_reads_is_not_used
            who_falls_silent_in_a_transaction_loses_its_locks
            writers_in_each_others_way_all_come_through
            a_look_tries_everything_and_leaves_nothing
            a_look_names_the_character_set
        }
    )*};
}

remote! { mysql postgres }
