#!/usr/bin/env bash
# All that must pass: lint, tests with real parts, acceptance of the main job. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "the tests run containers and need root: sudo make test"; exit 1; }
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "formatting"
cargo fmt --all --check

step "building, with lints"
# clippy-driver is rustc with lints. Building with it checks them on the way: `cargo clippy` would compile every dependency once more.
export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings
cargo build --locked --workspace --all-targets

step "rules of the house"
# The binary of the workspace's build: `cargo xtask` alone would build its dependencies once more with other features.
target/debug/xtask tidy
[ -z "$(cargo tree --locked --workspace -i ring 2>/dev/null)" ] || { echo "ring is in the tree: one TLS provider only"; exit 1; }

step "licences, sources and bans of dependencies"
if cargo deny --version >/dev/null 2>&1; then
  # Without advisories: their database is fetched from elsewhere. `make deny` checks them, too.
  cargo deny --locked check bans licenses sources
else
  echo "SKIPPED: cargo-deny is not installed (cargo install cargo-deny --locked)"
fi

step "tests"
# Tests with random input take the same one in each run: what fails here fails again. `cargo test` alone takes another one each time.
export PROPTEST_RNG_SEED=1
cargo test --locked --workspace --all-targets

step "tests on a Kubernetes control plane"
if [ -n "${ARCO_TEST_KUBECONFIG:-}" ]; then
  cargo test --locked --workspace --test it -- control_plane:: installation::
elif command -v go >/dev/null; then
  tests/kubernetes/cluster.py run --fake-nodes 1 --gateway-api -- cargo test --locked --workspace --test it -- control_plane:: installation::
  echo "SKIPPED: pods that really run; make test-cluster has them"
else
  echo "SKIPPED: everything on Kubernetes: Go 1.26 or newer is missing (go.dev), or name a cluster with ARCO_TEST_KUBECONFIG"
fi

step "acceptance: every example is deployed, asked, scaled, rolled, crashed and deleted"
if [ -f ../shared/acceptance/spine.py ]; then
  python3 ../shared/acceptance/spine.py --arco target/debug/arco
else
  echo "SKIPPED: ../shared/acceptance/spine.py is not beside this clone"
fi

step "done"
