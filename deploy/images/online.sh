#!/bin/sh
# Runs a command of a build that needs the package index, told where that is and whom to trust by the build's secrets.
set -eu
export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_NO_PROGRESS=1
# Compiled here, once: a read-only root could not keep what Python compiles. By hash, so that copying changes nothing.
export UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH
if [ -s /run/secrets/index ]; then
  set -a
  . /run/secrets/index
  set +a
fi
if [ -s /run/secrets/ca ]; then
  export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca REQUESTS_CA_BUNDLE=/run/secrets/ca
fi
exec "$@"
