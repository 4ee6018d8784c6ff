#!/usr/bin/env bash
# Gets JavaScript programs that tests talk to (from npm), and prints the folder of their modules (for NODE_PATH).
# Needs Node and npm. Whoever changes what is got raises the number, here and where tests name it.
set -euo pipefail
home=${HEDDLE_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/heddle-peers}/node-1
if [ ! -d "$home" ]; then
  rm -rf "$home.new"
  mkdir -p "$home.new"
  npm install --silent --no-fund --no-audit --prefix "$home.new" @grpc/grpc-js@1.14.7 ws@8.23.0 >&2
  mv "$home.new" "$home"
fi
echo "$home/node_modules"
