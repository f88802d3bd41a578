//! How full volumes are, as metrics of the server that leads: `arco_storage_size_bytes`, `arco_storage_used_bytes` by tenant,
//! application, component and volume.
//!
//! What must hold: only the leader tells; a reader never sees half of a look; what is gone is told no more. Sums are the
//! reader's: `sum by (tenant)`.

use arco_daemon::metrics::Metrics;
use arco_daemon::{OnExit, Supervisor};
use arco_orchestrator::{SharedStorage, Telling};
use arco_store::sql::{Query, SharedMetadata, VolumeRow};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often storage is asked.
const PERIOD: Duration = Duration::from_secs(60);

/// A volume, by names.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, EncodeLabelSet)]
struct Labels {
    tenant: String,
    application: String,
    component: String,
    volume: String,
}

/// Bytes of volumes, every place of one together.
type Bytes = BTreeMap<Labels, u64>;

/// The gauges; cheap to clone.
#[derive(Clone)]
pub(super) struct StorageUse {
    size: Family<Labels, Gauge>,
    used: Family<Labels, Gauge>,
}

/// What was told last.
#[derive(Default)]
struct Told {
    size: Bytes,
    used: Bytes,
}

impl StorageUse {
    /// Registers them; they are empty while nobody leads here.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let this = Self { size: Family::default(), used: Family::default() };
        metrics.register("storage", |it| {
            it.register("size_bytes", "Size of a volume, every place together", this.size.clone());
            it.register("used_bytes", "How much of a volume is used, every place together", this.used.clone());
        });
        this
    }

    /// Asks again and again, as long as `tasks` go on.
    pub(super) fn follow(self, storage: SharedStorage, metadata: SharedMetadata, tasks: &Supervisor) {
        let token = tasks.token().clone();
        tasks.spawn("use of storage", OnExit::Continue, async move {
            let mut told = Told::default();
            while !token.is_cancelled() {
                match token.run_until_cancelled(look(&storage, &metadata)).await {
                    Some(Ok(now)) => {
                        self.tell(&told, &now);
                        told = now;
                    }
                    Some(Err(error)) => tracing::debug!(error, "how full volumes are is asked again later"),
                    None => {}
                }
                let _ = tokio::time::timeout(PERIOD, token.cancelled()).await;
            }
            self.tell(&told, &Told::default());
            Ok(())
        });
    }

    /// Says what is, and no more what was.
    fn tell(&self, before: &Told, now: &Told) {
        for (family, before, now) in [(&self.size, &before.size, &now.size), (&self.used, &before.used, &now.used)] {
            for (labels, bytes) in now {
                family.get_or_create(labels).set(i64::try_from(*bytes).unwrap_or(i64::MAX));
            }
            for labels in before.keys().filter(|it| !now.contains_key(it)) {
                family.remove(labels);
            }
        }
    }
}

async fn look(storage: &SharedStorage, metadata: &SharedMetadata) -> Result<Told, String> {
    let mut told = Told::default();
    let rows = metadata.list::<VolumeRow>(&Query::default()).await.map_err(|it| it.to_string())?.items;
    if rows.is_empty() {
        return Ok(told);
    }
    let mut labels = BTreeMap::new();
    for row in rows.into_iter().map(|it| it.value) {
        let of_row = Labels {
            tenant: row.tenant.to_string(),
            application: row.application.to_string(),
            component: row.component.to_string(),
            volume: row.name.to_string(),
        };
        labels.insert((row.component_id, row.name), of_row);
    }
    for it in storage.volumes(None, Telling::Use).await.map_err(|it| it.to_string())? {
        let Some(labels) = labels.get(&(it.component, it.volume)) else { continue };
        *told.size.entry(labels.clone()).or_default() += it.size_bytes;
        if let Some(used) = it.used_bytes {
            *told.used.entry(labels.clone()).or_default() += used;
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arco_model::id::ComponentId;
    use arco_model::sample;
    use arco_model::storage::{VolumeClass, VolumeFacts};
    use arco_orchestrator::{Error, Storage};
    use arco_store::sql::{Batch, MemoryMetadata};
    use async_trait::async_trait;
    use std::sync::Arc;

    struct Disk(Vec<VolumeFacts>);

    #[async_trait]
    impl Storage for Disk {
        async fn classes(&self) -> Result<Vec<VolumeClass>, Error> {
            Ok(Vec::new())
        }
        async fn volumes(&self, _: Option<&ComponentId>, _: Telling) -> Result<Vec<VolumeFacts>, Error> {
            Ok(self.0.clone())
        }
    }

    #[tokio::test]
    async fn volumes_are_told_by_names_and_no_more_when_they_are_gone() {
        let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
        let row = |component: u64| {
            let mut of = sample::component();
            (of.id, of.name) = (ComponentId::from_parts(component, 0), format!("c{component}").parse().unwrap());
            VolumeRow::new(&of, "files".parse().unwrap(), 1)
        };
        let held = |component: u64, used_bytes| VolumeFacts {
            component: ComponentId::from_parts(component, 0),
            volume: "files".parse().unwrap(),
            place: None,
            class: "local".to_owned(),
            access: Vec::new(),
            size_bytes: 100,
            used_bytes,
        };
        for component in [1, 2] {
            metadata.insert(&row(component)).await.unwrap();
        }
        // Two places of one; of the second nobody tells its use; the third has no row.
        let disk: SharedStorage =
            Arc::new(Disk(vec![held(1, Some(7)), held(1, Some(3)), held(2, None), held(3, Some(9))]));
        let metrics = Metrics::new();
        let gauges = StorageUse::new(&metrics);
        let told = look(&disk, &metadata).await.unwrap();
        gauges.tell(&Told::default(), &told);
        let said = |name: &str, component: &str| {
            let of = format!(r#"component="{component}""#);
            let text = metrics.encode();
            let line = text.lines().find(|it| it.starts_with(name) && it.contains(&of)).map(str::to_owned);
            line.and_then(|it| it.rsplit(' ').next().map(str::to_owned))
        };
        assert_eq!(said("arco_storage_size_bytes{", "c1").as_deref(), Some("200"));
        assert_eq!(said("arco_storage_used_bytes{", "c1").as_deref(), Some("10"));
        assert_eq!(said("arco_storage_size_bytes{", "c2").as_deref(), Some("100"));
        assert_eq!((said("arco_storage_used_bytes{", "c2"), said("arco_storage_size_bytes{", "c3")), (None, None));

        let rows = metadata.list::<VolumeRow>(&Query::default()).await.unwrap().items;
        let mut gone = Batch::default();
        gone.delete(rows.iter().find(|it| it.value.component.as_str() == "c1").unwrap());
        metadata.commit(gone).await.unwrap();
        let left = look(&disk, &metadata).await.unwrap();
        gauges.tell(&told, &left);
        assert_eq!((said("arco_storage_size_bytes{", "c1"), said("arco_storage_used_bytes{", "c1")), (None, None));
        gauges.tell(&left, &Told::default());
        assert!(!metrics.encode().contains("shop"), "who leads no more tells nothing");
    }
}
