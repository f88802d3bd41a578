//! What every metadata driver must do, run on every database and on the fake.

mod remote;

use super::{
    Batch, Cursor, Entity, Kind, MemoryMetadata, Metadata, Query, Row, SeaOrmMetadata, SharedMetadata, SqlError, Write,
};
use arco_model::application::{Application, Tenant};
use arco_model::id::ApplicationId;
use arco_model::name::{ApplicationName, TenantName};
use arco_model::time::Timestamp;
use std::sync::Arc;

fn application(number: u64, name: &str) -> Application {
    Application {
        id: ApplicationId::from_parts(number, 0),
        tenant: TenantName::default_tenant(),
        name: ApplicationName::new(name).unwrap(),
        created_at: Timestamp(number / 2), // pairs share a time, so that keys decide
    }
}

async fn rows_come_back_with_versions(db: &dyn Metadata) {
    let one = application(1, "one");
    db.insert(&one).await.unwrap();
    let mut found = db.get::<Application>(&one.key()).await.unwrap().unwrap();
    assert_eq!((found.version, &found.value), (1, &one));
    found.value.name = ApplicationName::new("other").unwrap();
    db.update(&found).await.unwrap();
    assert!(matches!(db.update(&found).await, Err(SqlError::Conflict { kind: Kind::Application, .. })));
    let again = db.find::<Application>("default", "other").await.unwrap().unwrap();
    assert_eq!((again.version, again.value.name.as_str()), (2, "other"));
    assert!(db.find::<Application>("default", "one").await.unwrap().is_none());
    assert!(db.get::<Tenant>(&one.key()).await.unwrap().is_none());
}

async fn names_are_unique_in_their_parent(db: &dyn Metadata) {
    db.insert(&application(1, "one")).await.unwrap();
    assert!(matches!(db.insert(&application(2, "one")).await, Err(SqlError::Exists { .. })));
    assert!(matches!(db.insert(&application(1, "two")).await, Err(SqlError::Exists { .. })));
    db.insert(&application(2, "two")).await.unwrap();
    let mut two = db.find::<Application>("default", "two").await.unwrap().unwrap();
    two.value.name = ApplicationName::new("one").unwrap();
    assert!(matches!(db.update(&two).await, Err(SqlError::Exists { .. })));
}

async fn a_batch_happens_whole_or_not_at_all(db: &dyn Metadata) {
    db.insert(&application(1, "one")).await.unwrap();
    let one = db.find::<Application>("default", "one").await.unwrap().unwrap();
    let mut batch = Batch::default();
    batch.insert(&application(2, "two")).unwrap().delete(&one).insert(&application(3, "two")).unwrap();
    assert!(db.commit(batch).await.is_err());
    assert!(db.find::<Application>("default", "one").await.unwrap().is_some());
    assert!(db.find::<Application>("default", "two").await.unwrap().is_none());
    let mut batch = Batch::default();
    batch.check(&one).delete(&one).insert(&application(2, "two")).unwrap();
    db.commit(batch).await.unwrap();
    let mut batch = Batch::default();
    batch.check(&one).insert(&application(4, "four")).unwrap();
    assert!(matches!(db.commit(batch).await, Err(SqlError::Conflict { .. })));
}

