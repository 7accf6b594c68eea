# Thin: every target is one command that also works by itself.
CARGO ?= cargo
SEEDS ?= 200
# TLS to Kafka is built where the system has OpenSSL to build with.
FEATURES ?= $(shell pkg-config --exists openssl 2>/dev/null && echo --features towpath/kafka-tls)

.DEFAULT_GOAL := run
.PHONY: help run build setup test unit-test integration-test test-all chaos bench fuzz fmt lint doc tidy fix swagger clean \
  unified-server relay dev-unified dev-relay migrate migrate-down backfill backfill-execute check-outbox status \
  test-token-bucket test-user-api test-crash db-shell redis-shell \
  run-all run-controller run-agent run-worker \
  docker-up docker-down docker-logs restart logs-db logs-redis logs-kafka logs-relay \
  docker-controller docker-agent-worker

help: ## List the targets
	@sed -n 's/^\([a-z][a-z -]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS="$$(printf '\t')" read -r target text; do printf '%-20s %s\n' "$$target" "$$text"; done

run: ## Start everything on the embedded store, data in ./towpath-data
	$(CARGO) run --release $(FEATURES) --bin towpath -- up

build: ## The optimised binary: target/release/towpath
	$(CARGO) build --release $(FEATURES) --bin towpath

setup: ## Install what the tests need beyond the toolchain
	./scripts/setup

test: setup lint test-all doc ## All that must pass before a change lands

unit-test: ## Without the tests that start the binary
	$(CARGO) test --workspace $(FEATURES) --lib --bins

integration-test: ## The binary from outside, and the suite every backend must pass
	$(CARGO) test --workspace $(FEATURES) --test conformance
	$(CARGO) test --workspace $(FEATURES) --test it --test power_cut

test-all: ## Every test of the workspace
	$(CARGO) test --workspace $(FEATURES)

chaos: ## SEEDS=200: random crashes, full disks, killed processes, power cuts; record results in docs/reliability.md
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath-backends --lib -- model flip --nocapture
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath-backends --test conformance -- fault
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath-backends --test conformance -- decides_as_the_core
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath-backends --test conformance -- kafka::own::chaos --test-threads 1
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath --test it -- chaos --nocapture --test-threads 1
	TOWPATH_SEEDS=$(SEEDS) $(CARGO) test --release -p towpath --test power_cut -- --skip power_cut::redis --nocapture --test-threads 1

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
	$(CARGO) clippy --workspace $(FEATURES) --all-targets -- -D warnings

doc: ## The API documentation, without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace $(FEATURES) --no-deps

tidy: ## Bring Cargo.lock in line with Cargo.toml, without upgrades
	$(CARGO) update --workspace

fix: ## Apply the fixes that the compiler and the lints suggest, and format
	$(CARGO) clippy --workspace $(FEATURES) --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

swagger: ## Write the OpenAPI documents of all listeners to docs/reference/openapi
	TOWPATH_UPDATE_DOCS=1 $(CARGO) test --workspace $(FEATURES) --lib -- document

clean: ## Remove build output; ./towpath-data stays
	$(CARGO) clean

# The accounts app; PORT, DB_HOST, REDIS_ADDR, KAFKA_BROKERS and the others of docs/reference/configuration.md count.
TOWPATH = $(CARGO) run --quiet --release --bin towpath --
COMMA = ,
API ?= localhost:$(or $(PORT),8080)

unified-server: ## Users, limits and health; with RELAY=off the relay is left to `make relay`
	$(TOWPATH) run accounts.api$(if $(filter off,$(RELAY)),,$(COMMA)accounts.relay)

# Beside another process: an admin port of its own, unless one is set.
RELAY_ADMIN = TOWPATH_SERVER__ADMIN=$(or $(TOWPATH_SERVER__ADMIN),127.0.0.1:7074)
# Files that one process owns cannot be shared: the relay runs in the server then.
SHARED = test -n "$(DB_HOST)$(TOWPATH_ACCOUNTS__DATABASE)" || grep -qsE '^(export[[:space:]]+)?(DB_HOST|TOWPATH_ACCOUNTS__DATABASE)[[:space:]]*=' .env || \
  grep -qsE '^[[:space:]]*database[[:space:]]*=' towpath.toml
ALONE = echo "no database that processes share is configured (DB_HOST): the relay runs in \`make unified-server\`"

relay: ## The relay by itself, beside `make unified-server`, for a database and broker that processes share
	@if $(SHARED); then $(RELAY_ADMIN) $(TOWPATH) run accounts.relay; else $(ALONE); fi

