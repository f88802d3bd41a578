//! The local driver: our own OCI containers on one machine.
//!
//! [`container`] makes, watches and removes single containers, each owned by a `shim` process that outlives the server;
//! what runs where, networks and volumes are built on top of it. Nothing here judges whether an instance is well.

pub mod autoscale;
mod cgroup;
pub mod container;
mod driver;
pub mod network;
mod probe;
mod shim;
pub mod supervise;
pub mod volumes;

pub use driver::{LocalConfig, LocalOrchestrator, Pace};
pub use shim::shim_main;

/// Makes a folder and those above it, also where another server that ends takes an empty one above it away meanwhile.
fn make_folder(path: &std::path::Path) -> std::io::Result<()> {
    for _ in 0..1000 {
        match std::fs::create_dir_all(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    std::fs::create_dir_all(path)
}
