# Each target is one command that also works without make.
CARGO ?= cargo
SEEDS ?= 200
# TLS for Kafka is enabled when the OpenSSL headers are installed.
FEATURES ?= $(shell pkg-config --exists openssl 2>/dev/null && echo --features towpath-server/kafka-tls)
# Release builds: the lock file decides the versions, and libraries in C are built with the protections of distributions.
C_FLAGS = -fstack-protector-strong -fstack-clash-protection -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -Wformat -Wformat-security
RELEASE = CFLAGS="$(C_FLAGS)" CXXFLAGS="$(C_FLAGS)" $(CARGO)

.DEFAULT_GOAL := run
.PHONY: help run build notices package setup test unit-test integration-test test-all chaos bench fuzz fmt lint deny doc tidy fix swagger clean \
  unified-server relay dev-unified dev-relay migrate migrate-down backfill backfill-execute check-outbox status \
  test-token-bucket test-user-api test-crash db-shell redis-shell \
  run-all run-controller run-agent run-worker \
  docker-up docker-down docker-logs restart logs-db logs-redis logs-kafka logs-relay \
  docker-controller docker-agent-worker

help: ## List the targets
	@sed -n 's/^\([a-z][a-z -]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS="$$(printf '\t')" read -r target text; do printf '%-20s %s\n' "$$target" "$$text"; done

run: ## Build and start everything on the embedded store, data in ./towpath-data
	$(RELEASE) run --release --locked $(FEATURES) --bin towpath -- up

build: ## Build the release binary: target/release/towpath
	$(RELEASE) build --release --locked $(FEATURES) --bin towpath

notices: ## Write third-party notices and a bill of materials (CycloneDX): target/notices
	scripts/notices target/notices $(patsubst --features,,$(FEATURES))

package: build notices ## Build the Debian package: target/debian
	$(CARGO) deb -p towpath-server --no-build

setup: ## Install programs that the tests need
	./scripts/setup

test: setup lint deny test-all doc ## Run all checks of CI

unit-test: ## Run unit tests
	$(CARGO) test --locked --workspace $(FEATURES) --lib --bins

integration-test: ## Run the conformance suite and the tests of the binary
	$(CARGO) test --locked --workspace $(FEATURES) --test conformance
	$(CARGO) test --locked --workspace $(FEATURES) --test it --test power_cut --test bench

test-all: ## Run all tests of the workspace
	$(CARGO) test --locked --workspace $(FEATURES)

chaos: ## Run random crashes, full disks and power cuts (SEEDS=200); record results in docs/reliability.md
	TOWPATH_SEEDS=$(SEEDS) $(RELEASE) test --release --locked -p towpath-backends --lib -- model flip --nocapture
	TOWPATH_SEEDS=$(SEEDS) $(RELEASE) test --release --locked -p towpath-backends --test conformance -- fault
	TOWPATH_SEEDS=$(SEEDS) $(RELEASE) test --release --locked -p towpath-backends --test conformance -- decides_as_the_core
	TOWPATH_SEEDS=$(SEEDS) $(RELEASE) test --release --locked -p towpath-backends --test conformance -- kafka::own::chaos --test-threads 1
	TOWPATH_SEEDS=$(SEEDS) $(RELEASE) test --release --locked -p towpath-server --test it -- chaos --nocapture --test-threads 1
	TOWPATH_TEST_MINUTE=60 $(RELEASE) test --release --locked -p towpath-server --test it -- outages --nocapture
	TOWPATH_SEEDS=$(SEEDS) $(RELEASE) test --release --locked -p towpath-server --test power_cut -- --skip power_cut::redis --nocapture --test-threads 1

bench: build ## Measure throughput, latency and CPU of this machine
	$(RELEASE) build --release --locked $(FEATURES) --bin towpath-bench
	target/release/towpath-bench queue
	target/release/towpath-bench http
	scripts/bench-redis
	scripts/bench-rabbitmq

fuzz: ## Run each fuzz target for a minute; needs cargo-fuzz and a nightly toolchain
	cd fuzz && for target in $$($(CARGO) +nightly fuzz list); do \
	  $(CARGO) +nightly fuzz run $$target -- -max_total_time=60 || exit 1; \
	done

fmt: ## Format the code
	$(CARGO) fmt --all

lint: ## Check formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace $(FEATURES) --all-targets -- -D warnings

deny: ## Check licences, sources and advisories of dependencies
	scripts/deny

doc: ## Build the API documentation, warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace $(FEATURES) --no-deps

tidy: ## Sync Cargo.lock with Cargo.toml, without upgrades
	$(CARGO) update --workspace

fix: ## Apply suggested fixes and format
	$(CARGO) clippy --locked --workspace $(FEATURES) --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

swagger: ## Generate the OpenAPI documents in docs/reference/openapi
	TOWPATH_UPDATE_DOCS=1 $(CARGO) test --locked --workspace $(FEATURES) --lib -- document

clean: ## Remove build output; keeps ./towpath-data
	$(CARGO) clean

# The accounts app, configured by PORT, DB_HOST, REDIS_ADDR, KAFKA_BROKERS and others (docs/reference/configuration.md).
TOWPATH = $(RELEASE) run --quiet --release --locked --bin towpath --
COMMA = ,
API ?= localhost:$(or $(PORT),8080)

