//! Archives on their way into the blob store.

use crate::platform::{Platform, WEB, code};
use arco_api::client::Client;
use arco_api::wire::{ApplyRequest, ComponentApply, CreateTenant, DeployRequest, SpecPatch};
use arco_model::artifact::Digest;
use arco_model::manifest::ComponentManifest;
use arco_model::name::TenantName;
use arco_model::source::Source;
use arco_store::blob::{Blobs, SharedBlobs, content_path};
use arco_store::images::Images;
use std::io::Cursor;

/// Begins like gzip; the API never looks further.
fn archive(size: usize) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b];
    bytes.extend((2..size).map(|it| (it % 251) as u8));
    bytes
}

fn source(digest: &Digest) -> Source {
    Source::Upload { digest: digest.clone(), origin: String::new(), commit: None, dir: String::new() }
}

fn from(digest: &Digest) -> DeployRequest {
    DeployRequest { source: source(digest), patch: SpecPatch::default(), no_cache: false }
}

async fn make_tenant(platform: &Platform, name: &str) {
    platform.client.create_tenant(&CreateTenant { name: name.into(), memory_quota_mb: 0 }).await.unwrap();
}

#[tokio::test]
async fn an_upload_lies_under_its_digest_whatever_its_size() {
    let platform = Platform::start().await;
    for size in [100, 9 << 20] {
        let bytes = archive(size);
        let digest = Digest::of(&bytes);
        assert!(!platform.client.has_upload("default", digest.as_str()).await.unwrap());
        let receipt = platform.client.upload("default", size as u64, Cursor::new(bytes.clone())).await.unwrap();
        assert_eq!((receipt.digest.as_str(), receipt.size), (digest.as_str(), size as u64));
        assert!(platform.client.has_upload("default", digest.as_str()).await.unwrap());
        assert_eq!(platform.blobs.stat(&content_path(&digest)).await.unwrap().unwrap().size, size as u64);
        platform.client.upload("default", size as u64, Cursor::new(bytes)).await.unwrap();
    }
    assert!(platform.blobs.list("uploads/").await.unwrap().is_empty(), "nothing is left staged");
}

#[tokio::test]
async fn what_is_no_archive_or_too_large_leaves_nothing() {
    let platform = Platform::with(|it| it.api.max_upload_bytes = 9 << 20).await;
    let upload =
        async |bytes: Vec<u8>| code(platform.client.upload("default", bytes.len() as u64, Cursor::new(bytes)).await);
    assert_eq!(upload(b"PK\x03\x04".to_vec()).await, "upload_not_gzip");
    assert_eq!(upload(Vec::new()).await, "upload_not_gzip");
    assert_eq!(upload(archive((9 << 20) + 1)).await, "upload_too_large");
    assert!(platform.blobs.list("").await.unwrap().is_empty());
    assert_eq!(code(platform.client.upload("nobody", 4, Cursor::new(archive(4))).await), "not_found");
    assert_eq!(code(platform.client.deploy("default", WEB, &from(&Digest::of(b"none"))).await), "upload_missing");
}

#[tokio::test]
async fn a_blob_store_that_is_away_is_named() {
    let platform = Platform::start().await;
    let bytes = archive(100);
    let digest = Digest::of(&bytes);
    platform.blobs.take_away(true);
    assert_eq!(code(platform.client.has_upload("default", digest.as_str()).await), "blobs_unavailable");
    let upload = async || platform.client.upload("default", bytes.len() as u64, Cursor::new(bytes.clone())).await;
    assert_eq!(code(upload().await), "blobs_unavailable");
    platform.blobs.take_away(false);
    upload().await.unwrap();
    assert!(platform.client.has_upload("default", digest.as_str()).await.unwrap());
}

