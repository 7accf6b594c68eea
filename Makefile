# Thin: every target is one command that also works by itself.
CARGO ?= cargo
SEEDS ?= 200

.PHONY: run build setup test unit-test integration-test test-all chaos bench fuzz fmt lint doc clean

run: ## Start everything on the embedded store, data in ./towpath-data
	$(CARGO) run --release --bin towpath -- up

build: ## The optimised binary: target/release/towpath
	$(CARGO) build --release --bin towpath

setup: ## Install what the tests need beyond the toolchain
	./scripts/setup

test: setup lint test-all doc ## All that must pass before a change lands

unit-test: ## Without the tests that start the binary
	$(CARGO) test --workspace --lib --bins

integration-test: ## The binary from outside, and the suite every backend must pass
	$(CARGO) test -p towpath-backends --test conformance
	$(CARGO) test -p towpath --test it --test power_cut

test-all: ## Every test of the workspace
	$(CARGO) test --workspace

chaos: ## SEEDS=200: random crashes, full disks, killed processes, power cuts; record results in docs/reliability.md
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath-backends --lib -- model flip --nocapture
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath-backends --test conformance -- fault
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath --test it -- chaos --nocapture --test-threads 1
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath --test power_cut -- --skip redis --nocapture --test-threads 1

bench: build ## Throughput, latency and CPU of this machine, durable and not
	target/release/towpath bench queue
	target/release/towpath bench http
	scripts/bench-redis
	scripts/bench-rabbitmq

fuzz: ## Needs cargo-fuzz and a nightly toolchain; `make test` mutates segments without them
	cd fuzz && for target in $$($(CARGO) +nightly fuzz list); do \
	  $(CARGO) +nightly fuzz run $$target -- -max_total_time=60 || exit 1; \
	done

fmt: ## Format the code
	$(CARGO) fmt --all

lint: ## Formatting and every warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc: ## The API documentation, without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

clean: ## Remove build output; ./towpath-data stays
	$(CARGO) clean
