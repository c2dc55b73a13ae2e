#!/bin/sh
# Exit with 0 if the server in this container can answer requests. For probes: /ping of TorchServe answers 200 too early.
#   torchserve    every model that TorchServe lists has a worker in the state READY
#   ray           the HTTP proxy of Ray Serve is healthy
set -eu

get() {
    wget --quiet --tries 1 --timeout 2 --output-document - "$1"
}

case "$1" in
torchserve)
    management=${MANAGEMENT_URL:-http://127.0.0.1:8081}
    models=$(get "$management/models?limit=100" | sed -n 's/.*"modelName": "\([^"]*\)".*/\1/p')
    test -n "$models"
    for model in $models; do
        get "$management/models/$model" | grep -q '"status": "READY"'
    done
    ;;
ray)
    get "${PROXY_URL:-http://127.0.0.1:8000}/-/healthz" | grep -q success
    ;;
esac
