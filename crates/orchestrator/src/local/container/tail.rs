//! Hands a container's log over: from the shim's files to the log store and to whoever listens.
//!
//! The cursor (an offset in the whole log) is kept beside the files and moves only after the lines are durable, so that
//! none is lost when this process dies or the log store cannot keep them; a few may come twice. What was overwritten before
//! it could be read is said. Whoever listens is told each line once, whatever the log store does.

use super::state::Inner;
use crate::OutputLine;
use crate::local::shim::output::{file_name, file_offset};
use crate::local::shim::protocol::write_private;
use arco_model::id::InstanceId;
use arco_model::log::{LogLine, LogOrigin, LogStream};
use arco_model::time::Timestamp;
use arco_store::clock;
use arco_store::logs::LogSink;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Most bytes read at once.
const PIECE: usize = 256 << 10;
/// Pause before lines that were not kept are sent again: the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long the last lines of a container that ended are offered; after that they stay in its files, behind the cursor.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Until the container's last line.
pub(super) async fn follow(inner: &Arc<Inner>, id: &InstanceId) {
    let known = inner.with(id, |entry| (entry.log.subscribe(), entry.component.clone()));
    let Some((mut bell, component)) = known else { return };
    let stream = component.map(|id| LogStream::Component { id });
    let folder = inner.folder(id).join("log");
    let cursor_file = folder.join("cursor");
    let mut cursor: u64 = std::fs::read_to_string(&cursor_file).ok().and_then(|it| it.trim().parse().ok()).unwrap_or(0);
    let mut keeps = true;
    loop {
        let ended = bell.borrow_and_update().1;
        loop {
            let (path, from) = (folder.clone(), cursor);
            let read = tokio::task::spawn_blocking(move || read_lines(&path, from)).await;
            let Ok((lines, next)) = read else { break };
            if next == cursor {
                break;
            }
            tell(inner, id, &lines).await;
            if let Some(stream) = stream.as_ref().filter(|_| keeps) {
                keeps = keep(&inner.logs, id, stream, lines, &bell).await;
                if keeps {
                    let _ = write_private(&cursor_file, next.to_string().as_bytes());
                } else {
                    // The cursor stays with them: the next start reads them again.
                    tracing::warn!(instance = %id, cursor, "output of an instance is not kept: the log store takes none");
                }
            }
            cursor = next;
        }
        if ended || bell.changed().await.is_err() {
            break;
        }
    }
    inner.end_output(id);
    inner.with(id, |entry| entry.tailed.send_replace(true));
}

/// Lines to whoever listens now.
async fn tell(inner: &Inner, id: &InstanceId, lines: &[LogLine]) {
    for listener in inner.listeners(id) {
        for line in lines {
            let line = OutputLine { stderr: line.origin == LogOrigin::Stderr, text: line.text.clone() };
            if listener.send(line).await.is_err() {
                break;
            }
        }
    }
}

