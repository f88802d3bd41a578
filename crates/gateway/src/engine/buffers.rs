//! Buffers of one core: taken while bytes move, given back while a connection waits. Not shared between threads.

use std::cell::RefCell;

/// Capacity of a buffer in bytes: a response of 16 KiB with its head in one read.
pub(super) const SIZE: usize = 32 * 1024;
/// Most buffers that a core keeps when nobody uses them.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer of at least [`SIZE`] bytes.
pub(super) fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(SIZE))
}

/// Gives a buffer back; what is in it is forgotten. One that never was taken, or has grown, is freed.
pub(super) fn put(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 {
        return;
    }
    // A thread that ends keeps nothing.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < KEPT && (SIZE..=2 * SIZE).contains(&buffer.capacity()) {
            buffer.clear();
            free.push(buffer);
        }
    });
}
