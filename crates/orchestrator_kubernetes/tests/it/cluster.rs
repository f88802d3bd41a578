//! The driver against a real API server: the one named by `ARCO_TEST_KUBECONFIG` (`tests/kubernetes/cluster.py run` makes
//! one). Where none is named, the tests say SKIPPED.

pub(crate) mod control_plane;
pub(crate) mod place;
pub(crate) mod real_node;