/// Sends lines until they are durable. Gives up when the log store takes nothing any more, and some time after the
/// container's end. Returns whether they are kept.
async fn keep(
    logs: &LogSink,
    id: &InstanceId,
    stream: &LogStream,
    mut lines: Vec<LogLine>,
    bell: &watch::Receiver<(u64, bool)>,
) -> bool {
    lines.iter_mut().for_each(|it| it.instance = Some(id.clone()));
    let mut pause = PAUSE.0;
    let mut end = None;
    loop {
        if logs.append_durably(stream.clone(), lines.clone()).await {
            return true;
        }
        if logs.is_closed() || bell.borrow().1 && *end.get_or_insert_with(Instant::now) + LAST_WORDS < Instant::now() {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Complete lines from `cursor` on, and the cursor behind them.
fn read_lines(folder: &Path, cursor: u64) -> (Vec<LogLine>, u64) {
    let Ok(names) = std::fs::read_dir(folder) else { return (Vec::new(), cursor) };
    let mut starts: Vec<u64> = names.filter_map(|it| file_offset(it.ok()?.file_name().to_str()?)).collect();
    starts.sort_unstable();
    let Some(first) = starts.first().copied() else { return (Vec::new(), cursor) };
    let mut lines = Vec::new();
    let from = cursor.max(first);
    if from > cursor {
        let missing = (from - cursor).div_ceil(1 << 10);
        let text = format!("{missing} KiB of output are missing here: they came faster than they could be kept");
        lines.push(LogLine { at: clock::now(), instance: None, origin: LogOrigin::Platform, text });
    }
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied();
        if end.is_some_and(|it| it <= from) || *start > from {
            continue;
        }
        let mut bytes = vec![0; PIECE];
        let mut filled = 0;
        let Ok(mut file) = File::open(folder.join(file_name(*start))) else { break };
        if file.seek(SeekFrom::Start(from - start)).is_err() {
            break;
        }
        while let Ok(count) = file.read(&mut bytes[filled..])
            && count > 0
        {
            filled += count;
        }
        let complete = bytes[..filled].iter().rposition(|it| *it == b'\n').map_or(0, |it| it + 1);
        // A file that was ended in the middle of a line (a full disk) is left for the next one.
        let next = if complete == 0 && filled > 0 { end.unwrap_or(from) } else { from + complete as u64 };
        let records = bytes[..complete].split(|it| *it == b'\n').filter(|it| !it.is_empty());
        lines.extend(records.filter_map(parse));
        return (lines, next);
    }
    (lines, from)
}

/// One record: `<ms> <o|e|p> <text>`.
fn parse(record: &[u8]) -> Option<LogLine> {
    let mut words = record.splitn(3, |it| *it == b' ');
    let at: u64 = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let origin = match words.next()? {
        b"o" => LogOrigin::Stdout,
        b"e" => LogOrigin::Stderr,
        _ => LogOrigin::Platform,
    };
    let text = String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
    Some(LogLine { at: Timestamp(at), instance: None, origin, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_over_files_and_losses_are_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file_name(100)), b"1 o a b\n2 e \xffx\n").unwrap();
        std::fs::write(folder.path().join(file_name(115)), "3 p c\n4 o par").unwrap();
        let texts = |lines: &[LogLine]| lines.iter().map(|it| it.text.clone()).collect::<Vec<_>>();
        let (lines, next) = read_lines(folder.path(), 0);
        assert!(lines[0].text.starts_with("1 KiB of output are missing here"), "{lines:?}");
        assert_eq!(lines[1].text, "a b");
        let (lines, next) = read_lines(folder.path(), next);
        assert_eq!((texts(&lines), next), (vec!["c".to_owned()], 121));
        assert_eq!(read_lines(folder.path(), next).1, 121);
    }

    #[tokio::test]
    async fn lines_are_sent_until_they_are_kept() {
        let (sink, mut batches) = LogSink::channel(1);
        let id = InstanceId::from_parts(1, 1);
        let stream = LogStream::Component { id: arco_model::id::ComponentId::from_parts(1, 1) };
        let line = LogLine { at: Timestamp(1), instance: None, origin: LogOrigin::Stdout, text: "a".to_owned() };
        let (_ended, bell) = watch::channel((1, false));
        let keeper = tokio::spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..3 {
                let batch = batches.recv().await.unwrap();
                seen.push((batch.lines[0].text.clone(), batch.lines[0].instance.clone()));
                if seen.len() == 3 {
                    batch.written.unwrap().send(()).unwrap(); // the first two were lost on the way to the disk
                }
            }
            seen
        });
        assert!(keep(&sink, &id, &stream, vec![line.clone()], &bell).await);
        assert_eq!(keeper.await.unwrap(), vec![("a".to_owned(), Some(id.clone())); 3]);
        assert!(!keep(&sink, &id, &stream, vec![line], &bell).await, "nobody keeps logs any more");
    }
}
