#!/bin/sh
# Writes a random value for each secret that `.env` in this folder lacks: `sh secrets.sh`.
set -eu
umask 077
file=$(dirname "$0")/.env
touch "$file"
for name in API_KEY DB_PASSWORD REDIS_PASSWORD RABBITMQ_PASSWORD RABBITMQ_ERLANG_COOKIE; do
  grep -q "^$name=" "$file" ||
    echo "$name=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >>"$file"
done
