//! What every driver of the lock must do, as one suite.
#![allow(clippy::unwrap_used, reason = "for tests only")]

use super::{LeaderLock, LockError, Taken};
use std::sync::Arc;
use std::time::Duration;

/// How long the suite waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Life of a lock that must not end while it is tested, in seconds.
const LONG_S: u64 = 3600;
/// Life of a lock whose end is waited for, in seconds.
const SHORT_S: u64 = 2;

/// Runs all of it. `make(area)` gives what makes candidates of one lock, by their names and its life in seconds; each area
/// is a lock of its own that nobody else uses.
pub async fn suite<M, F>(make: M)
where
    M: Fn(&str) -> F,
    F: Fn(&str, u64) -> Arc<dyn LeaderLock>,
{
    one_has_it_until_it_gives_it_back(make("given-back")).await;
    who_is_silent_loses_it(make("silent")).await;
    of_many_at_once_one_has_it(make("many")).await;
}

fn by(name: &str) -> Taken {
    Taken::Held { by: name.to_owned() }
}

async fn one_has_it_until_it_gives_it_back(make: impl Fn(&str, u64) -> Arc<dyn LeaderLock>) {
    let (a, b) = (make("a", LONG_S), make("b", LONG_S));
    assert!(matches!(a.renew().await, Err(LockError::Lost)), "it was never taken");
    assert_eq!(a.take().await.unwrap(), Taken::Ours);
    assert_eq!(b.take().await.unwrap(), by("a"));
    a.renew().await.unwrap();
    assert!(matches!(b.renew().await, Err(LockError::Lost)));
    b.give_back().await.unwrap();
    a.renew().await.unwrap();
    a.give_back().await.unwrap();
    assert!(matches!(a.renew().await, Err(LockError::Lost)));
    assert_eq!(b.take().await.unwrap(), Taken::Ours);
    assert_eq!(a.take().await.unwrap(), by("b"));
    b.give_back().await.unwrap();
    assert_eq!(a.take().await.unwrap(), Taken::Ours, "who lost it may take it again");
    a.give_back().await.unwrap();
}

async fn who_is_silent_loses_it(make: impl Fn(&str, u64) -> Arc<dyn LeaderLock>) {
    let (silent, next) = (make("silent", SHORT_S), make("next", LONG_S));
    assert_eq!(silent.take().await.unwrap(), Taken::Ours);
    let taken = async {
        while next.take().await.unwrap() != Taken::Ours {
            next.moved().await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.unwrap();
    assert!(matches!(silent.renew().await, Err(LockError::Lost)));
    // Giving back what was lost takes nothing from the one who has it.
    silent.give_back().await.unwrap();
    next.renew().await.unwrap();
    next.give_back().await.unwrap();
}

async fn of_many_at_once_one_has_it(make: impl Fn(&str, u64) -> Arc<dyn LeaderLock>) {
    let many: Vec<_> = (0..8).map(|it| make(&format!("m{it}"), LONG_S)).collect();
    let tasks: Vec<_> = many.iter().cloned().map(|it| tokio::spawn(async move { it.take().await })).collect();
    let mut ours = 0;
    for task in tasks {
        // A driver may lose a race by an error; it never wins one twice.
        ours += usize::from(matches!(task.await.unwrap(), Ok(Taken::Ours)));
    }
    assert_eq!(ours, 1);
    let mut renewed = 0;
    for lock in &many {
        renewed += usize::from(lock.renew().await.is_ok());
        lock.give_back().await.unwrap();
    }
    assert_eq!(renewed, 1);
}
