//! Chunked bodies, byte by byte outside of chunk contents: sizes in plain hexadecimal, CR LF after each line and chunk,
//! bounded extensions and trailers, no framing fields among trailers.

use super::{Refusal, refuse};

const MAX_EXTENSION: usize = 256;
const MAX_TRAILERS: usize = 8 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Chunked {
    at: At,
    size: u64,
    digits: usize,
    extension: usize,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum At {
    #[default]
    Size,
    Extension,
    SizeLf,
    Content,
    ContentCr,
    ContentLf,
    Trailers,
    Done,
}

impl Chunked {
    /// Whether the body is over, trailers included.
    pub(crate) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// How many of `bytes` belong to the body; fewer than all only when it ends there.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::Done {
            if self.at == At::Content {
                taken += self.content(bytes.len() - taken);
            } else {
                self.byte(bytes[taken])?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// The same, and moves the contents of the chunks to the front of `bytes`. Returns how many bytes belong to the body,
    /// and how many of contents there were.
    pub(crate) fn decode(&mut self, bytes: &mut [u8]) -> Result<(usize, usize), Refusal> {
        let (mut taken, mut kept) = (0, 0);
        while taken < bytes.len() && self.at != At::Done {
            if self.at == At::Content {
                let step = self.content(bytes.len() - taken);
                bytes.copy_within(taken..taken + step, kept);
                taken += step;
                kept += step;
            } else {
                self.byte(bytes[taken])?;
                taken += 1;
            }
        }
        Ok((taken, kept))
    }

    /// The trailer section with its empty line, as it was written; only when the body is over.
    pub(crate) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn content(&mut self, available: usize) -> usize {
        let step = usize::try_from(self.size).unwrap_or(usize::MAX).min(available);
        self.size -= step as u64;
        if self.size == 0 {
            self.at = At::ContentCr;
        }
        step
    }

    fn byte(&mut self, byte: u8) -> Result<(), Refusal> {
        const LINE: &str = "a chunk's line does not end with CR LF";
        match (self.at, byte) {
            (At::Size, _) if byte.is_ascii_hexdigit() => {
                self.digits += 1;
                if self.digits > 15 {
                    return refuse(400, "a chunk's size has more than 15 digits");
                }
                self.size = self.size * 16 + u64::from((byte as char).to_digit(16).unwrap_or(0));
            }
            (At::Size, b';') if self.digits > 0 => self.at = At::Extension,
            (At::Size, b'\r') if self.digits > 0 => self.at = At::SizeLf,
            (At::Size, _) => return refuse(400, "a chunk's size is not a hexadecimal number"),
            (At::Extension, b'\r') => self.at = At::SizeLf,
            (At::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension += 1;
                if self.extension > MAX_EXTENSION {
                    return refuse(400, "chunk extensions are too long");
                }
            }
            (At::Extension, _) => return refuse(400, "a chunk extension holds a control character"),
            (At::SizeLf, b'\n') => {
                self.at = if self.size == 0 { At::Trailers } else { At::Content };
                self.digits = 0;
            }
            (At::ContentCr, b'\r') => self.at = At::ContentLf,
            (At::ContentLf, b'\n') => self.at = At::Size,
            (At::SizeLf, _) => return refuse(400, LINE),
            (At::ContentCr | At::ContentLf, _) => return refuse(400, "a chunk is longer than its size says"),
            (At::Trailers, _) => return self.trailer(byte),
            (At::Content | At::Done, _) => {}
        }
        Ok(())
    }

    fn trailer(&mut self, byte: u8) -> Result<(), Refusal> {
        self.trailers.push(byte);
        if self.trailers.len() > MAX_TRAILERS {
            return refuse(431, "the trailers are larger than this gateway accepts");
        }
        if self.trailers != b"\r\n" && !self.trailers.ends_with(b"\r\n\r\n") {
            return super::head::check_bytes(&self.trailers, self.trailers.len() - 1);
        }
        let mut fields = [httparse::EMPTY_HEADER; super::MAX_HEADERS];
        match httparse::parse_headers(&self.trailers, &mut fields) {
            Ok(httparse::Status::Complete((_, fields))) => {
                let framing = ["content-length", "transfer-encoding", "host", "trailer", "upgrade", "connection"];
                if fields.iter().any(|it| framing.iter().any(|name| it.name.eq_ignore_ascii_case(name))) {
                    return refuse(400, "a trailer holds a field that belongs into the head");
                }
            }
            _ => return refuse(400, "the trailers are malformed"),
        }
        self.at = At::Done;
        Ok(())
    }
}
