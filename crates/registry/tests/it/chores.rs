//! The collection of garbage: what is used stays, what is young stays, the rest goes.

use super::*;
use arco_model::component::Revision;
use arco_model::name::TenantName;
use arco_registry::garbage::{Collected, forget_repository};
use arco_store::clock;
use std::collections::HashSet;

pub(crate) const NOW: Duration = Duration::ZERO;

/// Waits until what was written is older than no time at all.
pub(crate) async fn age() {
    let start = clock::now();
    while clock::now() <= start.plus_ms(10) {
        tokio::task::yield_now().await;
    }
}

/// Collects what is condemned by it at once: manifests and the blobs that only they named.
async fn collect(it: &Running, keep: &HashSet<Digest>) -> Collected {
    let first = it.registry.collect(keep, NOW).await.unwrap();
    age().await;
    let second = it.registry.collect(keep, NOW).await.unwrap();
    assert_eq!((first.blobs, second.manifests), (0, 0), "blobs are condemned first");
    Collected { manifests: first.manifests, ..second }
}

/// A revision that runs an image and was built from an archive.
async fn revise(it: &Running, image: &Digest, archive: &Digest) {
    let revision: Revision = serde_json::from_value(serde_json::json!({
        "id": clock::fresh::<arco_model::id::RevisionId>(),
        "component_id": clock::fresh::<arco_model::id::ComponentId>(),
        "number": 1,
        "artifact": { "repository": REPOSITORY, "digest": image },
        "defaults": {},
        "spec": { "source": { "kind": "upload", "digest": archive } },
        "build_key": "key",
        "commit": null,
        "cause": "deploy",
        "operation_id": clock::fresh::<arco_model::id::OperationId>(),
        "created_at": clock::now(),
    }))
    .unwrap();
    it.images.metadata().insert(&revision).await.unwrap();
}

async fn archive(it: &Running, content: &'static [u8]) -> Digest {
    let digest = Digest::of(content);
    it.images.blobs().put_bytes(&content_path(&digest), bytes::Bytes::from_static(content)).await.unwrap();
    digest
}

#[tokio::test]
async fn what_is_used_stays_and_the_rest_goes() {
    let it = Running::new();
    let run = it.push_image(REPOSITORY, "", b"run", serde_json::json!({})).await;
    let (source, orphan, cached) =
        (archive(&it, b"source").await, archive(&it, b"orphan").await, archive(&it, b"cached").await);
    revise(&it, &run, &source).await;
    let tagged = it.push_image(REPOSITORY, "v1", b"tagged", serde_json::json!({})).await;
    let subject = serde_json::json!({ "subject": { "mediaType": "x", "digest": tagged, "size": 1 } });
    let about = it.push_image(REPOSITORY, "", b"about", subject).await;
    let old = it.push_image(REPOSITORY, "", b"old", serde_json::json!({})).await;
    // The same image in another repository: there nothing holds it, but its blobs are needed here.
    it.push_image("default/shop/other", "", b"run", serde_json::json!({})).await;
    age().await;
    let keep = HashSet::from([cached.clone()]);

    let young = it.registry.collect(&keep, Duration::from_secs(3600)).await.unwrap();
    assert_eq!(young, Collected::default(), "everything is young");
    let done = collect(&it, &keep).await;
    assert_eq!(
        (done.manifests, done.blobs),
        (2, 3),
        "the manifests of `old` and `other`; `old`, its layer, and the orphan"
    );
    for digest in [
        &run,
        &source,
        &cached,
        &tagged,
        &about,
        &Digest::of(b"run"),
        &Digest::of(b"tagged"),
        &Digest::of(b"about"),
        &Digest::of(b"{}"),
    ] {
        assert!(it.has(digest).await, "{digest}");
    }
    for digest in [&old, &orphan, &Digest::of(b"old")] {
        assert!(!it.has(digest).await, "{digest}");
    }
    for (reference, status) in
        [(run.as_str(), StatusCode::OK), ("v1", StatusCode::OK), (old.as_str(), StatusCode::NOT_FOUND)]
    {
        assert_eq!(it.call("GET", &format!("/v2/{REPOSITORY}/manifests/{reference}"), &[], "").await.status, status);
    }
    let layer = format!("/v2/{REPOSITORY}/blobs/{}", Digest::of(b"run"));
    assert_eq!(it.call("GET", &layer, &[], "").await.body, b"run", "readable without its link");

    forget_repository(&it.images, REPOSITORY).await.unwrap();
    age().await;
    collect(&it, &keep).await;
    assert!(it.has(&run).await && !it.has(&tagged).await && !it.has(&about).await);
    assert_eq!(it.registry.collect(&keep, NOW).await.unwrap(), Collected::default(), "nothing is left to do");
}

