//! Output as lines: without line ends, in pieces of at most [`LINE_MAX`], and never a failure because bytes are not UTF-8.

use futures_util::Stream;
use futures_util::stream::unfold;
use std::io;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Longest piece, in bytes; a longer line comes in several, so that one without an end does not fill the memory.
const LINE_MAX: u64 = 16 << 10;

/// A line, or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) end: End,
}

/// What comes after a piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Another line.
    Line,
    /// More of the same line.
    Part,
    /// Nothing: the reader is at its end, the line is not.
    Reader,
}

/// The lines of a reader, until its end, or until it breaks, which is the last that comes.
pub(crate) fn of<R: AsyncBufRead + Unpin>(from: R) -> impl Stream<Item = io::Result<Piece>> {
    unfold(Some(from), |from| async move {
        let mut from = from?;
        let mut line = Vec::new();
        match (&mut from).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) => None,
            Ok(count) => {
                let (bytes, end) = match line.strip_suffix(b"\n") {
                    Some(it) => (it.strip_suffix(b"\r").unwrap_or(it), End::Line),
                    // A part of a long line may end with any byte.
                    None if count as u64 == LINE_MAX => (&line[..], End::Part),
                    None => (&line[..], End::Reader),
                };
                Some((Ok(Piece { text: String::from_utf8_lossy(bytes).into_owned(), end }), Some(from)))
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
        let pieces: Vec<Piece> = of(text.as_slice()).map(Result::unwrap).collect().await;
        let texts: Vec<&str> = pieces.iter().map(|it| it.text.as_str()).collect();
        assert_eq!(texts[..3], ["a", "", "\u{fffd}b"]);
        assert!(texts[3].len() == LINE_MAX as usize && texts[3].ends_with("x\r"), "{}", texts[3].len());
        assert_eq!(texts[4..], ["yyyyy"]);
        let ends: Vec<End> = pieces.iter().map(|it| it.end).collect();
        assert_eq!(ends, [End::Line, End::Line, End::Line, End::Part, End::Reader]);
    }

    #[tokio::test]
    async fn a_reader_that_breaks_says_so_after_its_lines() {
        let pieces = [Ok(&b"a\nb\nc"[..]), Err(io::Error::other("cut"))];
        let from = tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces));
        let lines: Vec<_> = of(from).map(|it| it.map(|it| it.text).map_err(|it| it.to_string())).collect().await;
        assert_eq!(lines, [Ok("a".to_owned()), Ok("b".to_owned()), Err("cut".to_owned())]);
    }
}
