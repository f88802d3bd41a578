//! Archives of caches: whole or not at all, bounded both ways.

use super::*;
use arco_store::blob::{MemoryBlobs, SharedBlobs};
use std::sync::Arc;

const WRITTEN: &[u8] = b"what a package client keeps, in ten words or so";

fn ended(status: Option<i32>) -> oneshot::Receiver<i32> {
    let (tell, ended) = oneshot::channel();
    if let Some(status) = status {
        tell.send(status).unwrap();
    }
    ended
}

async fn content(of: ByteStream, most: u64) -> io::Result<Vec<u8>> {
    let (to, mut from) = tokio::io::duplex(7);
    let mut all = Vec::new();
    let (fed, read) = tokio::join!(unpacked(of, Box::new(to), most), from.read_to_end(&mut all));
    read?;
    fed.map(|()| all)
}

#[tokio::test]
async fn a_cache_is_kept_whole_or_not_at_all() {
    let blobs: SharedBlobs = Arc::new(MemoryBlobs::default());
    let put = async |from: &'static [u8], status, plain, stored| {
        blobs.put("a", packed(Box::new(from), ended(status), plain, stored).unwrap()).await.map_err(|it| words(&it))
    };
    let size = put(WRITTEN, Some(0), 1000, 1000).await.unwrap();
    assert_eq!(content(blobs.get("a", 0).await.unwrap(), 1000).await.unwrap(), WRITTEN);
    let exact = WRITTEN.len() as u64;
    for (status, plain, stored, why) in [
        (Some(2), 1000, 1000, "`tar` ended with 2"),
        (None, 1000, 1000, "the connection to the pod broke"),
        (Some(0), exact - 1, 1000, "it is too large"),
        (Some(0), 1000, size - 1, "it is too large"),
    ] {
        let error = put(WRITTEN, status, plain, stored).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(content(blobs.get("a", 0).await.unwrap(), 1000).await.unwrap(), WRITTEN, "what was there stays");
    assert_eq!(put(WRITTEN, Some(0), exact, size).await, Ok(size), "bounds are reached and not passed");
    assert_eq!(put(b"", Some(0), 0, 1000).await.map(|it| it > 0), Ok(true));
    assert_eq!(content(blobs.get("a", 0).await.unwrap(), 0).await.unwrap(), b"");
}

#[tokio::test]
async fn what_unpacks_to_more_than_a_disk_holds_is_cut_off() {
    let zeroes = Box::new(tokio::io::AsyncReadExt::take(tokio::io::repeat(0), 8 << 20));
    let blobs: SharedBlobs = Arc::new(MemoryBlobs::default());
    let stored = blobs.put("a", packed(zeroes, ended(Some(0)), 8 << 20, 1 << 20).unwrap()).await.unwrap();
    assert!(stored < 1 << 16, "{stored}");
    let (to, mut from) = tokio::io::duplex(1 << 20);
    let mut all = Vec::new();
    let archive = blobs.get("a", 0).await.unwrap();
    let (fed, read) = tokio::join!(unpacked(archive, Box::new(to), 1 << 20), from.read_to_end(&mut all));
    assert_eq!((fed.unwrap_err().kind(), read.unwrap() <= 1 << 20), (io::ErrorKind::FileTooLarge, true));

    let broken: ByteStream = Box::pin(futures_util::stream::once(async { Ok(Bytes::from_static(b"no archive")) }));
    assert!(content(broken, 1000).await.is_err());
}

#[test]
fn the_oldest_caches_go_first() {
    let blob = |name: &str, size, at| BlobStat { path: name.to_owned(), size, modified: Timestamp(at) };
    let all = [blob("pip", 30, 2), blob("uv", 50, 3), blob("npm", 30, 1)];
    for (most, gone) in
        [(110, vec![]), (109, vec!["npm"]), (80, vec!["npm"]), (79, vec!["pip", "npm"]), (0, vec!["uv", "pip", "npm"])]
    {
        let found: Vec<String> = over(all.to_vec(), most).into_iter().map(|it| it.path).collect();
        assert_eq!(found, gone, "{most}");
    }
    assert!(!is_old(&all[0], Timestamp(OLD_MS + 2)) && is_old(&all[0], Timestamp(OLD_MS + 3)));
}

#[test]
fn amounts_are_rounded_for_people() {
    assert_eq!([1, 1024, 1025, (1 << 20) - 1, 35 << 20].map(size), ["1 kB", "1 kB", "2 kB", "1024 kB", "35 MB"]);
}

#[tokio::test]
async fn of_what_a_program_says_the_first_line_is_told() {
    assert_eq!(beginning(&b"\n tar: a: no such file\ntar: more\n"[..]).await, "tar: a: no such file");
    let long = tokio::io::AsyncReadExt::take(tokio::io::repeat(b'x'), 4 * SAID_MAX);
    assert_eq!(beginning(long).await, "x".repeat(TOLD));
}
