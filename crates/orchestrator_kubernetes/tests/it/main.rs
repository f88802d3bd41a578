//! Integration tests of the Kubernetes driver; all of them need a cluster.
#![allow(clippy::unwrap_used, reason = "the lint knows test functions, not what they call")]

mod cluster;
mod faults;
mod faulty;
mod installation;
mod leader;
mod local_storage;
mod several_nodes;
mod silent_kubelet;