async fn lists_are_ordered_narrowed_and_paged(db: &dyn Metadata) {
    for number in 0..7 {
        db.insert(&application(number, &format!("a{number}"))).await.unwrap();
    }
    for newest_first in [false, true] {
        let mut after: Option<Cursor> = None;
        let mut seen = Vec::new();
        loop {
            let query = Query { newest_first, limit: 3, after, ..Query::parent("default") };
            let page = db.list::<Application>(&query).await.unwrap();
            seen.extend(page.items.iter().map(|it| it.value.name.to_string()));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut wanted: Vec<_> = (0..7).map(|it| format!("a{it}")).collect();
        if newest_first {
            wanted.reverse();
        }
        assert_eq!(seen, wanted);
    }
    assert!(db.list::<Application>(&Query::parent("nobody")).await.unwrap().items.is_empty());
    assert!(db.list::<Application>(&Query::tag("x")).await.unwrap().items.is_empty());
    assert_eq!(db.list::<Application>(&Query::tag("")).await.unwrap().items.len(), 7);
}

async fn names_are_told_apart_byte_by_byte(db: &dyn Metadata) {
    let volume = |number: u64, parent: &str, name: &str| Row {
        key: format!("{number:032x}"),
        parent: parent.to_owned(),
        name: name.to_owned(),
        tag: "Ä".to_owned(),
        created_at: Timestamp(number),
        version: 1,
        body: "{\"text\":\"\u{1F980}\"}".repeat(40_000),
    };
    let long = "\u{1F980}".repeat(100);
    let names = ["web", "Web", "wéb", "web\u{301}", &"n".repeat(200), &"\u{1F980}".repeat(50)];
    for (number, name) in (1..).zip(names) {
        let row = volume(number, &long, name);
        db.commit(Batch { writes: vec![Write::Insert(Kind::Volume, row.clone())] }).await.unwrap();
        assert_eq!(db.get_row(Kind::Volume, &row.key).await.unwrap(), Some(row));
    }
    let again = Batch { writes: vec![Write::Insert(Kind::Volume, volume(99, &long, "Web"))] };
    assert!(matches!(db.commit(again).await, Err(SqlError::Exists { kind: Kind::Volume, .. })));
    let query = Query { names: vec!["WEB".to_owned()], ..Query::parent(long.clone()) };
    assert!(db.list_rows(Kind::Volume, &query).await.unwrap().items.is_empty());
    let (parents, wanted) = (vec![long.clone(), "nobody".to_owned()], ["web", "x", "wéb", "WEB"].map(str::to_owned));
    let query = Query { parents, names: wanted.to_vec(), ..Query::default() };
    let found = db.list_rows(Kind::Volume, &query).await.unwrap().items;
    assert_eq!(found.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["web", "wéb"]);
    assert_eq!(db.list_rows(Kind::Volume, &Query::tag("Ä")).await.unwrap().items.len(), names.len());
    assert!(db.list_rows(Kind::Volume, &Query::tag("ä")).await.unwrap().items.is_empty());
}

async fn a_check_holds_until_the_commit(db: SharedMetadata) {
    // Each writer takes the one row that nobody has taken, which only a check of the other guards.
    for number in [1, 2] {
        db.insert(&application(number, &format!("free{number}"))).await.unwrap();
    }
    let take = |mine: &'static str, other: &'static str, to: &'static str| {
        let db = db.clone();
        async move {
            let (Some(mut mine), Some(other)) = (
                db.find::<Application>("default", mine).await.unwrap(),
                db.find::<Application>("default", other).await.unwrap(),
            ) else {
                return false;
            };
            mine.value.name = ApplicationName::new(to).unwrap();
            let mut batch = Batch::default();
            batch.check(&other).update(&mine).unwrap();
            match db.commit(batch).await {
                Ok(()) => true,
                Err(SqlError::Conflict { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (one, two) =
        tokio::join!(tokio::spawn(take("free1", "free2", "taken1")), tokio::spawn(take("free2", "free1", "taken2")));
    assert!(one.unwrap() != two.unwrap(), "exactly one of the two wins");
}

async fn concurrent_changes_are_all_kept(db: SharedMetadata) {
    let tenant = Tenant { name: TenantName::default_tenant(), memory_quota_mb: 0, created_at: Timestamp(1) };
    db.insert(&tenant).await.unwrap();
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let add = |it: &mut Tenant| {
                        it.memory_quota_mb += 1;
                        true
                    };
                    db.modify::<Tenant>("default", add).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(db.get::<Tenant>("default").await.unwrap().unwrap().value.memory_quota_mb, 80);
}

macro_rules! contract {
    ($driver:ident, $make:expr) => {
        mod $driver {
            use super::*;

            #[tokio::test]
            async fn rows_come_back_with_versions() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                super::rows_come_back_with_versions(&*db).await;
            }
            #[tokio::test]
            async fn names_are_unique_in_their_parent() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                super::names_are_unique_in_their_parent(&*db).await;
            }
            #[tokio::test]
            async fn a_batch_happens_whole_or_not_at_all() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                super::a_batch_happens_whole_or_not_at_all(&*db).await;
            }
            #[tokio::test]
            async fn lists_are_ordered_narrowed_and_paged() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                super::lists_are_ordered_narrowed_and_paged(&*db).await;
            }
            #[tokio::test]
            async fn names_are_told_apart_byte_by_byte() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                super::names_are_told_apart_byte_by_byte(&*db).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_check_holds_until_the_commit() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                super::a_check_holds_until_the_commit(db).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn concurrent_changes_are_all_kept() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                super::concurrent_changes_are_all_kept(db).await;
            }
            #[tokio::test]
            async fn a_leader_that_was_followed_writes_nothing() {
                let made = $make;
                let Some((db, _keep)) = made else { return };
                let kv = Arc::new(crate::kv::MemoryKv::new());
                crate::fence::tests::a_leader_that_was_followed_writes_nothing(kv, db).await;
            }
        }
    };
}

contract!(memory, Some((Arc::new(MemoryMetadata::default()) as SharedMetadata, ())));
contract!(sqlite, {
    let folder = tempfile::tempdir().unwrap();
    let db = SeaOrmMetadata::open(&folder.path().join("metadata.db")).await.unwrap();
    Some((Arc::new(db) as SharedMetadata, folder))
});
contract!(mysql, remote::fresh(arco_testkit::servers::mysql()).await);
contract!(postgres, remote::fresh(arco_testkit::servers::postgres()).await);

#[tokio::test]
async fn a_database_opens_again_and_a_newer_one_is_refused() {
    use sea_orm::{ConnectionTrait as _, Database};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.db");
    let db = SeaOrmMetadata::open(&path).await.unwrap();
    (&db as &dyn Metadata).insert(&application(1, "one")).await.unwrap();
    drop(db);
    let db = SeaOrmMetadata::open(&path).await.unwrap();
    assert!((&db as &dyn Metadata).find::<Application>("default", "one").await.unwrap().is_some());
    drop(db);
    let raw = Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    raw.execute_unprepared("INSERT INTO schema_version VALUES (1000)").await.unwrap();
    drop(raw);
    assert!(matches!(SeaOrmMetadata::open(&path).await, Err(SqlError::Newer { found: 1000, .. })));
}