unified-server: ## Run users, limits and relay; RELAY=off without the relay
	$(TOWPATH) run accounts.api$(if $(filter off,$(RELAY)),,$(COMMA)accounts.relay)

# Embedded files belong to one process: without a shared database the relay runs in the server.
SHARED = test -n "$(DB_HOST)$(TOWPATH_ACCOUNTS__DATABASE)" || grep -qsE '^(export[[:space:]]+)?(DB_HOST|TOWPATH_ACCOUNTS__DATABASE)[[:space:]]*=' .env || \
  grep -qsE '^[[:space:]]*database[[:space:]]*=' towpath.toml
ALONE = echo "no database that processes share is configured (DB_HOST): the relay runs in \`make unified-server\`"

relay: ## Run the relay alone, next to `make unified-server` with a shared database and broker
	@if $(SHARED); then $(TOWPATH) run accounts.relay; else $(ALONE); fi

dev-unified: ## Run unified-server as a debug build with debug logs
	$(CARGO) run --quiet --locked --bin towpath -- run accounts.api$(if $(filter off,$(RELAY)),,$(COMMA)accounts.relay) --verbose

dev-relay: ## Run relay as a debug build with debug logs
	@if $(SHARED); then $(CARGO) run --quiet --locked --bin towpath -- run accounts.relay --verbose; else $(ALONE); fi

migrate: ## Run database migrations
	$(TOWPATH) migrate up

migrate-down: ## Revert the last migration; YES=1 skips the confirmation
	$(TOWPATH) migrate down$(if $(YES), --yes)

backfill: ## Count events to replay; ARGS="-start … -end … -topic …"
	$(TOWPATH) backfill -dry-run $(ARGS)

backfill-execute: ## Replay events
	$(TOWPATH) backfill $(ARGS)

check-outbox: ## Show event counts and the latest events
	$(TOWPATH) outbox stats
	$(TOWPATH) outbox ls

status: ## Show problems of the running process and their next steps
	$(TOWPATH) status

test-token-bucket: ## Take tokens from a limit of a running server
	curl -sS "$(API)/api/bucket/check?key=user123"
	curl -sS -X POST "$(API)/api/bucket/consume?key=user123&tokens=5"
	curl -sS -X POST "$(API)/api/bucket/bulk-consume?key=user123"
	curl -sS -X POST "$(API)/api/bucket/reset?key=user123"

test-user-api: ## Create and list users on a running server
	curl -sS -H 'content-type: application/json' "$(API)/api/users" \
	  -d '{"email": "user-'$$(date +%s%N)'@example.com", "name": "Test User"}'
	curl -sS "$(API)/api/users"

test-crash: ## Stop a running server between commit and response; needs accounts.crash_test
	curl -sS -H 'content-type: application/json' "$(API)/api/test/crash" \
	  -d '{"email": "crash-'$$(date +%s%N)'@example.com", "name": "Crash", "crash_after_db": true}'

db-shell: ## Open a database shell
	$(if $(DB_HOST),PGPASSWORD=$(or $(DB_PASSWORD),postgres) psql -h $(DB_HOST) -p $(or $(DB_PORT),5432) \
	  -U $(or $(DB_USER),postgres) $(or $(DB_NAME),outbox_db),sqlite3 towpath-data/accounts.db)

redis-shell: ## Open a Redis shell
	redis-cli -u redis://$(or $(REDIS_ADDR),localhost:6379)

COMPOSE = docker compose -f deploy/compose/accounts.yaml

docker-up: ## Start the app with PostgreSQL, Redis and Kafka in containers
	sh deploy/compose/secrets.sh
	TOWPATH_COMMIT=$$(git rev-parse --short=12 HEAD 2>/dev/null) $(COMPOSE) up -d --build

docker-down: ## Stop the containers; volumes stay
	$(COMPOSE) down

restart: ## Restart the containers
	$(MAKE) docker-down
	$(MAKE) docker-up

docker-logs: ## Follow the logs of all containers
	$(COMPOSE) logs -f

logs-db: ## Follow the database log; likewise logs-redis, logs-kafka, logs-relay
	$(COMPOSE) logs -f postgres

logs-redis logs-kafka logs-relay: logs-%:
	$(COMPOSE) logs -f $*

# The fleet app, configured by API_KEY, CONTROLLER_URL, WORKER_URL and others (docs/reference/configuration.md).
run-all: ## Run controller, agent and worker in one process
	$(TOWPATH) run fleet.controller,fleet.agent,fleet.worker

run-controller: ## Run the controller
	$(TOWPATH) run fleet.controller

run-agent: ## Run the agent
	$(TOWPATH) run fleet.agent

run-worker: ## Run the worker
	$(TOWPATH) run fleet.worker

FLEET = docker compose -f deploy/compose/fleet.yaml

docker-controller: ## Start the controller in a container
	sh deploy/compose/secrets.sh
	$(FLEET) up -d --build controller

docker-agent-worker: ## Start agent, worker and Redis in containers
	sh deploy/compose/secrets.sh
	$(FLEET) up -d --build redis worker agent
