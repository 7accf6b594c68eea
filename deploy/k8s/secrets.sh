#!/bin/sh
# Creates the Secrets of these manifests that are missing, with random values: `sh secrets.sh [OPTIONS OF KUBECTL]`.
set -eu
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
# From a file, so that no list of processes shows the values.
create() {
  name=$1
  shift
  kubectl "$@" get secret "$name" >/dev/null 2>&1 ||
    kubectl "$@" create secret generic "$name" --from-env-file=/dev/stdin
}
echo "REDIS_PASSWORD=$(random)" | create redis "$@"
echo "DB_PASSWORD=$(random)" | create postgres "$@"
echo "API_KEY=$(random)" | create fleet "$@"
password=$(random)
{
  echo "RABBITMQ_PASSWORD=$password"
  echo "RABBITMQ_ERLANG_COOKIE=$(random)"
} | create rabbitmq "$@"
# Of the Secret that is there, which may be older.
password=$(kubectl "$@" get secret rabbitmq -o jsonpath='{.data.RABBITMQ_PASSWORD}' | base64 -d)
echo "RABBITMQ_URLS=amqp://towpath:$password@rabbitmq:5672/?queue_type=quorum" | create rabbitmq-client "$@"