#[tokio::test]
async fn what_one_tenant_sent_is_not_there_for_another() {
    let platform = Platform::start().await;
    make_tenant(&platform, "other").await;
    let ann = platform.client_of("ann", "developer", &["default"]);
    let bob = platform.client_of("bob", "developer", &["other"]);
    // One goes through memory, the other is staged.
    for (component, size) in [("small", 100), ("large", 9 << 20)] {
        let bytes = archive(size);
        let digest = Digest::of(&bytes);
        let send = async |client: &Client, tenant: &str| {
            client.upload(tenant, size as u64, Cursor::new(bytes.clone())).await.unwrap();
        };
        send(&ann, "default").await;
        assert!(ann.has_upload("default", digest.as_str()).await.unwrap());
        ann.deploy("default", ("shop", component), &from(&digest)).await.unwrap();

        let theirs = ("market", component);
        assert!(!bob.has_upload("other", digest.as_str()).await.unwrap());
        assert_eq!(code(bob.deploy("other", theirs, &from(&digest)).await), "upload_missing");
        let wanted = ComponentApply { source: source(&digest), manifest: ComponentManifest::default() };
        let request = ApplyRequest { components: [(component.parse().unwrap(), wanted)].into(), prune: false };
        for dry_run in [true, false] {
            assert_eq!(code(bob.apply("other", "market", &request, dry_run).await), "upload_missing");
        }
        // Administrators may read any content anyway.
        assert!(platform.client.has_upload("other", digest.as_str()).await.unwrap());

        send(&bob, "other").await;
        assert!(bob.has_upload("other", digest.as_str()).await.unwrap());
        bob.deploy("other", theirs, &from(&digest)).await.unwrap();
    }
    // What nobody sent as a source: a layer, a log.
    let layer = Digest::of(b"a layer");
    let blobs: SharedBlobs = platform.blobs.clone();
    blobs.put_bytes(&content_path(&layer), bytes::Bytes::from_static(b"a layer")).await.unwrap();
    assert!(!ann.has_upload("default", layer.as_str()).await.unwrap());
    assert_eq!(code(ann.deploy("default", ("shop", "layer"), &from(&layer)).await), "upload_missing");
}

#[tokio::test]
async fn what_components_were_built_from_is_there_without_a_note() {
    let platform = Platform::start().await;
    make_tenant(&platform, "other").await;
    let ann = platform.client_of("ann", "developer", &["default"]);
    let bob = platform.client_of("bob", "developer", &["other"]);
    let mut sent = Vec::new();
    for size in [100, 200] {
        let bytes = archive(size);
        sent.push(Digest::of(&bytes));
        ann.upload("default", size as u64, Cursor::new(bytes)).await.unwrap();
        let operation = ann.deploy("default", WEB, &from(&sent[sent.len() - 1])).await.unwrap();
        platform.built(&operation.id).await;
    }
    // As it is after an upgrade from a version that wrote no notes.
    let images = Images::new(platform.metadata.clone(), platform.blobs.clone());
    images.forget_sent(&TenantName::default_tenant()).await.unwrap();
    let (former, present) = (&sent[0], &sent[1]);
    assert!(ann.has_upload("default", present.as_str()).await.unwrap());
    ann.deploy("default", ("shop", "twin"), &from(present)).await.unwrap();
    assert_eq!(code(ann.deploy("default", ("shop", "new"), &from(former)).await), "upload_missing");
    for digest in &sent {
        assert!(!bob.has_upload("other", digest.as_str()).await.unwrap());
        assert_eq!(code(bob.deploy("other", WEB, &from(digest)).await), "upload_missing");
    }
    ann.deploy("default", WEB, &from(former)).await.unwrap();
}

#[tokio::test]
async fn a_tenant_of_the_same_name_has_nothing_of_the_one_before() {
    let platform = Platform::start().await;
    make_tenant(&platform, "team-b").await;
    let bob = platform.client_of("bob", "developer", &["team-b"]);
    let bytes = archive(100);
    let digest = Digest::of(&bytes);
    bob.upload("team-b", 100, Cursor::new(bytes)).await.unwrap();
    assert!(bob.has_upload("team-b", digest.as_str()).await.unwrap());
    platform.client.delete_tenant("team-b").await.unwrap();
    make_tenant(&platform, "team-b").await;
    assert!(platform.blobs.stat(&content_path(&digest)).await.unwrap().is_some());
    assert!(!bob.has_upload("team-b", digest.as_str()).await.unwrap());
}
