#!/usr/bin/env bash
# What runs on Kubernetes, on a real node: kubelet, containerd, runc and kube-proxy in namespaces of their own. Called by `make test-cluster`.
# ARCO_TEST_KUBECONFIG=FILE takes a cluster that is there instead; the tests make and delete namespaces `arco-test-…` in it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "the tests make namespaces and need root: sudo make test-cluster"; exit 1; }
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "building"
cargo build --locked --workspace --all-targets
cluster=()
if [ -z "${ARCO_TEST_KUBECONFIG:-}" ]; then
  step "the test cluster"
  tests/kubernetes/cluster.py binary
  tests/kubernetes/check.py
  cluster=(tests/kubernetes/cluster.py run --node --fake-nodes 1 --)
fi
step "tests on the cluster"
"${cluster[@]}" cargo test --locked --workspace --test it -- control_plane:: real_node:: installation::
step "done"
