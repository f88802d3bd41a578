//! Listening sockets that outlive the process that serves them: a *holder* keeps them, *workers* serve on them.
//!
//! The holder ([`hold`]) is one small thread without a network of its own. It starts a worker, keeps a duplicate of every
//! socket that the worker asks it to keep, and starts another worker on the same sockets when one dies: what connects
//! meanwhile waits in the kernel's queue instead of being refused. An upgrade is the same with both alive: the new worker
//! serves, then the old one finishes what is open and ends; then the holder replaces itself by the new executable.
//!
//! What must hold: a socket that is kept is never closed while somebody may still connect to it; one worker at a time
//! *owns* what cannot be shared (files that it writes); a holder that dies leaves no worker that still accepts.
//!
//! Both sides speak over a pair of sockets (`wire`), the worker's end being its standard input. What to do next is
//! decided by a pure function (`plan`). Not here: what a worker does, and how its rights are cut (`confine`).

mod holder;
mod plan;
mod sockets;
mod wire;

pub use holder::{HoldError, Holding, hold, resume};
pub use sockets::{Claim, Order, Sockets, Start};
