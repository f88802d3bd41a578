//! Both ways with `skopeo`, against a real listener. Says so and passes where `skopeo` is not installed.

use super::*;
use std::process::Output;

async fn skopeo(arguments: &[&str]) -> Output {
    let output =
        tokio::process::Command::new("skopeo").args(["--insecure-policy"]).args(arguments).kill_on_drop(true).output();
    tokio::time::timeout(Duration::from_secs(300), output).await.unwrap().unwrap()
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Writes a blob of an image layout; returns its digest.
fn put(layout: &Path, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), content).unwrap();
    digest
}

/// An image layout with one layer.
fn make_layout(layout: &Path) {
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let tar = vec![0u8; 1024]; // an empty archive
    let layer = put(layout, &tar);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let config = config.to_string();
    let config_digest = put(layout, config.as_bytes());
    let mut manifest = manifest(&config_digest, config.len(), &layer, tar.len());
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
    let manifest = manifest.to_string();
    let digest = put(layout, manifest.as_bytes());
    let named = serde_json::json!({
        "mediaType": arco_store::images::MANIFEST_TYPE, "digest": digest, "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": "v1" },
    });
    std::fs::write(
        layout.join("index.json"),
        serde_json::json!({ "schemaVersion": 2, "manifests": [named] }).to_string(),
    )
    .unwrap();
    std::fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_pulls_copies_lists_and_deletes() {
    if std::process::Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let it = Running::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, it.registry.router()).into_future());
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    make_layout(&source);
    let credential = format!(
        "robot:{}",
        it.registry
            .tokens()
            .issue(&Scope::repository(REPOSITORY, &ALL).and(Scope::repository("default/shop/api", &ALL)), LIFE)
    );
    let reader = format!("robot:{}", it.token(REPOSITORY, &[Action::Pull]));
    let image = format!("docker://{address}/{REPOSITORY}:v1");
    let from = format!("oci:{}:v1", source.display());

    let refused = skopeo(&["copy", "--dest-tls-verify=false", "--dest-creds", &reader, &from, &image]).await;
    assert!(!refused.status.success(), "a reader must not push");
    let refused = skopeo(&["copy", "--dest-tls-verify=false", "--dest-no-creds", &from, &image]).await;
    assert!(!refused.status.success(), "nobody must not push");
    good(
        &skopeo(&["copy", "--dest-tls-verify=false", "--preserve-digests", "--dest-creds", &credential, &from, &image])
            .await,
    );
    good(
        &skopeo(&["copy", "--dest-tls-verify=false", "--preserve-digests", "--dest-creds", &credential, &from, &image])
            .await,
    );

    let to = format!("oci:{}:v1", target.display());
    good(&skopeo(&["copy", "--src-tls-verify=false", "--preserve-digests", "--src-creds", &reader, &image, &to]).await);
    let index = |it: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(it.join("index.json")).unwrap()).unwrap()
    };
    assert_eq!(index(&source)["manifests"][0]["digest"], index(&target)["manifests"][0]["digest"]);
    let image_ref = it.images.resolve(REPOSITORY, "v1").await.unwrap();
    assert_eq!(it.images.read(&image_ref).await.unwrap().config.cmd, ["/bin/true"]);

    let copied = format!("docker://{address}/default/shop/api:v2");
    good(
        &skopeo(&[
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--src-creds",
            &credential,
            "--dest-creds",
            &credential,
            &image,
            &copied,
        ])
        .await,
    );
    let tags = skopeo(&[
        "list-tags",
        "--tls-verify=false",
        "--creds",
        &credential,
        &format!("docker://{address}/default/shop/api"),
    ])
    .await;
    good(&tags);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&tags.stdout).unwrap()["Tags"], serde_json::json!(["v2"]));
    good(&skopeo(&["inspect", "--tls-verify=false", "--creds", &credential, &copied]).await);
    good(&skopeo(&["delete", "--tls-verify=false", "--creds", &credential, &copied]).await);
    assert!(it.images.resolve("default/shop/api", "v2").await.is_err());
    server.abort();
}
