#!/usr/bin/env bash
# Gets Python programs that tests talk to (from PyPI), and prints the path of their interpreter.
# Needs Python 3. Whoever changes what is got raises the number, here and where tests name it.
set -euo pipefail
home=${HEDDLE_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/heddle-peers}/python-2
if [ ! -x "$home/bin/python" ]; then
  mkdir -p "$(dirname "$home")"
  rm -rf "$home.new"
  python3 -m venv "$home.new"
  "$home.new/bin/pip" install --quiet --disable-pip-version-check \
    grpcio==1.85.1 websockets==17.4 aiosmtpd==1.4.6 pika==1.4.4 >&2
  mv "$home.new" "$home"
fi
echo "$home/bin/python"
