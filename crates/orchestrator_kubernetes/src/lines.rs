//! Output as lines: without line ends, cut at [`LINE_MAX`], and never a failure because bytes are not UTF-8.

use futures_util::Stream;
use futures_util::stream::unfold;
use std::io;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Longest line, in bytes; a longer one comes in parts, so that one without an end does not fill the memory.
const LINE_MAX: u64 = 16 << 10;

/// The lines of a reader, until its end, or until it breaks, which is the last that comes.
pub(crate) fn of<R: AsyncBufRead + Unpin>(from: R) -> impl Stream<Item = io::Result<String>> {
    unfold(Some(from), |from| async move {
        let mut from = from?;
        let mut line = Vec::new();
        match (&mut from).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) => None,
            Ok(_) => {
                // A part of a long line may end with any byte.
                let text = line.strip_suffix(b"\n").map_or(&line[..], |it| it.strip_suffix(b"\r").unwrap_or(it));
                Some((Ok(String::from_utf8_lossy(text).into_owned()), Some(from)))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;

    #[tokio::test]
    async fn lines_come_without_their_ends_and_long_ones_in_parts() {
        let long = format!("{}\r{}", "x".repeat(LINE_MAX as usize - 1), "y".repeat(5));
        let text = [b"a\r\n\n\xffb\n".to_vec(), long.into_bytes()].concat();
        let lines: Vec<String> = of(text.as_slice()).map(Result::unwrap).collect().await;
        assert_eq!(lines[..3], ["a", "", "\u{fffd}b"]);
        assert!(lines[3].len() == LINE_MAX as usize && lines[3].ends_with("x\r"), "{}", lines[3].len());
        assert_eq!(lines[4..], ["yyyyy"]);
    }

    #[tokio::test]
    async fn a_reader_that_breaks_says_so_after_its_lines() {
        let pieces = [Ok(&b"a\nb\n"[..]), Err(io::Error::other("cut"))];
        let from = tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces));
        let lines: Vec<_> = of(from).map(|it| it.map_err(|it| it.to_string())).collect().await;
        assert_eq!(lines, [Ok("a".to_owned()), Ok("b".to_owned()), Err("cut".to_owned())]);
    }
}
