//! Where routes come from: the coordination store, or one file.

pub mod file;
pub mod store;
