#!/usr/bin/env bash
# Builds the images: build.sh [services] [trainer] [-- OPTIONS of the engine]. `make images` builds both.
#
#   ENGINE     docker, podman or buildah; the first of these that is here otherwise
#   REGISTRY   what the names begin with, such as registry.example.com/team/; nothing otherwise
#   TAG        the project's version otherwise
#   BASE       another base image, or the same one by digest; see the Dockerfile
#   UV_CACHE   with podman or buildah: a folder with uv's cache, so that what was downloaded before is not downloaded again
#
# Where this machine's environment tells pip and uv of another index, of a proxy or of certificates, the build is told
# too, by secrets that no image keeps.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
  echo "usage: deploy/images/build.sh [services] [trainer] [-- OPTIONS]" >&2
  exit 2
}

targets=()
while [ $# -gt 0 ]; do
  case $1 in
    services | trainer) targets+=("$1") ;;
    --) shift && break ;;
    *) usage ;;
  esac
  shift
done
[ ${#targets[@]} -gt 0 ] || targets=(services trainer)

if [ -z "${ENGINE:-}" ]; then
  for ENGINE in docker podman buildah ""; do
    # A docker without a daemon builds nothing.
    [ "$ENGINE" = docker ] && ! docker info >/dev/null 2>&1 && continue
    [ -z "$ENGINE" ] || ! command -v "$ENGINE" >/dev/null || break
  done
fi
case $ENGINE in
  docker) build=(docker build) ;;
  podman) build=(podman build --layers --format oci) ;;
  buildah) build=(buildah build --layers --format oci) ;;
  "") echo "images are built with docker (a running one), podman or buildah, and none is here; install one" >&2 && exit 1 ;;
  *) echo "ENGINE=$ENGINE is none of docker, podman, buildah" >&2 && exit 2 ;;
esac

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown)

secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
: >"$secrets/index"
tell() { printf "%s='%s'\n" "$1" "${2//\'/\'\\\'\'}" >>"$secrets/index"; }
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL \
  UV_EXTRA_INDEX_URL UV_INSECURE_HOST HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
  [ -z "${!name:-}" ] || tell "$name" "${!name}"
done
if [ -n "${UV_CACHE:-}" ]; then
  [ "$ENGINE" != docker ] || { echo "UV_CACHE needs podman or buildah" >&2 && exit 2; }
  mkdir -p "$UV_CACHE"
  build+=(--volume "$(realpath "$UV_CACHE"):/host-uv")
  tell UV_CACHE_DIR /host-uv
fi
build+=(--secret "id=index,src=$secrets/index")
certificates=${SSL_CERT_FILE:-${PIP_CERT:-}}
[ ! -s "$certificates" ] || build+=(--secret "id=ca,src=$certificates")
[ -z "${BASE:-}" ] || build+=(--build-arg "BASE=$BASE")

for target in "${targets[@]}"; do
  name=${REGISTRY:-}flywheel/$target:${TAG:-$version}
  echo "== $name, with $ENGINE"
  "${build[@]}" "$@" --file deploy/images/Dockerfile --target "$target" --tag "$name" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" .
done
