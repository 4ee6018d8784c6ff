#!/usr/bin/env bash
# Starts a control plane of its own on loopback, drives it from the OpenAPI document that it serves
# (schemathesis), and stops it.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
cargo build --quiet --locked -p heddle-control-plane
target=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
"$target/debug/heddle-control-plane" --data-dir "$work/data" --api 127.0.0.1:0 --mesh 127.0.0.1:0 \
  --health 127.0.0.1:0 --context-file "$work/context.yaml" > "$work/log" 2>&1 &
control_plane=$!
trap 'kill "$control_plane" 2> /dev/null || true; wait "$control_plane" 2> /dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 200); do
  if [ -s "$work/data/addresses.json" ] && [ -s "$work/context.yaml" ]; then
    health=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["health"])' "$work/data/addresses.json")
    curl -fsS "http://$health/ready" > /dev/null 2>&1 && break
  fi
  sleep 0.1
done
address=$(sed -n 's/^ *address: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$work/context.yaml" | head -1)
token=$(sed -n 's/^ *token: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$work/context.yaml" | head -1)
sed -n '/BEGIN CERTIFICATE/,/END CERTIFICATE/p' "$work/context.yaml" | sed 's/^ *//' > "$work/ca.pem"
tests/peers/schemathesis.sh "$address" "$work/ca.pem" "$token" || { tail -40 "$work/log"; exit 1; }
