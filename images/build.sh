#!/usr/bin/env bash
# Makes container images of programs that cargo has built: small, for any user, with a read-only root, without a shell.
#
#   images/build.sh [--bin FOLDER] [--base IMAGE] [--prefix PREFIX] [--tag TAG] [--save FILE.tar] [IMAGE...]
#
# IMAGE: heddle-proxy, heddle-capture, heddle-control-plane, heddle or heddle-shop; without any, the first four.
#   --bin     where the programs are; default: target/release
#   --base    what to build upon. `scratch` (the default) gets the libraries that a program needs from this machine; any
#             other base must have glibc, no older than this machine's
#   --prefix  of the images' names; default: localhost
#   --tag     default: the workspace's version
#   --save    also write them all to one archive
#
# Needs podman, or what ENGINE names; strip; for heddle-capture nft.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
engine=${ENGINE:-podman} bin=$here/../target/release base=scratch prefix=localhost save=
tag=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml" | head -1)
images=() names=()
while [ $# -gt 0 ]; do
  case $1 in
  --bin) bin=$2; shift ;;
  --base) base=$2; shift ;;
  --prefix) prefix=$2; shift ;;
  --tag) tag=$2; shift ;;
  --save) save=$(readlink -f "$(dirname "$2")")/$(basename "$2"); shift ;;
  -*) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
  *) images+=("$1") ;;
  esac
  shift
done
[ ${#images[@]} -gt 0 ] || images=(heddle-proxy heddle-capture heddle-control-plane heddle)

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# A program at its place below a root, and where there is no base what it is linked with, too.
put() { # ROOT PROGRAM PATH
  mkdir -p "$1/$(dirname "$3")"
  strip --strip-debug -o "$1/$3" "$2"
  chmod 755 "$1/$3"
  [ "$base" = scratch ] || return 0
  ldd "$2" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*\) .*/\1/p' | while read -r library; do
    mkdir -p "$1$(dirname "$library")"
    cp -L --preserve=mode "$library" "$1$library"
  done
}

# The authorities that this machine trusts, for what is called outside of the mesh by https: collectors of spans.
authorities() { # ROOT
  [ "$base" = scratch ] || return 0
  mkdir -p "$1/etc/ssl/certs"
  cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
}

for image in "${images[@]}"; do
  context=$stage/$image root=$stage/$image/root
  mkdir -p "$context/own" # folders of the image's user
  case $image in
  heddle-control-plane) put "$root" "$bin/$image" "usr/bin/$image" && mkdir "$context/own/data" ;;
  heddle) put "$root" "$bin/$image" "usr/bin/$image" && mkdir "$context/own/join" ;;
  heddle-proxy) put "$root" "$bin/$image" "usr/bin/$image" && authorities "$root" ;;
  heddle-capture)
    put "$root" "$bin/heddle-proxy" usr/bin/heddle-proxy
    put "$root" "$(PATH=$PATH:/usr/sbin command -v nft)" usr/sbin/nft
    ;;
  heddle-shop) put "$root" "$bin/shop" usr/bin/shop && authorities "$root" ;;
  *) echo "build.sh: there is no image $image" >&2; exit 2 ;;
  esac
  "$engine" build --quiet --build-arg "BASE=$base" --file "$here/$image.Containerfile" --tag "$prefix/$image:$tag" "$context" > /dev/null
  names+=("$prefix/$image:$tag")
  echo "$prefix/$image:$tag"
done
if [ -n "$save" ]; then
  rm -f "$save"
  several=()
  [ "$(basename "$engine")" != podman ] || several=(--multi-image-archive)
  "$engine" save "${several[@]}" --output "$save" "${names[@]}" > /dev/null
fi