dev-unified: ## As unified-server, in the debug build with debug logs
	$(CARGO) run --quiet --bin towpath -- run accounts.api$(if $(filter off,$(RELAY)),,$(COMMA)accounts.relay) --verbose

dev-relay: ## As relay, in the debug build with debug logs
	@if $(SHARED); then $(RELAY_ADMIN) $(CARGO) run --quiet --bin towpath -- run accounts.relay --verbose; else $(ALONE); fi

migrate: ## Make the tables
	$(TOWPATH) migrate up

migrate-down: ## Take the last migration back; YES=1 does not ask
	$(TOWPATH) migrate down$(if $(YES), --yes)

backfill: ## Count the events that would be sent again; ARGS="-start … -end … -topic …"
	$(TOWPATH) backfill -dry-run $(ARGS)

backfill-execute: ## Send them again
	$(TOWPATH) backfill $(ARGS)

check-outbox: ## Events by status, and the last ones
	$(TOWPATH) outbox stats
	$(TOWPATH) outbox ls

status: ## How the running process is
	$(TOWPATH) health

test-token-bucket: ## Take tokens until there are none, against a running server
	curl -sS "$(API)/api/bucket/check?key=user123"
	curl -sS -X POST "$(API)/api/bucket/consume?key=user123&tokens=5"
	curl -sS -X POST "$(API)/api/bucket/bulk-consume?key=user123"
	curl -sS -X POST "$(API)/api/bucket/reset?key=user123"

test-user-api: ## Create a user and list all, against a running server
	curl -sS -H 'content-type: application/json' "$(API)/api/users" \
	  -d '{"email": "user-'$$(date +%s%N)'@example.com", "name": "Test User"}'
	curl -sS "$(API)/api/users"

test-crash: ## Stop a running server between commit and answer; it must allow it (accounts.crash_test)
	curl -sS -H 'content-type: application/json' "$(API)/api/test/crash" \
	  -d '{"email": "crash-'$$(date +%s%N)'@example.com", "name": "Crash", "crash_after_db": true}'

db-shell: ## A shell on the database
	$(if $(DB_HOST),PGPASSWORD=$(or $(DB_PASSWORD),postgres) psql -h $(DB_HOST) -p $(or $(DB_PORT),5432) \
	  -U $(or $(DB_USER),postgres) $(or $(DB_NAME),outbox_db),sqlite3 towpath-data/accounts.db)

redis-shell: ## A shell on Redis
	redis-cli -u redis://$(or $(REDIS_ADDR),localhost:6379)

COMPOSE = docker compose -f deploy/compose/accounts.yaml

docker-up: ## The app with PostgreSQL, Redis and Kafka, in containers
	TOWPATH_COMMIT=$$(git rev-parse --short=12 HEAD 2>/dev/null) $(COMPOSE) up -d --build

docker-down: ## Stop them; what they keep stays in their volumes
	$(COMPOSE) down

restart: ## Stop the containers and start them again
	$(MAKE) docker-down
	$(MAKE) docker-up

docker-logs: ## What all of them say
	$(COMPOSE) logs -f

logs-db: ## What the database says; logs-redis, logs-kafka and logs-relay are alike
	$(COMPOSE) logs -f postgres

logs-redis logs-kafka logs-relay: logs-%:
	$(COMPOSE) logs -f $*

# The fleet app; API_KEY, CONTROLLER_URL, WORKER_URL and the others of docs/reference/configuration.md count.
run-all: ## Controller, agent and worker in one process
	$(TOWPATH) run fleet.controller,fleet.agent,fleet.worker

run-controller: ## The controller by itself
	TOWPATH_SERVER__ADMIN=$(or $(TOWPATH_SERVER__ADMIN),127.0.0.1:7071) $(TOWPATH) run fleet.controller

run-agent: ## The agent by itself
	TOWPATH_SERVER__ADMIN=$(or $(TOWPATH_SERVER__ADMIN),127.0.0.1:7072) $(TOWPATH) run fleet.agent

run-worker: ## The worker by itself
	TOWPATH_SERVER__ADMIN=$(or $(TOWPATH_SERVER__ADMIN),127.0.0.1:7073) $(TOWPATH) run fleet.worker

FLEET = docker compose -f deploy/compose/fleet.yaml

docker-controller: ## The controller in a container; API_KEY has to be set
	$(FLEET) up -d --build controller

docker-agent-worker: ## Agent, worker and Redis in containers; API_KEY has to be set
	$(FLEET) up -d --build redis worker agent
