//! Connections to the databases: what a URL means, how they are secured, how many there are, and for how long one may be
//! in the way of others.
//!
//! A URL may carry a password, so no error of this file shows one.

use super::{SqlError, unavailable};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
use sqlx::{AssertSqlSafe, Executor as _};
use std::path::Path;
use std::time::Duration;
use url::{Host, Url};

/// Connections that read a SQLite database.
pub(super) const SQLITE_READERS: u32 = 4;
/// How long a call to a database on the network may take, with all its tries.
pub(super) const CALL: Duration = Duration::from_secs(30);
/// Connections of this process to a database on the network.
const POOL: u32 = 12;
/// How long making a connection, or waiting for a free one, may take.
const CONNECT: Duration = Duration::from_secs(8);
/// A connection that was idle so long is asked whether it lives before it is used.
const IDLE: Duration = Duration::from_secs(5);

/// Fails with [`DIVISION_BY_ZERO`] on a server that only reads. Whoever connects while the servers of PostgreSQL change places
/// may meet one, and would keep it for as long as a connection is kept.
const WRITES: &str = "SELECT 1 / CASE current_setting('transaction_read_only', true) WHEN 'on' THEN 0 ELSE 1 END";
/// SQLSTATE of an error that no other statement of [`Limits::statements`] can have.
const DIVISION_BY_ZERO: &str = "22012";

/// For how long a session may be in the way of others; the database itself ends what takes longer. Without them the locks
/// of a server whose machine lost its power stay until TCP gives up, which takes hours.
#[derive(Clone, Copy)]
pub(in crate::sql) struct Limits {
    /// How long a session may say nothing in the middle of a transaction, seconds at least. We say the next thing at once.
    pub(in crate::sql) silent: Duration,
    /// How long a statement waits for a lock before it is tried anew; a part of [`CALL`].
    pub(in crate::sql) lock: Duration,
    /// How long a session may say nothing at all, where the database has no limit for transactions (MySQL): longer than
    /// any connection is kept. Until then the locks of a dead server stay there.
    pub(in crate::sql) idle: Duration,
}

impl Limits {
    /// Those of servers.
    pub(in crate::sql) const USUAL: Self =
        Self { silent: Duration::from_secs(15), lock: Duration::from_secs(10), idle: Duration::from_secs(60) };

    /// What each session says first. A database that does not know one of them refuses that one.
    fn statements(self, name: &str) -> Vec<String> {
        let (silent_ms, lock_ms) = (self.silent.as_millis(), self.lock.as_millis());
        let (silent_s, lock_s, idle_s) = (self.silent.as_secs(), self.lock.as_secs(), self.idle.as_secs());
        match name {
            "mysql" => vec![
                format!("SET SESSION innodb_lock_wait_timeout = {lock_s}"),
                format!("SET SESSION wait_timeout = {idle_s}"),
                // MariaDB.
                format!("SET SESSION idle_transaction_timeout = {silent_s}"),
            ],
            _ => vec![
                format!("SET lock_timeout = {lock_ms}"),
                format!("SET idle_in_transaction_session_timeout = {silent_ms}"),
                // Also while an answer is on its way to it. CockroachDB has other means.
                format!("SET tcp_user_timeout = {silent_ms}"),
                WRITES.to_owned(),
            ],
        }
    }
}

/// Opens or makes a SQLite database.
pub(super) async fn sqlite(path: &Path, connections: u32) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(format!("sqlite://{}?mode=rwc", path.display()));
    options.max_connections(connections).min_connections(1).sqlx_logging(false);
    options.map_sqlx_sqlite_opts(|it| {
        // FULL: what was answered as done is on the disk. The cache is 2 MiB for each connection.
        it.pragma("journal_mode", "WAL")
            .pragma("synchronous", "FULL")
            .pragma("busy_timeout", "10000")
            .pragma("cache_size", "-2048")
    });
    Database::connect(options).await
}

/// What makes each connection of a pool say these statements first. The pools of two databases are two types.
macro_rules! saying_first {
    ($statements:ident) => {
        move |pool| {
            let statements = $statements.clone();
            pool.after_connect(move |connection, _| {
                let statements = statements.clone();
                Box::pin(async move {
                    for statement in statements {
                        known(connection.execute(AssertSqlSafe(statement)).await)?;
                    }
                    Ok(())
                })
            })
        }
    };
}

