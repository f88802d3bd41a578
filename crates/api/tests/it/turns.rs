//! A change whose turn among several servers went to another one writes nothing, and destroys nothing.

use crate::platform::{Platform, WEB, code};
use arco_api::wire::{CredentialRequest, RouteRequest, SecretText, SpecPatch};
use arco_store::fence;
use arco_store::sql::{Batch, Kind, MemoryMetadata, Metadata, Page, Query, Row, SharedMetadata, SqlError, VolumeRow};
use async_trait::async_trait;
use std::sync::{Arc, Mutex};

/// Rows; once some of a kind are read, the turn is another server's.
struct Overtaking {
    rows: SharedMetadata,
    at: Mutex<Option<Kind>>,
}

impl Overtaking {
    async fn was_read(&self, kind: Kind) {
        let now = self.at.lock().unwrap().take_if(|it| *it == kind).is_some();
        if now {
            fence::raise_metadata(&self.rows, "changes", "another server").await.unwrap();
        }
    }
}

#[async_trait]
impl Metadata for Overtaking {
    fn name(&self) -> &'static str {
        self.rows.name()
    }

    async fn get_row(&self, kind: Kind, key: &str) -> Result<Option<Row>, SqlError> {
        let found = self.rows.get_row(kind, key).await;
        self.was_read(kind).await;
        found
    }

    async fn list_rows(&self, kind: Kind, query: &Query) -> Result<Page<Row>, SqlError> {
        let found = self.rows.list_rows(kind, query).await;
        self.was_read(kind).await;
        found
    }

    async fn commit(&self, batch: Batch) -> Result<(), SqlError> {
        self.rows.commit(batch).await
    }

    async fn ping(&self) -> Result<(), SqlError> {
        self.rows.ping().await
    }
}

#[tokio::test]
async fn who_was_overtaken_deletes_and_keeps_nothing() {
    let overtaking = Arc::new(Overtaking { rows: Arc::new(MemoryMetadata::default()), at: Mutex::default() });
    let platform = Platform::among_several(overtaking.clone()).await;
    let (client, overtaken_at) = (&platform.client, |kind| *overtaking.at.lock().unwrap() = Some(kind));
    let component = platform.running(WEB, SpecPatch::default()).await;
    let volume = VolumeRow::new(&component, "files".parse().unwrap(), 10);
    platform.metadata.insert(&volume).await.unwrap();
    let request: RouteRequest = serde_json::from_value(serde_json::json!({"hosts": ["a.test"]})).unwrap();
    let route = client.add_route("default", WEB, &request).await.unwrap().remove(0).id.unwrap();
    let credential = CredentialRequest {
        url: "https://git.example.com/team".to_owned(),
        application: None,
        user: None,
        token: Some(SecretText("hunter2".to_owned())),
        ssh_key: None,
        host_keys: None,
    };

    overtaken_at(Kind::Volume);
    assert_eq!(code(client.delete_volume("default", volume.id.as_str()).await), "no_turn");
    assert!(platform.orchestrator.removed.lock().unwrap().is_empty(), "its content stays");
    overtaken_at(Kind::Route);
    assert_eq!(code(client.delete_route("default", WEB, &route).await), "no_turn");
    overtaken_at(Kind::Tenant);
    assert_eq!(code(client.set_credential("default", &credential).await), "no_turn");
    assert!(client.credentials("default").await.unwrap().is_empty());

    // The next turn is ours again.
    client.delete_route("default", WEB, &route).await.unwrap();
    client.delete_volume("default", volume.id.as_str()).await.unwrap();
    client.set_credential("default", &credential).await.unwrap();
    assert_eq!(platform.orchestrator.removed.lock().unwrap().len(), 1);
}
