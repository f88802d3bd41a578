//! How fast lines come in and are found. Not part of the usual run: `cargo test -p arco-eventlog --release -- --ignored --nocapture rate`.

use super::*;
use std::time::Instant;

const LINES: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes seconds and is only worth something in a release build"]
async fn rate_of_a_million_lines() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    let text = |number: u64| {
        format!("2026-01-31 INFO request served path=/api/items/{number} status=200 duration_ms={}", number % 977)
    };
    let start = Instant::now();
    for first in (0..LINES).step_by(500) {
        let batch = (first..first + 500).map(|it| line(1_769_850_300_000 + it, text(it))).collect();
        logs.sink.append(component(first / 500 % 20), batch).await;
    }
    for number in 0..20 {
        assert!(logs.sink.append_durably(component(number), vec![line(0, "end")]).await);
    }
    let took = start.elapsed();
    eprintln!("ingest: {LINES} lines in {took:?}, {:.0} lines per second", LINES as f64 / took.as_secs_f64());

    let stream = component(100);
    for first in (0..LINES).step_by(1000) {
        let batch = (first..first + 1000).map(|it| line(1_769_850_300_000 + it, text(it))).collect();
        logs.sink.append(stream.clone(), batch).await;
    }
    assert!(logs.sink.append_durably(stream.clone(), vec![]).await);
    for (what, filter) in [
        ("last 100 lines", Filter { tail: Some(100), ..Filter::default() }),
        ("a rare text among all", Filter { grep: Some("/api/items/999999 ".into()), ..Filter::default() }),
        (
            "1,000 lines in the middle",
            Filter { since: Some(Timestamp(1_769_850_800_000)), limit: 1000, ..Filter::default() },
        ),
    ] {
        let start = Instant::now();
        let found = logs.log.query(&stream, &filter).await.unwrap();
        eprintln!("query of {what}: {} lines in {:?}", found.lines.len(), start.elapsed());
        assert!(!found.lines.is_empty());
    }
    logs.stop().await;
}