/// Connects to a database on the network; also gives the driver's name.
pub(super) async fn remote(
    url: &str,
    password: Option<&str>,
    limits: Limits,
) -> Result<(&'static str, DatabaseConnection), SqlError> {
    let (name, url) = checked(url, password).map_err(|cause| SqlError::Unavailable { step: "open", cause })?;
    let mut options = ConnectOptions::new(String::from(url));
    options.max_connections(POOL).min_connections(1).sqlx_logging(false);
    options.connect_timeout(CONNECT).acquire_timeout(CONNECT).test_before_acquire_if_idle_for(IDLE);
    let statements = limits.statements(name);
    if name == "mysql" {
        // Together shorter than what the database allows: the pool counts a connection that it looked at as used.
        options.idle_timeout(limits.idle / 3).max_lifetime(limits.idle / 2);
        options.map_sqlx_mysql_pool_opts(saying_first!(statements));
    } else {
        // A proxy or firewall in between forgets old connections.
        options.idle_timeout(Duration::from_secs(300)).max_lifetime(Duration::from_secs(1800));
        options.map_sqlx_postgres_pool_opts(saying_first!(statements));
    }
    Ok((name, Database::connect(options).await.map_err(unavailable("open"))?))
}

/// A setting that a database does not know, or does not let us change, is done without. A server that only reads is left: the
/// pool connects again.
fn known<T>(set: Result<T, sqlx::Error>) -> Result<(), sqlx::Error> {
    match set {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(DIVISION_BY_ZERO) => {
            Err(sqlx::Error::Protocol("the database server only reads (is it a standby?)".to_owned()))
        }
        Err(sqlx::Error::Database(error)) => {
            tracing::debug!(%error, "the metadata database does without one of our limits");
            Ok(())
        }
        other => other.map(drop),
    }
}

/// The driver of a URL, and the URL as the driver shall see it.
fn checked(text: &str, password: Option<&str>) -> Result<(&'static str, Url), String> {
    let mut url = Url::parse(text).map_err(|it| format!("the URL is not valid: {it}"))?;
    let (name, mode, key, roots) = match url.scheme() {
        "mysql" | "mariadb" => ("mysql", "VERIFY_IDENTITY", "ssl-mode", ["ssl-ca", "sslca"]),
        "postgres" | "postgresql" => ("postgres", "verify-full", "sslmode", ["sslrootcert", "ssl-root-cert"]),
        _ => return Err("its URL begins with mysql:// or postgres://".to_owned()),
    };
    if url.path().trim_matches('/').is_empty() {
        return Err(format!("the URL names no database: {name}://USER@HOST:PORT/DATABASE"));
    }
    if let Some(password) = password {
        url.set_password(Some(password)).map_err(|()| "the URL names no host".to_owned())?;
    }
    let given = |names: &[&str]| url.query_pairs().any(|(it, _)| names.contains(&&*it));
    let decided = given(&["sslmode", "ssl-mode"]);
    // A certificate to check against says that checking is wanted.
    if !decided && (!near(&url) || given(&roots)) {
        url.query_pairs_mut().append_pair(key, mode);
    }
    Ok((name, url))
}

/// Whether the host is this machine: a loopback address, `localhost`, or a socket.
fn near(url: &Url) -> bool {
    if url.query_pairs().any(|(key, value)| key == "socket" || (key == "host" && value.starts_with('/'))) {
        return true;
    }
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        // These schemes are not special to the URL standard, which then leaves addresses as texts.
        Some(Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback())
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn another_machine_is_reached_with_checked_certificates_unless_told_otherwise() {
        for (url, wanted) in [
            ("postgres://u@db.example/arco", "postgres://u:p%20w@db.example/arco?sslmode=verify-full"),
            ("postgres://u@10.0.0.1/arco", "postgres://u:p%20w@10.0.0.1/arco?sslmode=verify-full"),
            ("postgres://u@127.0.0.1:5433/arco", "postgres://u:p%20w@127.0.0.1:5433/arco"),
            ("postgres://u@[::1]/arco", "postgres://u:p%20w@[::1]/arco"),
            ("postgres://u@db.example/arco?sslmode=disable", "postgres://u:p%20w@db.example/arco?sslmode=disable"),
            ("mysql://u@db.example/arco", "mysql://u:p%20w@db.example/arco?ssl-mode=VERIFY_IDENTITY"),
            ("mysql://u@localhost/arco", "mysql://u:p%20w@localhost/arco"),
            (
                "mysql://u@localhost/arco?ssl-ca=/ca.pem",
                "mysql://u:p%20w@localhost/arco?ssl-ca=/ca.pem&ssl-mode=VERIFY_IDENTITY",
            ),
        ] {
            assert_eq!(checked(url, Some("p w")).unwrap().1.as_str(), wanted);
        }
    }

    #[test]
    fn a_wrong_url_is_named_without_its_password() {
        for url in ["oracle://u:secret@h/d", "mysql://u:secret@h", "postgres://u:secret@h:port/d", "secret"] {
            let error = checked(url, None).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
