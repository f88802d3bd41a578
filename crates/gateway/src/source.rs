//! Where routes come from: the coordination store, or one file.

mod certificate;
pub mod file;
mod route;
pub mod store;
