#!/usr/bin/env bash
# Gets a real Jaeger v2 (built from its Go module, kept by version) and prints the program's path.
# Needs Go. About 6 minutes the first time on 2 cores.
set -eu
version=1.76.0
home=${HEDDLE_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/heddle-peers}
program=$home/jaeger-$version
if [ ! -x "$program" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  # `go install` refuses the module for its replace directives: take its own module file, renamed.
  go mod download -json "github.com/jaegertracing/jaeger@v$version" > download.json
  module=$(sed -n 's/.*"Dir": "\(.*\)",/\1/p' download.json)
  sed 's#^module .*#module jaegerbuild#' "$module/go.mod" > go.mod
  cp "$module/go.sum" go.sum
  chmod u+w go.mod go.sum
  go get -tool "github.com/jaegertracing/jaeger/cmd/jaeger@v$version" >&2
  mkdir -p "$home"
  go build -trimpath -ldflags='-s -w' -o "$program.new" github.com/jaegertracing/jaeger/cmd/jaeger >&2
  mv "$program.new" "$program"
fi
echo "$program"
