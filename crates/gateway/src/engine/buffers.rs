//! Buffers of one core: taken while bytes move, given back while a connection waits. Not shared between threads.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Capacity of a buffer in bytes: a response of 16 KiB with its head in one read.
pub(super) const SIZE: usize = 32 * 1024;
/// Most buffers of a kind that a core keeps when nobody uses them.
const KEPT: usize = 32;

type Free = RefCell<Vec<Vec<u8>>>;

thread_local! {
    static FREE: Free = const { RefCell::new(Vec::new()) };
    static FILLED: Free = const { RefCell::new(Vec::new()) };
}

/// An empty buffer of at least [`SIZE`] bytes.
pub(super) fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(SIZE))
}

/// Gives a buffer back; what is in it is forgotten. One that never was taken, or has grown, is freed.
pub(super) fn put(mut buffer: Vec<u8>) {
    if (SIZE..=2 * SIZE).contains(&buffer.capacity()) {
        buffer.clear();
        keep(&FREE, buffer);
    }
}

/// A buffer whose [`SIZE`] bytes all have some value, for those who write at places of it.
fn take_filled() -> Vec<u8> {
    FILLED.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE])
}

fn keep(kind: &'static LocalKey<Free>, buffer: Vec<u8>) {
    // A thread that ends keeps nothing.
    let _ = kind.try_with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
}

/// Bytes at some place of a buffer; without one while there are none.
#[derive(Debug, Default)]
pub(super) struct Span {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Span {
    /// Whether nothing is there.
    pub(super) fn is_empty(&self) -> bool {
        self.begin == self.end
    }

    /// How many bytes are there.
    pub(super) fn len(&self) -> usize {
        self.end - self.begin
    }

    /// What is there.
    pub(super) fn filled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.end]
    }

    /// Room behind it for `wanted` bytes or more; see [`Span::add`].
    pub(super) fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = take_filled();
        }
        if self.bytes.len() - self.end < wanted {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.len());
            if self.bytes.len() < self.end + wanted {
                self.bytes.resize(self.end + wanted, 0);
            }
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes were written into the room.
    pub(super) fn add(&mut self, count: usize) {
        self.end += count;
    }

    /// Appends a copy of `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
            self.add(bytes.len());
        }
    }

    /// Forgets the first `count` bytes, and the buffer with the last of them.
    pub(super) fn skip(&mut self, count: usize) {
        self.begin += count;
        self.rest();
    }

    /// Gives the buffer back if nothing is in it.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            (self.begin, self.end) = (0, 0);
            let buffer = std::mem::take(&mut self.bytes);
            // One that has grown is freed.
            if buffer.len() == SIZE {
                keep(&FILLED, buffer);
            }
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.end = self.begin;
        self.rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_moves_grows_and_rests() {
        let mut span = Span::default();
        assert!(span.is_empty() && span.filled().is_empty());
        span.push(b"abcdef");
        span.skip(4);
        assert_eq!((span.filled().to_vec(), span.len()), (b"ef".to_vec(), 2));
        // What is there moves to the front when that makes the room.
        let room = span.room(SIZE - 2).len();
        assert_eq!((room, span.filled().to_vec()), (SIZE - 2, b"ef".to_vec()));
        span.push(&vec![b'x'; SIZE]);
        assert_eq!((span.len(), span.filled()[1], span.filled()[2]), (SIZE + 2, b'f', b'x'));
        span.skip(SIZE + 2);
        assert!(span.is_empty() && span.bytes.capacity() == 0);
        let kept = FILLED.with_borrow(Vec::len);
        span.push(b"g");
        drop(span);
        assert_eq!(FILLED.with_borrow(Vec::len), kept + 1);
    }
}
