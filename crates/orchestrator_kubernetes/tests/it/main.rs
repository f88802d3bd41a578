//! The driver against a real API server: the one named by `ARCO_TEST_KUBECONFIG` (`tests/kubernetes/cluster.py run` makes
//! one). Where none is named, the tests say SKIPPED.
#![allow(clippy::unwrap_used, reason = "the lint knows test functions, not what they call")]

mod cluster;
mod control_plane;
mod real_node;
