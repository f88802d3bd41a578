//! Followers: each line once, in order, from what was there into what comes.

use super::*;
use arco_eventlog::Event;
use futures_util::StreamExt as _;
use std::pin::pin;

async fn next(events: &mut (impl futures_util::Stream<Item = Event> + Unpin)) -> Option<Event> {
    tokio::time::timeout(DEADLINE, events.next()).await.expect("the follower waits in vain")
}

#[tokio::test(flavor = "multi_thread")]
async fn history_and_live_lines_join_without_gap_or_double_over_many_segments() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), Limits { segment_bytes: 64 << 10, ..limits() });
    let stream = component(1);
    logs.sink.append_durably(stream.clone(), lines(0..5000)).await;
    let (sink, to) = (logs.sink.clone(), stream.clone());
    let writer = tokio::spawn(async move {
        for start in (5000..50_000).step_by(100) {
            sink.append(to.clone(), lines(start..start + 100)).await;
        }
    });
    let mut events = pin!(logs.log.watch(&stream, Filter { tail: Some(1000), ..Filter::default() }, true));
    let Some(Event::Line { number: first, .. }) = next(&mut events).await else { panic!("no line") };
    for expected in first + 1..50_000 {
        match next(&mut events).await {
            Some(Event::Line { number, line }) => {
                assert_eq!((number, line.text), (expected, format!("line {expected}")))
            }
            other => panic!("{other:?} instead of line {expected}"),
        }
    }
    writer.await.unwrap();
    logs.stop().await;
    assert_eq!(next(&mut events).await, None, "no end: the log is not over, only the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_filter_end_and_are_told_what_they_missed() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), Limits { segment_bytes: 64 << 10, stream_bytes: 32 << 10, ..limits() });
    let stream = component(1);
    let grep = Filter { grep: Some("9999".into()), ..Filter::default() };
    let mut found = pin!(logs.log.follow(&stream, 0, grep));
    logs.sink.append_durably(stream.clone(), lines(9990..10_000)).await;
    assert!(matches!(next(&mut found).await, Some(Event::Line { number: 9, .. })));

    let mut slow = pin!(logs.log.follow(&stream, 5, Filter::default()));
    let flood = async {
        for start in (0..100_000).step_by(1000) {
            logs.sink.append_durably(stream.clone(), lines(start..start + 1000)).await;
        }
        until("old lines are deleted", async || {
            logs.log.query(&stream, &Filter { limit: 1, ..Filter::default() }).await.unwrap().lines[0].0 > 10
        })
        .await;
    };
    flood.await;
    let Some(Event::Missed(missed)) = next(&mut slow).await else { panic!("nothing missed") };
    let Some(Event::Line { number, .. }) = next(&mut slow).await else { panic!("no line") };
    assert_eq!(number, 5 + missed);

    logs.log.remove(&stream).await.unwrap();
    loop {
        match next(&mut slow).await {
            Some(Event::Line { .. } | Event::Missed(_)) => {}
            other => break assert_eq!(other, Some(Event::End)),
        }
    }
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_told_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), Limits { segment_bytes: 64 << 10, ..limits() });
    let stream = component(1);
    logs.sink.append_durably(stream.clone(), lines(0..20_000)).await;
    let count = |ending| files(folder.path(), ending).len();
    until("full segments are sealed", async || count("log") == 1 && count("zst") > 2).await;
    std::fs::remove_file(&files(folder.path(), "zst")[1]).unwrap();
    let mut events = pin!(logs.log.follow(&stream, 0, Filter::default()));
    let (mut expected, mut gaps) = (0, Vec::new());
    while expected < 20_000 {
        match next(&mut events).await {
            Some(Event::Line { number, .. }) => {
                assert_eq!(number, expected);
                expected += 1;
            }
            Some(Event::Missed(lines)) => {
                gaps.push(expected);
                expected += lines;
            }
            other => panic!("{other:?} instead of line {expected}"),
        }
    }
    assert!(gaps.len() == 1 && gaps[0] > 0, "{gaps:?}");
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_saw_numbers_that_were_never_given_here_goes_on_with_what_comes() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    let stream = component(1);
    logs.sink.append_durably(stream.clone(), lines(0..3)).await;
    // As when another server kept this log before, and gave far more numbers.
    let mut events = pin!(logs.log.follow(&stream, 1 << 40, Filter::default()));
    let (mut written, mut told) = (3, None);
    let waiting = async {
        while told.is_none() {
            logs.sink.append_durably(stream.clone(), lines(written..written + 1)).await;
            written += 1;
            // The first of them may be written before the follower has begun.
            told = tokio::time::timeout(Duration::from_millis(50), events.next()).await.ok();
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("the follower waits in vain");
    assert!(matches!(told, Some(Some(Event::Line { number: 3.., .. }))), "{told:?}");
    logs.stop().await;
}
