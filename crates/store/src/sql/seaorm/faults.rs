//! Which errors of a database are worth another try: table of codes, and how often.
//!
//! Two writers that meet are normal on every database: it rolls one back and expects it to come again. A connection that
//! broke before the commit was asked for did nothing that stays.

use sea_orm::{DbErr, RuntimeErr};
use sqlx::mysql::MySqlDatabaseError;
use std::time::Duration;

/// Tries of one call whose connection is lost.
const MOST: u32 = 8;
/// Tries of one that others are in the way of: each time one of them went on, and the call has a deadline besides.
const MOST_BUSY: u32 = 100;
/// Longest pause between two tries.
const LONGEST_PAUSE_MS: u64 = 400;

/// What an error means for the call that it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// The database rolled the transaction back because others were in the way.
    Busy,
    /// The connection is gone, or was never made.
    Lost,
    /// The same call would fail again.
    Final,
}

/// What an error means.
pub(super) fn of(error: &DbErr) -> Fault {
    use sqlx::Error;
    let (DbErr::Conn(RuntimeErr::SqlxError(cause))
    | DbErr::Exec(RuntimeErr::SqlxError(cause))
    | DbErr::Query(RuntimeErr::SqlxError(cause))) = error
    else {
        return if matches!(error, DbErr::ConnectionAcquire(_)) { Fault::Lost } else { Fault::Final };
    };
    match &**cause {
        Error::Database(cause) => match cause.try_downcast_ref::<MySqlDatabaseError>() {
            Some(cause) => mysql(cause.number()),
            None => sqlstate(&cause.code().unwrap_or_default()),
        },
        Error::Io(_) | Error::PoolTimedOut | Error::Protocol(_) | Error::WorkerCrashed => Fault::Lost,
        _ => Fault::Final,
    }
}

/// MySQL, MariaDB and TiDB, by number.
fn mysql(number: u16) -> Fault {
    match number {
        // Lock wait timeout, deadlock; TiDB: write conflict, transaction retryable, schema changed.
        1205 | 1213 | 8002 | 8022 | 8028 | 9007 => Fault::Busy,
        // Server is going, connection killed, too many connections, aborted; MariaDB: connection killed; silent for too
        // long.
        1040 | 1053 | 1152 | 1184 | 1317 | 1927 | 4031 => Fault::Lost,
        _ => Fault::Final,
    }
}

/// PostgreSQL, CockroachDB and YugabyteDB, by SQLSTATE. 40003 (not known whether it was done) is not to be repeated.
fn sqlstate(code: &str) -> Fault {
    match code {
        // Not serializable, deadlock, a lock that was not had in time: what failed so did nothing, and is rolled back.
        "40001" | "40P01" | "55P03" => Fault::Busy,
        // Terminated by an administrator, by a crash, starting up; too many connections; silent for too long, in the
        // middle of a transaction and otherwise.
        "57P01" | "57P02" | "57P03" | "53300" | "25P03" | "57P05" => Fault::Lost,
        code if code.len() == 5 && code.starts_with("08") => Fault::Lost,
        _ => Fault::Final,
    }
}

/// How often a call was tried.
#[derive(Default)]
pub(super) struct Attempts {
    done: u32,
}

impl Attempts {
    /// After a fault: waits a little, longer each time and never as long as a neighbour does, then says whether to try again.
    pub(super) async fn another(&mut self, fault: Fault) -> bool {
        self.done += 1;
        let most = match fault {
            Fault::Busy => MOST_BUSY,
            Fault::Lost => MOST,
            Fault::Final => 0,
        };
        if self.done >= most {
            return false;
        }
        let pause = (5u64 << self.done.min(10)).min(LONGEST_PAUSE_MS);
        tokio::time::sleep(Duration::from_millis(pause / 2 + crate::clock::random() % pause)).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_their_databases_say() {
        for code in ["40001", "40P01", "55P03"] {
            assert_eq!(sqlstate(code), Fault::Busy, "{code}");
        }
        for code in ["08006", "08003", "57P01", "53300", "25P03", "57P05"] {
            assert_eq!(sqlstate(code), Fault::Lost, "{code}");
        }
        // A unique name, an unknown outcome, SQLite's own numbers.
        for code in ["23505", "40003", "42P01", "5", "2067", "08", ""] {
            assert_eq!(sqlstate(code), Fault::Final, "{code}");
        }
        assert_eq!([1213, 1205, 9007].map(mysql), [Fault::Busy; 3]);
        assert_eq!([1927, 1053, 4031].map(mysql), [Fault::Lost; 3]);
        assert_eq!([1062, 1146, 1406].map(mysql), [Fault::Final; 3]);
    }
}
