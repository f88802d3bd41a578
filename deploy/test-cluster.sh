#!/usr/bin/env bash
# What runs on Kubernetes, on a real node: kubelet, containerd, runc and kube-proxy in namespaces of their own. Called by `make test-cluster`.
# ARCO_TEST_KUBECONFIG=FILE takes a cluster that is there instead; the tests make and delete namespaces `arco-test-…` in it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "the tests make namespaces and need root: sudo make test-cluster"; exit 1; }
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "building"
cargo build --locked --workspace --all-targets
if [ -n "${ARCO_TEST_KUBECONFIG:-}" ]; then
  step "tests on the cluster of ARCO_TEST_KUBECONFIG"
  cargo test --locked --workspace --test it -- control_plane:: real_node:: installation::
else
  step "the test cluster"
  tests/kubernetes/cluster.py binary
  tests/kubernetes/check.py
  # A pod of a test must not land on a node of the other kind.
  step "tests on fake nodes"
  tests/kubernetes/cluster.py run --fake-nodes 1 --gateway-api -- cargo test --locked --workspace --test it -- control_plane:: installation:: faults::slow::
  step "tests on three fake nodes, one of which falls silent"
  # One after the other: the nodes are those of all tests.
  tests/kubernetes/cluster.py run --fake-nodes 3 -- cargo test --locked --workspace --test it -- several_nodes:: --test-threads=1
  step "tests on a real node"
  # A node whose kubelet does not answer serves no other test: that one comes after them.
  tests/kubernetes/cluster.py run --node -- sh -ec '
    cargo test --locked --workspace --test it -- real_node::
    cargo test --locked --workspace --test it -- silent_kubelet::'
  step "the installation with pods for each role: what is killed and deleted costs nothing"
  tests/kubernetes/cluster.py run --node --kubectl -- tests/kubernetes/high_availability.py target/debug/arco
  step "a server inside the cluster builds from source"
  tests/kubernetes/cluster.py run --node --internet --kubectl -- tests/kubernetes/builds.py target/debug/arco
  step "docs/guides/cluster.md, word by word, up to the upgrade and the uninstallation"
  tests/kubernetes/cluster.py run --node --internet --kubectl -- tests/kubernetes/guide.py target/debug/arco
  step "applications move from one machine to the cluster"
  tests/kubernetes/cluster.py run --node --kubectl -- tests/kubernetes/moving.py target/debug/arco
  step "scaling by load on figures of metrics-server (its build takes minutes the first time)"
  tests/kubernetes/cluster.py run --node --metrics --kubectl -- tests/kubernetes/scaling.py target/debug/arco
  step "acceptance with pods: every example is built, deployed, asked, scaled, rolled, crashed and deleted"
  if [ -f ../shared/acceptance/spine.py ]; then
    tests/kubernetes/cluster.py run --node --internet -- tests/kubernetes/with_settings.py \
      python3 ../shared/acceptance/spine.py --arco target/debug/arco --config '{config}'
  else
    echo "SKIPPED: ../shared/acceptance/spine.py is not beside this clone"
  fi
fi
step "done"
