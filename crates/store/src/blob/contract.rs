//! What every blob driver must do, run on the disk, on S3 and on the fake.

use super::{BlobError, Blobs, DiskBlobs, MemoryBlobs, S3Access, S3Blobs};
use bytes::Bytes;

async fn blobs_come_back_whole_or_from_an_offset(blobs: &dyn Blobs) {
    let content = Bytes::from(vec![7u8; 200_000]);
    assert_eq!(blobs.put_bytes("a/b.c", content.clone()).await.unwrap(), 200_000);
    assert_eq!(blobs.get_bytes("a/b.c", 200_000).await.unwrap(), content);
    assert!(blobs.get_bytes("a/b.c", 100).await.is_err());
    let mut rest = 0;
    let mut stream = blobs.get("a/b.c", 199_990).await.unwrap();
    while let Some(piece) = futures_util::StreamExt::next(&mut stream).await {
        rest += piece.unwrap().len();
    }
    assert_eq!(rest, 10);
    blobs.put_bytes("a/b.c", Bytes::from_static(b"new")).await.unwrap();
    assert_eq!(blobs.stat("a/b.c").await.unwrap().unwrap().size, 3);
}

async fn a_failed_put_leaves_nothing(blobs: &dyn Blobs) {
    let pieces = vec![Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("cut"))];
    assert!(blobs.put("x", Box::pin(futures_util::stream::iter(pieces))).await.is_err());
    assert!(blobs.stat("x").await.unwrap().is_none());
    assert!(matches!(blobs.get("x", 0).await, Err(BlobError::NotFound(_))));
    assert!(blobs.list("").await.unwrap().is_empty());
}

async fn large_blobs_appear_whole_or_not_at_all(blobs: &dyn Blobs) {
    // 21 MiB in pieces that are no divisor of any part, each telling its place.
    const PIECE: usize = 777_777;
    let piece = |at: usize| Bytes::from((at..at + PIECE).map(|it| (it / 251) as u8).collect::<Vec<_>>());
    let pieces = || (0..28).map(move |it| Ok(piece(it * PIECE)));
    let size = blobs.put("big/one", Box::pin(futures_util::stream::iter(pieces()))).await.unwrap();
    assert_eq!(size, 28 * PIECE as u64);
    assert_eq!(blobs.stat("big/one").await.unwrap().unwrap().size, size);
    let whole = blobs.get_bytes("big/one", 28 * PIECE).await.unwrap();
    assert!(whole.iter().enumerate().all(|(at, it)| *it == (at / 251) as u8), "each byte is in its place");
    let offset = 9 * (1 << 20) + 13;
    let mut at = offset;
    let mut rest = blobs.get("big/one", offset as u64).await.unwrap();
    while let Some(got) = futures_util::StreamExt::next(&mut rest).await {
        let got = got.unwrap();
        assert_eq!(got, whole.slice(at..at + got.len()));
        at += got.len();
    }
    assert_eq!(at, whole.len());
    for offset in [size, size + 10] {
        let mut end = blobs.get("big/one", offset).await.unwrap();
        while let Some(piece) = futures_util::StreamExt::next(&mut end).await {
            assert!(piece.unwrap().is_empty());
        }
    }
    let cut = pieces().chain([Err(std::io::Error::other("cut"))]);
    assert!(blobs.put("big/two", Box::pin(futures_util::stream::iter(cut))).await.is_err());
    let cut = pieces().chain([Err(std::io::Error::other("cut"))]);
    assert!(blobs.put("big/one", Box::pin(futures_util::stream::iter(cut))).await.is_err());
    let found: Vec<_> = blobs.list("big/").await.unwrap().into_iter().map(|it| (it.path, it.size)).collect();
    assert_eq!(found, [("big/one".to_owned(), size)], "the old content stays");
    blobs.put_bytes("big/none", Bytes::new()).await.unwrap();
    assert_eq!(blobs.get_bytes("big/none", 0).await.unwrap().len(), 0);
}

