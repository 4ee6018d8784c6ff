#!/usr/bin/env bash
# A driver of the side-by-side benchmark (pair.py): Heddle as people run it, from a release build: a real
# control plane, captured traffic, default deny with an ALLOW rule, retries and timeouts as by default, metrics on,
# one trace in a hundred sampled and sent away, one worker.
#   prepare  builds into RIG_DIR       cp  the control plane       b  the server's proxy       a  the client's
# HEDDLE_BIN: a folder of programs that are built already.
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
home=10.88.0.2 # of the server and the control plane
cd "$RIG_DIR"
export HEDDLE_CONFIG=$RIG_DIR/context.yaml

proxy() { # NAME FLAG...
  name=$1
  shift
  for _ in $(seq 100); do [ -e "$name.join" ] && break; sleep 0.1; done
  exec ./heddle-proxy --join "$name.join" --workload "$name" --state-dir "$RIG_DIR/state-$name" --http-proxy off \
    --tracing-endpoint "http://127.0.0.1:4317" --sampling-ratio 0.01 "$@"
}

case $1 in
prepare)
  bin=${HEDDLE_BIN:-}
  if [ -z "$bin" ]; then
    (cd "$root" && cargo build --release --locked -p heddle-proxy -p heddle-control-plane -p heddle-cli)
    bin=${CARGO_TARGET_DIR:-$root/target}/release
  fi
  install -m755 "$bin"/{heddle-proxy,heddle-control-plane,heddle} .
  ;;
cp)
  (
    until ./heddle status > /dev/null 2>&1; do sleep 0.05; done
    ./heddle apply -f - << 'RESOURCES'
apiVersion: heddle.dev/v1
kind: Service
metadata: { name: web, namespace: bench }
spec: { ports: [{ port: 8080, protocol: http }, { port: 8090, protocol: http2 }] }
---
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: web-callers, namespace: bench }
spec:
  targetRef: { kind: Service, name: web }
  action: ALLOW
  rules: [{ from: [{ identities: [bench/load] }] }]
RESOURCES
    for account in web load; do
      ./heddle token create "$account.bench" -o "$account.join.new"
      mv "$account.join.new" "$account.join"
    done
  ) &
  exec ./heddle-control-plane --data-dir data --context-file "$HEDDLE_CONFIG" --mesh "$home:9701"
  ;;
b) proxy web --service web.bench --port 8080:8080 --port 8090:8090 --inbound 0.0.0.0:15006 --advertise "$home:15006" ;;
a) proxy load --captured 127.0.0.1:15001 ;;
*)
  echo "usage: heddle.sh prepare|cp|b|a" >&2
  exit 2
  ;;
esac
