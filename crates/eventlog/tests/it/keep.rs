//! What is kept: over restarts and torn writes; not beyond sizes; not what was removed; not at the cost of others.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_lines_survive_a_stop_without_goodbye_and_a_torn_write() {
    let folder = tempfile::tempdir().unwrap();
    let stream = component(1);
    let logs = Running::start(folder.path(), limits());
    assert!(logs.sink.append_durably(stream.clone(), lines(0..5)).await);
    logs.task.abort();
    let _ = logs.task.await;
    let [file] = files(folder.path(), "log").try_into().unwrap();
    let mut content = std::fs::read(&file).unwrap();
    content.extend_from_slice(b"1769850300250 o - half a li");
    std::fs::write(&file, content).unwrap();

    let logs = Running::start(folder.path(), limits());
    assert_eq!(logs.texts(&stream, Filter::default()).await.len(), 5);
    assert!(logs.sink.append_durably(stream.clone(), lines(5..7)).await);
    let found = logs.log.query(&stream, &Filter::default()).await.unwrap();
    assert_eq!(found.lines.iter().map(|it| it.0).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
    assert_eq!(found.lines[6].1.text, "line 6");
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_were_sent_before_a_stop_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), Limits { flush_after: 100 * DEADLINE, ..limits() });
    logs.sink.append(operation(1), lines(0..3)).await;
    logs.stop().await;
    let logs = Running::start(folder.path(), limits());
    assert_eq!(logs.texts(&operation(1), Filter::default()).await.len(), 3);
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_keeps_its_size_and_its_newest_lines() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 200 << 10, stream_bytes: 100 << 10, ..limits() };
    let logs = Running::start(folder.path(), limits);
    let stream = component(1);
    for start in (0..200_000).step_by(2000) {
        logs.sink.append_durably(stream.clone(), lines(start..start + 2000)).await;
    }
    let length = |it: &PathBuf| it.metadata().map_or(0, |it| it.len());
    let small = || files(folder.path(), "zst").iter().map(length).sum::<u64>() <= 100 << 10;
    until("old segments are gone", async || {
        small() && logs.log.query(&stream, &Filter::default()).await.unwrap().lines[0].0 > 0
    })
    .await;
    assert_eq!(logs.texts(&stream, Filter { tail: Some(1), ..Filter::default() }).await, ["line 199999"]);
    let missed = logs.log.query(&stream, &Filter { from: 1, limit: 1, ..Filter::default() }).await.unwrap();
    assert_eq!(missed.missed, missed.lines[0].0 - 1);
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_logs_are_gone_and_stay_gone() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    for stream in [component(1), component(2)] {
        assert!(logs.sink.append_durably(stream, lines(0..5)).await);
    }
    logs.log.remove(&component(1)).await.unwrap();
    assert!(logs.sink.append_durably(component(1), lines(5..9)).await, "late senders are not held up");
    assert!(logs.texts(&component(1), Filter::default()).await.is_empty());
    assert_eq!(logs.texts(&component(2), Filter::default()).await.len(), 5);
    assert_eq!(files(folder.path(), "log").len(), 1);
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_their_sender_gave_up_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    let (written, done) = tokio::sync::oneshot::channel();
    drop(done);
    let batch = LogBatch { stream: component(1), lines: lines(0..3), written: Some(written), once: true };
    logs.sink.hand_on(batch).await;
    assert!(logs.sink.append_durably(component(1), lines(3..5)).await);
    assert_eq!(logs.texts(&component(1), Filter::default()).await, ["line 3", "line 4"]);
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_costs_only_its_own_stream_and_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), Limits { stream_rate: 1 << 10, stream_burst: 256 << 10, ..limits() });
    for start in (0..100_000).step_by(1000) {
        logs.sink.append(component(1), lines(start..start + 1000)).await;
    }
    let other = tokio::time::timeout(DEADLINE, logs.sink.append_durably(component(2), lines(0..10))).await;
    assert!(other.expect("it does not wait for the flood"));
    assert_eq!(logs.texts(&component(2), Filter::default()).await.len(), 10);
    let (mut lost, mut kept) = (0_u64, 0_u64);
    until("every line is kept or its loss is said", async || {
        let all = Filter { limit: 100_000, ..Filter::default() };
        let found = logs.log.query(&component(1), &all).await.unwrap().lines;
        let (said, there): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| it.1.origin == LogOrigin::Platform);
        assert!(said.iter().all(|it| it.1.text.contains(" lines are missing here: more than 1 KiB")), "{said:?}");
        lost = said.iter().map(|it| it.1.text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        kept = there.len() as u64;
        lost + kept == 100_000
    })
    .await;
    assert!(lost > 0 && kept > 0, "{lost} {kept}");
    assert_eq!(logs.log.metrics().dropped_lines.get(), lost);
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_nearly_full_disk_only_operations_are_kept_and_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    logs.log.pretend_disk_low(true);
    logs.sink.append(component(1), lines(0..5)).await;
    logs.sink.append(operation(1), lines(0..5)).await;
    until("the operation's lines are there", async || logs.texts(&operation(1), Filter::default()).await.len() == 5)
        .await;
    until("the loss is said", async || {
        logs.texts(&component(1), Filter { grep: Some("5 lines are missing here".into()), ..Filter::default() })
            .await
            .len()
            == 1
    })
    .await;
    let texts = logs.texts(&component(1), Filter::default()).await;
    assert!(texts[0].starts_with("the disk is nearly full"), "{texts:?}");
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_need_few_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), Limits { open_files: 8, ..limits() });
    let sends = (0..200).map(|number| logs.sink.append_durably(component(number), lines(0..3)));
    assert!(futures_util::future::join_all(sends).await.into_iter().all(|it| it));
    let ours = |it: &PathBuf| it.starts_with(folder.path()) && it.extension().is_some_and(|it| it == "log");
    let open = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|it| std::fs::read_link(it.path()).ok())
        .filter(ours)
        .count();
    assert!(open <= 8, "{open} files are open");
    assert_eq!(logs.texts(&component(77), Filter::default()).await.len(), 3);
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_lines_go_and_a_stream_that_comes_back_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Running::start(folder.path(), limits());
    assert!(logs.sink.append_durably(operation(1), lines(0..5)).await);
    logs.stop().await;
    let [file] = files(folder.path(), "log").try_into().unwrap();
    let written = std::time::SystemTime::now() - Duration::from_secs(31 * 86_400);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(written).unwrap();

    // Segments are closed often, and each closing clears away.
    let logs = Running::start(folder.path(), Limits { segment_bytes: 64 << 10, ..limits() });
    logs.sink.append_durably(component(1), lines(0..10_000)).await;
    until("the old log is gone", async || !file.parent().unwrap().exists()).await;
    assert!(logs.sink.append_durably(operation(1), lines(7..8)).await);
    assert_eq!(logs.texts(&operation(1), Filter::default()).await, ["line 7"]);
    assert!(file.exists());
    logs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_logs_together_keep_their_size_and_the_oldest_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { segment_bytes: 128 << 10, total_bytes: 200 << 10, ..limits() };
    let logs = Running::start(folder.path(), limits);
    for number in 0..8 {
        for start in (0..20_000).step_by(2000) {
            logs.sink.append_durably(component(number), lines(start..start + 2000)).await;
        }
    }
    let bytes = || files(folder.path(), "zst").iter().map(|it| it.metadata().map_or(0, |it| it.len())).sum::<u64>();
    until("old segments are gone", async || bytes() <= 200 << 10).await;
    assert_eq!(logs.texts(&component(7), Filter { tail: Some(1), ..Filter::default() }).await, ["line 19999"]);
    logs.stop().await;
}