async fn lists_are_by_folder_and_deletes_are_idempotent(blobs: &dyn Blobs) {
    for path in ["a/1", "a/b/2", "ab/3"] {
        blobs.put_bytes(path, Bytes::from_static(b"x")).await.unwrap();
    }
    let found: Vec<_> = blobs.list("a/").await.unwrap().into_iter().map(|it| it.path).collect();
    assert_eq!(found, ["a/1", "a/b/2"]);
    blobs.delete("a/1").await.unwrap();
    blobs.delete("a/1").await.unwrap();
    assert_eq!(blobs.list("").await.unwrap().len(), 2);
}

async fn paths_cannot_escape(blobs: &dyn Blobs) {
    for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", ".partial/x", "a/", "a b", "a\0"] {
        assert!(matches!(blobs.put_bytes(path, Bytes::new()).await, Err(BlobError::Path(_))), "{path:?}");
        assert!(matches!(blobs.get(path, 0).await, Err(BlobError::Path(_))), "{path:?}");
    }
}

macro_rules! contract {
    ($driver:ident, $make:expr) => {
        mod $driver {
            use super::*;

            #[tokio::test]
            async fn blobs_come_back_whole_or_from_an_offset() {
                let made = $make;
                let Some((blobs, _keep)) = made else { return };
                super::blobs_come_back_whole_or_from_an_offset(&blobs).await;
            }
            #[tokio::test]
            async fn a_failed_put_leaves_nothing() {
                let made = $make;
                let Some((blobs, _keep)) = made else { return };
                super::a_failed_put_leaves_nothing(&blobs).await;
            }
            #[tokio::test]
            async fn large_blobs_appear_whole_or_not_at_all() {
                let made = $make;
                let Some((blobs, _keep)) = made else { return };
                super::large_blobs_appear_whole_or_not_at_all(&blobs).await;
            }
            #[tokio::test]
            async fn lists_are_by_folder_and_deletes_are_idempotent() {
                let made = $make;
                let Some((blobs, _keep)) = made else { return };
                super::lists_are_by_folder_and_deletes_are_idempotent(&blobs).await;
            }
            #[tokio::test]
            async fn paths_cannot_escape() {
                let made = $make;
                let Some((blobs, _keep)) = made else { return };
                super::paths_cannot_escape(&blobs).await;
            }
        }
    };
}

contract!(memory, Some((MemoryBlobs::default(), ())));
contract!(disk, {
    let folder = tempfile::tempdir().unwrap();
    Some((DiskBlobs::open(folder.path()).unwrap(), folder))
});
contract!(s3, s3().await.map(|it| (it, ())));

async fn s3() -> Option<S3Blobs> {
    let (url, access) = s3_folder().await?;
    Some(S3Blobs::open(url.as_str(), &access).await.unwrap())
}

/// A folder of its own in the bucket of the test server.
pub(super) async fn s3_folder() -> Option<(url::Url, S3Access)> {
    let server = arco_testkit::servers::s3()?;
    let mut url = url::Url::parse(&server).unwrap();
    if url.host_str().unwrap_or_default().is_empty() {
        let endpoint = url.query_pairs().find(|(key, _)| key == "endpoint").unwrap().1.into_owned();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // The test server asks nobody who they are; an existing bucket is fine too.
        reqwest::Client::new().put(format!("{endpoint}/arco-test")).send().await.unwrap();
        url = url::Url::parse(&server.replace("s3://", "s3://arco-test")).unwrap();
    }
    url.set_path(&format!("contract/{:016x}", crate::clock::random()));
    let own = "aws_access_key_id=testing\naws_secret_access_key=testing".to_owned();
    let credentials = std::env::var_os("AWS_ACCESS_KEY_ID").is_none().then_some(own);
    Some((url, S3Access { credentials, ca_pem: None }))
}
