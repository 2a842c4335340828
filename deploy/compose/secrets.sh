#!/usr/bin/env bash
# Writes .env for compose.yaml, with secrets made here: what is missing is added, what is there stays. `make secrets`.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 077
touch .env
chmod 600 .env
# A file that does not end with a newline would swallow the first line that is added.
[ -z "$(tail -c 1 .env)" ] || echo >>.env
for name in POSTGRES_PASSWORD S3_SECRET_KEY GATEWAY_TOKEN GRAFANA_PASSWORD; do
  grep -q "^$name=." .env && continue
  sed -i "/^$name=\$/d" .env
  echo "$name=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >>.env
  echo "made $name in .env"
done
