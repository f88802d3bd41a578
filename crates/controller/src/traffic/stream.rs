//! Ports of the gateway that lead to ports of components without HTTP: one KV key each.

use super::{PublishError, Published, Publisher};
use arco_model::id::ComponentId;
use arco_model::traffic::{STREAMS, StreamEntry};
use arco_store::sql::{Query, StreamRow};
use std::collections::BTreeSet;

impl Publisher {
    /// Writes the streams of a component as its rows say, and takes away those that led to it. One that is `leaving` has
    /// none.
    pub(super) async fn streams(
        &self,
        published: &mut Published,
        component: &ComponentId,
        leaving: bool,
    ) -> Result<u64, PublishError> {
        let mut wanted = BTreeSet::new();
        let mut newest = 0;
        if !leaving {
            for row in self.metadata.list::<StreamRow>(&Query::tag(component.as_str())).await?.items {
                let entry = row.value.stream;
                let key = entry.key();
                newest = newest.max(self.put(published, key.clone(), &entry).await?);
                wanted.insert(key);
            }
        }
        let leads = |value: &[u8]| {
            serde_json::from_slice::<StreamEntry>(value).is_ok_and(|it| it.target.component == *component)
        };
        let there = published.keys.range(STREAMS.to_owned()..).take_while(|it| it.0.starts_with(STREAMS));
        let gone = there.filter(|(key, value)| !wanted.contains(*key) && leads(&value.0));
        let gone: Vec<String> = gone.map(|it| it.0.clone()).collect();
        for key in gone {
            self.delete(published, &key).await?;
        }
        Ok(newest)
    }
}
