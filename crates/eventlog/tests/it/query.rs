//! Queries by time, instance, text, number and from the end.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn queries_find_what_their_filter_says() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    let stream = component(1);
    let mut batch = lines(0..10);
    batch[3].instance = Some(instance(1));
    batch[4].instance = Some(instance(2));
    batch[5].text = "GET /a b".to_owned();
    batch[6].text = "two\nlines".to_owned();
    assert!(logs.sink.append_durably(stream.clone(), batch).await);
    let all = Filter::default;
    let table: Vec<(&str, Filter, Vec<&str>)> = vec![
        ("since", Filter { since: Some(Timestamp(1008)), ..all() }, vec!["line 8", "line 9"]),
        ("until", Filter { until: Some(Timestamp(1001)), ..all() }, vec!["line 0", "line 1"]),
        ("grep", Filter { grep: Some("/a b".into()), ..all() }, vec!["GET /a b"]),
        ("grep is case-sensitive", Filter { grep: Some("LINE".into()), ..all() }, vec![]),
        ("a pattern is only text", Filter { grep: Some("line .".into()), ..all() }, vec![]),
        ("limit", Filter { limit: 1, ..all() }, vec!["line 0"]),
        ("tail", Filter { tail: Some(2), ..all() }, vec!["line 8", "line 9"]),
        ("tail of nothing", Filter { tail: Some(0), ..all() }, vec![]),
        (
            "line feeds part lines",
            Filter { since: Some(Timestamp(1006)), until: Some(Timestamp(1006)), ..all() },
            vec!["two", "lines"],
        ),
        (
            "tail and grep",
            Filter { tail: Some(1), grep: Some("line ".into()), until: Some(Timestamp(1007)), ..all() },
            vec!["line 7"],
        ),
        ("from", Filter { from: 10, ..all() }, vec!["line 9"]),
        (
            "one instance",
            Filter { instance: Some(instance(1)), since: Some(Timestamp(1003)), until: Some(Timestamp(1004)), ..all() },
            vec!["line 3"],
        ),
        (
            "what the platform says comes with an instance's lines",
            Filter { instance: Some(instance(1)), tail: Some(2), ..all() },
            vec!["line 8", "line 9"],
        ),
        (
            "nothing but one instance's lines",
            Filter { instance: Some(instance(1)), own: true, tail: Some(2), ..all() },
            vec!["line 3"],
        ),
        ("lines of instances", Filter { own: true, ..all() }, vec!["line 3", "line 4"]),
    ];
    for (what, filter, expected) in table {
        assert_eq!(logs.texts(&stream, filter).await, expected, "{what}");
    }
    let found = logs.log.query(&stream, &Filter { limit: 4, ..all() }).await.unwrap();
    assert!(found.more && found.next == 4 && found.missed == 0);
    let rest = logs.log.query(&stream, &Filter { from: found.next, ..all() }).await.unwrap();
    assert!(!rest.more && rest.lines.len() == 7 && rest.next == 11);
    assert!(logs.texts(&component(2), all()).await.is_empty());
    assert!(logs.texts(&operation(1), all()).await.is_empty());
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_read_sealed_segments_and_waiting_lines_alike() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), Limits { segment_bytes: 300 << 10, ..limits() });
    let stream = component(1);
    for start in (0..60_000).step_by(1000) {
        logs.sink.append_durably(stream.clone(), lines(start..start + 1000)).await;
    }
    let sealed = || {
        std::fs::read_dir(folder.path().join("components"))
            .unwrap()
            .flatten()
            .flat_map(|it| {
                std::fs::read_dir(it.path())
                    .unwrap()
                    .flatten()
                    .filter(|it| it.path().extension().is_some_and(|it| it == "zst"))
            })
            .count()
    };
    until("segments are sealed", async || sealed() >= 3).await;
    logs.sink.append(stream.clone(), lines(60_000..60_010)).await;
    until("the last lines are there", async || {
        logs.texts(&stream, Filter { grep: Some("line 60009".into()), ..Filter::default() }).await.len() == 1
    })
    .await;
    let found = logs.log.query(&stream, &Filter { limit: 100_000, ..Filter::default() }).await.unwrap();
    let numbers: Vec<u64> = found.lines.iter().map(|it| it.0).collect();
    assert!(numbers == (0..60_010).collect::<Vec<_>>());
    assert!(found.lines.iter().all(|(number, line)| line.text == format!("line {number}")));
    assert_eq!(
        logs.texts(&stream, Filter { tail: Some(2), until: Some(Timestamp(1000 + 30_000)), ..Filter::default() }).await,
        ["line 29999", "line 30000"]
    );
    assert_eq!(
        logs.texts(&stream, Filter { since: Some(Timestamp(1000 + 45_000)), limit: 1, ..Filter::default() }).await,
        ["line 45000"]
    );
    logs.stop().await;
}
