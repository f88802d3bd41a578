//! Output as lines: without line ends, cut at [`LINE_MAX`], and never a failure because bytes are not UTF-8.

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Longest line, in bytes; a longer one comes in parts, so that one without an end does not fill the memory.
const LINE_MAX: u64 = 16 << 10;

/// The lines of a reader, until its end or until it breaks.
pub(crate) fn of<R: AsyncBufRead + Unpin>(from: R) -> impl Stream<Item = String> {
    unfold(from, |mut from| async move {
        let mut line = Vec::new();
        match (&mut from).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => {
                let text = line.strip_suffix(b"\n").unwrap_or(&line);
                let text = text.strip_suffix(b"\r").unwrap_or(text);
                Some((String::from_utf8_lossy(text).into_owned(), from))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;

    #[tokio::test]
    async fn lines_come_without_their_ends_and_long_ones_in_parts() {
        let long = "x".repeat(LINE_MAX as usize + 5);
        let text = [b"a\r\n\n\xffb\n".to_vec(), long.into_bytes()].concat();
        let lines: Vec<String> = of(text.as_slice()).collect().await;
        assert_eq!(lines[..3], ["a", "", "\u{fffd}b"]);
        assert_eq!((lines[3].len(), lines[4].as_str()), (LINE_MAX as usize, "xxxxx"));
    }
}
