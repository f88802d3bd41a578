//! Stacks that an administrator loads: kept by edition, replaced, forgotten; what cannot be one is refused.

use crate::platform::{Platform, code};
use arco_api::wire::StackRequest;
use arco_model::artifact::{Descriptor, Digest, ImageConfig, Layer};
use arco_store::images::{Image, Images, LAYER_GZIP_TYPE, documents};

/// Sends the documents and layers of an image with this layer; returns the digest of its manifest.
async fn sent(platform: &Platform, content: &str, with_layer: bool) -> Digest {
    let digest = Digest::of(content.as_bytes());
    let blob =
        Descriptor { media_type: LAYER_GZIP_TYPE.to_owned(), digest: digest.clone(), size: content.len() as u64 };
    let image = Image { layers: vec![Layer { blob, diff_id: digest }], config: ImageConfig::default() };
    let documents = documents(&image).unwrap();
    let mut blobs = vec![documents.config.to_vec(), documents.manifest.to_vec()];
    if with_layer {
        blobs.push(content.as_bytes().to_vec());
    }
    for blob in blobs {
        let digest = Digest::of(&blob);
        let size = blob.len() as u64;
        platform.client.put_blob("default", digest.as_str(), size, std::io::Cursor::new(blob)).await.unwrap();
    }
    Digest::of(&documents.manifest)
}

#[tokio::test]
async fn a_loaded_stack_is_kept_until_it_is_forgotten() {
    let platform = Platform::start().await;
    assert!(platform.client.stacks().await.unwrap().is_empty());
    for content in ["debian", "newer debian"] {
        let digest = sent(&platform, content, true).await;
        let request = StackRequest { edition: 2, digest: digest.clone() };
        let kept = platform.client.keep_stack("base", &request).await.unwrap();
        assert_eq!((kept.name.as_str(), kept.edition, kept.digest.as_str()), ("base", 2, digest.as_str()));
        assert_eq!(kept.size_bytes, content.len() as u64);
        let images = Images::new(platform.metadata.clone(), platform.blobs.clone());
        assert_eq!(images.stack("base", 2).await.unwrap().unwrap().digest, digest, "what a builder takes");
        assert_eq!(platform.client.stacks().await.unwrap(), [kept]);
    }
    platform.client.forget_stack("base").await.unwrap();
    assert!(platform.client.stacks().await.unwrap().is_empty());
    assert_eq!(code(platform.client.forget_stack("base").await), "not_found");
}

#[tokio::test]
async fn what_is_no_stack_is_refused() {
    let platform = Platform::start().await;
    let good = sent(&platform, "debian", true).await;
    let cut = sent(&platform, "never sent", false).await;
    let document = br#"{"not":"a manifest"}"#.to_vec();
    let nothing = Digest::of(&document);
    let size = document.len() as u64;
    platform.client.put_blob("default", nothing.as_str(), size, std::io::Cursor::new(document)).await.unwrap();
    let absent = Digest::of(b"absent");
    for (name, digest, wanted) in [
        ("base", &cut, "is missing"),
        ("base", &nothing, "base"),
        ("base", &absent, "is not here"),
        ("../base", &good, "no name of a stack"),
        ("Base", &good, "no name of a stack"),
    ] {
        let request = StackRequest { edition: 2, digest: digest.clone() };
        let error = platform.client.keep_stack(name, &request).await.unwrap_err();
        let body = error.body();
        assert!(body.code == "stack_invalid" && body.message.contains(wanted), "{name}: {body:?}");
    }
    assert!(platform.client.stacks().await.unwrap().is_empty());
}