#[tokio::test]
async fn who_sent_an_archive_is_forgotten_after_it() {
    let it = Running::new();
    let (source, orphan) = (archive(&it, b"source").await, archive(&it, b"orphan").await);
    revise(&it, &Digest::of(b"none"), &source).await;
    let (tenant, gone) = (TenantName::default_tenant(), Digest::of(b"gone"));
    for digest in [&source, &orphan, &gone] {
        it.images.note_sent(&tenant, digest).await.unwrap();
    }
    let noted = async |digest: &Digest| it.images.was_sent(&tenant, digest).await.unwrap();
    it.registry.collect(&HashSet::new(), Duration::from_secs(3600)).await.unwrap();
    assert!(noted(&gone).await, "it is young: its content may have come since the collection looked");
    age().await;
    assert_eq!(collect(&it, &HashSet::new()).await.blobs, 1);
    assert!(!it.has(&orphan).await && !noted(&gone).await && noted(&orphan).await);
    collect(&it, &HashSet::new()).await;
    assert!(noted(&source).await && !noted(&orphan).await);
}

#[tokio::test]
async fn tags_of_the_platform_go_with_their_revision_but_base_stacks_stay() {
    let it = Running::new();
    let run = it.push_image(REPOSITORY, "", b"run", serde_json::json!({})).await;
    let gone = it.push_image(REPOSITORY, "", b"gone", serde_json::json!({})).await;
    let stack = it.push_image("stack/base", "", b"stack", serde_json::json!({})).await;
    revise(&it, &run, &Digest::of(b"none")).await;
    it.images.tag(REPOSITORY, "r1", &run).await.unwrap();
    it.images.tag(REPOSITORY, "r0", &gone).await.unwrap();
    it.images.tag("stack/base", "latest", &stack).await.unwrap();
    age().await;
    assert_eq!(collect(&it, &HashSet::new()).await.manifests, 1);
    let tags: Vec<_> = it.images.tags(REPOSITORY).await.unwrap().into_iter().map(|it| it.tag).collect();
    assert_eq!(tags, ["r1"]);
    assert!(it.has(&run).await && it.has(&stack).await && !it.has(&gone).await);
}

#[tokio::test]
async fn what_a_revision_runs_is_not_deleted_on_request() {
    let it = Running::new();
    let run = it.push_image(REPOSITORY, "v1", b"run", serde_json::json!({})).await;
    revise(&it, &run, &Digest::of(b"gone")).await;
    let answer = it.call("DELETE", &format!("/v2/{REPOSITORY}/manifests/{run}"), &[], "").await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "DENIED"));
}

#[tokio::test]
async fn a_push_that_goes_on_and_a_manifest_that_comes_again_are_young() {
    let it = Running::new();
    let image = it.push_image(REPOSITORY, "", b"layer", serde_json::json!({})).await;
    age().await;
    let before = it.images.manifest(REPOSITORY, &image).await.unwrap().unwrap().value.created_at;
    it.push_image(REPOSITORY, "", b"layer", serde_json::json!({})).await;
    assert!(it.images.manifest(REPOSITORY, &image).await.unwrap().unwrap().value.created_at > before);

    let upload =
        it.call("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[], "").await.header("location").to_owned();
    assert_eq!(it.registry.collect(&HashSet::new(), Duration::from_secs(3600)).await.unwrap().uploads, 0);
    assert_eq!(it.call("PATCH", &upload, &[], "x").await.status, StatusCode::ACCEPTED);
    age().await;
    assert_eq!(it.registry.collect(&HashSet::new(), NOW).await.unwrap().uploads, 1);
    assert_eq!(it.call("PATCH", &upload, &[], "x").await.status, StatusCode::NOT_FOUND);
}
