//! The builder as a role: jobs in, revisions out, with real stacks and real package clients.
//!
//! Steps run in [`chroot`], a small stand-in for an orchestrator, so that a failure here is the builder's. Stacks are
//! kept in the machine's cache folder between runs (`ARCO_TEST_CACHE`, else `/var/cache/arco`). Needs root,
//! `debootstrap` and the package registries; says so loudly where they are missing.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod build;
mod chroot;
mod dockerfile;
mod harness;
mod role;
mod stacks;
mod unconfined;
