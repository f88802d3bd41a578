//! The fake: rows in memory.

use super::{Batch, Kind, Metadata, Page, Query, Row, SqlError, Write};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Mutex;

type Rows = BTreeMap<(Kind, String), Row>;

/// Rows in memory, for tests.
#[derive(Default)]
pub struct MemoryMetadata {
    rows: Mutex<Rows>,
}

impl MemoryMetadata {
    fn lock(&self) -> std::sync::MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl Metadata for MemoryMetadata {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError> {
        Ok(self.lock().get(&(kind, key.to_owned())).cloned())
    }

    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError> {
        let rows = self.lock();
        let wanted = |row: &&Row| {
            [(&query.parents, &row.parent), (&query.names, &row.name), (&query.tags, &row.tag)]
                .iter()
                .all(|(wanted, it)| wanted.is_empty() || wanted.contains(it))
        };
        let mut items: Vec<Row> =
            rows.iter().filter(|((it, _), _)| *it == kind).map(|(_, row)| row).filter(wanted).cloned().collect();
        items.sort_by(|a, b| (a.created_at, &a.key).cmp(&(b.created_at, &b.key)));
        if query.newest_first {
            items.reverse();
        }
        if let Some(after) = &query.after {
            let place = (after.created_at, &after.key);
            items.retain(|row| {
                if query.newest_first { (row.created_at, &row.key) < place } else { (row.created_at, &row.key) > place }
            });
        }
        Ok(Page::of(items, query.limit))
    }

    async fn commit(&self, batch: Batch) -> Result<(), SqlError> {
        let mut rows = self.lock();
        let mut after = rows.clone();
        for write in batch.writes {
            apply(&mut after, write)?;
        }
        *rows = after;
        Ok(())
    }

    async fn ping(&self) -> Result<(), SqlError> {
        Ok(())
    }
}

fn apply(rows: &mut Rows, write: Write) -> Result<(), SqlError> {
    let conflict = |kind, key: &str| SqlError::Conflict { kind, key: key.to_owned() };
    match write {
        Write::Insert(kind, row) => {
            if rows.iter().any(|((it, key), old)| {
                *it == kind && (*key == row.key || (old.parent == row.parent && old.name == row.name))
            }) {
                return Err(SqlError::Exists { kind, name: row.name });
            }
            rows.insert((kind, row.key.clone()), Row { version: 1, ..row });
        }
        Write::Update(kind, row) => {
            let place = (kind, row.key.clone());
            if rows.get(&place).is_none_or(|old| old.version != row.version) {
                return Err(conflict(kind, &row.key));
            }
            let taken = |((it, key), old): (&(Kind, String), &Row)| {
                *it == kind && *key != row.key && old.parent == row.parent && old.name == row.name
            };
            if rows.iter().any(taken) {
                return Err(SqlError::Exists { kind, name: row.name });
            }
            rows.insert(place, Row { version: row.version + 1, ..row });
        }
        Write::Delete(kind, key, version) => {
            if rows.get(&(kind, key.clone())).is_none_or(|old| old.version != version) {
                return Err(conflict(kind, &key));
            }
            rows.remove(&(kind, key));
        }
        Write::Check(kind, key, version) => {
            if rows.get(&(kind, key.clone())).is_none_or(|old| old.version != version) {
                return Err(conflict(kind, &key));
            }
        }
    }
    Ok(())
}
