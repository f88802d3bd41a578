//! Who serves a gateway's file: the built-in engine, or nginx for what it can do.
//!
//! What must hold: a file that a driver cannot serve as it is written is refused, with the route and the part that it
//! cannot do; what was served before goes on.

mod builtin;
mod nginx;

use crate::data_plane::GatewayError;
use crate::source::file::{ListenerSpec, Loaded};
pub use builtin::{Builtin, GRACE_OF_HAND_OVER};
use futures_util::future::BoxFuture;
pub use nginx::Nginx;
use std::net::SocketAddr;

/// A data plane that files are put into.
pub trait Driver: Send {
    /// Its name, as the file calls it.
    fn name(&self) -> &'static str;

    /// Puts a file that was read well into effect. After an error the one before stays.
    fn put(&mut self, loaded: Loaded) -> BoxFuture<'_, Result<(), GatewayError>>;

    /// Opens listeners whose address has come, closes those whose address has gone.
    fn follow_addresses(&mut self) -> BoxFuture<'_, ()>;

    /// Looks after whatever works for it; called every half a second.
    fn tend(&mut self) -> BoxFuture<'_, ()>;

    /// Listeners that are open, as really bound.
    fn listeners(&self) -> Vec<(ListenerSpec, SocketAddr)>;

    /// Accepts nothing more and lets open requests finish, or leaves everything to a successor. Returns whether all of
    /// them did.
    fn end(&mut self, successor: bool) -> BoxFuture<'_, bool>;
}
