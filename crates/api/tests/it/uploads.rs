//! Archives on their way into the blob store.

use crate::platform::{Platform, WEB, code};
use arco_api::wire::{DeployRequest, SpecPatch};
use arco_model::artifact::Digest;
use arco_model::source::Source;
use arco_store::blob::{Blobs, content_path};
use std::io::Cursor;

/// Begins like gzip; the API never looks further.
fn archive(size: usize) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b];
    bytes.extend((2..size).map(|it| (it % 251) as u8));
    bytes
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
    let source =
        Source::Upload { digest: Digest::of(b"none"), origin: String::new(), commit: None, dir: String::new() };
    let request = DeployRequest { source, patch: SpecPatch::default(), no_cache: false };
    assert_eq!(code(platform.client.deploy("default", WEB, &request).await), "upload_missing");
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
