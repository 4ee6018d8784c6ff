#!/usr/bin/env bash
# Drives a live control plane from its own OpenAPI document, with all checks of schemathesis.
# Usage: schemathesis.sh ADDRESS CA TOKEN [OPTION...]   e.g. https://127.0.0.1:9700 ca.pem heddle_...
# Needs Python 3; installs schemathesis (from PyPI, kept by version) when it is missing.
# The control plane is full of strange objects afterwards: give it one of its own.
set -euo pipefail
address=$1 ca=$2 token=$3
shift 3
version=4.32.5
home=${HEDDLE_PEERS:-$HOME/.cache/heddle-peers}/schemathesis-$version
if [ ! -x "$home/bin/schemathesis" ]; then
  rm -rf "$home.new"
  mkdir -p "$(dirname "$home")"
  python3 -m venv "$home.new"
  "$home.new/bin/pip" install --quiet "schemathesis==$version"
  rm -rf "$home"
  mv "$home.new" "$home"
fi
# In a folder of its own: it leaves notes beside its settings.
ca=$(realpath "$ca")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/schemathesis.toml" "$here/schemathesis_hooks.py" "$work/"
cd "$work"
# By its module: the scripts in a venv name the folder in which it was made.
"$home/bin/python" -m schemathesis.cli run "$address/openapi.json" \
  --tls-verify "$ca" --header "Authorization: Bearer $token" \
  --checks all --max-examples "${HEDDLE_EXAMPLES:-40}" --workers 2 --request-timeout 20 --seed "${HEDDLE_SEED:-1}" \
  --continue-on-failure "$@"
