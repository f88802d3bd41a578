//! Connections to the databases: what a URL means, how they are secured, how many there are.
//!
//! A URL may carry a password, so no error of this file shows one.

use super::{SqlError, unavailable};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
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

/// Connects to a database on the network; also gives the driver's name.
pub(super) async fn remote(url: &str, password: Option<&str>) -> Result<(&'static str, DatabaseConnection), SqlError> {
    let (name, url) = checked(url, password).map_err(|cause| SqlError::Unavailable { step: "open", cause })?;
    let mut options = ConnectOptions::new(String::from(url));
    options.max_connections(POOL).min_connections(1).sqlx_logging(false);
    options.connect_timeout(CONNECT).acquire_timeout(CONNECT).test_before_acquire_if_idle_for(IDLE);
    // A proxy or firewall in between forgets old connections.
    options.idle_timeout(Duration::from_secs(300)).max_lifetime(Duration::from_secs(1800));
    Ok((name, Database::connect(options).await.map_err(unavailable("open"))?))
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
